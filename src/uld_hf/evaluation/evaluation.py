"""Everything that is measured of one model on the questions of one set, row by row, and the figures that sum it up."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .memorization import exact_memorization, extraction_strength, memorization_score
from .privacy import attack, attack_auc, privacy_score
from .scoring import MAX_BATCH_TOKENS, TokenScores, score_completions
from .tofu import (
    forget_quality,
    generate_completions,
    is_degenerate,
    rouge_l_recall,
    summarize_truth_ratio,
    truth_ratio,
)


@dataclass(frozen=True)
class Question:
    """
    One row of a set.

    Args:
        prompt (`str`):
            The question, as the model is to see it.
        answer (`str`):
            The right answer, as it follows the prompt: with its leading space, if any.
        paraphrased_answer (`str`, *optional*):
            The right answer in other words.
        perturbed_answers (`tuple[str, ...]`, *optional*):
            Wrong answers in like words.
    """

    prompt: str
    answer: str
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()


@dataclass
class SetResults:
    """
    What was measured of a model on one set; one entry per row.

    Args:
        prompts (`list[str]`):
            Questions, as the model saw them.
        answers (`list[str]`):
            Right answers.
        completions (`list[str]`):
            Greedy answers.
        loss (`list[float]`):
            Nats per token of the right answer.
        rouge_l_recall (`list[float]`):
            ROUGE-L recall of the greedy answer.
        exact_memorization (`list[float]`):
            Share of tokens that are first choices.
        extraction_strength (`list[float]`):
            Share of the answer that the model completes by itself.
        attacks (`dict[str, list[float]]`):
            Numbers of the membership attacks.
        paraphrased_loss (`list[float]`, *optional*):
            Nats per token of the paraphrased right answer.
        perturbed_losses (`list[list[float]]`, *optional*):
            Nats per token of the wrong answers.
    """

    prompts: list[str]
    answers: list[str]
    completions: list[str]
    loss: list[float]
    rouge_l_recall: list[float]
    exact_memorization: list[float]
    extraction_strength: list[float]
    attacks: dict[str, list[float]]
    paraphrased_loss: list[float] | None = None
    perturbed_losses: list[list[float]] | None = None

    @property
    def truth_ratios(self) -> np.ndarray | None:
        """TOFU's truth ratio of every row, where there are paraphrased and wrong answers."""
        if self.paraphrased_loss is None or self.perturbed_losses is None:
            return None
        # Rows may have different numbers of wrong answers.
        mean_losses = np.array([[np.mean(losses)] for losses in self.perturbed_losses])
        return truth_ratio(np.array(self.paraphrased_loss), mean_losses)

    def summary(self) -> dict[str, float]:
        """
        One figure for each measure.

        Returns:
            `dict[str, float]`: Means over the rows; `"broken answers"` is a number of rows.
        """
        figures = {
            "rows": float(len(self.prompts)),
            "probability": float(np.exp(-np.array(self.loss)).mean()),
            "ROUGE-L recall": float(np.mean(self.rouge_l_recall)),
            "exact memorization": float(np.mean(self.exact_memorization)),
            "extraction strength": float(np.mean(self.extraction_strength)),
            "broken answers": float(sum(map(is_degenerate, self.completions))),
        }
        if self.paraphrased_loss is not None:
            figures["paraphrased probability"] = float(np.exp(-np.array(self.paraphrased_loss)).mean())
        if self.truth_ratios is not None:
            figures["truth ratio (prob_mean)"] = summarize_truth_ratio(self.truth_ratios, "prob_mean")
        return figures


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> SetResults:
    """
    Measure a model on a set of questions: one scoring pass over all answers, and one greedy answer to each question.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model: a target, a retrained one, an [`ULDForCausalLM`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        questions (`Sequence[Question]`):
            The set.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest greedy answer, in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Questions per call of `generate()`.
        max_batch_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens of a batch to score.

    Returns:
        [`SetResults`]: The measures of every row.

    Raises:
        ValueError: If there are no questions, only some have a paraphrased or wrong answers, or a row is too long.
    """
    check_questions(questions)
    # Right, paraphrased and wrong answers in one pass: batches of like length whatever they are.
    pairs = [(question.prompt, question.answer) for question in questions]
    if questions[0].paraphrased_answer is not None:
        pairs += [(question.prompt, question.paraphrased_answer) for question in questions]
    pairs += [(question.prompt, wrong) for question in questions for wrong in question.perturbed_answers]
    prompts, answers = zip(*pairs, strict=True)
    scores = iter(score_completions(model, tokenizer, prompts, answers, max_batch_tokens))

    right: list[TokenScores] = [next(scores) for _ in questions]
    paraphrased = perturbed = None
    if questions[0].paraphrased_answer is not None:
        paraphrased = [next(scores).loss for _ in questions]
    if questions[0].perturbed_answers:
        perturbed = [[next(scores).loss for _ in question.perturbed_answers] for question in questions]
    texts = [question.answer.strip() for question in questions]
    completions = generate_completions(model, tokenizer, prompts[: len(questions)], max_new_tokens, batch_size)
    attacks = [attack(row, text) for row, text in zip(right, texts, strict=True)]
    return SetResults(
        prompts=list(prompts[: len(questions)]),
        answers=texts,
        completions=completions,
        loss=[row.loss for row in right],
        rouge_l_recall=rouge_l_recall(completions, texts).tolist(),
        exact_memorization=[exact_memorization(row) for row in right],
        extraction_strength=[extraction_strength(row) for row in right],
        attacks={name: [row[name] for row in attacks] for name in attacks[0]},
        paraphrased_loss=paraphrased,
        perturbed_losses=perturbed,
    )


def check_questions(questions: Sequence[Question]) -> None:
    """
    Refuse a set of which figures would be of some rows only.

    Args:
        questions (`Sequence[Question]`):
            The set.

    Raises:
        ValueError: If it is empty, or only some of its rows have a paraphrased or wrong answers.
    """
    if not questions:
        raise ValueError("There are no questions to evaluate on.")
    for name in ("paraphrased_answer", "perturbed_answers"):
        without = [index for index, question in enumerate(questions) if not vars(question)[name]]
        if without and len(without) < len(questions):
            raise ValueError(
                f"{len(without)} of {len(questions)} rows have no {name} (the first is row {without[0]}): give it for "
                "all of them or for none."
            )


@dataclass
class Evaluation:
    """
    What was measured of one model; saved as JSON with the values of every row, so that later questions need no rerun.

    Args:
        model (`str`):
            What the model is called in tables.
        sets (`dict[str, SetResults]`):
            Results by set: `"forget"`, `"retain"`, `"holdout"`.
        settings (`dict[str, Any]`, *optional*):
            What the figures depend on: model, data, options.
    """

    model: str
    sets: dict[str, SetResults]
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike) -> None:
        """
        Write a JSON file; one that is there already stays whole until the new one is.

        Args:
            path (`str` or `os.PathLike`):
                The file.
        """
        path = Path(path)
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(json.dumps(asdict(self), ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Evaluation":
        """
        Read what [`~Evaluation.save`] wrote.

        Args:
            path (`str` or `os.PathLike`):
                The file.

        Returns:
            [`Evaluation`]: The same.

        Raises:
            ValueError: If the file holds something else.
        """
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            sets = {name: SetResults(**results) for name, results in saved["sets"].items()}
            return cls(model=saved["model"], sets=sets, settings=saved["settings"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a saved evaluation ({error}): delete it, and evaluate again.") from error


def compare(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """
    Figures that need more than one model or set, for each model.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            By name; `"target"` is what memorisation is divided by, `"retrained"` what forget quality and privacy are
            measured against. Either may be absent, and with it what needs it.

    Returns:
        `dict[str, dict[str, float]]`: `"forget quality"` (TOFU), `"memorization"` and `"privacy"` (OpenUnlearning; 1
        is best) and `"AUC ..."` of the attacks, by model.

    Raises:
        ValueError: If the models were evaluated on different rows.
    """
    asked: dict[str, tuple[list[str], list[str]]] = {}
    for evaluation in evaluations.values():
        for split, results in evaluation.sets.items():
            rows = (results.prompts, results.answers)
            if asked.setdefault(split, rows) != rows:
                raise ValueError(
                    f"The models were evaluated on different {split} sets: {list(evaluations)}. Evaluate them again."
                )
    aucs = {
        name: {
            kind: attack_auc(numbers, evaluation.sets["holdout"].attacks[kind])
            for kind, numbers in evaluation.sets["forget"].attacks.items()
        }
        for name, evaluation in evaluations.items()
        if "holdout" in evaluation.sets
    }
    target, retrained = evaluations.get("target"), evaluations.get("retrained")
    figures: dict[str, dict[str, float]] = {}
    for name, evaluation in evaluations.items():
        figures[name] = {}
        ratios = evaluation.sets["forget"].truth_ratios
        if retrained is not None and ratios is not None:
            figures[name]["forget quality"] = forget_quality(ratios, retrained.sets["forget"].truth_ratios)
        if target is not None:
            # What the target itself does not remember cannot be forgotten.
            before = {measure: value for measure, value in _remembered(target).items() if value > 0}
            remembered = {measure: _remembered(evaluation)[measure] for measure in before}
            figures[name]["memorization"] = memorization_score(remembered, before)
        if name in aucs:
            figures[name] |= {f"AUC {kind}": auc for kind, auc in aucs[name].items()}
            if "retrained" in aucs:
                figures[name]["privacy"] = privacy_score(aucs[name], aucs["retrained"])
    return figures


def _remembered(evaluation: Evaluation) -> dict[str, float]:
    summary = evaluation.sets["forget"].summary()
    names = ("exact memorization", "extraction strength", "paraphrased probability", "truth ratio (prob_mean)")
    return {name: summary[name] for name in names if name in summary}
