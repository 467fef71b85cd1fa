"""Activation checkpointing that keeps the products with the weights: all that is computed again is cheap."""

from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel


_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}
_ATTENTION = "aten::_scaled_dot_product"
# A number of a product costs as many multiplications as its factors have numbers in common. LoRA's second factor has
# so few of them that its result, as wide as the layer's own, is not worth keeping.
_NARROW = 8


def is_kept(op: OpOverload, args: tuple[Any, ...]) -> bool:
    """
    Whether the result of an operation is kept for the backward pass.

    Args:
        op (`OpOverload`):
            The operation.
        args (`tuple`):
            Its arguments.

    Returns:
        `bool`: `True` for attention, and for matrix products that cost more than they hold.
    """
    if op in _PRODUCTS:
        left, right = args[-2:]
        return _NARROW * left.shape[-1] >= right.shape[-1]
    return op.name().startswith(_ATTENTION)


def _policy(context: Any, op: OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_kept(op, args) else CheckpointPolicy.PREFER_RECOMPUTE


def check_recomputes(keep_products: bool, activation_checkpointing: bool) -> None:
    """
    Refuse to keep products of layers that are not computed again.

    Args:
        keep_products (`bool`):
            Whether products are to be kept.
        activation_checkpointing (`bool`):
            Whether layers are computed again.

    Raises:
        ValueError: If `keep_products` would have no effect.
    """
    if keep_products and not activation_checkpointing:
        raise ValueError("keep_products=True has no effect without activation_checkpointing=True. Set both.")


def keep_products(model: PreTrainedModel) -> None:
    """
    Have a model's activation checkpointing, once it is turned on, keep matrix products and attention.

    Norms, activation functions, rotations, sums and LoRA's second factors are computed again. trl's own selective
    checkpointing keeps attention alone.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, changed in place.
    """
    enable = model.activation_checkpointing_enable

    def enable_selectively(activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        selective = {"context_fn": partial(create_selective_checkpoint_contexts, _policy), "use_reentrant": False}
        enable({**(activation_checkpointing_kwargs or {}), **selective}, **kwargs)

    # On the instance, as trl does it: a function has no place in arguments that are written to disk.
    model.activation_checkpointing_enable = enable_selectively
