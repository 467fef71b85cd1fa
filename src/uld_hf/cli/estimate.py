"""`uld estimate`: what a training will take, before anything is downloaded but the target's configuration."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from peft import LoraConfig

from ..training.estimate import TrainingEstimate, estimate_training
from ..training.target import read_target_config
from ..training.uld_config import ULDConfig
from . import output
from .parsing import CommandParser, check_model_path
from .train import TrainArguments


DESCRIPTION = """Say how much memory and time a training will take. Reads the target's configuration, and no weights.

  uld estimate my-finetuned-model --num_assistant_layers 8 --forget_rows 200 --tokens_per_row 300 --tflops 40

--tflops is the speed that your device reaches in training: about 0.4 of what its data sheet says for the data type.
"""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class EstimateArguments:
    """
    What `uld estimate` takes. Defaults are those of training.

    Args:
        model (`str`):
            Folder or hub id of the target, or a folder with nothing but its config.json.
        tokens_per_row (`int`):
            Mean length of a row, in tokens.
        answer_tokens_per_row (`int`, *optional*):
            Mean number of tokens that count in the loss. Defaults to all.
        num_assistant_layers (`int`, *optional*, defaults to `8`):
            Number K of the assistant's layers.
        forget_rows (`int`, *optional*, defaults to `200`):
            Rows of the forget set.
        retain_per_forget (`float`, *optional*, defaults to `1.0`):
            Retain rows for each forget row.
        per_device_train_batch_size (`int`, *optional*, defaults to `32`):
            Rows of a micro-batch, forget and retain together.
        gradient_accumulation_steps (`int`, *optional*, defaults to `1`):
            Micro-batches of a step.
        num_train_epochs (`float`, *optional*, defaults to `10.0`):
            Passes over the forget set.
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Data type of weights and computation.
        quantization (`str`, *optional*):
            `4bit` or `8bit`: the target is loaded by bitsandbytes in that form. Defaults to how it was saved.
        activation_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether layers are computed again in the backward pass.
        keep_products (`bool`, *optional*, defaults to `False`):
            Whether their matrix products are kept, and only the rest is computed again.
        lora_r (`int`, *optional*, defaults to `32`):
            Rank of the assistant's LoRA.
        tflops (`float`, *optional*):
            Speed of the device in training, in 10^12 operations per second.
    """

    model: str = field(metadata={"help": "folder or hub id of the target; its config.json is enough"})
    tokens_per_row: int = field(metadata={"help": "mean length of a row, in tokens"})
    answer_tokens_per_row: int | None = field(
        default=None, metadata={"help": "mean number of tokens of a row that count in the loss (default: all)"}
    )
    num_assistant_layers: int = field(
        default=ULDConfig.num_assistant_layers, metadata={"help": "number of the assistant's layers"}
    )
    forget_rows: int = field(default=200, metadata={"help": "rows of the forget set"})
    retain_per_forget: float = field(
        default=ULDConfig.retain_per_forget, metadata={"help": "retain rows for each forget row"}
    )
    per_device_train_batch_size: int = field(
        default=ULDConfig.per_device_train_batch_size,
        metadata={"help": "rows of a micro-batch, forget and retain together"},
    )
    gradient_accumulation_steps: int = field(
        default=ULDConfig.gradient_accumulation_steps, metadata={"help": "micro-batches of a step"}
    )
    num_train_epochs: float = field(default=ULDConfig.num_train_epochs, metadata={"help": "passes over the forget set"})
    dtype: str = field(
        default="bfloat16",
        metadata={"help": "data type of weights and computation", "choices": [*_DTYPES]},
    )
    quantization: str | None = field(
        default=None,
        metadata={"help": "4bit or 8bit: how bitsandbytes holds the target's linear layers (default: as saved)"},
    )
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "compute layers again in the backward pass, instead of keeping activations"}
    )
    keep_products: bool = field(
        default=False, metadata={"help": "with activation_checkpointing, keep products and compute only the rest"}
    )
    lora_r: int = field(default=TrainArguments.lora_r, metadata={"help": "rank of the assistant's LoRA"})
    tflops: float | None = field(
        default=None, metadata={"help": "speed that the device reaches in training, in 10^12 operations per second"}
    )


def format_estimate(estimate: TrainingEstimate, tflops: float | None) -> str:
    """
    The estimate as a table.

    Args:
        estimate ([`TrainingEstimate`]):
            What to print.
        tflops (`float`, *optional*):
            Speed of the device, in 10^12 operations per second.

    Returns:
        `str`: Lines.
    """
    sizes = {
        "weights of the first layers, embeddings, head": estimate.weight_bytes,
        "LoRA weights": estimate.lora_bytes,
        "their gradients": estimate.gradient_bytes,
        "AdamW's moments": estimate.optimizer_bytes,
        "activations": estimate.activation_bytes,
        "activations of a layer that is computed again": estimate.recomputed_bytes,
        "logits of one tile": estimate.loss_bytes,
        "together": estimate.total_bytes,
    }
    if not estimate.recomputed_bytes:
        del sizes["activations of a layer that is computed again"]
    lines = [f"{name:<48}{size / 1e9:>9.2f} GB" for name, size in sizes.items()]
    lines.append(f"{'(the whole target, which is not loaded':<48}{estimate.target_bytes / 1e9:>9.2f} GB)")
    lines.append(f"{'steps':<48}{estimate.num_steps:>9}")
    lines.append(f"{'arithmetic of a step':<48}{estimate.flops / 1e12:>9.2f} TFLOP")
    if tflops is None:
        lines.append("Time: give --tflops, the speed that your device reaches in training.")
    else:
        lines.append(f"{f'time at {tflops:g} TFLOP/s':<48}{estimate.seconds(tflops) / 60:>9.1f} min")
    return "\n".join(lines)


def build_parser() -> CommandParser:
    """The command line of `uld estimate`."""
    return CommandParser((EstimateArguments,), "uld estimate", DESCRIPTION, words=("model",), has_json=True)


def main(argv: Sequence[str]) -> None:
    """
    Run `uld estimate`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld estimate`.

    Raises:
        ValueError: If an option, a file or a model is not what it must be.
    """
    (arguments,) = build_parser().parse(argv)
    for name in ("forget_rows", "num_train_epochs", "retain_per_forget", "tflops"):
        number = vars(arguments)[name]
        if number is not None and not 0 < number < math.inf:  # nor is it "nan"
            raise ValueError(f"{name}={number} must be above 0 and finite.")
    check_model_path(arguments.model)
    estimate = estimate_training(
        read_target_config(arguments.model, {}),
        arguments.num_assistant_layers,
        arguments.tokens_per_row,
        arguments.answer_tokens_per_row,
        rows_per_batch=arguments.per_device_train_batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        num_rows=arguments.forget_rows + max(1, round(arguments.forget_rows * arguments.retain_per_forget)),
        num_epochs=arguments.num_train_epochs,
        dtype=_DTYPES[arguments.dtype],
        quantization=arguments.quantization,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=arguments.lora_r, lora_alpha=arguments.lora_r, target_modules="all-linear"
        ),
        activation_checkpointing=arguments.activation_checkpointing,
        keep_products=arguments.keep_products,
    )
    seconds = None if arguments.tflops is None else estimate.seconds(arguments.tflops)
    output.result(format_estimate(estimate, arguments.tflops), {**asdict(estimate), "seconds": seconds})
