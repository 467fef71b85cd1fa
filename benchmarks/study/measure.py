"""All figures of one model on one split, through `uld_hf.evaluation`."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from authors import Split
from scipy.stats import hmean
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_hf.evaluation.evaluation import Evaluation, compare, evaluate
from uld_hf.evaluation.scoring import Subtraction
from uld_hf.evaluation.sweep import Outcome, sweep
from uld_hf.evaluation.tofu import model_utility, summarize_truth_ratio
from uld_hf.modeling_uld import ULDForCausalLM


MAX_NEW_TOKENS = 96
# TOFU's threshold: above it unlearned and retrained model cannot be told apart.
FORGOTTEN = 0.05


def evaluate_model(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, file: Path
) -> Evaluation:
    """
    Measure a model on the forget, retain and holdout questions of a split, and keep the values of every row.

    Args:
        name (`str`):
            Name of the model.
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        split ([`Split`]):
            The questions.
        file (`Path`):
            Where the rows are kept.

    Returns:
        [`Evaluation`]: The measures.
    """
    sets = {
        "forget": split.forget_questions,
        "retain": split.retain_questions,
        "holdout": split.holdout_questions,
    }
    results = {key: evaluate(model, tokenizer, rows, MAX_NEW_TOKENS) for key, rows in sets.items()}
    evaluation = Evaluation(name, results, {"split": split.name})
    file.parent.mkdir(parents=True, exist_ok=True)
    evaluation.save(file)
    return evaluation


def utility(evaluation: Evaluation) -> float:
    """
    Harmonic mean of probability, ROUGE-L recall and truth ratio on the retain questions.

    TOFU's model utility takes the same of real authors and world facts too, of which a model trained on TOFU alone
    knows nothing.
    """
    retain = evaluation.sets["retain"]
    summary = retain.summary()
    ratio = summarize_truth_ratio(retain.truth_ratios, "true_better")
    return model_utility([summary["probability"], summary["ROUGE-L recall"], ratio])


def figures(evaluation: Evaluation, target: Evaluation, retrained: Evaluation) -> dict[str, float]:
    """
    The figures of a model beside the target's and the retrained one's.

    Args:
        evaluation ([`Evaluation`]):
            Of the model.
        target ([`Evaluation`]):
            Of the target.
        retrained ([`Evaluation`]):
            Of the retrained model.

    Returns:
        `dict[str, float]`: By name. `"overall"` is OpenUnlearning's aggregate: the harmonic mean of memorization,
        privacy and utility, the last relative to the target's.
    """
    compared = compare({"target": target, "retrained": retrained, "model": evaluation})["model"]
    forget, retain = evaluation.sets["forget"].summary(), evaluation.sets["retain"].summary()
    relative = utility(evaluation) / utility(target)
    return {
        "forget quality": compared["forget quality"],
        "forget ROUGE": forget["ROUGE-L recall"],
        "forget probability": forget["probability"],
        "retain ROUGE": retain["ROUGE-L recall"],
        "retain probability": retain["probability"],
        "utility": utility(evaluation),
        "utility, relative": relative,
        "memorization": compared["memorization"],
        "privacy": compared["privacy"],
        "overall": float(hmean([compared["memorization"], compared["privacy"], relative])),
        "broken answers": forget["broken answers"] + retain["broken answers"],
        **{name: value for name, value in compared.items() if name.startswith("AUC")},
    }


def outcome_of(found: dict[str, float]) -> Outcome:
    """What settings are chosen by, from a model's figures."""
    return Outcome(found["forget probability"], found["retain probability"], found["forget quality"])


def rank(outcome: Outcome) -> tuple[bool, float]:
    """
    The order of settings, for every method alike: those that forget come first, by what they keep.

    Among those that do not forget, the one with the highest forget quality comes first.
    """
    forgotten = outcome.forget_quality > FORGOTTEN
    return forgotten, outcome.retain_probability if forgotten else outcome.forget_quality


def best_subtraction(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    retrained: Evaluation,
    subtractions: tuple[Subtraction, ...],
) -> tuple[Subtraction, Outcome]:
    """
    The best of many settings of the subtraction, all from one pass over the answers.

    Args:
        model ([`ULDForCausalLM`]):
            The unlearned model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        split ([`Split`]):
            The questions.
        retrained ([`Evaluation`]):
            Of the retrained model.
        subtractions (`tuple[Subtraction, ...]`):
            The settings.

    Returns:
        `tuple[Subtraction, Outcome]`: The best by [`rank`], and what it does.
    """
    _, outcomes = sweep(
        model,
        tokenizer,
        split.forget_questions,
        split.retain_questions,
        subtractions,
        np.asarray(retrained.sets["forget"].truth_ratios),
    )
    best = max(range(len(outcomes)), key=lambda index: rank(outcomes[index]))
    return subtractions[best], outcomes[best]


def apply_subtraction(model: ULDForCausalLM, subtraction: Subtraction) -> None:
    """Set a model to the settings of a subtraction; several assistants keep signs and proportions, as in a sweep."""
    alphas = model.config.alphas
    first = abs(next(iter(alphas.values())))
    for name, value in alphas.items():
        model.set_alpha(name, value / first * subtraction.alpha)
    for name, value in asdict(subtraction).items():
        if name != "alpha":
            setattr(model.config, name, value)
