"""Texts as tokens that more is to follow."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """
    Tokens of texts, without the end token that some tokenizers (`add_eos_token=True`) put behind every text: a model
    that is asked behind it goes on from the end of an answer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        texts (`Sequence[str]`):
            The texts.

    Returns:
        `list[list[int]]`: Tokens of each; an end token that is written in the text stays, and so does one that begins
        it.
    """
    end, end_token_id = tokenizer.eos_token, tokenizer.eos_token_id
    encoded = tokenizer(list(texts))["input_ids"]
    return [
        ids[:-1] if len(ids) > 1 and ids[-1] == end_token_id and not text.endswith(end) else ids
        for text, ids in zip(texts, encoded, strict=True)
    ]


def begin_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """
    The token that a tokenizer puts before every text by itself.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.

    Returns:
        `int` or `None`: `None` if it puts none.
    """
    first = tokenizer("x")["input_ids"][0]
    return first if first == tokenizer.bos_token_id else None
