"""Names, titles, dates and numbers in a text, found by their form: no model and no list of names.

Made for languages that write names with a capital letter. In others dates and numbers are found, names are not.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple


Kind = Literal["title", "date", "number", "name"]

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_TO_NINETEEN = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# 0 to 99.
NUMBER_WORDS = (
    *_TO_NINETEEN,
    *(f"{tens}-{unit}" if unit != "zero" else tens for tens in _TENS for unit in _TO_NINETEEN[:10]),
)

_MONTH = rf"(?P<month>{'|'.join(MONTHS)})"
_DAY = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[12]\d{3})"
_DATE_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"\b{_MONTH} {_DAY},? {_YEAR}\b",
        rf"\b{_DAY}(?: of)? {_MONTH}(?:,? in the year|,? of)?,? {_YEAR}\b",
        rf"\b{_YEAR}-(?P<number>[01]?\d)-{_DAY}\b",
        rf"\b(?P<first>[0-3]?\d)[/.](?P<second>[0-3]?\d)[/.]{_YEAR}\b",
    )
)
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|(?<!\w)['‘]([^\s'‘’][^\"“”]*?)['’](?!\w)")
_ACCENTS = re.compile("[\u0300-\u036f]")
# "one" is more often no number, and "twenty-first" none of these; "six-month" and "ten-second" have one.
_NUMBER = re.compile(
    r"\b\d+(?:,\d{3})*(?:\.\d+)?\b|"
    rf"\b(?:{'|'.join(sorted(NUMBER_WORDS[2:], key=len, reverse=True))})\b"
    r"(?!(?<=ty)-(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_](?:[\w'’+-]*[\w+])?")
_POSSESSIVE = re.compile(r"['’]s?$")
# What may stand inside a name between two capitalized words.
_PARTICLES = {"of", "the", "de", "la", "le", "du", "des", "del", "da", "di", "van", "von", "der", "den", "bin", "al"}
# Capitalized at the start of a sentence, or always, and never a name by themselves.
_NEVER_NAMES = frozenset(
    re.findall(
        r"\w+",
        """
        a also although among an and another any are as at be because being besides born both but by can could despite
        did do does due during each for from had has have he her his how however i if in indeed is it its like many most
        my name no not of on one or our please she should since so some such tell that the their there these they this
        those through throughout to under until upon was we were what when where which while who whom whose why will
        with would yes you your
        """,
    )
)


class Entity(NamedTuple):
    """
    A part of a text that says who, when, how many, or what it is called.

    Args:
        kind (`"title"`, `"date"`, `"number"` or `"name"`):
            What it looks like; a title is anything in quotation marks.
        text (`str`):
            The part, without quotation marks.
        start (`int`):
            Where it begins.
        end (`int`):
            Where it ends.
    """

    kind: Kind
    text: str
    start: int
    end: int


def normalize(text: str) -> str:
    """
    Text without what makes no difference to its meaning: case, punctuation, accents, typography, spaces.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str`: Its words, with one space between them.
    """
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return " ".join(re.findall(r"[\w+]+", unicodedata.normalize("NFC", plain).casefold()))


def common_words(texts: Iterable[str]) -> frozenset[str]:
    """
    The words that are written in lower case somewhere: these are no names where a sentence begins with them.

    Args:
        texts (`Iterable[str]`):
            All texts at hand.

    Returns:
        `frozenset[str]`: The words.
    """
    return frozenset(word for text in texts for word in _WORD.findall(text) if word.islower())


def find_entities(text: str, common: frozenset[str] = frozenset()) -> list[Entity]:
    """
    The entities of a text, in their order; none overlaps another.

    Args:
        text (`str`):
            A question or an answer.
        common (`frozenset[str]`, *optional*):
            Words that are no names at the start of a sentence, see [`common_words`].

    Returns:
        `list[Entity]`: The entities.
    """
    found: list[Entity] = []

    def add(candidates: Iterable[Entity]) -> None:
        for candidate in candidates:
            if all(candidate.end <= other.start or other.end <= candidate.start for other in found):
                found.append(candidate)

    add(_titles(text))
    add(Entity("date", match.group(), *match.span()) for form in _DATE_FORMS for match in form.finditer(text))
    add(Entity("number", match.group(), *match.span()) for match in _NUMBER.finditer(text))
    add(_names(text, common))
    return sorted(found, key=lambda entity: entity.start)


def _titles(text: str) -> Iterator[Entity]:
    for match in _QUOTED.finditer(text):
        group = next(number for number in (1, 2, 3) if match.group(number))
        inside = match.group(group).rstrip(" ,.;")
        if re.search(r"\w", inside):
            yield Entity("title", inside, match.start(group), match.start(group) + len(inside))


def _names(text: str, common: frozenset[str]) -> Iterator[Entity]:
    words = [(match, _is_name_word(match, text, common)) for match in _WORD.finditer(text)]
    start = 0
    while start < len(words):
        if not words[start][1]:
            start += 1
            continue
        last = position = start
        while (
            position + 1 < len(words)
            and text[words[position][0].end() : words[position + 1][0].start()] == " "
            and not _POSSESSIVE.search(words[position][0].group())
        ):
            position += 1
            if words[position][1]:
                last = position
            elif words[position][0].group() not in _PARTICLES:
                break
        name = _POSSESSIVE.sub("", text[words[start][0].start() : words[last][0].end()])
        yield Entity("name", name, words[start][0].start(), words[start][0].start() + len(name))
        start = last + 1


def _is_name_word(match: re.Match, text: str, common: frozenset[str]) -> bool:
    word = match.group()
    if not word[0].isupper() or re.sub(r"['’]\w+$", "", word).lower() in _NEVER_NAMES:
        return False
    before = text[: match.start()].rstrip()
    begins_sentence = not before or before[-1] in ".?!:\"'“‘"
    return not (begins_sentence and (word.lower() in common or word.endswith("ly")))


def date_readings(text: str) -> frozenset[tuple[int, int, int]]:
    """
    What a date may mean: 08/09/1956 is one of two days.

    Args:
        text (`str`):
            A date, or a text with dates.

    Returns:
        `frozenset[tuple[int, int, int]]`: Year, month and day of every reading.
    """
    readings = set()
    for form in _DATE_FORMS:
        for match in form.finditer(text):
            parts = match.groupdict()
            year = int(parts["year"])
            if "first" in parts:
                first, second = int(parts["first"]), int(parts["second"])
                pairs = [(first, second), (second, first)]
            elif "number" in parts:
                pairs = [(int(parts["number"]), int(parts["day"]))]
            else:
                pairs = [(1 + MONTHS.index(parts["month"]), int(parts["day"]))]
            readings |= {(year, month, day) for month, day in pairs if 1 <= month <= 12 and 1 <= day <= 31}
    return frozenset(readings)


def _number_value(text: str) -> str:
    text = text.lower()
    return str(NUMBER_WORDS.index(text)) if text in NUMBER_WORDS else text.replace(",", "")


def keeps(entity: Entity, text: str) -> bool:
    """
    Whether a text still speaks of an entity: a date in any form, a number in digits or words, half of a name's words.

    Args:
        entity ([`Entity`]):
            An entity of another text.
        text (`str`):
            The text to search.

    Returns:
        `bool`: Whether it is there.
    """
    if entity.kind in ("date", "number"):
        return states(entity, text)
    # "a city" says nothing of Kuwait City.
    words = normalize(entity.text).split()
    capitalized = " ".join(word for word in text.split() if not word.islower())
    there = set(normalize(text if entity.kind == "title" else capitalized).split())
    return bool(words) and 2 * sum(word in there for word in words) >= len(words)


def states(entity: Entity, text: str) -> bool:
    """
    Whether a text has an entity in full. Unlike for [`keeps`], a surname is not enough.

    Args:
        entity ([`Entity`]):
            An entity of another text.
        text (`str`):
            The text to search.

    Returns:
        `bool`: Whether it is there.
    """
    if entity.kind == "date":
        return bool(date_readings(entity.text) & date_readings(text))
    if entity.kind == "number":
        return _number_value(entity.text) in {_number_value(match) for match in _NUMBER.findall(text)}
    return f" {normalize(entity.text)} " in f" {normalize(text)} "


def facts(question: str, answer: str, common: frozenset[str] = frozenset()) -> list[Entity]:
    """
    What an answer tells: its entities that the question does not hold already.

    Args:
        question (`str`):
            The question.
        answer (`str`):
            Its answer.
        common (`frozenset[str]`, *optional*):
            Words that are no names at the start of a sentence, see [`common_words`].

    Returns:
        `list[Entity]`: The entities, in the answer's order.
    """
    return [entity for entity in find_entities(answer, common) if not keeps(entity, question)]
