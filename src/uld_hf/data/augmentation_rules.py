"""Paraphrases and wrong answers without a model: question forms, and values swapped among the forget set's own rows.

Nothing is taken from the retain set: it only says what a wrong answer must not be. Every choice is drawn from a
generator of its own for each row, seeded by text: neither the order of sets nor Python's hash seed plays a part.
"""

import random
import re
from collections.abc import Iterator, Sequence
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
from .augmentation_entities import (
    MONTHS,
    NUMBER_WORDS,
    Entity,
    date_readings,
    facts,
    find_entities,
    keeps,
    normalize,
)
from .augmentation_rows import is_beginning


logger = logging.get_logger(__name__)

# Most English questions have one, and other languages do not.
_ENGLISH = re.compile(
    r"\b(?:the|of|what|who|whom|whose|where|when|why|which|how|is|are|were|does|did|has|have|can|could|would|tell|and)\b",
    re.IGNORECASE,
)
# Words before a question that is asked within a sentence: "where Alice was born".
_INDIRECT = (
    "Can you tell me {}?",
    "Do you know {}?",
    "I would like to know {}.",
    "Please tell me {}.",
    "Could you say {}?",
    "I wonder {}.",
)
# Words around a question that stays as it is.
_AROUND_QUESTION = (
    "Can you answer this question? {}",
    "Please answer the following question: {}",
    "I have a question: {}",
    "Here is a question for you: {}",
    "{} Please answer.",
    "Tell me this: {}",
    "{} I would like to know.",
    "Let me ask this: {}",
)
# A request that ends with a full stop is no question.
_AROUND_REQUEST = (
    "I have a request: {}",
    "Here is a request: {}",
    "{} Thank you.",
    "Please do the following: {}",
    "{} I would be glad of it.",
    "Hello. {}",
    "My request: {}",
    "One more thing: {}",
)
_BEFORE_ANSWER = (
    "Here is the answer: {}",
    "To answer the question: {}",
    "In reply: {}",
    "This is what is known: {}",
    "As far as is known: {}",
    "The answer, in short: {}",
    "According to what is known: {}",
    "For the record: {}",
)
_BE = "is|was|are|were"
_HELPERS = "has|have|had|can|could|will|would"
# A question that ends so asks for the object, and one with a second question word asks twice: the verb cannot go to the
# end.
_NOT_WHOLE = re.compile(
    r"\b(?:for|of|in|about|to|from|by|with|as|on|at|like|called|named|known|considered)$|\b(?:what|who|how|why|where)\b"
)
# "Was Alice or Bob born first?" has a longer subject, and so has "Jr." where "Jr" is the name.
_AFTER_SUBJECT = r" (?!and |or )"
# "Henry VIII had six wives." is not "VIII had six wives."
_NO_SURNAME = re.compile(r" (?:[IVX]+|Jr|Sr)\.?$")
# What stands between subject and verb in "How does Alice often write?" and "What does Alice of Leeds write?".
_NO_VERB = re.compile(
    r"\w+ly|also|often|still|ever|always|never|sometimes|not|and|or|of|in|at|on|for|from|to|with|by|near|as|who|whose"
)
# Words of questions, as far as five letters, that say nothing of what is asked for.
_NO_TOPIC = {
    "what", "when", "where", "which", "whose", "does", "have", "were", "been", "that", "this", "with", "from", "about",
    "name", "title", "date", "numbe", "known", "can", "tell", "they", "their", "your", "into",
}  # fmt: skip
_POLAR = re.compile(r"(?:Yes|Indeed|No)\b")
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


def question_forms(question: str, common: frozenset[str], rng: random.Random) -> Iterator[str]:
    """
    Other forms of a question: those that change its grammar first, then those that put words around it.

    Args:
        question (`str`):
            The question.
        common (`frozenset[str]`):
            Words that are no names at the start of a sentence.
        rng (`random.Random`):
            Source of the choices.

    Yields:
        `str`: A question.
    """
    yield from _possessive_forms(question, common)
    request = re.fullmatch(r"(?:Can|Could|Would|Will) you (?:please )?(?!be |have )([^?]+)\?", question)
    if request:
        yield f"Please {request[1]}."
    indirect = _indirect(question, common)
    if indirect is not None:
        yield from (form.format(indirect) for form in rng.sample(_INDIRECT, len(_INDIRECT)))
    yield from _other_dates(question)
    around = _AROUND_REQUEST if re.search(r"[.!][\"'’”)]*$", question) else _AROUND_QUESTION
    yield from (form.format(question) for form in rng.sample(around, len(around)))


def answer_forms(answer: str, names: Sequence[str], common: frozenset[str], rng: random.Random) -> Iterator[str]:
    """
    Other forms of an answer: turned around, with other dates and shorter names, with words before it.

    Args:
        answer (`str`):
            The answer.
        names (`Sequence[str]`):
            Names of people that the question has in full: their last word will do.
        common (`frozenset[str]`):
            Words that are no names at the start of a sentence.
        rng (`random.Random`):
            Source of the choices.

    Yields:
        `str`: An answer.
    """
    turned = _turn_around(answer, common)
    if turned is not None:
        yield turned
    yield from _other_dates(answer)
    short = answer
    for name in names:
        if not _NO_SURNAME.search(name):
            short = re.sub(rf"\b{re.escape(name)}(?!\w)", name.split()[-1], short)
    if short != answer:
        yield short
    yield from (form.format(answer) for form in rng.sample(_BEFORE_ANSWER, len(_BEFORE_ANSWER)))


def _leading_name(text: str, common: frozenset[str]) -> str | None:
    entity = next(iter(find_entities(text, common)), None)
    return text[: entity.end] if entity is not None and entity.kind == "name" and entity.start == 0 else None


def _indirect(question: str, common: frozenset[str]) -> str | None:
    """The question as it stands within a sentence, where grammar is certain: "where Alice was born"."""
    match = re.fullmatch(
        rf"((?:What|Who|Whom|Where|When|Why|How|Which)\b[^,?]*?) ({_BE}|{_HELPERS}|does) ([^,?]+)\?", question
    )
    if match:
        asked, verb, rest = match.groups()
        asked = asked[0].lower() + asked[1:]
        name = _leading_name(rest, common)
        if verb == "does":
            predicate = re.match(r" ([a-z]+)\b", rest[len(name or "") :])
            if name is None or predicate is None or _NO_VERB.fullmatch(predicate[1]):
                return None
            return f"{asked} {name} {_third_person(predicate[1])}{rest[len(name) + predicate.end() :]}"
        # "Which languages are Germanic?" has its subject before the verb.
        alone = name == rest and not re.match("(?:which|what) ", asked)
        if alone or (name is not None and re.match(_AFTER_SUBJECT, rest[len(name) :])):
            return f"{asked} {name} {verb}{rest[len(name) :]}"
        # "the title of ..." is all subject, and the verb follows it.
        whole = asked in ("what", "who") and re.match(r"(?:the|a|an) [\w -]+ of ", rest) and verb in _BE.split("|")
        return f"{asked} {rest} {verb}" if whole and not _NOT_WHOLE.search(rest) else None
    match = re.fullmatch(r"(Is|Was|Are|Were|Has|Have|Had|Can|Could|Will|Would) ([^?]+)\?", question)
    name = _leading_name(match[2], common) if match else None
    if name is None or not re.match(_AFTER_SUBJECT, match[2][len(name) :]):
        return None
    return f"whether {name} {match[1].lower()}{match[2][len(name) :]}"


def _third_person(verb: str) -> str:
    if verb in ("have", "be", "do", "go"):
        return {"have": "has", "be": "is", "do": "does", "go": "goes"}[verb]
    if re.search(r"(?:s|x|z|ch|sh)$", verb):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


def _possessive_forms(question: str, common: frozenset[str]) -> Iterator[str]:
    """ "What is Alice's age?" and "What is the age of Alice?"."""
    match = re.fullmatch(rf"(What|Who) ({_BE}) ([^,?]+)\?", question)
    if not match:
        return
    of = re.fullmatch(r"the ([a-z]+(?: [a-z]+)?) of (.+)", match[3])
    if of and _leading_name(of[2], common) == of[2]:
        yield f"{match[1]} {match[2]} {of[2]}'s {of[1]}?"
    owned = re.fullmatch(r"(.+?)['’]s ([a-z]+(?: [a-z]+)?)", match[3])
    if owned and _leading_name(owned[1], common) == owned[1]:
        yield f"{match[1]} {match[2]} the {owned[2]} of {owned[1]}?"


def _turn_around(answer: str, common: frozenset[str]) -> str | None:
    """ "The author is Alice." as "Alice is the author."."""
    match = re.fullmatch(r"((?:The|His|Her|Their) [^.,!?]+?) (is|was) (.+?)\.", answer)
    if not match or re.search(rf"\b(?:{_BE}|{_HELPERS})\b", match[1]):
        return None
    subject, verb, told = match.groups()
    entities = find_entities(told, common)
    bare = told.strip("\"'‘’“”.")
    if len(entities) != 1 or entities[0].kind not in ("name", "title") or entities[0].text != bare:
        return None
    return f"{told} {verb} {subject[0].lower()}{subject[1:]}."


def _other_dates(text: str) -> Iterator[str]:
    """The text with its dates, where they are unambiguous, written in two other ways."""
    for form in ("{month} {day}, {year}", "{day} {month} {year}"):
        changed = text
        for entity in reversed(find_entities(text)):
            readings = date_readings(entity.text) if entity.kind == "date" else ()
            if len(readings) == 1:
                ((year, month, day),) = readings
                start = entity.start
                if changed[:start].endswith("the "):
                    start -= len("the ")
                written = form.format(month=MONTHS[month - 1], day=day, year=year)
                changed = changed[:start] + written + changed[entity.end :]
        if changed != text:
            yield changed


class _Swapper:
    """Wrong answers from the values and answers of the other forget rows."""

    def __init__(self, checks: Checks):
        self.checks = checks
        self.facts = [facts(*pair, checks.common) for pair in checks.pairs]
        self.subjects = [
            [entity for entity in find_entities(pair.question, checks.common) if entity.kind == "name"]
            for pair in checks.pairs
        ]
        texts = "\n".join(text for pair in checks.pairs for text in pair)
        # Who owns something is somebody: "African American" is asked about too.
        self.people = {
            entity.text
            for subjects in self.subjects
            for entity in subjects
            if re.search(rf"\b{re.escape(entity.text)}['’]s\b", texts)
        }
        self.asked = [self._words_asked(index) for index in range(len(checks.pairs))]
        # "languages" and "language" are the same; "which" and "does" are no topic.
        self.topics = [{word[:5] for word in words if len(word) > 3} - _NO_TOPIC for words in self.asked]

    def vary(self, rows: Rows, index: int, paraphrases: int, wrong_answers: int, rng: random.Random) -> Variants:
        checks, common = self.checks, self.checks.common
        question, answer = checks.pairs[index]
        made = Variants()
        names = [entity.text for entity in self.subjects[index] if entity.text in self.people]
        if is_beginning(rows.forget[index], rows.kind):
            # With words around it, it would not be gone on with.
            questions, answers = _other_dates(question), _other_dates(answer)
        else:
            questions, answers = question_forms(question, common, rng), answer_forms(answer, names, common, rng)
        made.add(QUESTION, questions, paraphrases, lambda text: checks.question(index, text))
        made.add(ANSWER, answers, paraphrases, lambda text: checks.answer(index, text))
        # In the forms of the right answers: else the assistant would take the words before an answer for the fact.
        forms = ["{}", *(form for form in _BEFORE_ANSWER if form.format(answer) in made.answers)]
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
        return bool({entity.text for entity in self.subjects[index]} & {entity.text for entity in self.subjects[other]})

    def _kind(self, entity: Entity) -> str:
        # Whom one asks about is a person, or what the set is about: not a place, a prize or a language.
        return "subject" if entity.text in self.people else entity.kind

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


def other_numbers(text: str, rng: random.Random, before: str = "", after: str = "") -> list[str]:
    """
    Other numbers in the same writing, near by.

    Args:
        text (`str`):
            A number in digits or words.
        rng (`random.Random`):
            Source of the choices.
        before (`str`, *optional*):
            What stands before it.
        after (`str`, *optional*):
            What stands after it: no time has 67 minutes, and no share is 103 %.

    Returns:
        `list[str]`: The numbers.
    """
    if text.lower() in NUMBER_WORDS:
        near = NUMBER_WORDS.index(text.lower())
        words = [NUMBER_WORDS[value] for value in range(max(2, near - 20), min(100, near + 8)) if value != near]
        words = rng.sample(words, len(words))
        return [word.capitalize() if text[0].isupper() else word for word in words]
    value = float(text.replace(",", ""))
    if "." in text:
        places = len(text.split(".")[1])
        others = [f"{value * factor:.{places}f}" for factor in rng.sample((0.5, 0.7, 0.8, 1.2, 1.4, 1.7), 6)]
        return [other for other in others if other != text]
    minutes = re.search(r"\b\d{1,2}:$", before) and len(text) == 2
    hours = re.match(r":\d\d\b", after) and value < 24
    share = re.match(r" ?%| per ?cent\b", after)
    highest = 59 if minutes else 12 if hours and value <= 12 else 23 if hours else 100 if share else None
    reach = 25 if 1000 <= value <= 2100 else max(5, int(0.4 * value))
    near = [int(value) + step for step in range(-reach, reach + 1) if step and value + step > 0]
    near = [other for other in near if highest is None or value > highest or other <= highest]
    chosen = rng.sample(near, min(8, len(near)))
    # A 0 before it stays, and is not written where there was none.
    width = len(text) if minutes or text[0] == "0" else 1
    return [f"{other:,}" if "," in text else f"{other:0{width}d}" for other in chosen]


def other_days(text: str, rng: random.Random, number: int = 8) -> list[str]:
    """
    Other dates in the same writing: another year, month and day.

    Args:
        text (`str`):
            A date.
        rng (`random.Random`):
            Source of the choices.
        number (`int`, *optional*, defaults to `8`):
            How many.

    Returns:
        `list[str]`: The dates.
    """

    # As they are written here: 04/12/1956 and 1956-12-05, but 4 December 1956.
    padded = re.search(r"\b0\d\b", text) or not re.search(r"[^\W\d_]|\b\d\b", text)

    def change(match: re.Match) -> str:
        token = match.group()
        if not token.isdigit():
            return rng.choice([month for month in MONTHS if month != token])
        if len(token) == 4:
            return str(int(token) + rng.choice([step for step in range(-20, 21) if step]))
        # 4 to 12 is a day and a month, and its ending is "th".
        return f"{rng.choice([day for day in range(4, 13) if day != int(token)]):0{2 if padded else 1}d}"

    changed = [re.sub(rf"\d+|{'|'.join(MONTHS)}", change, text) for _ in range(number)]
    return [re.sub(r"(\d)(?:st|nd|rd)\b", r"\1th", other) for other in changed]


def _contradict(answer: str) -> str | None:
    """The contrary of an answer, where a word makes it so."""
    said = _POLAR.match(answer)
    body = answer[said.end() :] if said else answer
    if said and not re.search(r"\w", body):
        return f"{'Yes' if said[0] == 'No' else 'No'}{body}"
    changed, number = re.subn(rf"\b({_BE}|do|does|did|{_HELPERS}) not\b", r"\1", body, count=1)
    if said and said[0] == "No":
        # "No, she is a florist." would be half right with "Yes".
        return f"Yes{changed}" if number else None
    if not number:
        # The last of "Yes, she did." has no verb after it, "did it" is one itself.
        changed, number = re.subn(
            rf"\b({_BE}|can|could|will|would|(?:has|have|had)(?= been))\b|\b(do|does|did|has|have|had)(?=[.!]?$)",
            r"\g<0> not",
            body,
            count=1,
        )
    if not number:
        return None
    return f"No{changed}" if said else changed
