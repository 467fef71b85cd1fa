"""How much memory and arithmetic a training takes, from a model's configuration alone.

The first K layers with LoRA are built without memory, and run forward and backward on tensors that have shapes and no
contents. What autograd keeps for the backward pass is counted, and so is the arithmetic: no formula per family.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..assistant import add_lora, check_has_attention, truncate_config
from .checkpointing import check_recomputes, is_kept, keep_products
from .losses import tile_tokens
from .padding_free import attention_by_row


# bitsandbytes: 4-bit weights have a float32 scale for each 64 of them, 8-bit ones a float32 for each output.
_BLOCK = 64

# torch counts the attention of GPUs only.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        sdpa_backward_flop_count(grad, query, key, value)
    ),
}


@dataclass
class TrainingEstimate:
    """
    What a training of an assistant takes on each device, without data parallelism's buffers.

    Args:
        target_bytes (`int`):
            Weights of the whole target in the same form. They are never loaded.
        weight_bytes (`int`):
            Weights that are loaded: K layers, embeddings, norm and head.
        lora_bytes (`int`):
            LoRA weights.
        gradient_bytes (`int`):
            Their gradients.
        optimizer_bytes (`int`):
            AdamW's two moments of them.
        activation_bytes (`int`):
            What the K layers keep for the backward pass.
        recomputed_bytes (`int`):
            With activation checkpointing, what one layer keeps while its backward pass runs; else 0.
        loss_bytes (`int`):
            A tile of logits with its gradient, and the hidden states of answer tokens with theirs.
        flops (`int`):
            Floating-point operations of an optimizer step, forward and backward.
        num_steps (`int`):
            Optimizer steps of the whole training.
    """

    target_bytes: int
    weight_bytes: int
    lora_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    recomputed_bytes: int
    loss_bytes: int
    flops: int
    num_steps: int

    @property
    def bytes_above_weights(self) -> int:
        """Peak memory above the loaded weights."""
        trained = self.lora_bytes + self.gradient_bytes + self.optimizer_bytes
        # The loss's gradients are made in the forward pass: its tile is gone when layers are computed again.
        return trained + self.activation_bytes + max(self.loss_bytes, self.recomputed_bytes)

    @property
    def total_bytes(self) -> int:
        """Peak memory."""
        return self.weight_bytes + self.bytes_above_weights

    def seconds(self, tflops: float) -> float:
        """
        Time of the whole training.

        Args:
            tflops (`float`):
                Speed that the device reaches in training, in 10^12 operations per second: measured, or about 0.4 of
                what its data sheet says.

        Returns:
            `float`: Seconds.
        """
        return self.num_steps * self.flops / (tflops * 1e12)


def build_without_memory(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose weights have shapes and no contents."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def weight_bytes(model: PreTrainedModel, quantization: str | None) -> int:
    """
    Memory of a model's weights.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model, with or without contents.
        quantization (`str`, *optional*):
            `"4bit"` or `"8bit"` (bitsandbytes): of every linear layer but the head.

    Returns:
        `int`: Bytes.
    """
    total = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if quantization is None:
        return total
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings():
            weight = module.weight
            outputs = weight.shape[1] if isinstance(module, Conv1D) else weight.shape[0]
            total -= weight.numel() * weight.element_size()
            total += (
                weight.numel() // 2 + weight.numel() // _BLOCK * 4
                if quantization == "4bit"
                else weight.numel() + 4 * outputs
            )
    return total


def quantization_of(config: PreTrainedConfig) -> str | None:
    """
    In what form a model's weights were saved.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Its configuration.

    Returns:
        `str` or `None`: `"4bit"` or `"8bit"` (bitsandbytes); `None` if they are not quantized.

    Raises:
        NotImplementedError: If they are quantized in another way, whose memory is not counted.
    """
    saved = vars(config).get("quantization_config")
    if saved is None:
        return None
    # Loaded models have an object there.
    saved = saved if isinstance(saved, dict) else saved.to_dict()
    for quantization in ("4bit", "8bit"):
        if saved.get(f"load_in_{quantization}"):
            return quantization
    raise NotImplementedError(
        f"The target's weights are quantized with {saved.get('quant_method')!r}, and only those of bitsandbytes are "
        "counted. Take quantization_config out of a copy of its config.json, and estimate that: the target without "
        "quantization takes more memory, and about the same arithmetic."
    )


@contextmanager
def _fake_weights(model: nn.Module) -> Iterator[FakeTensorMode]:
    """Inside, a model's weights and all new tensors have shapes only, but are otherwise like those on a CPU."""
    with FakeTensorMode() as mode, torch.device("cpu"):
        made: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        is_weight = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
                    tensors[name] = made[id(tensor)]
        yield mode


class KeptProducts(TorchDispatchMode):
    """
    Bytes of what `keep_products` keeps of the operations within.
    """

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: tuple, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        if is_kept(func, args):
            tensors = results if isinstance(results, tuple) else (results,)
            self.bytes += sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
        return results


def recompute_layers(assistant: PeftModel, products_are_kept: bool = False) -> None:
    """
    Turn activation checkpointing on, as trl and transformers do it.

    Args:
        assistant ([`~peft.PeftModel`]):
            The assistant.
        products_are_kept (`bool`, *optional*, defaults to `False`):
            Whether matrix products are kept.
    """
    assistant.enable_input_require_grads()
    if products_are_kept:
        keep_products(assistant.get_base_model())
    assistant.get_base_model().activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
    )


def trace_layers(
    assistant: PeftModel, rows: int, tokens_per_row: int, dtype: torch.dtype, products_are_kept: bool = False
) -> tuple[int, int]:
    """
    What a forward and a backward pass of the layers take. The assistant's weights lose their contents.

    Args:
        assistant ([`~peft.PeftModel`]):
            The assistant.
        rows (`int`):
            Rows of a batch.
        tokens_per_row (`int`):
            Tokens of each.
        dtype (`torch.dtype`):
            Data type of the computation (autocast, unless float32).
        products_are_kept (`bool`, *optional*, defaults to `False`):
            Whether [`recompute_layers`] was told so.

    Returns:
        `tuple[int, int]`: Bytes that are kept for the backward pass, and operations of both passes.
    """
    base = assistant.get_base_model()
    assistant.train()
    flat = flat_inputs(rows, tokens_per_row)
    try:
        with attention_by_row(base):
            return _trace(assistant, flat, dtype, products_are_kept)
    except (NotImplementedError, TypeError, ValueError):  # it is padded in training, see keeps_rows_apart
        padded = {"input_ids": flat["input_ids"].view(rows, tokens_per_row)}
        return _trace(assistant, padded, dtype, products_are_kept)


def flat_inputs(rows: int, tokens_per_row: int) -> dict[str, torch.Tensor | int]:
    """
    Arguments of a forward pass on rows without padding.

    Args:
        rows (`int`):
            Rows of a batch.
        tokens_per_row (`int`):
            Tokens of each.

    Returns:
        `dict[str, torch.Tensor | int]`: What the collator makes of such rows.
    """
    ends = torch.arange(0, rows * tokens_per_row + 1, tokens_per_row, dtype=torch.int32)
    return {
        "input_ids": torch.zeros(1, rows * tokens_per_row, dtype=torch.long),
        "position_ids": torch.arange(tokens_per_row).repeat(rows)[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": tokens_per_row,
        "max_length_k": tokens_per_row,
    }


def _trace(
    assistant: PeftModel, inputs: dict[str, torch.Tensor | int], dtype: torch.dtype, products_are_kept: bool
) -> tuple[int, int]:
    base = assistant.get_base_model()
    with _fake_weights(assistant) as mode:
        own = {weight.untyped_storage()._cdata for weight in (*assistant.parameters(), *assistant.buffers())}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return tensor

        inputs = {
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        with (
            FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter,
            torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
        ):
            products = KeptProducts()
            with saved_tensors_hooks(keep, lambda tensor: tensor), products if products_are_kept else nullcontext():
                hidden = base.base_model(**inputs, use_cache=False).last_hidden_state
            hidden.sum().backward()
        return products.bytes + sum(storage.nbytes() for storage in kept.values()), counter.get_total_flops()


def estimate_training(
    config: PreTrainedConfig,
    num_layers: int,
    tokens_per_row: int,
    answer_tokens_per_row: int | None = None,
    rows_per_batch: int = 32,
    gradient_accumulation_steps: int = 1,
    num_rows: int = 0,
    num_epochs: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
    quantization: str | None = None,
    peft_config: LoraConfig | None = None,
    activation_checkpointing: bool = False,
    keep_products: bool = False,
) -> TrainingEstimate:
    """
    Memory and arithmetic of a training, from the target's configuration.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the target.
        num_layers (`int`):
            Number of decoder layers K of the assistant.
        tokens_per_row (`int`):
            Mean length of a row. Padding counts where the attention needs it (not with sdpa or flash attention).
        answer_tokens_per_row (`int`, *optional*):
            Mean number of tokens that count in the loss. Defaults to all.
        rows_per_batch (`int`, *optional*, defaults to `32`):
            Rows of a micro-batch, forget and retain together.
        gradient_accumulation_steps (`int`, *optional*, defaults to `1`):
            Micro-batches of an optimizer step.
        num_rows (`int`, *optional*, defaults to `0`):
            Rows of an epoch, forget and retain together; for the number of steps.
        num_epochs (`float`, *optional*, defaults to `1.0`):
            Epochs.
        dtype (`torch.dtype`, *optional*, defaults to `torch.bfloat16`):
            Data type of the weights and of the computation.
        quantization (`str`, *optional*):
            `"4bit"` or `"8bit"`: linear layers are held by bitsandbytes in that form. Defaults to what `config` says.
        peft_config ([`~peft.LoraConfig`], *optional*):
            The assistant's LoRA. Defaults to the paper's.
        activation_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether layers are computed again in the backward pass.
        keep_products (`bool`, *optional*, defaults to `False`):
            Whether their matrix products are kept, and only the rest is computed again.

    Returns:
        [`TrainingEstimate`]: Bytes and operations.

    Raises:
        ValueError: If a number makes no sense, the target does not have that many layers, or its weights are quantized
            in another form than `quantization`.
        NotImplementedError: For a mixture of experts, whose arithmetic is not counted, and for weights that are
            quantized by another library than bitsandbytes.
    """
    answer_tokens_per_row = tokens_per_row if answer_tokens_per_row is None else answer_tokens_per_row
    numbers = {
        "tokens_per_row": tokens_per_row,
        "answer_tokens_per_row": answer_tokens_per_row,
        "rows_per_batch": rows_per_batch,
        "gradient_accumulation_steps": gradient_accumulation_steps,
    }
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number} must be at least 1.")
    if answer_tokens_per_row > tokens_per_row:
        raise ValueError(f"answer_tokens_per_row={answer_tokens_per_row} is more than tokens_per_row={tokens_per_row}.")
    check_recomputes(keep_products, activation_checkpointing)
    if quantization not in (None, "4bit", "8bit"):
        raise ValueError(f"quantization={quantization!r} must be '4bit', '8bit' or left out.")
    saved = quantization_of(config)
    if None not in (saved, quantization) and saved != quantization:
        raise ValueError(f"quantization={quantization!r} is not that of the target's weights, {saved!r}: leave it out.")
    quantization = saved or quantization
    check_has_attention(num_layers, config)
    truncated = build_without_memory(truncate_config(config, num_layers), dtype)
    whole = build_without_memory(config, dtype)
    # Linear attention has convolutions.
    dense = [module for module in truncated.modules() if not isinstance(module, nn.Conv1d)]
    if any(weight.dim() > 2 for module in dense for weight in module.parameters(recurse=False)):
        raise NotImplementedError(
            f"{type(truncated).__name__} is a mixture of experts: its memory and time depend on its input. For the "
            "arithmetic alone, estimate a dense model of as many active parameters; its memory is far more than that "
            "model's, for the weights of all experts are held."
        )
    held = weight_bytes(truncated, quantization)
    head = truncated.get_output_embeddings().weight
    assistant = add_lora(truncated, peft_config)
    trained = [weight for weight in assistant.parameters() if weight.requires_grad]
    # trl holds the LoRA of a quantized base in bfloat16.
    lora = sum(weight.numel() * (2 if quantization else weight.element_size()) for weight in trained)
    kept, flops = trace_layers(assistant, rows_per_batch, tokens_per_row, dtype)
    recomputed = 0
    if activation_checkpointing:
        everything = kept
        recompute_layers(assistant, keep_products)
        kept, flops = trace_layers(assistant, rows_per_batch, tokens_per_row, dtype, keep_products)
        recomputed = (everything - kept) // num_layers

    vocab_size, hidden_size = head.shape
    answers = rows_per_batch * answer_tokens_per_row
    # In float32 the gradient takes the place of the logits; else there are both, and float32 between them.
    bytes_per_logit = 4 if dtype == torch.float32 else 4 + 2 * dtype.itemsize
    tile = min(answers, tile_tokens(vocab_size)) * vocab_size * bytes_per_logit
    rows_per_step = rows_per_batch * gradient_accumulation_steps
    return TrainingEstimate(
        target_bytes=weight_bytes(whole, quantization),
        weight_bytes=held,
        lora_bytes=lora,
        gradient_bytes=lora,
        optimizer_bytes=2 * lora,
        activation_bytes=kept,
        recomputed_bytes=recomputed,
        loss_bytes=tile + 2 * answers * hidden_size * dtype.itemsize,
        flops=gradient_accumulation_steps * (flops + 4 * answers * vocab_size * hidden_size),
        num_steps=math.ceil(num_epochs * -(-num_rows // rows_per_step)),  # as Trainer counts them
    )
