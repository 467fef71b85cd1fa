"""All figures of one model on one split, through `uld_hf.evaluation`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from authors import Split
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_hf.evaluation.comparison import compare, kept_utility
from uld_hf.evaluation.evaluation import Evaluation, Question, evaluate
from uld_hf.evaluation.scoring import Subtraction
from uld_hf.evaluation.sweep import FORGOTTEN, Outcome, Reference, has_forgotten, sweep
from uld_hf.modeling_uld import ULDForCausalLM


MAX_NEW_TOKENS = 96
# Of the evaluation's summaries, what the tables do not show and the results hold all the same.
MORE = (
    "exact memorization",
    "extraction strength",
    "paraphrased probability",
    "probability among answers",
    "truth ratio (prob_mean)",
    "truth ratio (closer_to_1_better)",
    "truth ratio (true_better)",
)
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
    # A large GPU would wait for the next batch of a CPU's size.
    batch_size = 256 if torch.cuda.is_available() else 32
    results = {key: evaluate(model, tokenizer, rows, MAX_NEW_TOKENS, batch_size) for key, rows in sets.items()}
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
        **{name: value for name, value in compared.items() if name.startswith("AUC") or name == "PrivLeak"},
        **{f"{of} {name}": summary[name] for of, summary in (("forget", forget), ("retain", retain)) for name in MORE},
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


def rank_by_probability(outcome: Outcome, target: Outcome, reference: Reference, alpha: float) -> tuple[int, float]:
    """
    The order of settings where there is no forget quality: of those that forget and keep, first the smallest `alpha`.

    Args:
        outcome (`Outcome`):
            What a setting does.
        target (`Outcome`):
            What the target does.
        reference (`Reference`):
            What is to be reached.
        alpha (`float`):
            The setting's.

    Returns:
        `tuple[int, float]`: The higher the better.
    """
    if not has_forgotten(outcome, reference):
        return 0, -outcome.forget_probability
    if outcome.retain_probability < KEPT * target.retain_probability:
        return 1, outcome.retain_probability
    return 2, -alpha


def reference_by(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], **counts: bool
) -> Reference:
    """What a model makes of questions whose answers it was never told; what counts is [`Reference.from_results`]'s."""
    return Reference.from_results(evaluate(model, tokenizer, questions, max_new_tokens=1), **counts)


def retrained_reference(retrained: Evaluation) -> Reference:
    """What the retrained model makes of the forget set."""
    return Reference.from_results(retrained.sets["forget"])


def best_subtraction(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    reference: Reference,
    subtractions: tuple[Subtraction, ...],
    ratios: tuple[float, ...] = (1.0,),
) -> dict[str, Any]:
    """
    The best of many settings of the subtraction, all from one pass over the answers for each ratio.

    Args:
        model ([`ULDForCausalLM`]):
            The unlearned model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        split ([`Split`]):
            The questions.
        reference ([`Reference`]):
            What is to be reached. With attacks in it, the quality of a setting is the smallest p-value of all.
        subtractions (`tuple[Subtraction, ...]`):
            The settings.
        ratios (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`):
            Weights of a second assistant, as shares of the first one's.

    Returns:
        `dict[str, Any]`: `"subtraction"` and `"ratio"` of the best by [`rank`] or [`rank_by_probability`], and its
        `"outcome"`.
    """
    shares = (None,) if ratios == (1.0,) else ratios
    settings = [replace(each, share=share) for share in shares for each in subtractions]
    target, outcomes = sweep(model, tokenizer, split.forget_questions, split.retain_questions, settings, reference)
    outcomes = [replace(each, forget_quality=each.least_p) for each in outcomes]

    def preference(index: int) -> tuple[int, float]:
        if reference.truth_ratios is not None:
            return rank(outcomes[index], target)
        return rank_by_probability(outcomes[index], target, reference, settings[index].alpha)

    best = max(range(len(settings)), key=preference)
    share, outcome = settings[best].share, outcomes[best]
    return {
        "subtraction": asdict(replace(settings[best], share=None)),
        "ratio": 1.0 if share is None else share,
        "outcome": asdict(outcome),
    }
