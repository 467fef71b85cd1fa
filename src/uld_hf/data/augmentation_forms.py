"""Questions and answers in other forms: by English grammar where it is certain, elsewhere with words around them."""

import random
import re
from collections.abc import Iterator, Sequence

from .augmentation_entities import MONTHS, date_readings, find_entities


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
BEFORE_ANSWER = (
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
    yield from other_dates(question)
    end = re.search(r"([.?!])[\"'’”)]*$", question)
    around = _AROUND_REQUEST if end and end[1] != "?" else _AROUND_QUESTION
    forms = rng.sample(around, len(around))
    # What goes on after it would join a question without a question mark.
    yield from (form.format(question) for form in forms if end or form.endswith("{}"))


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
    yield from other_dates(answer)
    short = answer
    for name in names:
        if not _NO_SURNAME.search(name):
            short = re.sub(rf"\b{re.escape(name)}(?!\w)", name.split()[-1], short)
    if short != answer:
        yield short
    yield from (form.format(answer) for form in rng.sample(BEFORE_ANSWER, len(BEFORE_ANSWER)))


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
        alone = name == rest and not re.match("(?:which|what|how many|how much) ", asked)
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


def other_dates(text: str) -> Iterator[str]:
    """
    A text with its dates, where they are unambiguous, written in two other ways.

    Args:
        text (`str`):
            The text.

    Yields:
        `str`: The text, where that changes it.
    """
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
