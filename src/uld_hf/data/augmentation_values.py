"""Other numbers and days, near by and in the same writing: what is written otherwise gives itself away."""

import math
import random
import re

from .augmentation_entities import MONTHS, NUMBER_WORDS


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
    minutes = re.search(r"\b\d{1,2}:$", before) and len(text) == 2 and value < 60
    hours = re.match(r":\d\d\b", after) and value < 24
    share = re.match(r" ?%| per ?cent\b", after) and value <= 100
    highest = 59 if minutes else 12 if hours and value <= 12 else 23 if hours else 100 if share else math.inf
    if "." in text:
        places = len(text.split(".")[1])
        others = [f"{value * factor:.{places}f}" for factor in rng.sample((0.5, 0.7, 0.8, 1.2, 1.4, 1.7), 6)]
        return [other for other in others if other != text and float(other) <= highest]
    reach = 25 if 1000 <= value <= 2100 else max(5, int(0.4 * value))
    near = [int(value) + step for step in range(-reach, reach + 1) if step and 0 < value + step <= highest]
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
