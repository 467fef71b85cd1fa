"""What counts as a word, in any script: with measures of Latin words nothing would be found in others, and all pass."""

import re
import unicodedata
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import Score
from rouge_score.tokenizers import Tokenizer


# Characters of scripts that put no spaces between words (Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese), and
# Korean syllables, whose words take on particles.
_BY_THEMSELVES = (
    "\u0e01-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u312f\u31a0-\u31ff\u3400-\u4dbf"
    "\u4e00-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_CHARACTER = re.compile(rf"[{_BY_THEMSELVES}][^\w\s]*")  # with the marks that follow it
# Whatever stands between spaces, as `str.split` has it; of those scripts each character.
WORD = re.compile(rf"{_CHARACTER.pattern}|[^\s{_BY_THEMSELVES}]+")
# Scripts whose words stand alone (Latin, Greek, Cyrillic), digits, marks and currencies: of no other letter.
# Others have no spaces, or put articles and particles onto words, as Arabic and Korean do.
STANDS_ALONE = re.compile(r"[\u0000-\u052f\u1e00-\u1fff\u2000-\u206f\u20a0-\u20cf]+")
# A letter that is not Latin, with or without an accent.
_OTHER_LETTER = re.compile(
    r"[^\W\d_\u0000-\u02ff\u1e00-\u1eff\u2070-\u24ff\u2c60-\u2c7f\ua720-\ua7ff\uab30-\uab6f\ufb00-\ufb06\uff00-\uff5a]"
)


def space_out(text: str) -> str:
    """
    A text with spaces around every character that counts as a word.

    Args:
        text (`str`):
            A text.

    Returns:
        `str`: The same text, where all words have spaces between them already.
    """
    return _CHARACTER.sub(r" \g<0> ", text)


class _Words(Tokenizer):
    """Words in small letters, without what stands between them. Vowel signs, which are marks, belong to them."""

    def tokenize(self, text: str) -> list[str]:
        spaced = space_out(text.casefold())
        return "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in spaced).split()


def _is_latin(text: str) -> bool:
    words = WORD.findall(text)
    return sum(_OTHER_LETTER.search(word) is not None for word in words) < len(words) / 2


def rouge_l(predictions: Sequence[str], references: Sequence[str], use_stemmer: bool) -> list[Score]:
    """
    ROUGE-L, by `rouge-score`.

    Its own tokenizer drops all but a to z and digits. What was published goes by that: it stays for right texts most of
    whose words are in Latin letters, whatever their accents. Of others nothing would be left to compare.

    Args:
        predictions (`Sequence[str]`):
            Generated texts.
        references (`Sequence[str]`):
            Right texts.
        use_stemmer (`bool`):
            Whether endings of words in Latin letters are taken off.

    Returns:
        `list[Score]`: Precision, recall and F-measure of each.
    """
    latin = RougeScorer(["rougeL"], use_stemmer=use_stemmer)
    other = RougeScorer(["rougeL"], tokenizer=_Words())
    return [
        (latin if _is_latin(reference) else other).score(reference, prediction)["rougeL"]
        for prediction, reference in zip(predictions, references, strict=True)
    ]
