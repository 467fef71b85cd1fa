"""Measures of memorisation, as OpenUnlearning has them (arXiv 2506.12618), and what its critics add."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import hmean
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .scoring import TokenScores


def exact_memorization(scores: TokenScores) -> float:
    """
    Share of an answer's tokens that are the model's first choice, given the right tokens before them.

    Args:
        scores ([`TokenScores`]):
            Scores of the answer.

    Returns:
        `float`: Between 0 and 1.
    """
    return float(scores.most_probable.mean())


def extraction_strength(scores: TokenScores) -> float:
    """
    Share of an answer that the model completes by itself, given what comes before it.

    The longest end of the answer whose tokens are all first choices. As in OpenUnlearning's code it is one token long
    even where the last token is not the first choice.

    Args:
        scores ([`TokenScores`]):
            Scores of the answer.

    Returns:
        `float`: Between `1 / num_tokens` and 1.
    """
    wrong = np.flatnonzero(~scores.most_probable)
    start = 0 if len(wrong) == 0 else min(wrong[-1] + 1, len(scores.most_probable) - 1)
    return float(1 - start / len(scores.most_probable))


def memorization_score(figures: Mapping[str, float], before: Mapping[str, float]) -> float:
    """
    OpenUnlearning's aggregate of how much has gone (arXiv 2506.12618, appendix F.1): 1 if all of it.

    Args:
        figures (`Mapping[str, float]`):
            The model's figures on the forget set, e.g. extraction strength, exact memorisation, probability of the
            paraphrased answers and truth ratio (its `"prob_mean"`): all of them larger where more is remembered.
        before (`Mapping[str, float]`):
            The same figures of the target, by which they are divided.

    Returns:
        `float`: Harmonic mean of `1 - figure / before`, each at least 0.

    Raises:
        ValueError: If the figures have different names, or the target's are not positive.
    """
    if figures.keys() != before.keys() or min(before.values()) <= 0:
        raise ValueError(f"Give the same positive figures for both models, got {dict(figures)} and {dict(before)}.")
    return float(hmean([max(0.0, 1 - figures[name] / before[name]) for name in figures]))


def fluency(
    texts: Sequence[str], classifier: Callable[[list[str]], list[dict[str, Any]]], clean: str = "clean"
) -> float:
    """
    OpenUnlearning's fluency: the mean probability, by a classifier, that a text is no gibberish.

    Args:
        texts (`Sequence[str]`):
            Generated answers.
        classifier (`Callable`):
            A `pipeline("text-classification", model=..., top_k=None)`, e.g. of
            `"madhurjindal/autonlp-Gibberish-Detector-492513457"`.
        clean (`str`, *optional*, defaults to `"clean"`):
            Label of texts that are no gibberish.

    Returns:
        `float`: Between 0 and 1. An empty text counts as gibberish.

    Raises:
        ValueError: If the classifier has no such label.
    """
    written = [text for text in texts if text.strip()]
    probabilities = []
    for scores in classifier(written) if written else []:
        by_label = {score["label"]: score["score"] for score in scores}
        if clean not in by_label:
            raise ValueError(f"The classifier has no label {clean!r}, only {list(by_label)}: name the right one.")
        probabilities.append(by_label[clean])
    return float(sum(probabilities) / len(texts))


def half_given(answer: str, fact: str) -> str | None:
    """
    An answer cut off just before its fact: does a model that was led so far say it after all?

    Args:
        answer (`str`):
            The right answer.
        fact (`str`):
            The words in it that must not come out.

    Returns:
        `str` or `None`: What comes before the fact, to be put behind the question; `None` where that is nothing.
    """
    before, found, _ = answer.partition(fact)
    return before.rstrip() if found and before.strip() else None


def leak_at_k(leaked: np.ndarray, k: int) -> np.ndarray:
    """
    Probability that at least one of `k` sampled answers leaks, from more samples than that.

    Args:
        leaked (`numpy.ndarray` of `bool` of shape `(num_rows, num_samples)`):
            Whether each sampled answer gives the fact away.
        k (`int`):
            Number of answers that somebody draws.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: The unbiased estimate, `1 - C(n - leaks, k) / C(n, k)`.

    Raises:
        ValueError: If `k` is not between 1 and the number of samples.
    """
    num_samples = leaked.shape[1]
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} must be between 1 and the number of samples, {num_samples}.")
    safe = num_samples - leaked.sum(axis=1)
    # C(safe, k) / C(n, k) as a product, which neither overflows nor needs a case for safe < k.
    factors = (safe[:, None] - np.arange(k)) / (num_samples - np.arange(k))
    return 1 - np.clip(factors, 0, None).prod(axis=1)


@torch.no_grad()
def sample_leaks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    gives_away: Callable[[int, str], bool],
    num_samples: int = 10,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """
    Draw several answers to every prompt, and see which give the fact away.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            Prompts: the questions trained on, paraphrased ones, or half-given answers (re-entry in mid-generation).
        gives_away (`Callable[[int, str], bool]`):
            Whether an answer to the prompt of that index gives the fact away.
        num_samples (`int`, *optional*, defaults to `10`):
            Answers for each prompt.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature; nothing else (`top_k`, `top_p`) bends the model's distribution.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `numpy.ndarray` of `bool` of shape `(num_rows, num_samples)`, for [`leak_at_k`].
    """
    leaked = np.zeros((len(prompts), num_samples), dtype=bool)
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for index, prompt in enumerate(tqdm(prompts, desc="Sampling answers", leave=False)):
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
            generated = model.generate(
                **inputs,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=temperature,
                num_return_sequences=num_samples,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_token_id,
            )
            texts = tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            leaked[index] = [gives_away(index, text) for text in texts]
    return leaked
