"""Everything that is measured of one model on the questions of one set, row by row, and the figures that sum it up."""

import json
import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..prompt_tokens import prompt_tokens
from .encoding import check_lengths, check_predictable, encode
from .memorization import (
    begin_answer,
    exact_memorization,
    extraction_strength,
    fluency,
    leak_at_k,
    leaks,
    sample_completions,
)
from .privacy import attack
from .scoring import MAX_BATCH_TOKENS, TokenScores, score_completions
from .tofu import (
    generate_completions,
    is_degenerate,
    normalized_probability,
    rouge_l_recall,
    summarize_truth_ratio,
    truth_ratio,
)
from .verbatim import longest_common_run, sentence_bleu


@dataclass(frozen=True)
class Question:
    """
    One row of a set: a question and its answer, or a passage of a document and how it goes on.

    Args:
        prompt (`str`):
            The question, as the model is to see it.
        answer (`str`):
            The right answer, as it follows the prompt: with its leading space, if any.
        paraphrased_answer (`str`, *optional*):
            The right answer in other words.
        perturbed_answers (`tuple[str, ...]`, *optional*):
            Wrong answers in like words.
        paraphrased_prompt (`str`, *optional*):
            The question in other words, as the model is to see it.
        fact (`str`, *optional*):
            The words of the answer that must not come out.
        is_passage (`bool`, *optional*, defaults to `False`):
            Whether the answer is cut out of a document, and so has no end that could be scored.
        end_token_id (`int`, *optional*):
            The token that a chat template puts behind an answer. Defaults to the tokenizer's end token.
    """

    prompt: str
    answer: str
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    paraphrased_prompt: str | None = None
    fact: str | None = None
    is_passage: bool = False
    end_token_id: int | None = None

    def end(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """
        The token that ends an answer to it.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                The tokenizer.

        Returns:
            `int` or `None`: `None` for a passage.
        """
        if self.is_passage:
            return None
        return tokenizer.eos_token_id if self.end_token_id is None else self.end_token_id


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
        num_tokens (`list[int]`):
            Tokens of the right answer, its end included.
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
        bleu (`list[float]`, *optional*):
            Of passages, sentence BLEU of the greedy continuation, 0 to 100.
        longest_common_run (`list[int]`, *optional*):
            Of passages, words of the longest run that greedy continuation and document have in common.
        clean (`list[float]`, *optional*):
            Probability that the greedy answer is no gibberish.
        probes (`dict[str, list[list[str]]]`, *optional*):
            Answers to other ways of asking, by way: `"question in other words"`, `"answer begun"`, `"drawn"`.
        leaks (`dict[str, list[list[float]]]`, *optional*):
            How much each of them gives away, see [`~uld_hf.evaluation.memorization.leaks`]; the greedy answer under
            `"question"`.
        word_perplexity (`float`, *optional*):
            Of sets of documents, perplexity per word.
    """

    prompts: list[str]
    answers: list[str]
    completions: list[str]
    num_tokens: list[int]
    loss: list[float]
    rouge_l_recall: list[float]
    exact_memorization: list[float]
    extraction_strength: list[float]
    attacks: dict[str, list[float]]
    paraphrased_loss: list[float] | None = None
    perturbed_losses: list[list[float]] | None = None
    bleu: list[float] | None = None
    longest_common_run: list[int] | None = None
    clean: list[float] | None = None
    probes: dict[str, list[list[str]]] | None = None
    leaks: dict[str, list[list[float]]] | None = None
    word_perplexity: float | None = None

    @property
    def truth_ratios(self) -> np.ndarray | None:
        """
        TOFU's truth ratio of every row (geometric mean), where there are wrong answers. Rows without a paraphrase
        take the right answer itself, as TOFU does for real authors and world facts.
        """
        if self.perturbed_losses is None:
            return None
        right = self.loss if self.paraphrased_loss is None else self.paraphrased_loss
        # Rows may have different numbers of wrong answers.
        mean_losses = np.array([[np.mean(losses)] for losses in self.perturbed_losses])
        return truth_ratio(np.array(right), mean_losses)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self).pop("_summary", None)  # it was of other values
        super().__setattr__(name, value)

    def summary(self) -> dict[str, float]:
        """
        One figure for each measure, computed once: tables and checks ask again and again.

        Returns:
            `dict[str, float]`: Means over the rows; `"broken answers"` is a number of rows.
        """
        if "_summary" not in vars(self):
            vars(self)["_summary"] = self._summarize()
        return dict(vars(self)["_summary"])

    def _summarize(self) -> dict[str, float]:
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
            shares = [
                normalized_probability(np.array([right]), np.array([wrong]))[0]
                for right, wrong in zip(self.loss, self.perturbed_losses, strict=True)
            ]
            figures["probability among answers"] = float(np.mean(shares))
            for kind in ("prob_mean", "closer_to_1_better", "true_better"):
                figures[f"truth ratio ({kind})"] = summarize_truth_ratio(self.truth_ratios, kind)
        means = {"BLEU": self.bleu, "longest common run": self.longest_common_run, "fluency": self.clean}
        figures |= {name: float(np.mean(values)) for name, values in means.items() if values is not None}
        if self.word_perplexity is not None:
            figures["word perplexity"] = self.word_perplexity
        for way, values in (self.leaks or {}).items():
            if way == "drawn":
                for k in sorted({1, len(values[0])}):
                    figures[f"leak@{k}"] = float(leak_at_k(np.array(values), k).mean())
            else:
                figures[f"leak, {way}"] = float(np.mean(values))
        return figures


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    *,
    probe: bool = False,
    num_samples: int = 10,
    classifier: Callable[[list[str]], list[list[dict[str, Any]]]] | None = None,
) -> SetResults:
    """
    Measure a model on a set of questions: one scoring pass over all answers, and one greedy answer to each question, of
    which only what scoring has not told is generated.

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
        probe (`bool`, *optional*, defaults to `False`):
            Also ask in other words (where the rows have them), begin the answers, and draw answers.
        num_samples (`int`, *optional*, defaults to `10`):
            Answers to draw to each question when probing, at temperature 1 and with a seed of their own.
        classifier (`Callable`, *optional*):
            Classifier of gibberish, see [`~uld_hf.evaluation.memorization.fluency`].

    Returns:
        [`SetResults`]: The measures of every row.

    Raises:
        ValueError: If there are no questions, only some have a paraphrased or wrong answers, or a row is too long.
    """
    check_questions(questions)
    check_fit(model, tokenizer, questions, max_new_tokens)
    # Right, paraphrased and wrong answers in one pass: batches of like length whatever they are.
    asked = [(question, question.answer) for question in questions]
    if questions[0].paraphrased_answer is not None:
        asked += [(question, question.paraphrased_answer) for question in questions]
    asked += [(question, wrong) for question in questions for wrong in question.perturbed_answers]
    rows = [(question.prompt, answer, question.end(tokenizer)) for question, answer in asked]
    prompts, answers, ends = zip(*rows, strict=True)
    scores = iter(score_completions(model, tokenizer, prompts, answers, max_batch_tokens, ends))

    right: list[TokenScores] = [next(scores) for _ in questions]
    paraphrased = perturbed = None
    if questions[0].paraphrased_answer is not None:
        paraphrased = [next(scores).loss for _ in questions]
    if questions[0].perturbed_answers:
        perturbed = [[next(scores).loss for _ in question.perturbed_answers] for question in questions]
    texts = [question.answer.strip() for question in questions]
    # A line break ends a turn in some templates, and stands in answers too.
    turn_ends = {end for end in ends if end is not None and tokenizer.decode([end]).strip()}
    completions = generate_completions(
        model, tokenizer, prompts[: len(questions)], max_new_tokens, batch_size, right, turn_ends
    )
    attacks = [attack(row, text) for row, text in zip(right, texts, strict=True)]
    results = SetResults(
        prompts=list(prompts[: len(questions)]),
        answers=texts,
        completions=completions,
        num_tokens=[len(row.log_probs) for row in right],
        loss=[row.loss for row in right],
        rouge_l_recall=rouge_l_recall(completions, texts).tolist(),
        exact_memorization=[exact_memorization(row) for row in right],
        extraction_strength=[extraction_strength(row) for row in right],
        attacks={name: [row[name] for row in attacks] for name in attacks[0]},
        paraphrased_loss=paraphrased,
        perturbed_losses=perturbed,
    )
    if questions[0].is_passage:
        compared = list(zip(completions, texts, strict=True))
        results.bleu = [sentence_bleu(*pair) for pair in compared]
        results.longest_common_run = [longest_common_run(*pair) for pair in compared]
    if classifier is not None:
        results.clean = fluency(completions, classifier).tolist()
    if probe:
        _probe(results, right, model, tokenizer, questions, max_new_tokens, batch_size, num_samples, turn_ends)
    return results


def _probe(
    results: SetResults,
    right: Sequence[TokenScores],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int,
    num_samples: int,
    ends: Collection[int],
) -> None:
    """Ask in other ways than in training, and note what comes out."""
    begun, rest = zip(*(begin_answer(question.answer, question.fact) for question in questions), strict=True)
    facts = [question.fact for question in questions]
    prompts = {"answer begun": [question.prompt + start for question, start in zip(questions, begun, strict=True)]}
    if questions[0].paraphrased_prompt is not None:
        prompts["question in other words"] = [question.paraphrased_prompt for question in questions]
    # Of the right answer's rest its scores tell as much; the question in other words was not scored.
    scores = {"answer begun": right}
    results.probes = {
        way: [
            [text]
            for text in generate_completions(model, tokenizer, asked, max_new_tokens, batch_size, scores.get(way), ends)
        ]
        for way, asked in prompts.items()
    }
    if num_samples:
        results.probes["drawn"] = sample_completions(
            model, tokenizer, [question.prompt for question in questions], num_samples, max_new_tokens, ends=ends
        )
    answers = {"question": [[text] for text in results.completions], **results.probes}
    results.leaks = {
        way: leaks(texts, rest if way == "answer begun" else results.answers, facts) for way, texts in answers.items()
    }


def check_questions(questions: Sequence[Question]) -> None:
    """
    Refuse a set of which figures would be of some rows only.

    Args:
        questions (`Sequence[Question]`):
            The set.

    Raises:
        ValueError: If it is empty, or only some of its rows have a paraphrased or wrong answers, a paraphrased
            question, or a fact.
    """
    if not questions:
        raise ValueError("There are no questions to evaluate on.")
    for name in ("paraphrased_answer", "perturbed_answers", "paraphrased_prompt", "fact", "is_passage"):
        without = [index for index, question in enumerate(questions) if not vars(question)[name]]
        if without and len(without) < len(questions):
            raise ValueError(
                f"{len(without)} of {len(questions)} rows have no {name} (the first is rows[{without[0]}]): give it "
                "for all of them or for none."
            )


def check_fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], max_new_tokens: int
) -> None:
    """
    Refuse questions that, with an answer, do not fit into the model's context, and answers without a token to score.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        questions (`Sequence[Question]`):
            The set.
        max_new_tokens (`int`):
            Longest greedy answer, in tokens; `0` if nothing is generated.

    Raises:
        ValueError: If one does not.
    """
    rows, asked = [], []
    for question in questions:
        answers = (question.answer, question.paraphrased_answer, *question.perturbed_answers)
        end = question.end(tokenizer)
        rows += [encode(tokenizer, question.prompt, answer, end) for answer in answers if answer is not None]
        begun = question.prompt + begin_answer(question.answer, question.fact)[0]
        prompts = [begun, *([] if question.paraphrased_prompt is None else [question.paraphrased_prompt])]
        asked.append(max(map(len, prompt_tokens(tokenizer, prompts))) + max_new_tokens)
    check_predictable(rows)
    check_lengths(model, [len(ids) for ids, _ in rows])
    if max_new_tokens:
        check_lengths(model, asked, f"with max_new_tokens={max_new_tokens} ")


def _name_infinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _name_infinite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_name_infinite(each) for each in value]
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _read_infinite(each: dict[str, Any]) -> Any:
    return float(each["float"]) if each.keys() == {"float"} else each


@dataclass
class Evaluation:
    """
    What was measured of one model; saved as JSON with the values of every row, so that later questions need no rerun.

    Args:
        model (`str`):
            What the model is called in tables.
        sets (`dict[str, SetResults]`):
            Results by set: `"forget"`, `"retain"`, `"holdout"`, `"real_authors"`, `"world_facts"`.
        settings (`dict[str, Any]`, *optional*):
            What the figures depend on: model, data, options.
    """

    model: str
    sets: dict[str, SetResults]
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike) -> None:
        """
        Write a JSON file; one that is there already stays whole until the new one is.

        Numbers that are not finite, which JSON has not, are written as `{"float": "inf"}`.

        Args:
            path (`str` or `os.PathLike`):
                The file.
        """
        path = Path(path)
        unfinished = path.with_name(f"{path.name}.unfinished")
        content = json.dumps(_name_infinite(asdict(self)), ensure_ascii=False, allow_nan=False)
        unfinished.write_text(content + "\n", encoding="utf-8")
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
            saved = json.loads(Path(path).read_text(encoding="utf-8"), object_hook=_read_infinite)
            sets = {name: SetResults(**results) for name, results in saved["sets"].items()}
            return cls(model=saved["model"], sets=sets, settings=saved["settings"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a saved evaluation ({error}): delete it, and evaluate again.") from error
