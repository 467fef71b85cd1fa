"""Rows one after another in one sequence, without padding: which models can take them, and how sdpa can.

Flash attention works row by row by itself. For sdpa transformers would make a mask of all tokens by all tokens, and let
every row attend to all others at weight 0; here only attention itself works on padded rows, and all else on the tokens.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.generic import is_flash_attention_requested


BY_ROW = "sdpa_by_row"


def sdpa_by_row(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Causal attention within each of the rows that stand one after another in a sequence.

    Args:
        module (`nn.Module`):
            The attention layer.
        query (`torch.Tensor` of shape `(1, num_heads, num_tokens, head_dim)`):
            Queries of all rows.
        key (`torch.Tensor` of shape `(1, num_key_value_heads, num_tokens, head_dim)`):
            Keys of all rows.
        value (`torch.Tensor` of shape `(1, num_key_value_heads, num_tokens, value_dim)`):
            Values of all rows.
        attention_mask (`torch.Tensor`, *optional*):
            Must be `None`.
        cu_seq_lens_q (`torch.Tensor` of shape `(num_rows + 1,)`):
            Where each row begins, and the end of the last one.
        max_length_q (`int`):
            Length of the longest row.
        sliding_window (`int`, *optional*):
            Number of tokens that a token sees, itself included.
        **kwargs:
            As in transformers' attention functions.

    Returns:
        `tuple[torch.Tensor, None]`: Output of shape `(1, num_tokens, num_heads, value_dim)`.

    Raises:
        NotImplementedError: If the model does not say where rows begin, or has a mask of its own.
    """
    if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None:
        raise NotImplementedError(f"{type(module).__name__} does not pass on where rows begin.")
    num_rows, num_tokens, device = len(cu_seq_lens_q) - 1, query.shape[2], query.device
    starts, lengths = cu_seq_lens_q[:-1].long(), cu_seq_lens_q.diff().long()
    # Each token's place among the padded rows.
    shifts = torch.arange(num_rows, device=device) * max_length_q - starts
    places = torch.arange(num_tokens, device=device) + shifts.repeat_interleave(lengths, output_size=num_tokens)

    def split(states: torch.Tensor) -> torch.Tensor:
        rows = states.new_zeros(num_rows * max_length_q, states.shape[1], states.shape[3])
        rows[places] = states[0].transpose(0, 1)  # index_copy would keep the states for the backward pass
        return rows.view(num_rows, max_length_q, *rows.shape[1:]).transpose(1, 2)

    mask = None  # padding is on the right, where causal attention does not look
    if sliding_window is not None and max_length_q > sliding_window:
        positions = torch.arange(max_length_q, device=device)
        distances = positions[:, None] - positions[None, :]
        mask = ((distances >= 0) & (distances < sliding_window))[None, None]
    output, _ = sdpa_attention_forward(module, split(query), split(key), split(value), mask, **kwargs)
    return output.flatten(0, 1)[places][None], None


AttentionInterface.register(BY_ROW, sdpa_by_row)


@contextmanager
def attention_set_to(name: str, model: PreTrainedModel, instead_of: str | None = None) -> Iterator[None]:
    """
    Let a model's attention be another for a while.

    Args:
        name (`str`):
            Attention implementation, as transformers names it.
        model ([`~transformers.PreTrainedModel`]):
            A causal language model.
        instead_of (`str`, *optional*):
            Implementation to replace. Defaults to any.
    """
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    changed = [(config, old) for config, old in before if instead_of in (None, old)]
    for config, _ in changed:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, old in changed:
            config._attn_implementation = old


def attention_by_row(model: PreTrainedModel) -> AbstractContextManager[None]:
    """
    Let a model's sdpa attention be [`sdpa_by_row`], for batches without padding; other attention stays as it is.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model.

    Returns:
        `AbstractContextManager[None]`: The backward pass belongs inside too: it may compute activations again.
    """
    return attention_set_to(BY_ROW, model, instead_of="sdpa")


def keeps_rows_apart(model: PreTrainedModel) -> bool:
    """
    Whether rows one after another in a sequence give the hidden states that they give one by one.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model.

    Returns:
        `bool`: `False` too for attention in chunks, which short rows cannot show.
    """
    config = model.config.get_text_config(decoder=True)
    if vars(config).get("attention_chunk_size") is not None:
        return False
    embeddings = model.get_input_embeddings().weight
    lengths = [7, 5, 2]
    rows = [torch.arange(length, device=embeddings.device)[None] * (i + 2) + 3 for i, length in enumerate(lengths)]
    rows = [row % embeddings.shape[0] for row in rows]
    ends = F.pad(torch.tensor(lengths, device=embeddings.device).cumsum(0), (1, 0)).int()
    flat = {
        "input_ids": torch.cat(rows, dim=1),
        "position_ids": torch.cat([torch.arange(n, device=embeddings.device) for n in lengths])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), attention_by_row(model):
            actual = model.base_model(**flat, use_cache=False).last_hidden_state[0].float()
        with torch.no_grad():
            alone = [model.base_model(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows]
    # It does not take these arguments, does not pass them on, or says that it lacks the kernels (linear attention).
    except (NotImplementedError, TypeError, ValueError):
        return False
    finally:
        model.train(was_training)
    expected = torch.cat(alone).float()
    return bool((actual - expected).norm() <= 0.02 * expected.norm())


def takes_rows_without_padding(model: PreTrainedModel, asked: bool | None) -> bool:
    """
    Decide between batches without padding and padded ones.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model, on the device that it trains on.
        asked (`bool`, *optional*):
            What the user wants. `None` takes what is faster: no padding where attention works row by row (flash
            attention, sdpa) and the model keeps rows apart, padding elsewhere.

    Returns:
        `bool`: Whether to leave padding out.

    Raises:
        ValueError: If the user wants it, and rows would see each other.
    """
    if asked is False:
        return False
    attention = model.config.get_text_config(decoder=True)._attn_implementation
    flash = is_flash_attention_requested(requested_attention_implementation=attention)
    if flash and model.get_input_embeddings().weight.device.type == "cpu":
        return bool(asked)  # nothing can be tried before FSDP or DeepSpeed has moved it
    if asked is None:
        return (flash or attention == "sdpa") and keeps_rows_apart(model)
    if not keeps_rows_apart(model):
        raise ValueError(
            f"padding_free=True: in {type(model).__name__} with attn_implementation={attention!r}, rows would see each "
            "other, or kernels that keep them apart are missing. Leave padding_free out."
        )
    return True
