"""TOFU's measures (arXiv 2401.06121, section 2.2): probability, ROUGE-L recall, truth ratio, forget quality."""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile
from typing import Literal

import numpy as np
from scipy.special import softmax
from scipy.stats import hmean, ks_2samp
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..context import context_length
from ..kept_positions import head_at_once
from .encoding import encode_prompts, pad
from .known_starts import KnownStart, batches_to_generate, end_tokens, known_starts
from .scoring import TokenScores
from .words import rouge_l, space_out


# The same phrase of one to four words three times in a row.
_REPETITION = re.compile(r"\b(\w+(?:\W+\w+){0,3})(?:\W+\1\b){2,}")


def generate_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    scores: Sequence[TokenScores] | None = None,
    ends: Collection[int] = (),
    strip: bool = True,
) -> list[str]:
    """
    Greedy completion of each prompt.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            Prompts.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Most tokens to generate.
        batch_size (`int`, *optional*, defaults to `32`):
            Prompts per call of `generate()`.
        scores (`Sequence[TokenScores]`, *optional*):
            What this model, as it is now, makes of the right completion of each prompt. As far as that is the greedy
            one it is not generated again: the same completions, sooner.
        ends (`Collection[int]`, *optional*):
            Tokens that end a completion, besides those of the model's generation config: a chat template may end turns
            with another one.
        strip (`bool`, *optional*, defaults to `True`):
            Whether white space around a completion is left out.

    Returns:
        `list[str]`: What follows each prompt up to the end, without special tokens.

    Raises:
        ValueError: If a prompt and its completion would be longer than the model's context.
    """
    encoded, pad_token_id = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    if scores is None:
        starts = [KnownStart(ids=[], is_whole=False, expected_rest=max_new_tokens) for _ in encoded]
    else:
        starts = known_starts(model, encoded, scores, max_new_tokens, ends)
    all_ends = [*end_tokens(model), *ends]
    completions = [start.ids for start in starts]
    batches = list(
        batches_to_generate(
            [*map(len, encoded)], starts, max_new_tokens, batch_size, context=context_length(model.config)
        )
    )
    for batch in tqdm(batches, desc="Answering questions", leave=False):
        rows = [[*encoded[index], *completions[index]] for index in batch]
        input_ids, attention_mask = pad(rows, pad_token_id, left=True)
        missing = [max_new_tokens - len(completions[index]) for index in batch]
        with head_at_once(model):
            generated = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                max_new_tokens=max(missing),
                do_sample=False,
                eos_token_id=all_ends or None,
                pad_token_id=pad_token_id,
            )
        new = generated[:, input_ids.shape[1] :].tolist()
        for index, ids, most in zip(batch, new, missing, strict=True):
            completions[index] = [*completions[index], *ids[:most]]
    return decode_answers(tokenizer, completions, ends, strip)


def decode_answers(
    tokenizer: PreTrainedTokenizerBase, answers: Iterable[Sequence[int]], ends: Collection[int], strip: bool = True
) -> list[str]:
    """
    Texts of generated answers.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        answers (`Iterable[Sequence[int]]`):
            Tokens of each.
        ends (`Collection[int]`):
            Tokens that end a turn, which need not be special ones: they and what follows are no part of the answer.
        strip (`bool`, *optional*, defaults to `True`):
            Whether white space around an answer is left out.

    Returns:
        `list[str]`: The texts, without special tokens.
    """
    said = [list(takewhile(lambda token: token not in ends, ids)) for ids in answers]
    texts = tokenizer.batch_decode(said, skip_special_tokens=True)
    return [text.strip() for text in texts] if strip else texts


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """
    ROUGE-L recall, with stemming, as TOFU's code computes it with `rouge-score`; in any script, see [`rouge_l`].

    Args:
        predictions (`Sequence[str]`):
            Generated answers.
        references (`Sequence[str]`):
            Right answers.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: Between 0 and 1.
    """
    return np.array([score.recall for score in rouge_l(predictions, references, use_stemmer=True)])


def truth_ratio(
    paraphrased_losses: np.ndarray, perturbed_losses: np.ndarray, mean: Literal["geometric", "arithmetic"] = "geometric"
) -> np.ndarray:
    """
    How probable wrong answers are beside a right one: their mean probability over the paraphrased right answer's.

    Args:
        paraphrased_losses (`numpy.ndarray` of shape `(num_rows,)`):
            Nats per token of the paraphrased right answers.
        perturbed_losses (`numpy.ndarray` of shape `(num_rows, num_perturbed)`):
            Nats per token of the wrong answers.
        mean (`"geometric"` or `"arithmetic"`, *optional*, defaults to `"geometric"`):
            Mean of the wrong answers' probabilities. The paper's equation 1 has the arithmetic one; the geometric one
            is what the benchmark's code and OpenUnlearning compute, and what published figures come from.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: Near 0 if the model knows the fact, about 1 if it does not; 1 where
        right and wrong answers are impossible alike, because tokens of both were ruled out.

    Raises:
        ValueError: If `mean` is another word.
    """
    if mean == "geometric":
        wrong = perturbed_losses.mean(axis=-1)
        impossible = np.isinf(paraphrased_losses) & np.isinf(wrong)
        return np.exp(np.where(impossible, 0.0, paraphrased_losses) - np.where(impossible, 0.0, wrong))
    if mean == "arithmetic":
        wrong = np.exp(-perturbed_losses).mean(axis=-1)
        impossible = np.isinf(paraphrased_losses) & (wrong == 0)
        return np.where(impossible, 1.0, np.exp(np.where(impossible, 0.0, paraphrased_losses)) * wrong)
    raise ValueError(f"mean={mean!r} must be 'geometric' or 'arithmetic'.")


def forget_quality(truth_ratios: np.ndarray, retrained_truth_ratios: np.ndarray) -> float:
    """
    Probability of truth ratios as far apart as these if unlearned and retrained model were alike.

    Args:
        truth_ratios (`numpy.ndarray` of shape `(num_rows,)`):
            The unlearned model's truth ratios on the forget set.
        retrained_truth_ratios (`numpy.ndarray` of shape `(num_rows,)`):
            Those of a model trained without the forget set.

    Returns:
        `float`: p-value of the two-sample Kolmogorov-Smirnov test; above 0.05 they cannot be told apart.
    """
    return float(ks_2samp(truth_ratios, retrained_truth_ratios).pvalue)


def summarize_truth_ratio(
    truth_ratios: np.ndarray, kind: Literal["closer_to_1_better", "true_better", "prob_mean"]
) -> float:
    """
    One figure from the truth ratios of a set, by OpenUnlearning's names for the three in use.

    Args:
        truth_ratios (`numpy.ndarray` of shape `(num_rows,)`):
            Results of [`truth_ratio`].
        kind (`str`):
            `"closer_to_1_better"`, mean of `min(r, 1 / r)`: TOFU's on the forget set. `"true_better"`, mean of
            `max(0, 1 - r)`: TOFU's on all other sets. `"prob_mean"`, mean of `1 / (1 + r)`: the right answer's share
            of the probability, which OpenUnlearning takes as a measure of memorisation.

    Returns:
        `float`: Between 0 and 1.

    Raises:
        ValueError: If `kind` is another word.
    """
    if kind == "closer_to_1_better":
        return float(np.minimum(truth_ratios, 1 / truth_ratios).mean())
    if kind == "true_better":
        return float(np.maximum(0, 1 - truth_ratios).mean())
    if kind == "prob_mean":
        return float((1 / (1 + truth_ratios)).mean())
    raise ValueError(f"kind={kind!r} must be 'closer_to_1_better', 'true_better' or 'prob_mean'.")


def normalized_probability(right_losses: np.ndarray, wrong_losses: np.ndarray) -> np.ndarray:
    """
    The right answer's share of the probability of right and wrong answers: TOFU's measure where options are known.

    Args:
        right_losses (`numpy.ndarray` of shape `(num_rows,)`):
            Nats per token of the right answers.
        wrong_losses (`numpy.ndarray` of shape `(num_rows, num_wrong)`):
            Nats per token of the wrong ones.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: Between 0 and 1; that of a guess where all answers are impossible
            alike, because tokens of each were ruled out.
    """
    losses = np.column_stack([right_losses, wrong_losses])
    impossible = np.isinf(losses).all(axis=-1, keepdims=True)
    return softmax(np.where(impossible, 0.0, -losses), axis=-1)[:, 0]


def model_utility(figures: Sequence[float]) -> float:
    """
    TOFU's utility: the harmonic mean of probability, ROUGE-L recall and truth ratio on three sets that must be kept.

    Args:
        figures (`Sequence[float]`):
            The nine figures: of the retain set, the real authors and the world facts.

    Returns:
        `float`: Between 0 and 1; 0 if one of them is.
    """
    return float(hmean(figures))


def is_degenerate(text: str) -> bool:
    """
    Whether a generated answer is broken: without a word, or repeating a phrase three times in a row.

    Args:
        text (`str`):
            A generated answer.

    Returns:
        `bool`: `True` for an empty or repetitive text.
    """
    return not re.search(r"\w", text) or _REPETITION.search(space_out(text)) is not None
