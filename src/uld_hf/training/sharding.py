"""FSDP and DeepSpeed: weights that are divided among processes, and where they must be whole."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config


def uses_fsdp(args: TrainingArguments) -> bool:
    """
    Whether a training will divide its weights by FSDP.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The trainer's configuration.

    Returns:
        `bool`: `True` if the configuration or `accelerate launch` says so.
    """
    return args.fsdp_plugin_args is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")


def is_sharded(args: TrainingArguments) -> bool:
    """
    Whether a training will divide weights, gradients or optimizer states among processes.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The trainer's configuration.

    Returns:
        `bool`: `True` with FSDP and DeepSpeed.
    """
    return args.deepspeed_plugin is not None or uses_fsdp(args)


def check_whole_weights(args: TrainingArguments) -> None:
    """
    Refuse a configuration with which all processes but the first would load models without their weights.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The trainer's configuration.

    Raises:
        ValueError: If FSDP is to load in one process only.
    """
    if uses_fsdp(args) and parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading=true would give all processes but the first a target without weights, "
            "where all of them look at it. Set it to false."
        )


@contextmanager
def whole_weights(args: TrainingArguments) -> Iterator[None]:
    """
    Make models whole under DeepSpeed ZeRO-3, which would have transformers give each process a part of them.

    What is trained is divided when the training begins.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The trainer's configuration.
    """
    if args.deepspeed_plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(args.hf_deepspeed_config if args.deepspeed else args.deepspeed_plugin.dschf)
