"""The benchmark's own evaluation logs (github.com/locuslab/tofu): read them, and aggregate them as it does."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
        num_tokens (`numpy.ndarray` of shape `(num_rows,)`):
            Tokens of the right answer.
    """

    loss: np.ndarray
    paraphrased_loss: np.ndarray
    perturbed_losses: np.ndarray
    rouge_l_recall: np.ndarray
    texts: list[tuple[str, str, str]]
    num_tokens: np.ndarray


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
    fields = (
        *("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss"),
        *("rougeL_recall", "generated_text", "num_token_gt"),
    )
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
    if lengths["avg_gt_loss"] == 0 or len({len(wrong) for wrong in rows["average_perturb_loss"]}) != 1:
        raise ValueError(f"{source} has no rows, or rows with different numbers of wrong answers.")
    loss, paraphrased, perturbed, rouge, texts, num_tokens = rows.values()
    arrays = (np.array(column) for column in (loss, paraphrased, perturbed, rouge))
    return SetLog(*arrays, [*map(tuple, texts)], np.array(num_tokens))


def check_has_ratios(paraphrased: object, wrong: object) -> None:
    """
    Refuse rows whose truth ratios would be of another kind than a log's, or that have none.

    Args:
        paraphrased (`object`):
            Paraphrased right answers, or what was measured of them; nothing if there are none.
        wrong (`object`):
            Wrong ones.

    Raises:
        ValueError: If one of the two is missing.
    """
    for column, found in (("perturbed_answer", wrong), ("paraphrased_answer", paraphrased)):
        if not found:
            raise ValueError(
                "The forget quality against a log needs truth ratios like the log's, of paraphrases and wrong answers: "
                f"add {column!r} to the forget rows."
            )


def check_same_rows(log: SetLog, answers: Sequence[str], num_tokens: Sequence[int]) -> None:
    """
    Refuse a log of other rows, or of a model with another tokenizer, whose losses per token mean something else.

    Args:
        log ([`SetLog`]):
            The log.
        answers (`Sequence[str]`):
            Right answers.
        num_tokens (`Sequence[int]`):
            Tokens of each.

    Raises:
        ValueError: If the right answers differ, or are split into other numbers of tokens.
    """
    logged = [text[2].strip() for text in log.texts]
    if logged != [answer.strip() for answer in answers]:
        raise ValueError(
            f"The log is of another split: it has {len(logged)} right answers, of which "
            f"{len(set(logged) & {answer.strip() for answer in answers})} are among the {len(answers)} rows. Evaluate "
            "on the rows of the log, in its order."
        )
    # A chat template may put a space or an end token more or less before or behind every answer.
    differences = Counter((np.array(num_tokens) - log.num_tokens).tolist())
    if len(differences) > 1:
        usual = differences.most_common(1)[0][1]
        raise ValueError(
            f"The log is of a model with another tokenizer: of {len(answers)} right answers {len(answers) - usual} "
            "have another number of tokens there. Losses per token cannot be compared; use the log of a model with the "
            "same tokenizer."
        )


def aggregate_tofu_log(
    log: Mapping[str, SetLog],
    retrained: Mapping[str, SetLog] | None = None,
    mean: Literal["geometric", "arithmetic"] = "geometric",
) -> dict[str, float]:
    """
    The figures of the benchmark's tables from a log (arXiv 2401.06121, section 2.2).

    Args:
        log (`Mapping[str, SetLog]`):
            The model's log.
        retrained (`Mapping[str, SetLog]`, *optional*):
            Log of a model trained without the forget set, for the forget quality.
        mean (`"geometric"` or `"arithmetic"`, *optional*, defaults to `"geometric"`):
            Mean of the wrong answers' probabilities in the truth ratio, see [`~uld_hf.evaluation.tofu.truth_ratio`].

    Returns:
        `dict[str, float]`: `"ROUGE"`, `"Prob."` and `"Truth Ratio"` of each set, `"Model Utility"` and, with
        `retrained`, `"Forget Quality"`.

    Raises:
        ValueError: If the two logs are of different forget sets, or of models with different tokenizers.
    """
    figures, kept = {}, []
    for name, rows in log.items():
        ratios = truth_ratio(rows.paraphrased_loss, rows.perturbed_losses, mean)
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
        check_same_rows(theirs, [text[2] for text in ours.texts], ours.num_tokens.tolist())
        figures["Forget Quality"] = forget_quality(
            truth_ratio(ours.paraphrased_loss, ours.perturbed_losses, mean),
            truth_ratio(theirs.paraphrased_loss, theirs.perturbed_losses, mean),
        )
    return figures
