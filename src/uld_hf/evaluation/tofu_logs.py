"""The benchmark's own evaluation logs (github.com/locuslab/tofu): read them, and aggregate them as it does."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .tofu import forget_quality, model_utility, normalized_probability, summarize_truth_ratio, truth_ratio


# Evaluation file of the benchmark, and the name that its tables give to the set.
SETS = {
    "eval_log.json": "Retain",
    "eval_real_author_wo_options.json": "Real Authors",
    "eval_real_world_wo_options.json": "Real World",
    "eval_log_forget.json": "Forget",
}


@dataclass(frozen=True)
class SetLog:
    """
    What the benchmark logs of one set; one entry per row.

    Args:
        loss (`numpy.ndarray` of shape `(num_rows,)`):
            Nats per token of the right answer.
        paraphrased_loss (`numpy.ndarray` of shape `(num_rows,)`):
            Of the paraphrased right answer.
        perturbed_losses (`numpy.ndarray` of shape `(num_rows, num_perturbed)`):
            Of the wrong answers.
        rouge_l_recall (`numpy.ndarray` of shape `(num_rows,)`):
            ROUGE-L recall of the greedy answer.
        texts (`list[tuple[str, str, str]]`):
            Prompt, greedy answer and right answer.
    """

    loss: np.ndarray
    paraphrased_loss: np.ndarray
    perturbed_losses: np.ndarray
    rouge_l_recall: np.ndarray
    texts: list[tuple[str, str, str]]


def load_tofu_log(path: str | os.PathLike) -> dict[str, SetLog]:
    """
    Read a log of the benchmark, or of the ULD authors, who write lists in place of objects.

    Args:
        path (`str` or `os.PathLike`):
            A JSON file with one object for each evaluation file, e.g. `"eval_log_forget.json"`.

    Returns:
        `dict[str, SetLog]`: The sets under the names in the benchmark's tables.

    Raises:
        ValueError: If a set or a field is missing, or fields of one set have different numbers of rows.
    """
    log = json.loads(Path(path).read_text(encoding="utf-8"))
    missing = [file for file in SETS if file not in log]
    if missing:
        raise ValueError(f"{path} has no {missing}: it must have the benchmark's evaluation files {list(SETS)}.")
    return {name: _read_set(log[file], f"{path}, {file}") for file, name in SETS.items()}


def _read_set(log: Mapping[str, Any], source: str) -> SetLog:
    fields = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall", "generated_text")
    missing = [field for field in fields if field not in log]
    if missing:
        raise ValueError(f"{source} lacks {missing}.")
    # Objects by row number, or lists in the order of the rows.
    rows = {
        field: [log[field][key] for key in sorted(log[field], key=int)] if isinstance(log[field], dict) else log[field]
        for field in fields
    }
    lengths = {field: len(values) for field, values in rows.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{source} has different numbers of rows: {lengths}.")
    loss, paraphrased, perturbed, rouge, texts = rows.values()
    return SetLog(np.array(loss), np.array(paraphrased), np.array(perturbed), np.array(rouge), [*map(tuple, texts)])


def aggregate_tofu_log(log: Mapping[str, SetLog], retrained: Mapping[str, SetLog] | None = None) -> dict[str, float]:
    """
    The figures of the benchmark's tables from a log (arXiv 2401.06121, section 2.2).

    Args:
        log (`Mapping[str, SetLog]`):
            The model's log.
        retrained (`Mapping[str, SetLog]`, *optional*):
            Log of a model trained without the forget set, for the forget quality.

    Returns:
        `dict[str, float]`: `"ROUGE"`, `"Prob."` and `"Truth Ratio"` of each set, `"Model Utility"` and, with
        `retrained`, `"Forget Quality"`.

    Raises:
        ValueError: If the two logs are of different forget sets.
    """
    figures, kept = {}, []
    for name, rows in log.items():
        ratios = truth_ratio(rows.paraphrased_loss, rows.perturbed_losses)
        figures[f"ROUGE {name}"] = float(rows.rouge_l_recall.mean())
        probabilities = np.exp(-rows.loss)
        if name in ("Real Authors", "Real World"):
            probabilities = normalized_probability(rows.loss, rows.perturbed_losses)
        figures[f"Prob. {name}"] = float(probabilities.mean())
        kind = "closer_to_1_better" if name == "Forget" else "true_better"
        figures[f"Truth Ratio {name}"] = summarize_truth_ratio(ratios, kind)
        if name != "Forget":
            kept += [figures[f"{measure} {name}"] for measure in ("ROUGE", "Prob.", "Truth Ratio")]
    figures["Model Utility"] = model_utility(kept)
    if retrained is not None:
        ours, theirs = log["Forget"], retrained["Forget"]
        right = [text[2] for text in ours.texts]
        if right != [text[2] for text in theirs.texts]:
            raise ValueError("The two logs are of different forget sets: their right answers differ.")
        figures["Forget Quality"] = forget_quality(
            truth_ratio(ours.paraphrased_loss, ours.perturbed_losses),
            truth_ratio(theirs.paraphrased_loss, theirs.perturbed_losses),
        )
    return figures
