"""The paper's augmentation (section 3.4) for a user's own forget set: paraphrases to forget, wrong answers to retain.

Here is what every way of making them shares: the checks that a new text must pass, and the two sets that they join.
`augmentation_rules.py` and `augmentation_model.py` make the texts.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from datasets import Dataset

from .augmentation_documents import word_starts
from .augmentation_entities import Entity, common_words, facts, find_entities, keeps, normalize, states
from .augmentation_rows import Pair, RowFormat, answer_of, read_pair, row_format, training_columns, write_pair
from .formatting import TEMPLATE_COLUMNS


QUESTION, ANSWER, WRONG_ANSWER, PASSAGE = "question", "answer", "wrong answer", "passage"


@dataclass
class Variants:
    """
    What was made of one row of the forget set.

    Args:
        questions (`list[str]`):
            The question in other words.
        answers (`list[str]`):
            The right answer in other words.
        wrong_answers (`list[str]`):
            Plausible wrong answers to it.
        passages (`list[str]`):
            A document in other pieces, or in other words.
        dropped (`list[dict[str, str]]`):
            What did not pass a check: `kind`, `text` and `reason`.
    """

    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    wrong_answers: list[str] = field(default_factory=list)
    passages: list[str] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)

    def add(self, kind: str, candidates: Iterable[str], limit: int, check: Callable[[str], str | None]) -> None:
        """
        Keep candidates that pass, until there are enough.

        Args:
            kind (`str`):
                `"question"`, `"answer"`, `"wrong answer"` or `"passage"`.
            candidates (`Iterable[str]`):
                New texts, the best first.
            limit (`int`):
                How many are wanted in all.
            check (`Callable`):
                Why a text must be dropped, or `None`.
        """
        kept = self.texts(kind)
        seen = {normalize(text) for text in kept}
        for text in map(str.strip, candidates):
            if len(kept) >= limit:
                return
            reason = "repeats another" if normalize(text) in seen else check(text)
            if reason is None:
                kept.append(text)
                seen.add(normalize(text))
            else:
                self.dropped.append({"kind": kind, "text": text, "reason": reason})

    def texts(self, kind: str) -> list[str]:
        """
        The texts of one kind.

        Args:
            kind (`str`):
                `"question"`, `"answer"`, `"wrong answer"` or `"passage"`.

        Returns:
            `list[str]`: The list itself.
        """
        return {
            QUESTION: self.questions,
            ANSWER: self.answers,
            WRONG_ANSWER: self.wrong_answers,
            PASSAGE: self.passages,
        }[kind]


_YES_OR_NO = {"yes", "no"}


class Checks:
    """
    What a new text must not do, by what is known of all rows.

    Args:
        forget (`Sequence[Pair]`):
            Questions and answers of the forget set.
        retain (`Sequence[Pair]`):
            Those of the retain set, as far as it has any.
    """

    def __init__(self, forget: Sequence[Pair], retain: Sequence[Pair] = ()):
        self.pairs = list(forget)
        self.common = common_words(text for pair in (*forget, *retain) for text in pair)
        self._retain_questions = {normalize(pair.question) for pair in retain}
        self._retain_answers = {normalize(pair.answer) for pair in retain}
        # Several rows may ask the same: TOFU has such a question, with two answers.
        self._true_answers: dict[str, set[str]] = {}
        for pair in (*forget, *retain):
            self._true_answers.setdefault(normalize(pair.question), set()).add(normalize(pair.answer))

    @cached_property
    def names(self) -> set[str]:
        """Names in the forget questions."""
        found = (entity for pair in self.pairs for entity in find_entities(pair.question, self.common))
        return {entity.text for entity in found if entity.kind == "name"}

    @cached_property
    def people(self) -> set[str]:
        """Those of them that are people's: who owns something is somebody. "African American" is asked about too."""
        texts = "\n".join(text for pair in self.pairs for text in pair)
        return {name for name in self.names if re.search(rf"\b{re.escape(name)}['\u2019]s\b", texts)}

    def question(self, index: int, text: str) -> str | None:
        """
        Why a text is no paraphrase of a row's question.

        Args:
            index (`int`):
                Number of the row.
            text (`str`):
                The text.

        Returns:
            `str` or `None`: The reason, `None` if it is one.
        """
        if normalize(text) in self._retain_questions:
            return "is a question of the retain set"
        original = self.pairs[index].question
        return self._paraphrase(original, find_entities(original, self.common), text)

    def answer(self, index: int, text: str) -> str | None:
        """
        Why a text is no paraphrase of a row's answer.

        Args:
            index (`int`):
                Number of the row.
            text (`str`):
                The text.

        Returns:
            `str` or `None`: The reason, `None` if it is one.
        """
        return self._paraphrase(self.pairs[index].answer, facts(*self.pairs[index], self.common), text)

    def wrong_answer(self, index: int, text: str, questions: Sequence[str] = ()) -> str | None:
        """
        Why a text is no wrong answer to a row's question.

        Args:
            index (`int`):
                Number of the row.
            text (`str`):
                The text.
            questions (`Sequence[str]`, *optional*):
                Other questions that it may be put to.

        Returns:
            `str` or `None`: The reason, `None` if it is one.
        """
        question, answer = self.pairs[index]
        words = normalize(text)
        if not words:
            return "is empty"
        if words == normalize(answer):
            return "is the right answer"
        if sorted(words.split()) == sorted(normalize(answer).split()):
            return "is the right answer in another order"
        if any(words in self._true_answers.get(normalize(asked), ()) for asked in (question, *questions)):
            return "is the right answer of a row that asks the same"
        told = facts(question, answer, self.common)
        if not told and _YES_OR_NO & {*words.split()[:1]} & {*normalize(answer).split()[:1]}:
            return "says yes or no as the right answer does"
        if told and all(states(entity, text) for entity in told):
            return "states all that the right answer does"
        # "In Paris." is right where the answer is "In Paris, France."
        own = facts(question, text, self.common)
        if told and own and all(_is_within(entity, answer) for entity in own):
            return "states nothing that the right answer does not"
        return None

    def part(self, index: int, text: str) -> str | None:
        """
        Why a text is no part of a document worth learning by itself.

        Args:
            index (`int`):
                Number of the row.
            text (`str`):
                The text.

        Returns:
            `str` or `None`: The reason, `None` if it is one.
        """
        if len(word_starts(normalize(text))) < 3:
            return "has fewer than three words"
        if normalize(text) in self._retain_answers:
            return "is a document of the retain set"
        return "repeats the original" if normalize(text) == normalize(self.pairs[index].answer) else None

    def rewritten_part(self, index: int, original: str, text: str) -> str | None:
        """
        Why a text is not a part of a document in other words.

        Args:
            index (`int`):
                Number of the row.
            original (`str`):
                The part that was to be rewritten.
            text (`str`):
                The text.

        Returns:
            `str` or `None`: The reason, `None` if it is one.
        """
        reason = self.part(index, text)
        if reason is not None or normalize(text) == normalize(original):
            return reason or "repeats the original"
        entities = find_entities(original, self.common)
        kept = sum(keeps(entity, text) for entity in entities)
        return None if 2 * kept >= len(entities) else "loses most names, titles, dates and numbers"

    def _paraphrase(self, original: str, entities: Sequence[Entity], text: str) -> str | None:
        words = normalize(text)
        if words in ("", normalize(original)):
            return "repeats the original" if words else "is empty"
        lost = next((entity for entity in entities if not keeps(entity, text)), None)
        return None if lost is None else f"loses the {lost.kind}"


def _is_within(entity: Entity, text: str) -> bool:
    """Whether all words of an entity are a text's, in whatever form: a year of a date, a surname, a first title."""
    return states(entity, text) or set(normalize(entity.text).split()) <= set(normalize(text).split())


@dataclass
class Rows:
    """
    The two sets of a user, read.

    Args:
        kind (`str`):
            Format of the forget rows.
        forget (`list[dict]`):
            Rows to forget.
        retain (`list[dict]`):
            Rows to keep; empty if there are none.
        checks ([`Checks`]):
            What is known of all of them. Documents are pairs without a question.
        asked_with (`list[dict]`):
            What an evaluation asks forget rows with besides: their other words and facts, as far as they have some.
    """

    kind: RowFormat
    forget: list[dict[str, Any]]
    retain: list[dict[str, Any]]
    checks: Checks
    asked_with: list[dict[str, Any]]


def read_rows(forget: Dataset, retain: Dataset | None) -> Rows:
    """
    Read the two sets, and refuse what cannot be augmented.

    Args:
        forget ([`~datasets.Dataset`]):
            Rows to forget, in a format of `uld train`.
        retain ([`~datasets.Dataset`], *optional*):
            Rows to keep, in the same format.

    Returns:
        [`Rows`]: What was read.

    Raises:
        ValueError: If a set is empty or in no known format, the formats differ, a row lacks a question or an answer, or
            a row is in both sets.
    """
    kind = row_format(forget, "forget")
    if retain is not None and row_format(retain, "retain") != kind:
        raise ValueError(
            f"The forget set's rows are {kind}, the retain set's {row_format(retain, 'retain')}: one file cannot hold "
            "both. Give both sets the same format."
        )
    if retain is not None:
        of_template = [TEMPLATE_COLUMNS & set(each.column_names) for each in (forget, retain)]
        if of_template[0] != of_template[1]:
            raise ValueError(
                f"The chat template is given {sorted(of_template[0])} by forget rows and {sorted(of_template[1])} by "
                "retain rows, and the new retain rows are forget rows with wrong answers. Add what is missing to every "
                "row ('tools': null, 'chat_template_kwargs': {}), or remove it from the others."
            )
    rows = {
        "forget": training_columns(forget, kind),
        "retain": [] if retain is None else training_columns(retain, kind),
    }
    pairs = {name: [_read(row, kind, f"{name}[{i}]") for i, row in enumerate(of_set)]
             for name, of_set in rows.items()}  # fmt: skip
    normal = {
        name: {tuple(map(normalize, pair)): index for index, pair in reversed([*enumerate(of_set)])}
        for name, of_set in pairs.items()
    }
    for key in normal["forget"].keys() & normal["retain"].keys():
        raise ValueError(
            f"forget[{normal['forget'][key]}] is also retain[{normal['retain'][key]}]. Remove it from one of them."
        )
    asked_with = [
        {name: row[name] for name in ("paraphrased_question", "fact") if row.get(name) is not None} for row in forget
    ]
    return Rows(kind, rows["forget"], rows["retain"], Checks(pairs["forget"], pairs["retain"]), asked_with)


def _read(row: dict[str, Any], kind: RowFormat, source: str) -> Pair:
    if kind != "text":
        return read_pair(row, kind, source)
    if not (isinstance(row["text"], str) and row["text"].strip()):
        raise ValueError(f"{source} has no text. Remove it.")
    return Pair("", row["text"])


@dataclass
class Augmentation:
    """
    Augmented sets, and how they came about.

    Args:
        forget ([`~datasets.Dataset`]):
            The forget set, and after it what joins it.
        retain ([`~datasets.Dataset`], *optional*):
            The retain set, as far as one was given, and after it what joins it. `None` if there is nothing.
        variants (`list[Variants]`):
            What was made of each forget row, and what was dropped.
        questions (`list[dict[str, Any]]`):
            The forget rows as an evaluation asks them, with what was held out: see [`as_questions`].
        report (`dict[str, Any]`):
            Counts.
    """

    forget: Dataset
    retain: Dataset | None
    variants: list[Variants]
    questions: list[dict[str, Any]]
    report: dict[str, Any]


def check_counts(paraphrases: int, wrong_answers: int, held_out: int = 0) -> None:
    """
    Refuse numbers with which nothing would be made.

    Args:
        paraphrases (`int`):
            Paraphrases for each row.
        wrong_answers (`int`):
            Wrong answers for each row.
        held_out (`int`, *optional*, defaults to `0`):
            Wrong answers for each row that are not trained on.

    Raises:
        ValueError: If one is negative or all are 0.
    """
    if min(paraphrases, wrong_answers, held_out) < 0 or max(paraphrases, wrong_answers, held_out) == 0:
        raise ValueError(
            f"paraphrases={paraphrases}, wrong_answers={wrong_answers} and held_out={held_out} must not be negative, "
            "and not all 0."
        )


def number_to_make(rows: Rows, paraphrases: int, wrong_answers: int, held_out: int) -> tuple[int, int]:
    """
    How much to make of each row, so that enough is held out.

    Args:
        rows ([`Rows`]):
            The two sets.
        paraphrases (`int`):
            Paraphrases to train on.
        wrong_answers (`int`):
            Wrong answers to train on.
        held_out (`int`):
            Wrong answers beyond these, and with any a paraphrase.

    Returns:
        `tuple[int, int]`: Paraphrases and wrong answers.
    """
    if rows.kind == "text":
        return paraphrases, wrong_answers
    return paraphrases + bool(held_out), wrong_answers + held_out


def split_variants(made: Variants, paraphrases: int, wrong_answers: int) -> tuple[Variants, Variants]:
    """
    Divide what was made of a row, documents aside, into what is trained on and what is held out.

    Args:
        made ([`Variants`]):
            What was made.
        paraphrases (`int`):
            Paraphrases to train on.
        wrong_answers (`int`):
            Wrong answers to train on.

    Returns:
        `tuple[Variants, Variants]`: The first ones with all that was dropped, and the others.
    """
    limits = {"questions": paraphrases, "answers": paraphrases, "wrong_answers": wrong_answers}
    kept = {name: vars(made)[name][:limit] for name, limit in limits.items()}
    others = {name: vars(made)[name][limit:] for name, limit in limits.items()}
    return replace(made, **kept), Variants(**others)


def as_questions(rows: Rows, variants: Sequence[Variants]) -> list[dict[str, Any]]:
    """
    The forget rows with the columns of TOFU's evaluation, which forget quality is computed from.

    Args:
        rows ([`Rows`]):
            The two sets.
        variants (`Sequence[Variants]`):
            What to ask with, one for each forget row.

    Returns:
        `list[dict[str, Any]]`: The rows with `"paraphrased_answer"` and `"perturbed_answer"`; without those of which
        there is not both.
    """
    asked = []
    for row, asked_with, pair, made in zip(rows.forget, rows.asked_with, rows.checks.pairs, variants, strict=True):
        if made.answers and made.wrong_answers:
            right, *wrong = (
                answer_of(write_pair(row, rows.kind, Pair(pair.question, answer)), rows.kind)
                for answer in (made.answers[0], *made.wrong_answers)
            )
            asked.append({**row, **asked_with, "paraphrased_answer": right, "perturbed_answer": wrong})
    return asked


def assemble(rows: Rows, variants: Sequence[Variants], paraphrases: int, wrong_answers: int) -> Augmentation:
    """
    Join the variants to the two sets.

    The i-th new forget row has the i-th paraphrase of the question and of the answer, or the original where one of the
    two is short. The first wrong answer is put to the row's own question, the others to its paraphrases in turn.

    Args:
        rows ([`Rows`]):
            The two sets.
        variants (`Sequence[Variants]`):
            One for each forget row; what is in it beyond the following numbers is held out.
        paraphrases (`int`):
            How many were wanted for each row.
        wrong_answers (`int`):
            How many were wanted for each row.

    Returns:
        [`Augmentation`]: The result.
    """
    variants, held_out = zip(*(split_variants(made, paraphrases, wrong_answers) for made in variants), strict=True)
    forget, retain = [*rows.forget], [*rows.retain]
    for row, pair, made in zip(rows.forget, rows.checks.pairs, variants, strict=True):
        forget += [{"text": text} for text in made.passages]
        for turn in range(max(len(made.questions), len(made.answers))):
            question = made.questions[turn] if turn < len(made.questions) else pair.question
            answer = made.answers[turn] if turn < len(made.answers) else pair.answer
            forget.append(write_pair(row, rows.kind, Pair(question, answer)))
        questions = [pair.question, *made.questions]
        for turn, answer in enumerate(made.wrong_answers):
            retain.append(write_pair(row, rows.kind, Pair(questions[turn % len(questions)], answer)))
    return Augmentation(
        forget=Dataset.from_list(forget),
        retain=Dataset.from_list(retain) if retain else None,
        variants=list(variants),
        questions=as_questions(rows, held_out),
        report=_report(rows, variants, paraphrases, wrong_answers, len(forget), len(retain)),
    )


def _report(
    rows: Rows, variants: Sequence[Variants], paraphrases: int, wrong_answers: int, num_forget: int, num_retain: int
) -> dict[str, Any]:
    wanted = {QUESTION: paraphrases, ANSWER: paraphrases, WRONG_ANSWER: wrong_answers}
    if rows.kind == "text":
        wanted = {PASSAGE: paraphrases}
    return {
        "forget rows": {"given": len(rows.forget), "made": num_forget - len(rows.forget)},
        "retain rows": {"given": len(rows.retain), "made": num_retain - len(rows.retain)},
        "made": {kind: sum(len(made.texts(kind)) for made in variants) for kind in wanted},
        "rows with fewer than wanted": {
            kind: sum(len(made.texts(kind)) < limit for made in variants) for kind, limit in wanted.items()
        },
        "dropped": {
            kind: dict(
                sorted(Counter(d["reason"] for made in variants for d in made.dropped if d["kind"] == kind).items())
            )
            for kind in wanted
        },
    }
