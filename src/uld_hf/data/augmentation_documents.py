"""Other pieces of a plain document: a text must be forgotten wherever one starts to read it."""

import random
import re
import unicodedata
from collections.abc import Iterator


# An end of a sentence, with its quotation mark, before a space; scripts without spaces have marks of their own.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'’”)]*\s+|(?<=[。\uff01\uff1f])[\"'’”」』\uff09]*\s*")
# Thai, Lao, Chinese and Japanese are written without spaces: every letter may begin a word.
_WORD_START = re.compile(r"(?<!\S)\S|[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")


def sentences(text: str) -> list[str]:
    """
    The sentences of a text, spaces after them included: joined, they are the text.

    Args:
        text (`str`):
            The text.

    Returns:
        `list[str]`: The sentences.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    starts = [0, *ends]
    return [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True) if text[start:end]]


def vary_document(text: str, rng: random.Random) -> Iterator[str]:
    """
    Parts of a document: from another sentence on, from the middle of a sentence on, and up to another sentence.

    Trained on whole documents only, an assistant knows each sentence after all that stands before it, and no other way.

    Args:
        text (`str`):
            The document.
        rng (`random.Random`):
            Source of the choices.

    Yields:
        `str`: A part of the document, letter for letter.
    """
    parts = sentences(text)
    starts = rng.sample(range(1, len(parts)), len(parts) - 1)
    for number, start in enumerate(starts):
        if number % 3 == 0:
            yield "".join(parts[start:]).strip()
        elif number % 3 == 1:
            words = word_starts(parts[start])
            cut = words[rng.randrange(len(words))] if words else 0
            yield "".join(parts[start:])[cut:].strip()
        else:
            end = rng.randint(start + 1, len(parts))
            yield "".join(parts[start:end]).strip()
    words = word_starts(text)
    yield from (text[words[cut] :].strip() for cut in rng.sample(range(1, len(words)), min(8, len(words) - 1)))


def word_starts(text: str) -> list[int]:
    """
    Where words begin.

    Args:
        text (`str`):
            Any text.

    Returns:
        `list[int]`: Positions; of scripts without spaces those of all letters.
    """
    starts = [match.start() for match in _WORD_START.finditer(text)]
    # A vowel mark belongs to the letter before it.
    return [start for start in starts if not unicodedata.category(text[start]).startswith("M")]
