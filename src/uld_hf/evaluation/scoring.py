"""One pass over answers, from which every likelihood measure follows: what a model makes of each of their tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_uld import ULDForCausalLM
from ..subtraction import (
    Outside,
    any_open,
    certainties_of,
    check_subtraction,
    clamp_or_default,
    logit_difference,
    open_gates,
)
from .answer_logits import answer_logits
from .encoding import check_lengths, check_predictable, encode


MAX_BATCH_TOKENS = 4096
TOKENS_AT_ONCE = 64


@dataclass(frozen=True)
class ChoiceScores:
    """
    How likely a model finds the tokens of one answer, its end included.

    Args:
        log_probs (`numpy.ndarray` of shape `(num_tokens,)`):
            Log-probability of each token, in nats.
        most_probable (`numpy.ndarray` of `bool` of shape `(num_tokens,)`):
            Whether the token is the model's first choice.
    """

    log_probs: np.ndarray
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
class TokenScores(ChoiceScores):
    """
    What a model makes of the tokens of one answer: [`ChoiceScores`], and what it expected at their places.

    Args:
        means (`numpy.ndarray` of shape `(num_tokens,)`):
            Mean log-probability of a token drawn from the model at that place (minus its entropy).
        deviations (`numpy.ndarray` of shape `(num_tokens,)`):
            Standard deviation of the same.
        input_ids (`numpy.ndarray` of shape `(prompt_length + num_tokens,)`):
            Tokens of prompt and answer.
    """

    means: np.ndarray
    deviations: np.ndarray
    input_ids: np.ndarray

    def first_choices(self, prompt_ids: Sequence[int]) -> list[int]:
        """
        What the model says to a prompt, as far as that is the answer.

        Args:
            prompt_ids (`Sequence[int]`):
                Tokens of the prompt; the beginning of the answer may follow.

        Returns:
            `list[int]`: The answer's next tokens, up to the first one that is not the model's first choice. Empty if
            other tokens were scored.
        """
        length = len(prompt_ids)
        num_begun = length - (len(self.input_ids) - len(self.most_probable))  # tokens of the answer in the prompt
        if num_begun < 0 or self.input_ids[:length].tolist() != list(prompt_ids):
            return []
        others = np.flatnonzero(~self.most_probable[num_begun:])
        end = length + others[0] if len(others) else len(self.input_ids)
        return self.input_ids[length:end].tolist()


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
        clamp (`bool`, *optional*, defaults to the value of `center`):
            Whether tokens that the assistant finds improbable are left alone.
        remove_top_k (`int`, *optional*, defaults to `0`):
            How many tokens are ruled out instead of subtracting; `alpha` then counts by its sign only.
        gate (`float`, *optional*, defaults to `0.0`):
            Certainty below which an assistant is not subtracted.
        by_certainty (`bool`, *optional*, defaults to `False`):
            Whether an assistant is subtracted in proportion to its certainty.
        replace (`bool`, *optional*, defaults to `False`):
            Whether assistants that are added take the target's place where the gate is open.
        share (`float`, *optional*):
            Weight of every assistant that is added, as a share of the size of `alpha`. By default they keep their
            proportions.

    Raises:
        ValueError: If a setting is out of range.
    """

    alpha: float
    relative_top: float = 0.01
    outside: Outside = "keep"
    center: bool = True
    clamp: bool | None = None
    remove_top_k: int = 0
    gate: float = 0.0
    by_certainty: bool = False
    replace: bool = False
    share: float | None = None

    def __post_init__(self) -> None:
        # As dataclasses set fields of frozen instances.
        object.__setattr__(self, "clamp", clamp_or_default(self.clamp, self.center))
        check_subtraction(self.alpha, **self.options)
        if self.share is not None and not 0 < self.share < math.inf:  # also refuses NaN
            raise ValueError(f"share={self.share} must be above 0: without it nothing would be added.")

    @property
    def options(self) -> dict[str, Any]:
        """All settings but the weights, as [`logit_difference`] takes them."""
        return {name: value for name, value in vars(self).items() if name not in ("alpha", "share")}

    def weights(self, saved: Sequence[float]) -> list[float]:
        """
        The weight of each assistant.

        Args:
            saved (`Sequence[float]`):
                The weights that a model has.

        Returns:
            `list[float]`: Those under this setting.

        Raises:
            ValueError: If there is a share, and no assistant is added.
        """
        if self.share is not None and all(weight > 0 for weight in saved):
            raise ValueError(
                f"share={self.share} is of assistants that are added, and all of this model's are subtracted: leave it "
                "out, or add an assistant with a negative alpha (docs/contrast.md)."
            )
        first = abs(saved[0])
        return [self.alpha * (weight / first if self.share is None or weight > 0 else -self.share) for weight in saved]


def _statistics(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """
    Log-probabilities, means, deviations and first choices, of shape `(4, num_tokens)`; `logits` has one row for each
    token.
    """
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
        logits.argmax(dim=-1) == tokens,  # of the logits, as generate() chooses: log-probabilities are rounded
    )
    return torch.stack([column.float() for column in columns])


def _subtracted(
    target: torch.Tensor,
    assistants: Sequence[torch.Tensor],
    saved: Sequence[float],
    subtractions: Sequence[Subtraction],
    tokens: torch.Tensor,
) -> torch.Tensor:
    """
    The fields of [`ChoiceScores`] by the target, and by every setting; of shape `(1 + settings, 2, num_tokens)`.
    """

    def scores(logits: torch.Tensor) -> torch.Tensor:
        log_probs = logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)
        return torch.stack([log_probs, (logits.argmax(dim=-1) == tokens).float()])

    def scores_by_alpha(unit: Subtraction, sizes: Sequence[float]) -> list[torch.Tensor]:
        """The difference is linear in alpha: settings that differ in nothing else share all but a multiple of it."""
        weights = unit.weights(saved)
        composed = logit_difference(target, assistants, weights, **unit.options)
        if unit.replace:
            replaced = any_open(open_gates(certainties_of(assistants, weights, target), unit.gate))
            # The target is no part of the sum.
            return [scores(torch.where(replaced, size * composed, target)) for size in sizes]
        step = (target - composed).masked_fill(target == -torch.inf, 0.0)
        return [scores(torch.sub(target, step, alpha=size)) for size in sizes]

    target = target.float()
    places: dict[Subtraction, list[int]] = {}
    for place, setting in enumerate(subtractions):
        places.setdefault(replace(setting, alpha=math.copysign(1.0, setting.alpha)), []).append(place)
    # One after the other: what they share is as large as the logits, and a grid may have any number of them.
    by_place: dict[int, torch.Tensor] = {}
    for unit, of_unit in places.items():
        sizes = [abs(subtractions[place].alpha) for place in of_unit]
        by_place |= zip(of_unit, scores_by_alpha(unit, sizes), strict=True)
    return torch.stack([scores(target), *(by_place[place] for place in range(len(subtractions)))])


@torch.no_grad()
def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    max_batch_tokens: int,
    ends: Sequence[int | None] | None,
    measure: Callable[..., torch.Tensor],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Of every row, its tokens, and what `measure(tokens, logits, ...)` makes of those of its completion: of shape
    `(..., num_tokens)`. Its logits are the model's, or of an unlearned model the target's and each assistant's.
    """
    ends = [tokenizer.eos_token_id] * len(prompts) if ends is None else ends
    rows = [encode(tokenizer, *row) for row in zip(prompts, completions, ends, strict=True)]
    check_lengths(model, [len(ids) for ids, _ in rows])
    check_predictable(rows)
    measured: list[np.ndarray] = [None] * len(rows)  # filled in order of length
    with tqdm(total=len(rows), desc="Scoring answers", leave=False) as progress:
        for batch, logits in answer_logits(model, rows, max_batch_tokens):
            answers = [torch.tensor(rows[index][0][rows[index][1] :]) for index in batch]
            # A few tokens at a time: what is computed on the way is several times as large as the logits, and stays in
            # a cache.
            parts = [part.split(TOKENS_AT_ONCE) for part in (torch.cat(answers).to(model.device), *logits)]
            columns = torch.cat([measure(*each) for each in zip(*parts, strict=True)], dim=-1).cpu()
            for index, values in zip(batch, columns.split([*map(len, answers)], dim=-1), strict=True):
                measured[index] = values.numpy()
            progress.update(len(batch))
            del logits, parts  # or they would be held while the next ones are computed
    return [(np.array(ids), values) for (ids, _), values in zip(rows, measured, strict=True)]


def score_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    ends: Sequence[int | None] | None = None,
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
            Most tokens of a batch, padding and the cache of shared prompts included: the logits held at once are at
            most so many times the vocabulary.
        ends (`Sequence[int | None]`, *optional*):
            The token that ends each completion, which is scored too; `None` for a passage from the middle of a text.
            Defaults to the tokenizer's end token.

    Returns:
        `list[TokenScores]`: One for each row.

    Raises:
        ValueError: If a row is longer than the model's context, or has no token to score or to predict it from.
    """

    def statistics(tokens: torch.Tensor, logits: torch.Tensor, *assistants: torch.Tensor) -> torch.Tensor:
        return _statistics(model.subtract(logits, assistants) if assistants else logits, tokens)

    rows = _measure(model, tokenizer, prompts, completions, max_batch_tokens, ends, statistics)
    return [
        TokenScores(log_probs, top.astype(bool), means, deviations, input_ids)
        for input_ids, (log_probs, means, deviations, top) in rows
    ]


def score_subtractions(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    subtractions: Sequence[Subtraction],
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    ends: Sequence[int | None] | None = None,
) -> tuple[list[ChoiceScores], list[list[ChoiceScores]]]:
    """
    What the target and every setting of the subtraction make of completions, from one pass of target and assistants.

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
            Most tokens of a batch, padding and the cache of shared prompts included.
        ends (`Sequence[int | None]`, *optional*):
            The token that ends each completion, which is scored too; `None` for a passage from the middle of a text.
            Defaults to the tokenizer's end token.

    Returns:
        `tuple[list[ChoiceScores], list[list[ChoiceScores]]]`: For the target, and for each setting: one for each row.

    Raises:
        ValueError: If a row is longer than the model's context, has no token to score or to predict it from, or a
            setting has a share and no assistant is added.
    """
    saved = list(model.config.alphas.values())
    for setting in subtractions:
        setting.weights(saved)  # what cannot be is refused before anything is scored

    def scores(tokens: torch.Tensor, target: torch.Tensor, *assistants: torch.Tensor) -> torch.Tensor:
        return _subtracted(target, assistants, saved, subtractions, tokens)

    rows = _measure(model, tokenizer, prompts, completions, max_batch_tokens, ends, scores)
    target, *by_setting = (
        [ChoiceScores(row[place][0], row[place][1].astype(bool)) for _, row in rows]
        for place in range(1 + len(subtractions))
    )
    return target, by_setting
