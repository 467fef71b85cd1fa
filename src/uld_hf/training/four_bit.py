"""Training on a base in bitsandbytes' 4-bit form, on processors where its products can come without a gradient."""

from torch import nn
from transformers.utils import is_bitsandbytes_available


def keep_gradients(model: nn.Module) -> None:
    """
    Keep the 4-bit layers of a model in the form that gradients pass through.

    On CPUs with AVX512-BF16, bitsandbytes packs the weights of a layer at its first forward pass in evaluation mode,
    and its product with packed weights has no gradient: LoRA below the last layer would learn next to nothing, with no
    more than a warning of PyTorch.

    Args:
        model (`nn.Module`):
            The model to train, before its first forward pass.

    Raises:
        ValueError: If a layer's weights are packed already.
    """
    if not is_bitsandbytes_available():
        return
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        state = module.weight.quant_state
        if state is not None and vars(state).get("packing_format_for_cpu", False):
            raise ValueError(
                f"The target has answered already, and bitsandbytes then packed its 4-bit weights ({name}) in a form "
                "without gradients on this CPU: load it anew and train before it generates, or give its name."
            )
        module.support_avx512bf16_for_cpu = False
