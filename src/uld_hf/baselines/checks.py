"""What is refused before a model's weights are changed."""

import os
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from ..assistant import check_no_adapter, keeps_the_base


def default_steering_layer(num_layers: int) -> int:
    """Layer 7 of 32 as in the paper (arXiv 2403.03218, section 4), at the same relative depth of other models."""
    return min(max(0, num_layers - 2), round(7 / 32 * num_layers))


def check_steering_layer(layer: int, num_layers: int) -> None:
    """
    Refuse a layer whose activations cannot be steered.

    Args:
        layer (`int`):
            Index of the decoder layer.
        num_layers (`int`):
            Number of decoder layers of the model.

    Raises:
        ValueError: If there is no such layer, or none above it.
    """
    if not 0 <= layer <= num_layers - 2:
        raise ValueError(
            f"steering_layer={layer} must lie between 0 and {num_layers - 2}: the model has {num_layers} layers, and "
            f"there must be one above. Use e.g. {default_steering_layer(num_layers)}."
        )


def check_trainable(model: PreTrainedModel) -> None:
    """
    Refuse a model whose weights cannot be unlearned.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The target.

    Raises:
        TypeError: If it is a PEFT model, or not a transformers model.
        ValueError: If it has an adapter, or is an encoder-decoder model.
    """
    if isinstance(model, PeftModel):
        raise TypeError(
            "The model is a PEFT model: pass its merged base (model.merge_and_unload()), and a peft_config for LoRA."
        )
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"The model must be a transformers PreTrainedModel, got {type(model).__name__}.")
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder: only decoder-only models are supported.")
    check_no_adapter(model)


def check_adapter(peft_config: PeftConfig) -> None:
    """
    Refuse adapters with which training would not begin at the target, or without which it is not the target any more.

    Args:
        peft_config ([`~peft.PeftConfig`]):
            Configuration of the adapter.

    Raises:
        ValueError: If it learns a prompt, or is LoRA that takes what it begins with out of the base weights, begins
            with anything but nothing, or trains biases.
    """
    if peft_config.is_prompt_learning:
        raise ValueError(
            f"peft_config is a {type(peft_config).__name__}, which puts tokens of its own before every row: training "
            "would not begin at the target, and there would be no weights to merge. Use e.g. a LoraConfig."
        )
    if not isinstance(peft_config, LoraConfig):
        return
    init = peft_config.init_lora_weights
    if init is False or not keeps_the_base(peft_config):
        raise ValueError(
            f"peft_config has init_lora_weights={init!r} and bias={peft_config.bias!r}: what is unlearned is measured "
            "against the model under the disabled adapter, which would not be the target. Use init_lora_weights=True, "
            "'gaussian' or 'orthogonal', and bias='none'."
        )


def check_not_quantized(config: PreTrainedConfig, model_init_kwargs: Mapping[str, Any]) -> None:
    """
    Refuse to train all weights of a quantized target, which has no gradients for them.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the target.
        model_init_kwargs (`Mapping[str, Any]`):
            How it is loaded, where it is not yet.

    Raises:
        ValueError: If it is quantized, or would be.
    """
    if any(given.get("quantization_config") is not None for given in (vars(config), model_init_kwargs)):
        raise ValueError(
            "The target is quantized, and without a peft_config all of its weights would be trained: give a LoraConfig "
            "as peft_config, or load it without quantization_config."
        )


def check_output_dir(output_dir: str | None, name: str) -> None:
    """
    Refuse to write over the target.

    Args:
        output_dir (`str`, *optional*):
            Folder to save to.
        name (`str`):
            Hub id or folder of the target.

    Raises:
        ValueError: If both are one folder.
    """
    if output_dir is not None and os.path.isdir(name) and os.path.realpath(output_dir) == os.path.realpath(name):
        raise ValueError(f"output_dir={output_dir!r} is the target's own folder: give another one.")
