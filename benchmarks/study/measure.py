"""All figures of one model on one split, through `uld_hf.evaluation`."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from authors import Split
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_hf.evaluation.comparison import compare, kept_utility
from uld_hf.evaluation.evaluation import Evaluation, evaluate
from uld_hf.evaluation.scoring import Subtraction
from uld_hf.evaluation.sweep import Outcome, sweep
from uld_hf.modeling_uld import ULDForCausalLM


MAX_NEW_TOKENS = 96
# TOFU's threshold: above it unlearned and retrained model cannot be told apart.
FORGOTTEN = 0.05
# What a setting must keep of the target's probability of answers to questions about what is kept.
KEPT = 0.98


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
        `dict[str, float]`: By name. Utility is of the retain questions alone: of TOFU's real authors and world facts, a
        model trained on TOFU alone knows nothing.
    """
    if kept_utility(target) == 0:
        raise ValueError(f"{target.settings['split']}: the target has learned nothing to be kept. Train it for longer.")
    compared = compare({"target": target, "retrained": retrained, "model": evaluation})["model"]
    forget, retain = evaluation.sets["forget"].summary(), evaluation.sets["retain"].summary()
    return {
        "forget quality": compared["forget quality"],
        "forget ROUGE": forget["ROUGE-L recall"],
        "forget probability": forget["probability"],
        "retain ROUGE": retain["ROUGE-L recall"],
        "retain probability": retain["probability"],
        "utility": kept_utility(evaluation),
        "utility, relative": compared["utility"],
        "memorization": compared["memorization"],
        "privacy": compared["privacy"],
        "overall": compared["aggregate"],
        "broken answers": forget["broken answers"] + retain["broken answers"],
        **{name: value for name, value in compared.items() if name.startswith("AUC")},
    }


def outcome_of(found: dict[str, float]) -> Outcome:
    """What settings are chosen by, from a model's figures."""
    return Outcome(found["forget probability"], found["retain probability"], found["forget quality"])


def rank(outcome: Outcome, target: Outcome) -> tuple[int, float]:
    """
    The order of settings, for every method alike.

    First come those that forget and keep, by their forget quality; then those that forget only, by what they keep; then
    the others, by their forget quality. A rule that asks for no more than the threshold would choose what passes it by
    chance, on the rows that it was chosen on.

    Args:
        outcome (`Outcome`):
            What a setting does.
        target (`Outcome`):
            What the target does.

    Returns:
        `tuple[int, float]`: The higher the better.
    """
    if outcome.forget_quality <= FORGOTTEN:
        return 0, outcome.forget_quality
    if outcome.retain_probability < KEPT * target.retain_probability:
        return 1, outcome.retain_probability
    return 2, outcome.forget_quality


def unseen_truth_ratios(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split) -> np.ndarray:
    """Truth ratios of the target on authors that it has never met: what those of the forget set should look like."""
    return evaluate(model, tokenizer, split.unseen_questions, max_new_tokens=1).truth_ratios


def best_subtraction(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    truth_ratios: np.ndarray,
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
        truth_ratios (`numpy.ndarray`):
            Those to be reached: of the retrained model on the forget set, or as [`unseen_truth_ratios`].
        subtractions (`tuple[Subtraction, ...]`):
            The settings.

    Returns:
        `tuple[Subtraction, Outcome]`: The best by [`rank`], and what it does.
    """
    target, outcomes = sweep(
        model,
        tokenizer,
        split.forget_questions,
        split.retain_questions,
        subtractions,
        np.asarray(truth_ratios),
    )
    best = max(range(len(outcomes)), key=lambda index: rank(outcomes[index], target))
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
