"""Rows as tokens: which of them are the prompt's and which the answer's, and whether a model can be given so many."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..context import context_length
from ..prompt_tokens import prompt_tokens


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, end_token_id: int | None
) -> tuple[list[int], int]:
    """
    Tokens of prompt, completion and end, as in training.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        prompt (`str`):
            The prompt.
        completion (`str`):
            The completion, with its leading space.
        end_token_id (`int`, *optional*):
            The token that follows. A passage from the middle of a text has none.

    Returns:
        `tuple[list[int], int]`: The tokens, and how many of them belong to the prompt.
    """
    prompt_ids, input_ids = prompt_tokens(tokenizer, [prompt, prompt + completion])
    if end_token_id is not None and input_ids[-1] != end_token_id:
        input_ids = [*input_ids, end_token_id]
    same = [first == second for first, second in zip(prompt_ids, input_ids, strict=False)]
    return input_ids, same.index(False) if False in same else len(same)


def encode_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> tuple[list[list[int]], int]:
    """
    Tokens of prompts that a model is to go on from.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            The prompts.
        max_new_tokens (`int`):
            Most tokens to generate.

    Returns:
        `tuple[list[list[int]], int]`: Tokens of each, and the token to pad with: many tokenizers have none of their
        own, and which one it is does not matter.

    Raises:
        ValueError: If a prompt and what follows it would be longer than the model's context.
    """
    encoded = prompt_tokens(tokenizer, prompts)
    lengths = [len(ids) + max_new_tokens for ids in encoded]
    check_lengths(model, lengths, f"with max_new_tokens={max_new_tokens} ")
    return encoded, tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def pad(rows: Sequence[Sequence[int]], pad_token_id: int = 0, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rows of tokens as one tensor.

    Args:
        rows (`Sequence[Sequence[int]]`):
            Tokens.
        pad_token_id (`int`, *optional*, defaults to `0`):
            What to put in the place of tokens that shorter rows lack.
        left (`bool`, *optional*, defaults to `False`):
            Whether padding is on the left, to generate; or on the right.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Tokens and attention mask, both of shape `(num_rows, longest)`.
    """
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for number, ids in enumerate(rows):
        place = slice(longest - len(ids), None) if left else slice(len(ids))
        input_ids[number, place] = torch.tensor(ids)
        attention_mask[number, place] = 1
    return input_ids, attention_mask


def check_lengths(model: PreTrainedModel, lengths: Sequence[int], what: str = "") -> None:
    """
    Refuse rows that are longer than the model's context.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        lengths (`Sequence[int]`):
            Length of each row, in tokens.
        what (`str`, *optional*, defaults to `""`):
            What the lengths include, for the message.

    Raises:
        ValueError: If a row is too long.
    """
    longest = context_length(model.config)
    long = [] if longest is None else [index for index, length in enumerate(lengths) if length > longest]
    if long:
        raise ValueError(
            f"{len(long)} of {len(lengths)} rows {what}are longer than the model's context of {longest} tokens "
            f"(rows[{long[0]}] has {lengths[long[0]]}): shorten them or leave them out, their figures would mean "
            "nothing."
        )


def check_predictable(rows: Sequence[tuple[Sequence[int], int]]) -> None:
    """
    Refuse rows without a token of the answer, or without one of the prompt to predict it from.

    Args:
        rows (`Sequence[tuple[Sequence[int], int]]`):
            What [`encode`] returns for each.

    Raises:
        ValueError: If there is one.
    """
    for index, (ids, start) in enumerate(rows):
        if not 0 < start < len(ids):
            missing = "prompt" if start == 0 else "answer"
            raise ValueError(
                f"rows[{index}] has no token of its {missing} by itself ({start} of {len(ids)} tokens are the "
                "prompt's): there is nothing to score. Give both some text, or a tokenizer that puts a token before it."
            )
