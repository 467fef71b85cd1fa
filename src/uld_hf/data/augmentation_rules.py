"""Paraphrases and wrong answers without a model: question forms, and values swapped among the forget set's own rows.

Nothing is taken from the retain set: it only says what a wrong answer must not be. Every choice is drawn from a
generator of its own for each row, seeded by text: neither the order of sets nor Python's hash seed plays a part.
"""

import random
import re
from collections.abc import Iterator
from itertools import zip_longest

from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from .augmentation import (
    ANSWER,
    PASSAGE,
    QUESTION,
    WRONG_ANSWER,
    Augmentation,
    Checks,
    Rows,
    Variants,
    assemble,
    check_counts,
    number_to_make,
    read_rows,
)
from .augmentation_documents import vary_document
from .augmentation_entities import Entity, facts, find_entities, keeps, normalize
from .augmentation_forms import BEFORE_ANSWER, answer_forms, other_dates, question_forms
from .augmentation_rows import is_beginning
from .augmentation_values import other_days, other_numbers


logger = logging.get_logger(__name__)

# Most English questions have one, and other languages do not.
_ENGLISH = re.compile(
    r"\b(?:the|of|what|who|whom|whose|where|when|why|which|how|is|are|were|does|did|has|have|can|could|would|tell|and)\b",
    re.IGNORECASE,
)
# Words of questions, as far as five letters, that say nothing of what is asked for.
_NO_TOPIC = {
    "what", "when", "where", "which", "whose", "does", "have", "were", "been", "that", "this", "with", "from", "about",
    "name", "title", "date", "numbe", "known", "tell", "they", "their", "your", "into",
}  # fmt: skip
# Not "No one", "No. 5" or "Yes Minister".
_POLAR = re.compile(r"(?:Yes|Indeed|No)(?=[,;:!]|\.?$|\.\s+[A-Z]| [—–-] )")
# Rows that share this part of their words ask the same of somebody else.
_ALIKE = 0.5
# Rows that share less of them ask something else: their answers are worse than none.
_REMOTE = 0.2


def augment_by_rules(
    forget: Dataset,
    retain: Dataset | None = None,
    paraphrases: int = 2,
    wrong_answers: int = 2,
    seed: int = 0,
    held_out: int = 0,
) -> Augmentation:
    """
    The paper's augmentation (section 3.4) by rules.

    Args:
        forget ([`~datasets.Dataset`]):
            Rows to forget: question and answer, prompt and completion, messages, or text.
        retain ([`~datasets.Dataset`], *optional*):
            Rows to keep, in the same format. No wrong answer is one of theirs.
        paraphrases (`int`, *optional*, defaults to `2`):
            Paraphrases of question and answer, or variations of a document, for each row at most.
        wrong_answers (`int`, *optional*, defaults to `2`):
            Wrong answers for each row at most; documents have none.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all choices.
        held_out (`int`, *optional*, defaults to `0`):
            Wrong answers beyond these, and a paraphrase of the answer beyond those, that join neither set: an
            evaluation asks with them, see `questions` of the result. Documents have none.

    Returns:
        [`Augmentation`]: The two sets, what was made of each row, and a report.

    Raises:
        ValueError: If the sets cannot be augmented, see [`read_rows`], or nothing is asked for.
    """
    check_counts(paraphrases, wrong_answers, held_out)
    rows = read_rows(forget, retain)
    asked = [
        pair.question
        for row, pair in zip(rows.forget, rows.checks.pairs, strict=True)
        if rows.kind != "text" and not is_beginning(row, rows.kind)
    ]
    foreign = sum(not _ENGLISH.search(question) for question in asked)
    if 2 * foreign > len(asked):
        logger.warning(
            f"{foreign} of {len(asked)} questions have no English word, and the words that rules put around "
            "questions and answers are English: let a chat model write them (`uld augment --model`)."
        )
    wanted = number_to_make(rows, paraphrases, wrong_answers, held_out)
    vary = _vary_text if rows.kind == "text" else _Swapper(rows.checks).vary
    variants = [
        vary(rows, index, *wanted, random.Random(f"{seed} {index}"))
        for index in tqdm(range(len(rows.forget)), desc="Augmenting", leave=False)
    ]
    return assemble(rows, variants, paraphrases, wrong_answers)


def _vary_text(rows: Rows, index: int, paraphrases: int, wrong_answers: int, rng: random.Random) -> Variants:
    made = Variants()
    parts = vary_document(rows.checks.pairs[index].answer, rng)
    made.add(PASSAGE, parts, paraphrases, lambda text: rows.checks.part(index, text))
    return made


class _Swapper:
    """Wrong answers from the values and answers of the other forget rows."""

    def __init__(self, checks: Checks):
        self.checks = checks
        self.facts = [facts(*pair, checks.common) for pair in checks.pairs]
        self.subjects = [
            [entity for entity in find_entities(pair.question, checks.common) if entity.kind == "name"]
            for pair in checks.pairs
        ]
        self.names = [{entity.text for entity in subjects} for subjects in self.subjects]
        self.asked = [self._words_asked(index) for index in range(len(checks.pairs))]
        # "languages" and "language" are the same; "which" and "does" are no topic.
        self.topics = [{word[:5] for word in words if len(word) > 3} - _NO_TOPIC for words in self.asked]

    def vary(self, rows: Rows, index: int, paraphrases: int, wrong_answers: int, rng: random.Random) -> Variants:
        checks, common = self.checks, self.checks.common
        question, answer = checks.pairs[index]
        made = Variants()
        names = [entity.text for entity in self.subjects[index] if entity.text in self.checks.people]
        if is_beginning(rows.forget[index], rows.kind):
            # With words around it, it would not be gone on with.
            questions, answers = other_dates(question), other_dates(answer)
        else:
            questions, answers = question_forms(question, common, rng), answer_forms(answer, names, common, rng)
        made.add(QUESTION, questions, paraphrases, lambda text: checks.question(index, text))
        made.add(ANSWER, answers, paraphrases, lambda text: checks.answer(index, text))
        # In the forms of the right answers: else the assistant would take the words before an answer for the fact.
        forms = ["{}", *(form for form in BEFORE_ANSWER if form.format(answer) in made.answers)]
        bare: dict[str, str] = {}

        def worded() -> Iterator[str]:
            for turn, text in enumerate(self._wrong_answers(index, rng)):
                form = forms[turn % len(forms)].format(text).strip()
                bare[form] = text
                yield form

        # What stands before it would hide a right answer.
        made.add(
            WRONG_ANSWER,
            worded(),
            wrong_answers,
            lambda text: checks.wrong_answer(index, bare[text], made.questions),
        )
        return made

    def _wrong_answers(self, index: int, rng: random.Random) -> Iterator[str]:
        """The most plausible first: other values, answers to the same question about others, the contrary."""
        answer, of_others = self.checks.pairs[index].answer, self._answers_of_others(index)
        # To yes or no, nothing is better than what another question asks for.
        if _POLAR.match(answer):
            of_others = [(share, text) for share, text in of_others if share >= _ALIKE and _POLAR.match(text)]
        alike = [text for share, text in of_others if share >= _ALIKE]
        for pair in zip_longest(self._swap_values(index, rng), alike):
            yield from (text for text in pair if text is not None)
        contrary = _contradict(answer)
        if contrary is not None:
            yield contrary
        yield from (text for share, text in of_others if _REMOTE <= share < _ALIKE)

    def _swap_values(self, index: int, rng: random.Random) -> Iterator[str]:
        answer = self.checks.pairs[index].answer
        choices = [(entity, self._other_values(index, entity, rng)) for entity in self.facts[index]]
        for turn in range(max((len(values) for _, values in choices), default=0)):
            text, used = answer, set()
            for entity, values in reversed(choices):
                # The same value in two places would give itself away.
                value = next((value for value in values[turn:] if value not in used), entity.text)
                used.add(value)
                text = _article_before(text[: entity.start], value) + value + text[entity.end :]
            yield text

    def _other_values(self, index: int, entity: Entity, rng: random.Random) -> list[str]:
        """Values for the place of an entity; those that stand between the same words in their own answer come first."""
        if entity.kind == "number":
            answer = self.checks.pairs[index].answer
            return other_numbers(entity.text, rng, before=answer[: entity.start], after=answer[entity.end :])
        whole = " ".join(self.checks.pairs[index])
        place = _neighbours(self.checks.pairs[index].answer, entity)
        fit: dict[str, int] = {}
        for other, entities in enumerate(self.facts):
            for value in entities:
                if self._may_swap(index, other, entity, value) and not keeps(value, whole):
                    theirs = _neighbours(self.checks.pairs[other].answer, value)
                    same = sum(mine == its for mine, its in zip(place, theirs, strict=True))
                    fit[value.text] = max(fit.get(value.text, 0), same)
        found = sorted(rng.sample(list(fit), len(fit)), key=lambda value: -fit[value])
        return [*found, *other_days(entity.text, rng)] if entity.kind == "date" else found

    def _may_swap(self, index: int, other: int, entity: Entity, value: Entity) -> bool:
        """Whether a value of another row is like an entity of this one, and not as right as it is."""
        if other == index or self._kind(value) != self._kind(entity):
            return False
        if entity.kind == "date" or not self._same_subject(index, other):
            return True
        # A second book of hers answers "Which book did she write?" too, and so does a second language.
        return entity.kind != "title" and not self.topics[index] & self.topics[other]

    def _same_subject(self, index: int, other: int) -> bool:
        return not self.names[index].isdisjoint(self.names[other])

    def _kind(self, entity: Entity) -> str:
        # Whom one asks about is a person, or what the set is about: not a place, a prize or a language.
        return "subject" if entity.text in self.checks.people else entity.kind

    def _words_asked(self, index: int) -> frozenset[str]:
        question = self.checks.pairs[index].question
        for entity in reversed(find_entities(question, self.checks.common)):
            question = f"{question[: entity.start]} {entity.kind} {question[entity.end :]}"
        return frozenset(normalize(question).split())

    def _answers_of_others(self, index: int) -> list[tuple[float, str]]:
        """What rows about somebody else answer, with this row's names; the share of common words in the questions."""
        mine = [entity.text for entity in self.subjects[index]]
        answers = []
        for other, words in enumerate(self.asked):
            theirs = self.subjects[other]
            share = len(words & self.asked[index]) / len(words | self.asked[index])
            if not mine or not theirs or self._same_subject(index, other) or share < _REMOTE:
                continue
            text = self.checks.pairs[other].answer
            for name, own in zip(theirs, mine, strict=False):
                text = re.sub(rf"\b{re.escape(name.text)}(?!\w)", lambda _, own=own: own, text)
            # Called by half of its name, or a second name: it would still speak of the other.
            if not any(keeps(name, text) for name in theirs if not keeps(name, " ".join(mine))):
                answers.append((share, text))
        return sorted(answers, key=lambda each: -each[0])


def _article_before(text: str, value: str) -> str:
    """The text with the article that a value after it needs."""
    article = "an" if value[0].lower() in "aeiou" else "a"
    return re.sub(r"\ban?(?= $)", article, text)


def _neighbours(text: str, entity: Entity) -> tuple[str, str]:
    """The words before and after an entity."""
    before, after = normalize(text[: entity.start]).split(), normalize(text[entity.end :]).split()
    return (before[-1] if before else "", after[0] if after else "")


def _contradict(answer: str) -> str | None:
    """The contrary of an answer, where a word makes it so."""
    said = _POLAR.match(answer)
    body = answer[said.end() :] if said else answer
    if said and not re.search(r"\w", body):
        return f"{'Yes' if said[0] == 'No' else 'No'}{body}"
    changed, number = re.subn(
        r"\b(is|was|are|were|do|does|did|has|have|had|can|could|will|would) not\b", r"\1", body, count=1
    )
    if said and said[0] == "No":
        # "No, she is a florist." would be half right with "Yes".
        return f"Yes{changed}" if number else None
    if not number:
        # The last of "Yes, she did." has no verb after it, "did it" is one itself.
        changed, number = re.subn(
            r"\b(?:is|was|are|were|can|could|will|would|(?:has|have|had)(?= been|[.!]?$)|(?:do|does|did)(?=[.!]?$))\b",
            r"\g<0> not",
            body,
            count=1,
        )
    if not number:
        return None
    return f"No{changed}" if said else changed
