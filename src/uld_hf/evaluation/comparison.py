"""Figures that need more than one model or set: forget quality, privacy, utility, and their aggregate."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import hmean

from .evaluation import Evaluation, SetResults
from .memorization import memorization_score
from .privacy import attack_auc, privacy_leakage, privacy_score
from .tofu import forget_quality, model_utility, truth_ratio
from .tofu_logs import SetLog, check_has_ratios, check_same_rows


# Sets that must be kept, and the figure that TOFU calls the probability there.
KEPT = {
    "retain": "probability",
    "real_authors": "probability among answers",
    "world_facts": "probability among answers",
}
REMEMBERED = ("exact memorization", "extraction strength", "paraphrased probability", "truth ratio (prob_mean)")


def compare(evaluations: Mapping[str, Evaluation], retrained_log: SetLog | None = None) -> dict[str, dict[str, float]]:
    """
    Figures that need more than one model or set, for each model.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            By name; `"target"` is what memorisation and utility are divided by, `"retrained"` what forget quality and
            privacy are measured against. Either may be absent, and with it what needs it.
        retrained_log (`SetLog`, *optional*):
            TOFU's log of a retrained model on the forget set, for the forget quality where there is no such model.

    Returns:
        `dict[str, dict[str, float]]`: By model: `"forget quality"` and, where all three sets are there,
        `"model utility"` (TOFU); `"memorization"`, `"privacy"`, `"utility"` and their harmonic mean `"aggregate"`
        (OpenUnlearning; 1 is best); `"AUC ..."` of the attacks and `"PrivLeak"` (MUSE; 0 is best).

    Raises:
        ValueError: If the models were evaluated on different rows or with different tokenizers.
    """
    _check_comparable(evaluations)
    aucs = {
        name: {
            kind: attack_auc(numbers, evaluation.sets["holdout"].attacks[kind])
            for kind, numbers in evaluation.sets["forget"].attacks.items()
        }
        for name, evaluation in evaluations.items()
        if "holdout" in evaluation.sets
    }
    reference = _retrained_truth_ratios(evaluations, retrained_log)
    target = evaluations.get("target")
    figures: dict[str, dict[str, float]] = {}
    for name, evaluation in evaluations.items():
        figures[name] = {}
        if reference is not None:
            figures[name]["forget quality"] = forget_quality(evaluation.sets["forget"].truth_ratios, reference)
        if name in aucs:
            figures[name] |= {f"AUC {kind}": auc for kind, auc in aucs[name].items()}
            if "retrained" in aucs:
                if aucs["retrained"]["min_k"] < 1:  # or there is nothing to divide by
                    figures[name]["PrivLeak"] = privacy_leakage(aucs[name]["min_k"], aucs["retrained"]["min_k"])
                figures[name]["privacy"] = privacy_score(aucs[name], aucs["retrained"])
        if set(KEPT) <= set(evaluation.sets) and "truth ratio (true_better)" in evaluation.sets["retain"].summary():
            figures[name]["model utility"] = kept_utility(evaluation)
        if target is not None:
            # What the target itself does not remember cannot be forgotten.
            before = {measure: value for measure, value in remembered(target).items() if value > 0}
            left = {measure: remembered(evaluation)[measure] for measure in before}
            figures[name]["memorization"] = memorization_score(left, before)
            if kept_utility(target) > 0:
                figures[name]["utility"] = utility_score(evaluation, target)
        parts = [figures[name].get(part) for part in ("memorization", "privacy", "utility")]
        if None not in parts:
            figures[name]["aggregate"] = float(hmean(parts))
    return figures


def remembered(evaluation: Evaluation) -> dict[str, float]:
    """
    What OpenUnlearning's memorization is made of, of a model's forget set.

    Args:
        evaluation ([`Evaluation`]):
            Of a model.

    Returns:
        `dict[str, float]`: By measure, those that were measured.
    """
    summary = evaluation.sets["forget"].summary()
    return {name: summary[name] for name in REMEMBERED if name in summary}


def kept_utility(evaluation: Evaluation) -> float:
    """
    TOFU's model utility over the sets that must be kept and are there: with retain set, real authors and world facts,
    and wrong answers for each, the benchmark's own.

    Args:
        evaluation ([`Evaluation`]):
            Of a model.

    Returns:
        `float`: Harmonic mean of probability, ROUGE-L recall and, where there are wrong answers, truth ratio of each.
    """
    figures = []
    for split, probability in KEPT.items():
        if split in evaluation.sets:
            summary = evaluation.sets[split].summary()
            names = (probability if probability in summary else "probability", "ROUGE-L recall")
            figures += [summary[name] for name in (*names, "truth ratio (true_better)") if name in summary]
    return model_utility(figures)


def utility_score(evaluation: Evaluation, target: Evaluation) -> float:
    """
    OpenUnlearning's aggregate of what is kept (arXiv 2506.12618, appendix F.1): 1 if as much as the target had.

    Args:
        evaluation ([`Evaluation`]):
            Of a model.
        target ([`Evaluation`]):
            The target's, by which its figures are divided.

    Returns:
        `float`: Harmonic mean of model utility and, where both were measured, fluency on the forget set.
    """
    ratios = [kept_utility(evaluation) / kept_utility(target)]
    fluencies = [each.sets["forget"].summary().get("fluency") for each in (evaluation, target)]
    if None not in fluencies and fluencies[1] > 0:
        ratios.append(fluencies[0] / fluencies[1])
    return float(hmean(ratios))


def figure_table(
    evaluations: Mapping[str, Evaluation], compared: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """
    Rows of a table of all figures, one column for each model.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            By name.
        compared (`Mapping[str, Mapping[str, float]]`):
            What [`compare`] gives for them.

    Returns:
        `dict[str, dict[str, float]]`: By label, then by model. Of the summaries of a set's truth ratios, those that
        TOFU and OpenUnlearning use for that set.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, evaluation in evaluations.items():
        for split, results in evaluation.sets.items():
            for measure, value in results.summary().items():
                if measure not in _left_out(split):
                    rows.setdefault(f"{split.replace('_', ' ')}: {measure}", {})[name] = value
    for name, figures in compared.items():
        for measure, value in figures.items():
            rows.setdefault(measure, {})[name] = value
    return rows


def _left_out(split: str) -> set[str]:
    if split == "forget":
        return {"probability among answers", "truth ratio (true_better)"}
    left_out = {"truth ratio (prob_mean)", "truth ratio (closer_to_1_better)"}
    if KEPT.get(split) == "probability among answers":
        return left_out | {"probability"}
    return left_out | {"probability among answers"}


def _check_comparable(evaluations: Mapping[str, Evaluation]) -> None:
    asked: dict[str, tuple[list[str], list[str]]] = {}
    tokenizers = set()
    for evaluation in evaluations.values():
        if "tokenizer" in evaluation.settings:
            tokenizers.add(evaluation.settings["tokenizer"])
        for split, results in evaluation.sets.items():
            rows = (results.prompts, results.answers)
            if asked.setdefault(split, rows) != rows:
                raise ValueError(
                    f"The models were evaluated on different {split} sets: {list(evaluations)}. Evaluate them again."
                )
    if len(tokenizers) > 1:
        raise ValueError(
            f"The models {list(evaluations)} were evaluated with different tokenizers: their likelihoods per token "
            "cannot be compared."
        )


def _retrained_truth_ratios(evaluations: Mapping[str, Evaluation], retrained_log: SetLog | None) -> np.ndarray | None:
    results: SetResults = next(iter(evaluations.values())).sets["forget"]
    if retrained_log is not None:
        check_has_ratios(results.paraphrased_loss, results.perturbed_losses)
        check_same_rows(retrained_log, results.answers, results.num_tokens)
        return truth_ratio(retrained_log.paraphrased_loss, retrained_log.perturbed_losses)
    retrained = evaluations.get("retrained")
    if retrained is None or results.truth_ratios is None:
        return None
    ratios = retrained.sets["forget"].truth_ratios
    if ratios is None:
        raise ValueError("The retrained model was evaluated without wrong answers: evaluate it again.")
    return ratios
