"""TOFU's measures (arXiv 2401.06121, section 2.2): probability, ROUGE-L recall, truth ratio, forget quality.

Every function takes any causal language model: the target, a retrained one, an `ULDForCausalLM`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


# The same phrase of one to four words three times in a row.
_REPETITION = re.compile(r"\b(\w+(?:\W+\w+){0,3})(?:\W+\1\b){2,}")


def _batches_by_length(lengths: Sequence[int], batch_size: int, description: str) -> tqdm:
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return tqdm(batches, desc=description, leave=False)


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> tuple[list[int], int]:
    """Tokens of prompt + completion + end, as in training, and how many of them belong to the prompt."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    input_ids = tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]
    same = [first == second for first, second in zip(prompt_ids, input_ids, strict=False)]
    return input_ids, same.index(False) if False in same else len(same)


@torch.no_grad()
def completion_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    batch_size: int = 32,
) -> np.ndarray:
    """
    Mean negative log-likelihood of each completion's tokens, its end included; `exp(-loss)` is TOFU's probability.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            Prompts.
        completions (`Sequence[str]`):
            One completion for each prompt, with its leading space.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows per forward pass.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: Nats per token.
    """
    encoded = [_encode(tokenizer, *pair) for pair in zip(prompts, completions, strict=True)]
    losses = np.zeros(len(encoded))
    for batch in _batches_by_length([len(ids) for ids, _ in encoded], batch_size, "Scoring answers"):
        length = len(encoded[batch[0]][0])
        input_ids = torch.zeros(len(batch), length, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        counted = torch.zeros(len(batch), length, dtype=torch.bool)
        for row, index in enumerate(batch):
            ids, prompt_length = encoded[index]
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
            counted[row, prompt_length : len(ids)] = True
        input_ids, counted = input_ids.to(model.device), counted.to(model.device)
        logits = model(input_ids=input_ids, attention_mask=attention_mask.to(model.device), use_cache=False).logits
        log_probs = logits[:, :-1].float().log_softmax(dim=-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
        log_probs = log_probs.masked_fill(~counted[:, 1:], 0.0)
        losses[batch] = (-log_probs.sum(dim=-1) / counted[:, 1:].sum(dim=-1)).cpu().numpy()
    return losses


def generate_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_size: int = 32,
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

    Returns:
        `list[str]`: What follows each prompt, without special tokens.
    """
    completions = [""] * len(prompts)
    lengths = [len(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    for batch in _batches_by_length(lengths, batch_size, "Answering questions"):
        inputs = tokenizer(
            [prompts[index] for index in batch],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            return_token_type_ids=False,
        ).to(model.device)
        generated = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        texts = tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(batch, texts, strict=True):
            completions[index] = text.strip()
    return completions


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """
    ROUGE-L recall, with stemming, as TOFU's code computes it with `rouge-score`.

    Args:
        predictions (`Sequence[str]`):
            Generated answers.
        references (`Sequence[str]`):
            Right answers.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: Between 0 and 1.
    """
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    return np.array([scorer.score(reference, prediction)["rougeL"].recall for prediction, reference in pairs])


def truth_ratio(paraphrased_losses: np.ndarray, perturbed_losses: np.ndarray) -> np.ndarray:
    """
    How probable wrong answers are beside a right one: their geometric mean over the paraphrased right answer's.

    The paper's equation 1 has the arithmetic mean; the geometric one is what the benchmark's code computes and what
    its published forget qualities come from.

    Args:
        paraphrased_losses (`numpy.ndarray` of shape `(num_rows,)`):
            Nats per token of the paraphrased right answers.
        perturbed_losses (`numpy.ndarray` of shape `(num_rows, num_perturbed)`):
            Nats per token of the wrong answers.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: Near 0 if the model knows the fact, about 1 if it does not.
    """
    return np.exp(paraphrased_losses - perturbed_losses.mean(axis=-1))


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


def is_degenerate(text: str) -> bool:
    """
    Whether a generated answer is broken: without a word, or repeating a phrase three times in a row.

    Args:
        text (`str`):
            A generated answer.

    Returns:
        `bool`: `True` for an empty or repetitive text.
    """
    return not re.search(r"\w", text) or _REPETITION.search(text) is not None


@dataclass
class AnswerScores:
    """
    What a model says to the questions of a set, and how well; one entry per row.

    Args:
        completions (`list[str]`):
            Greedy answers.
        rouge_l_recall (`numpy.ndarray` of shape `(num_rows,)`):
            ROUGE-L recall of the greedy answers.
        probability (`numpy.ndarray` of shape `(num_rows,)`):
            Probability of the right answer, per token (geometric mean).
        truth_ratio (`numpy.ndarray` of shape `(num_rows,)`, *optional*):
            Truth ratio, where the set has paraphrased and perturbed answers.
    """

    completions: list[str]
    rouge_l_recall: np.ndarray
    probability: np.ndarray
    truth_ratio: np.ndarray | None


def score_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    rows: Dataset,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> AnswerScores:
    """
    All of TOFU's per-row measures of a model on a set of questions.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            The question of each row, as the model is to see it. The answer follows after a space.
        rows ([`~datasets.Dataset`]):
            Rows with `answer` and, for the truth ratio, `paraphrased_answer` and `perturbed_answer`.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows per forward pass.

    Returns:
        [`AnswerScores`]: The measures, row by row.
    """

    def losses(of_prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        return completion_losses(model, tokenizer, of_prompts, [f" {answer}" for answer in answers], batch_size)

    completions = generate_completions(model, tokenizer, prompts, max_new_tokens, batch_size)
    ratios = None
    if {"paraphrased_answer", "perturbed_answer"} <= set(rows.column_names):
        per_row = len(rows["perturbed_answer"][0])
        perturbed = losses(
            [prompt for prompt in prompts for _ in range(per_row)],
            [wrong for answers in rows["perturbed_answer"] for wrong in answers],
        )
        ratios = truth_ratio(losses(prompts, rows["paraphrased_answer"]), perturbed.reshape(-1, per_row))
    return AnswerScores(
        completions=completions,
        rouge_l_recall=rouge_l_recall(completions, rows["answer"]),
        probability=np.exp(-losses(prompts, rows["answer"])),
        truth_ratio=ratios,
    )
