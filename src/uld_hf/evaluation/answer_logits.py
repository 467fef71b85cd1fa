"""Logits that predict the tokens of answers, batch by batch. A prompt that several answers follow is run once.

TOFU asks for the likelihood of seven answers to every question. What a model makes of the question is the same for all
of them: it goes through the layers once, and the answers go on from its cache.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..cache_name import CACHE
from ..context import context_length
from ..kept_positions import positions_to_keep
from ..modeling_uld import ULDForCausalLM
from .encoding import pad


Row = tuple[Sequence[int], int]
Batch = tuple[list[int], list[torch.Tensor]]

# By exact type: a subclass may store what selecting rows does not reach.
SELECTABLE = (DynamicLayer, DynamicSlidingWindowLayer)
LEAST_FILLED = 0.85  # length of a batch's shortest row, as a share of the longest: padding costs as much as tokens


def answer_logits(model: PreTrainedModel, rows: Sequence[Row], max_batch_tokens: int) -> Iterator[Batch]:
    """
    Logits that predict the tokens of answers.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        rows (`Sequence[tuple[Sequence[int], int]]`):
            Tokens of prompt and answer, at least one of each, and how many are the prompt's.
        max_batch_tokens (`int`):
            Most tokens of a batch, padding and the cache of the prompts included. A batch has one row at least.

    Returns:
        `Iterator[tuple[list[int], list[torch.Tensor]]]`: The indices of a batch's rows; and of the model, or of an
        unlearned model's target and each of its assistants, logits of shape `(num_tokens, vocab_size)`, row after row.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (ids, start) in enumerate(rows):
        groups.setdefault(tuple(ids[:start]), []).append(index)
    # Of a prompt of one token there is nothing to share: a prompt's last token is run with every answer.
    shared = {prompt: members for prompt, members in groups.items() if len(members) > 1 and len(prompt) > 1}
    if shared and not can_share_prompts(model):
        shared = {}
    others = [index for prompt, members in groups.items() if prompt not in shared for index in members]
    yield from _whole_rows(model, rows, others, max_batch_tokens)
    yield from _shared_prompts(model, rows, shared, max_batch_tokens)


def depends_on_length(model: PreTrainedModel) -> bool:
    """
    Whether a model reads the same tokens otherwise in a longer text, so that what it made of them does not hold there.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.

    Returns:
        `bool`: Whether it has rotary frequencies that depend on the length.
    """
    kinds = [vars(module).get("rope_type") for module in model.modules()]
    kinds = [kind for each in kinds for kind in (each.values() if isinstance(each, Mapping) else [each])]
    return any(kind in ("dynamic", "longrope") for kind in kinds)


def can_share_prompts(model: PreTrainedModel) -> bool:
    """
    Whether answers that go on from the cache of their prompt get the logits that they get behind the prompt itself.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.

    Returns:
        `bool`: What a few short rows show. `False` too for what they cannot show: attention in chunks, and rotary
        frequencies that depend on the length.
    """
    config = model.config.get_text_config(decoder=True)
    if (
        vars(config).get("attention_chunk_size") is not None
        or depends_on_length(model)
        or any(type(layer) not in SELECTABLE for layer in DynamicCache(config=model.config).layers)
    ):
        return False
    vocab_size = len(model.get_input_embeddings().weight)
    lengths = [(6, 7), (6, 6), (6, 2), (3, 7), (3, 6), (3, 2)]  # of prompts and answers
    rows = [
        (
            [(7 * place + 3) % vocab_size for place in range(start)]
            + [(5 * place + 11 * length) % vocab_size for place in range(length)],
            start,
        )
        for start, length in lengths
    ]
    groups = {tuple(rows[index][0][: rows[index][1]]): [index, index + 1, index + 2] for index in (0, 3)}
    expected = _in_order(rows, _whole_rows(model, rows, range(len(rows)), 1024))
    try:  # both prompts at once; two batches go on from their cache, one of them padded
        actual = _in_order(rows, _shared_prompts(model, rows, groups, 60))
    except Exception:  # whatever keeps the model from it, it is run without
        return False
    tolerance = 1e-3 if torch.finfo(model.dtype).eps < 1e-6 else 0.02
    return bool((actual - expected).norm() <= tolerance * expected.norm())


def _in_order(rows: Sequence[Row], batches: Iterator[Batch]) -> torch.Tensor:
    """Logits of all rows. What is added to those of the whole vocabulary means nothing, and is taken off."""
    by_row: dict[int, torch.Tensor] = {}
    for batch, parts in batches:
        logits = torch.stack([part.float() - part.float().mean(dim=-1, keepdim=True) for part in parts])
        by_row |= zip(
            batch, logits.split([len(rows[index][0]) - rows[index][1] for index in batch], dim=1), strict=True
        )
    return torch.cat([by_row[index] for index in range(len(rows))], dim=1)


def _whole_rows(
    model: PreTrainedModel, rows: Sequence[Row], indices: Sequence[int], max_batch_tokens: int
) -> Iterator[Batch]:
    """Batches of rows. The last token of a row predicts nothing, and is not run."""
    lengths = {index: len(rows[index][0]) - 1 for index in indices}
    for batch in _of_like_length(lengths, lambda longest: max_batch_tokens // longest):
        input_ids, attention_mask = pad([rows[index][0][:-1] for index in batch])
        starts = torch.tensor([rows[index][1] for index in batch]) - 1
        predicts = attention_mask.bool() & (torch.arange(input_ids.shape[1]) >= starts[:, None])
        # The head is not run on what only prompts have.
        yield batch, _logits_at(predicts[:, starts.min() :], model, input_ids, attention_mask)


def _shared_prompts(
    model: PreTrainedModel, rows: Sequence[Row], groups: Mapping[tuple[int, ...], list[int]], max_batch_tokens: int
) -> Iterator[Batch]:
    """
    Batches of answers, behind the cache of their prompts, which are run before them, many at once.

    A prompt's last token is run with every answer, whose first token it predicts: all logits then come from one pass.
    """
    widths = {prompt: max(len(rows[index][0]) - len(prompt) for index in groups[prompt]) for prompt in groups}
    context = context_length(model.config)
    waiting = sorted(groups, key=len, reverse=True)
    while waiting:
        # A quarter of the tokens for the prompts leaves room for batches of answers.
        size = max(1, max_batch_tokens // 4 // (len(waiting[0]) - 1))
        if context is not None and len(waiting[0]) + max(widths[prompt] for prompt in waiting[:size]) > context:
            size = 1  # padding would not fit
        prompts, waiting = waiting[:size], waiting[size:]
        prompt_ids, prompt_mask = pad([prompt[:-1] for prompt in prompts], left=True)
        cache = DynamicCache(config=model.config)
        _logits_at(torch.zeros(len(prompts), 1, dtype=torch.bool), model, prompt_ids, prompt_mask, cache)
        prompt_of = {index: number for number, prompt in enumerate(prompts) for index in groups[prompt]}
        lengths = {index: len(rows[index][0]) - rows[index][1] for index in prompt_of}
        room, behind = max_batch_tokens - prompt_ids.numel(), prompt_ids.shape[1]
        for batch in _of_like_length(lengths, lambda longest, room=room, behind=behind: room // (behind + longest)):
            input_ids, own_mask = pad([rows[index][0][rows[index][1] - 1 : -1] for index in batch])
            chosen = torch.tensor([prompt_of[index] for index in batch])
            attention_mask = torch.cat([prompt_mask[chosen], own_mask], dim=1)
            yield batch, _logits_at(own_mask.bool(), model, input_ids, attention_mask, _select(cache, chosen))


def _of_like_length(lengths: Mapping[int, int], most: Callable[[int], int]) -> Iterator[list[int]]:
    """Rows in batches, of at most `most(longest)` rows (but one) and so that little is padding."""
    batch: list[int] = []
    for index in sorted(lengths, key=lengths.__getitem__, reverse=True):
        longest = lengths[batch[0]] if batch else 0
        if batch and (len(batch) >= most(longest) or lengths[index] < LEAST_FILLED * longest):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _select(cache: Cache, rows: torch.Tensor) -> Cache:
    """A cache of rows of another one, each any number of times; that one stays as it is."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected


def _logits_at(
    positions: torch.Tensor,
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    cache: Cache | None = None,
) -> list[torch.Tensor]:
    """
    Logits at some of the last positions, one row for each: the model's, or of an unlearned model its target's and each
    assistant's. The head is run on the last positions only.
    """
    width = positions.shape[1]
    positions = positions.to(model.device)
    inputs = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
    if model._supports_logits_to_keep():
        inputs["logits_to_keep"] = positions_to_keep(width, input_ids)
    is_unlearned = isinstance(model, ULDForCausalLM)
    if cache is not None:
        inputs["past_key_values" if is_unlearned else CACHE] = cache
        # The others take positions from the mask.
        if "position_ids" in inspect.signature((model.target if is_unlearned else model).forward).parameters:
            position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            inputs["position_ids"] = position_ids[:, -input_ids.shape[1] :].to(model.device)
    if is_unlearned:
        target, assistants = model.component_logits(**inputs)
        logits = [target, *assistants]
        del target, assistants  # or they would be held beside what is taken out of them
    else:
        logits = [model(**inputs, use_cache=cache is not None).logits]
    # Each takes the place of what it is taken from: only one at a time is held twice.
    for place in range(len(logits)):
        logits[place] = logits[place][:, -width:][positions]
    return logits
