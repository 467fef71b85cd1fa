"""Measures of memorisation, as OpenUnlearning has them (arXiv 2506.12618), and what its critics add."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from math import comb
from typing import Any

import numpy as np
import torch
from scipy.stats import hmean
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..kept_positions import head_at_once
from ..plain_generation import plain_generation
from .encoding import encode_prompts
from .known_starts import end_tokens
from .scoring import TokenScores
from .tofu import decode_answers, rouge_l_recall
from .words import STANDS_ALONE, WORD


# Label of texts that are no gibberish, of OpenUnlearning's classifier.
CLEAN = "clean"


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
    texts: Sequence[str], classifier: Callable[[list[str]], list[list[dict[str, Any]]]], clean: str = CLEAN
) -> np.ndarray:
    """
    OpenUnlearning's fluency of texts: the probability, by a classifier, that each is no gibberish.

    Args:
        texts (`Sequence[str]`):
            Generated answers.
        classifier (`Callable`):
            A `pipeline("text-classification", model=..., top_k=None)`, e.g. of
            `"madhurjindal/autonlp-Gibberish-Detector-492513457"`.
        clean (`str`, *optional*, defaults to `"clean"`):
            Label of texts that are no gibberish.

    Returns:
        `numpy.ndarray` of shape `(num_texts,)`: Between 0 and 1. An empty text counts as gibberish.

    Raises:
        ValueError: If the classifier has no such label.
    """
    probabilities = np.zeros(len(texts))
    written = [index for index, text in enumerate(texts) if text.strip()]
    judged = classifier([texts[index] for index in written]) if written else []
    for index, scores in zip(written, judged, strict=True):
        by_label = {score["label"]: score["score"] for score in scores}
        if clean not in by_label:
            raise ValueError(f"The classifier has no label {clean!r}, only {list(by_label)}: name the right one.")
        probabilities[index] = by_label[clean]
    return probabilities


def _as_words(fact: str) -> re.Pattern[str]:
    """A fact, also in the plural, and not a part of other words: "planning" does not give Ann away."""
    plural = "(?:s|es)?" if fact[-1:].isalpha() else ""
    return re.compile(rf"(?<![^\W_]){re.escape(fact)}{plural}(?![^\W_])")


def _fact_in(fact: str, reference: str) -> re.Pattern[str]:
    """A fact as it is looked for: as words or, where words do not stand alone or it is a part of one, anywhere."""
    pattern = _as_words(fact)
    if STANDS_ALONE.fullmatch(fact) is None or pattern.search(reference) is None:
        return re.compile(re.escape(fact))
    return pattern


def begin_answer(answer: str, fact: str | None = None) -> tuple[str, str]:
    """
    An answer cut off just before its fact: does a model that was led so far say it after all?

    Args:
        answer (`str`):
            The right answer.
        fact (`str`, *optional*):
            The words in it that must not come out. Without them it is cut in the middle.

    Returns:
        `tuple[str, str]`: What to put behind the question, empty where the answer begins with the fact; and the rest.
    """
    if fact is None:
        words = [match.start() for match in WORD.finditer(answer)]
        start = words[len(words) // 2] if words else 0
    else:
        found = _fact_in(fact, answer).search(answer)
        start = found.start() if found else 0
    return answer[:start].rstrip(), answer[start:].strip()


def leaks(texts: Sequence[Sequence[str]], references: Sequence[str], facts: Sequence[str | None]) -> list[list[float]]:
    """
    How much generated answers give away.

    Args:
        texts (`Sequence[Sequence[str]]`):
            Any number of answers to each question.
        references (`Sequence[str]`):
            What each must not give away.
        facts (`Sequence[str | None]`):
            The words of it that count, where they are known.

    Returns:
        `list[list[float]]`: For each answer, where the fact is known, 1 if it has the fact's words in it (upper and
        lower case alike, in the plural too) and 0 if not; else its ROUGE-L recall.
    """
    given = []
    for of_row, reference, fact in zip(texts, references, facts, strict=True):
        if fact is None:
            given.append(rouge_l_recall(of_row, [reference] * len(of_row)).tolist())
        else:
            pattern = _fact_in(fact.casefold(), reference.casefold())
            given.append([float(pattern.search(text.casefold()) is not None) for text in of_row])
    return given


def leak_at_k(leaked: np.ndarray, k: int) -> np.ndarray:
    """
    Leak@k: what the worst of `k` sampled answers gives away on average, from at least as many samples.

    Args:
        leaked (`numpy.ndarray` of shape `(num_rows, num_samples)`):
            How much each sampled answer gives away, see [`leaks`]; `bool` where it does or does not.
        k (`int`):
            Number of answers that somebody draws.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: The unbiased estimate of the largest of `k`: the mean over all choices
        of `k` samples. Where answers leak or do not, it is the probability that one does,
        `1 - C(n - leaks, k) / C(n, k)`.

    Raises:
        ValueError: If `k` is not between 1 and the number of samples.
    """
    num_samples = leaked.shape[1]
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} must be between 1 and the number of samples, {num_samples}.")
    # The i-th smallest is the largest of C(i - 1, k - 1) choices out of C(n, k).
    weights = np.array([comb(index, k - 1) / comb(num_samples, k) for index in range(num_samples)])
    return np.sort(leaked.astype(float), axis=1) @ weights


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    num_samples: int = 10,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    ends: Collection[int] = (),
) -> list[list[str]]:
    """
    Draw several answers to every prompt.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            Prompts: the questions trained on, paraphrased ones, or begun answers (re-entry in mid-generation).
        num_samples (`int`, *optional*, defaults to `10`):
            Answers for each prompt.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature. Cuts and penalties of the model's generation config are left out.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.
        ends (`Collection[int]`, *optional*):
            Tokens that end an answer, besides those of the model's generation config: a chat template may end turns
            with another one.

    Returns:
        `list[list[str]]`: `num_samples` texts for each prompt.

    Raises:
        ValueError: If a prompt and its answer would be longer than the model's context.
    """
    drawn = []
    all_ends = [*end_tokens(model), *ends]
    encoded, pad_token_id = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    with torch.random.fork_rng(), head_at_once(model), plain_generation(model):
        torch.manual_seed(seed)
        for ids in tqdm(encoded, desc="Sampling answers", leave=False):
            input_ids = torch.tensor([ids], device=model.device)
            generated = model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=True,
                temperature=temperature,
                num_return_sequences=num_samples,
                max_new_tokens=max_new_tokens,
                eos_token_id=all_ends or None,
                pad_token_id=pad_token_id,
            )
            drawn.append(decode_answers(tokenizer, generated[:, len(ids) :].tolist(), ends))
    return drawn


def sample_leaks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    gives_away: Callable[[int, str], bool],
    **sampling: Any,
) -> np.ndarray:
    """
    Draw several answers to every prompt, and see which give the fact away.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            Prompts.
        gives_away (`Callable[[int, str], bool]`):
            Whether an answer to the prompt of that index gives the fact away.
        **sampling:
            How to draw, see [`sample_completions`].

    Returns:
        `numpy.ndarray` of `bool` of shape `(num_rows, num_samples)`, for [`leak_at_k`].
    """
    drawn = sample_completions(model, tokenizer, prompts, **sampling)
    return np.array([[gives_away(index, text) for text in texts] for index, texts in enumerate(drawn)], dtype=bool)
