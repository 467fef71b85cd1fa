"""MUSE's measures (arXiv 2407.06460, section 3): verbatim and knowledge memorisation, privacy leakage, utility."""

import re
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .privacy import attack_auc, min_k_attack
from .scoring import MAX_BATCH_TOKENS, score_completions
from .tofu import generate_completions
from .words import WORD, rouge_l


_NEXT_QUESTION = re.compile(r"\n\n|\nQuestion|Question:")


def rouge_l_f1(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """
    ROUGE-L F1, which MUSE uses for both kinds of memorisation.

    Args:
        predictions (`Sequence[str]`):
            Generated texts.
        references (`Sequence[str]`):
            Right texts.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: Between 0 and 1.
    """
    return np.array([score.fmeasure for score in rouge_l(predictions, references, use_stemmer=False)])


def verbatim_memorization(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    max_new_tokens: int = 128,
    batch_size: int = 32,
) -> np.ndarray:
    """
    How closely a model continues passages of the forget set (VerbMem).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows ([`~datasets.Dataset`]):
            `load_muse(corpus, "verbmem", "forget")`.
        max_new_tokens (`int`, *optional*, defaults to `128`):
            Length of the continuations, in tokens; of the passages no more counts, as in MUSE's code.
        batch_size (`int`, *optional*, defaults to `32`):
            Passages at once.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: ROUGE-L F1 of each.
    """
    encoded = tokenizer(list(rows["gt"]), add_special_tokens=False)["input_ids"]
    passages = tokenizer.batch_decode([ids[:max_new_tokens] for ids in encoded], skip_special_tokens=True)
    return rouge_l_f1(generate_completions(model, tokenizer, rows["prompt"], max_new_tokens, batch_size), passages)


def knowledge_memorization(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    examples: Dataset,
    max_new_tokens: int = 32,
    batch_size: int = 32,
) -> np.ndarray:
    """
    How well a model answers questions, shown some answered ones first (KnowMem; on the retain set, utility).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows ([`~datasets.Dataset`]):
            `load_muse(corpus, "knowmem", "forget_qa")`, or `"retain_qa"`.
        examples ([`~datasets.Dataset`]):
            Its answered questions: `"forget_qa_icl"`, or `"retain_qa_icl"`.
        max_new_tokens (`int`, *optional*, defaults to `32`):
            Longest answer, in tokens. As in MUSE's code it ends before an empty line or a question, and is empty where
            one of these comes first.
        batch_size (`int`, *optional*, defaults to `32`):
            Questions at once.

    Returns:
        `numpy.ndarray` of shape `(num_rows,)`: ROUGE-L F1 of each.
    """
    shown = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in examples)
    prompts = [f"{shown}Question: {question}\nAnswer: " for question in rows["question"]]
    answers = generate_completions(model, tokenizer, prompts, max_new_tokens, batch_size, strip=False)
    return rouge_l_f1([_NEXT_QUESTION.split(answer)[0] for answer in answers], rows["answer"])


def min_k_auc(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: Dataset,
    holdout: Dataset,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> float:
    """
    AUC of the Min-40% attack on passages, for [`~uld_hf.evaluation.privacy.privacy_leakage`] (PrivLeak).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        forget ([`~datasets.Dataset`]):
            `load_muse(corpus, "privleak", "forget")`.
        holdout ([`~datasets.Dataset`]):
            `load_muse(corpus, "privleak", "holdout")`.
        max_batch_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens to score at once.

    Returns:
        `float`: Between 0 and 1.

    Raises:
        ValueError: If a passage is longer than the model's context, or has fewer than two words.
    """
    numbers = []
    for rows in (forget, holdout):
        empty = [index for index, text in enumerate(rows["text"]) if len(WORD.findall(text)) < 2]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(rows)} passages have fewer than two words (the first is rows[{empty[0]}]): "
                "leave them out."
            )
        # The first word is what the others are predicted from.
        first, rest = zip(*(_split_first_word(text) for text in rows["text"]), strict=True)
        scores = score_completions(model, tokenizer, first, rest, max_batch_tokens, [None] * len(rows))
        numbers.append([min_k_attack(row) for row in scores])
    return attack_auc(*numbers)


def _split_first_word(text: str) -> tuple[str, str]:
    end = WORD.search(text).end()
    return text[:end], text[end:]
