"""One pass over answers, from which every likelihood measure follows: what a model makes of each of their tokens."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_uld import ULDForCausalLM
from ..subtraction import Outside, check_subtraction, logit_difference


MAX_BATCH_TOKENS = 4096
TOKENS_AT_ONCE = 64


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
            Weight of the assistant's logits. Several assistants keep the signs and the proportions of their weights: it
            is that of the first, or its opposite if that one is added.
        relative_top (`float`, *optional*, defaults to `0.01`):
            Plausibility filter; `0` turns it off.
        outside (`"keep"` or `"mask"`, *optional*, defaults to `"keep"`):
            What happens to the tokens outside of the filter.
        center (`bool`, *optional*, defaults to `True`):
            Whether a uniform assistant changes nothing.
        clamp (`bool`, *optional*, defaults to `False`):
            Whether tokens that the assistant finds improbable are left alone.
        remove_top_k (`int`, *optional*, defaults to `0`):
            How many tokens are ruled out instead of subtracting; `alpha` then counts by its sign only.

    Raises:
        ValueError: If a setting is out of range.
    """

    alpha: float
    relative_top: float = 0.01
    outside: Outside = "keep"
    center: bool = True
    clamp: bool = False
    remove_top_k: int = 0

    def __post_init__(self) -> None:
        check_subtraction(**vars(self))


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


def check_lengths(model: PreTrainedModel, lengths: Sequence[int], what: str = "") -> None:
    """
    Refuse rows that are longer than the model's context.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        lengths (`Sequence[int]`):
            Length of each row, in tokens.
        what (`str`, *optional*, defaults to `""`):
            What the lengths include, for the message.

    Raises:
        ValueError: If a row is too long.
    """
    longest = context_length(model)
    long = [] if longest is None else [index for index, length in enumerate(lengths) if length > longest]
    if long:
        raise ValueError(
            f"{len(long)} of {len(lengths)} rows {what}are longer than the model's context of {longest} tokens (row "
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


def _statistics(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The columns of [`TokenScores`]; `logits` has one row for each token."""
    log_probs = logits.float().log_softmax(dim=-1)
    # A token that cannot be drawn adds nothing to mean and deviation: 0, where the product would be 0 times infinity.
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    probs = log_probs.exp()
    means = (probs * finite).sum(dim=-1)
    variances = (probs * finite.square()).sum(dim=-1) - means.square()
    return (
        log_probs.gather(-1, tokens[:, None]).squeeze(-1),
        means,
        variances.clamp(min=0).sqrt(),
        log_probs.argmax(dim=-1) == tokens,
    )


def _answer_logits(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], counted: torch.Tensor
) -> list[torch.Tensor]:
    """
    Logits that predict the counted tokens, one row for each: the model's, or of an unlearned model those of its target
    and of each assistant. The head is not run on what only prompts have.
    """
    first = max(0, int(counted.any(dim=0).nonzero()[0]) - 1)
    can_keep = model._supports_logits_to_keep()
    options = {"logits_to_keep": counted.shape[1] - first} if can_keep else {}
    if isinstance(model, ULDForCausalLM):
        target, assistants = model.component_logits(**inputs, **options)
        parts = [target, *assistants]
    else:
        parts = [model(**inputs, use_cache=False, **options).logits]
    return [part[:, 0 if can_keep else first : -1][counted[:, first + 1 :]] for part in parts]


def _token_scores(
    model: PreTrainedModel, parts: Sequence[torch.Tensor], tokens: torch.Tensor, lengths: list[int]
) -> list[TokenScores]:
    """Scores of the counted tokens of a batch, row by row; `parts` of [`_answer_logits`]."""
    # A few tokens at a time: what is computed on the way is several times as large as the logits, and stays in a cache.
    columns = []
    for tokens_here, *parts_here in zip(
        tokens.split(TOKENS_AT_ONCE), *(part.split(TOKENS_AT_ONCE) for part in parts), strict=True
    ):
        logits = parts_here[0] if len(parts_here) == 1 else model.subtract(parts_here[0], parts_here[1:])
        columns.append(_statistics(logits, tokens_here))
    columns = zip(*columns, strict=True)
    by_row = zip(*(torch.cat(column).cpu().split(lengths) for column in columns), strict=True)
    return [TokenScores(*(value.numpy() for value in row)) for row in by_row]


def _subtracted_log_probs(
    target: torch.Tensor,
    assistants: Sequence[torch.Tensor],
    proportions: Sequence[float],
    subtractions: Sequence[Subtraction],
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Log-probabilities of tokens by the target, and by every setting; of shape `(1 + settings, num_tokens)`."""

    def log_probs(logits: torch.Tensor) -> torch.Tensor:
        return logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)

    target = target.float()
    rows = [log_probs(target)]
    # The difference is linear in alpha: settings that differ in nothing else share all but a multiple of one step.
    steps: dict[Subtraction, torch.Tensor] = {}
    for setting in subtractions:
        unit = replace(setting, alpha=math.copysign(1.0, setting.alpha))
        if unit not in steps:
            options = {name: value for name, value in vars(unit).items() if name != "alpha"}
            weights = [unit.alpha * proportion for proportion in proportions]
            step = target - logit_difference(target, assistants, weights, **options)
            steps[unit] = step.masked_fill(target == -torch.inf, 0.0)
        rows.append(log_probs(torch.sub(target, steps[unit], alpha=abs(setting.alpha))))
    return torch.stack(rows)


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
        parts = _answer_logits(model, inputs, counted)
        rows = _token_scores(model, parts, inputs["input_ids"][counted], lengths)
        for index, row in zip(batch, rows, strict=True):
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
    with_end: bool = True,
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """
    Log-probabilities by the target and by every setting of the subtraction, from one pass of target and assistants.

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
        with_end (`bool`, *optional*, defaults to `True`):
            Whether the end token is scored too, as for answers; not for passages from the middle of a text.

    Returns:
        `tuple[list[numpy.ndarray], list[list[numpy.ndarray]]]`: For the target, and for each setting: of every row the
        log-probabilities, in nats, of shape `(num_tokens,)`.

    Raises:
        ValueError: If a row is longer than the model's context.
    """
    weights = [entry["alpha"] for entry in model.config.assistants.values()]
    proportions = [weight / abs(weights[0]) for weight in weights]
    scores: list[list[np.ndarray]] = [[None] * len(prompts) for _ in (None, *subtractions)]
    arguments = (model, tokenizer, prompts, completions, max_batch_tokens, with_end)
    for batch, inputs, counted, lengths in _batches(*arguments):
        logits = [part.split(TOKENS_AT_ONCE) for part in _answer_logits(model, inputs, counted)]
        log_probs = torch.cat(
            [
                _subtracted_log_probs(target, assistants, proportions, subtractions, tokens)
                for tokens, target, *assistants in zip(
                    inputs["input_ids"][counted].split(TOKENS_AT_ONCE), *logits, strict=True
                )
            ],
            dim=1,
        )
        for of_setting, values in zip(scores, log_probs.cpu(), strict=True):
            for index, row in zip(batch, values.split(lengths), strict=True):
                of_setting[index] = row.numpy()
    return scores[0], scores[1:]
