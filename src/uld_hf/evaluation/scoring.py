"""One pass over answers, from which every likelihood measure follows: what a model makes of each of their tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..logit_difference import Outside, check_subtraction, logit_difference
from ..modeling_uld import ULDForCausalLM


MAX_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TokenScores:
    """
    What a model makes of the tokens of one answer, its end included.

    Args:
        log_probs (`numpy.ndarray` of shape `(num_tokens,)`):
            Log-probability of each token, in nats.
        means (`numpy.ndarray` of shape `(num_tokens,)`):
            Mean log-probability of a token drawn from the model at that place (minus its entropy).
        deviations (`numpy.ndarray` of shape `(num_tokens,)`):
            Standard deviation of the same.
        most_probable (`numpy.ndarray` of `bool` of shape `(num_tokens,)`):
            Whether the token is the model's first choice.
    """

    log_probs: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    most_probable: np.ndarray

    @property
    def loss(self) -> float:
        """Negative log-likelihood, in nats per token."""
        return float(-self.log_probs.mean())

    @property
    def probability(self) -> float:
        """Geometric mean of the tokens' probabilities, which is TOFU's probability of an answer."""
        return float(np.exp(self.log_probs.mean()))


@dataclass(frozen=True)
class Subtraction:
    """
    Settings of the subtraction to try on an unlearned model, see [`ULDModelConfig`].

    Args:
        alpha (`float`):
            Weight of the assistant's logits. Several assistants keep the proportions of their weights: it is that of
            the first.
        relative_top (`float`, *optional*, defaults to `0.01`):
            Plausibility filter; `0` turns it off.
        outside (`"keep"` or `"mask"`, *optional*, defaults to `"keep"`):
            What happens to the tokens outside of the filter.
        center (`bool`, *optional*, defaults to `True`):
            Whether a uniform assistant changes nothing.
        clamp (`bool`, *optional*, defaults to `False`):
            Whether tokens that the assistant finds improbable are left alone.

    Raises:
        ValueError: If a setting is out of range.
    """

    alpha: float
    relative_top: float = 0.01
    outside: Outside = "keep"
    center: bool = True
    clamp: bool = False

    def __post_init__(self) -> None:
        check_subtraction(self.alpha, self.relative_top, self.outside, self.center, self.clamp)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, with_end: bool = True
) -> tuple[list[int], int]:
    """
    Tokens of prompt, completion and end, as in training.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        prompt (`str`):
            The prompt.
        completion (`str`):
            The completion, with its leading space.
        with_end (`bool`, *optional*, defaults to `True`):
            Whether the end token follows. A passage from the middle of a text has none.

    Returns:
        `tuple[list[int], int]`: The tokens, and how many of them belong to the prompt.
    """
    prompt_ids = tokenizer(prompt)["input_ids"]
    input_ids = tokenizer(prompt + completion)["input_ids"]
    if with_end and input_ids[-1] != tokenizer.eos_token_id:
        input_ids = [*input_ids, tokenizer.eos_token_id]
    same = [first == second for first, second in zip(prompt_ids, input_ids, strict=False)]
    return input_ids, same.index(False) if False in same else len(same)


def context_length(model: PreTrainedModel) -> int | None:
    """
    Most tokens that a model can be given.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.

    Returns:
        `int` or `None`: `None` if there is no limit: models with ALiBi (BLOOM) have no positions to run out of.
    """
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def check_lengths(model: PreTrainedModel, lengths: Sequence[int]) -> None:
    """
    Refuse rows that are longer than the model's context.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        lengths (`Sequence[int]`):
            Length of each row, in tokens.

    Raises:
        ValueError: If a row is too long.
    """
    longest = context_length(model)
    long = [] if longest is None else [index for index, length in enumerate(lengths) if length > longest]
    if long:
        raise ValueError(
            f"{len(long)} of {len(lengths)} rows are longer than the model's context of {longest} tokens (row "
            f"{long[0]} has {lengths[long[0]]}): shorten them or leave them out, their figures would mean nothing."
        )


def _batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    max_batch_tokens: int,
    with_end: bool = True,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor], torch.Tensor, list[int]]]:
    """Batches of rows of like length: their indices, inputs, which predictions count, and how many in each row."""
    encoded = [encode(tokenizer, *pair, with_end) for pair in zip(prompts, completions, strict=True)]
    check_lengths(model, [len(ids) for ids, _ in encoded])
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index][0]))
    with tqdm(total=len(order), desc="Scoring answers", leave=False) as progress:
        while order:
            length = len(encoded[order[0]][0])
            size = max(1, max_batch_tokens // length)
            batch, order = order[:size], order[size:]
            input_ids = torch.zeros(len(batch), length, dtype=torch.long)
            attention_mask = torch.zeros_like(input_ids)
            counted = torch.zeros(len(batch), length, dtype=torch.bool)
            for row, index in enumerate(batch):
                ids, prompt_length = encoded[index]
                input_ids[row, : len(ids)] = torch.tensor(ids)
                attention_mask[row, : len(ids)] = 1
                counted[row, prompt_length : len(ids)] = True
            inputs = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
            yield batch, inputs, counted.to(model.device), counted.sum(dim=1).tolist()
            progress.update(len(batch))


def _token_scores(logits: torch.Tensor, tokens: torch.Tensor, lengths: list[int]) -> list[TokenScores]:
    """Scores of the counted tokens of a batch, row by row; `logits` has one row for each."""
    log_probs = logits.float().log_softmax(dim=-1)
    # A token that cannot be drawn adds nothing to mean and deviation: 0, where the product would be 0 times infinity.
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    probs = log_probs.exp()
    means = (probs * finite).sum(dim=-1)
    variances = (probs * finite.square()).sum(dim=-1) - means.square()
    columns = (
        log_probs.gather(-1, tokens[:, None]).squeeze(-1),
        means,
        variances.clamp(min=0).sqrt(),
        log_probs.argmax(dim=-1) == tokens,
    )
    by_row = zip(*(column.cpu().split(lengths) for column in columns), strict=True)
    return [TokenScores(*(value.numpy() for value in row)) for row in by_row]


@torch.no_grad()
def score_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    with_end: bool = True,
) -> list[TokenScores]:
    """
    What a model makes of each completion's tokens, its end included.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            Prompts.
        completions (`Sequence[str]`):
            One completion for each prompt, with its leading space.
        max_batch_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens of a batch, padding included: the logits held at once are so many times the vocabulary.
        with_end (`bool`, *optional*, defaults to `True`):
            Whether the end token is scored too, as for answers; not for passages from the middle of a text.

    Returns:
        `list[TokenScores]`: One for each row.

    Raises:
        ValueError: If a row is longer than the model's context.
    """
    scores: list[TokenScores] = [None] * len(prompts)  # filled below, in order of length
    arguments = (model, tokenizer, prompts, completions, max_batch_tokens, with_end)
    for batch, inputs, counted, lengths in _batches(*arguments):
        logits = model(**inputs, use_cache=False).logits[:, :-1][counted[:, 1:]]
        for index, row in zip(batch, _token_scores(logits, inputs["input_ids"][counted], lengths), strict=True):
            scores[index] = row
    return scores


@torch.no_grad()
def score_subtractions(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    subtractions: Sequence[Subtraction],
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> tuple[list[TokenScores], list[list[TokenScores]]]:
    """
    The same for the target and for every setting of the subtraction, from one pass of target and assistants.

    Args:
        model ([`ULDForCausalLM`]):
            The unlearned model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            Prompts.
        completions (`Sequence[str]`):
            One completion for each prompt, with its leading space.
        subtractions (`Sequence[Subtraction]`):
            Settings to try.
        max_batch_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens of a batch, padding included.

    Returns:
        `tuple[list[TokenScores], list[list[TokenScores]]]`: The target's scores, and those of each setting.

    Raises:
        ValueError: If a row is longer than the model's context.
    """
    weights = [entry["alpha"] for entry in model.config.assistants.values()]

    def subtract(setting: Subtraction, target: torch.Tensor, assistants: list[torch.Tensor]) -> torch.Tensor:
        return logit_difference(
            target,
            assistants,
            [setting.alpha * weight / weights[0] for weight in weights],
            relative_top=setting.relative_top,
            outside=setting.outside,
            center=setting.center,
            clamp=setting.clamp,
        )

    views: list[Callable[[torch.Tensor, list[torch.Tensor]], torch.Tensor]] = [lambda target, assistants: target]
    views += [lambda *logits, setting=setting: subtract(setting, *logits) for setting in subtractions]
    scores: list[list[TokenScores]] = [[None] * len(prompts) for _ in views]
    arguments = (model, tokenizer, prompts, completions, max_batch_tokens)
    for batch, inputs, counted, lengths in _batches(*arguments):
        tokens = inputs["input_ids"][counted]
        target_logits, assistant_logits = model.component_logits(**inputs)
        target_logits = target_logits[:, :-1][counted[:, 1:]]
        assistant_logits = [logits[:, :-1][counted[:, 1:]] for logits in assistant_logits]
        for of_view, view in zip(scores, views, strict=True):
            rows = _token_scores(view(target_logits, assistant_logits), tokens, lengths)
            for index, row in zip(batch, rows, strict=True):
                of_view[index] = row
    return scores[0], scores[1:]
