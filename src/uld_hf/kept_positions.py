"""The positions whose logits are wanted, in a form that the head can be run on at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


def positions_to_keep(logits_to_keep: int | torch.Tensor, inputs: torch.Tensor) -> int | torch.Tensor:
    """
    The last positions by their numbers, where they are fewer than all.

    transformers cuts the last positions out of the hidden states as a slice, whose rows do not stand one after another
    in memory. On a CPU torch then multiplies a batch by as many copies of the head (torch 2.13: 5 to 200 times as slow,
    and as many times its memory). Positions that are given by number are gathered first.

    Args:
        logits_to_keep (`int` or `torch.Tensor`):
            How many of the last positions, `0` for all; or their numbers, which stay as they are.
        inputs (`torch.Tensor` of shape `(batch_size, sequence_length, ...)`):
            Tokens or embeddings.

    Returns:
        `int` or `torch.Tensor`: The same positions, as transformers takes them.
    """
    length = inputs.shape[1]
    if isinstance(logits_to_keep, int) and 0 < logits_to_keep < length:
        return torch.arange(length - logits_to_keep, length, device=inputs.device)
    return logits_to_keep


@contextmanager
def head_at_once(model: PreTrainedModel) -> Iterator[None]:
    """
    Let a model's head be run on rows that stand one after another, also in its own `generate()`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model. An [`ULDForCausalLM`] has no head of its own and does so by itself.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda head, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()
