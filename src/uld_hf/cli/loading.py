"""Models and tokenizers from the folders and hub ids that a command line names, on the accelerators that are there."""

import os
from contextlib import suppress

import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from ..assistant import NO_BASE, without_old_name_warning
from ..configuration_uld import ULDModelConfig
from ..modeling_uld import ULDForCausalLM
from . import output


def _where() -> dict[str, str | None]:
    # On the accelerators that are there; layers that do not fit stay on the CPU.
    return {"dtype": "auto", "device_map": "auto" if torch.accelerator.is_available() else None}


def find_base(name: str) -> str:
    """
    Where the configuration of a model is: beside it, or beside the base of an adapter.

    Args:
        name (`str`):
            Folder or hub id.

    Returns:
        `str`: The same name, or that of the adapter's base.

    Raises:
        ValueError: If it is an adapter that names no base, or one that cannot be merged into it.
    """
    with suppress(OSError):
        if PreTrainedConfig.get_config_dict(name)[0]:
            return name
    if find_adapter_config_file(name) is None:
        return name
    adapter = PeftConfig.from_pretrained(name)
    if adapter.base_model_name_or_path in (None, NO_BASE):
        raise ValueError(f"{name} is an adapter that names no base (nor is an assistant by itself a model).")
    if adapter.is_prompt_learning:
        raise ValueError(f"{name} is an adapter of type {adapter.peft_type.value}, which has no weights to be merged.")
    return adapter.base_model_name_or_path


def load_model(name: str, base: str | None = None) -> PreTrainedModel:
    """
    Load a model as it is, on the accelerator if there is one; an adapter is merged into its base.

    Args:
        name (`str`):
            Folder or hub id.
        base (`str`, *optional*):
            Folder or hub id of an adapter's base. Defaults to the one that the adapter names, which may have moved, or
            be relative to another folder than this one.

    Returns:
        [`~transformers.PreTrainedModel`]: The model, in evaluation mode.
    """
    named = find_base(name)
    if named == name:
        return AutoModelForCausalLM.from_pretrained(name, **_where()).eval()
    with without_old_name_warning():
        if base is None:
            adapted = AutoPeftModelForCausalLM.from_pretrained(name, **_where())
        else:
            adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **_where()), name)
    merged = adapted.merge_and_unload().eval()
    merged.name_or_path = name
    return merged


def note_base(path: str, base: str | None) -> None:
    """
    Say so where an adapter is measured on another base than the one that it names, which may have moved.

    Args:
        path (`str`):
            Folder or hub id of a model or an adapter.
        base (`str`, *optional*):
            Folder or hub id of the target, on which adapters are measured.
    """
    named = find_base(path)
    if base is not None and named not in (path, base) and os.path.realpath(named) != os.path.realpath(base):
        output.note(f"{path} is an adapter for {named}. It is measured on {base}.")


def is_unlearned(name: str) -> bool:
    """
    Whether a model is composed of a target and assistants.

    Args:
        name (`str`):
            Folder or hub id.

    Returns:
        `bool`: `False` for a model with weights of its own, and for an adapter.
    """
    return find_base(name) == name and isinstance(AutoConfig.from_pretrained(name), ULDModelConfig)


def load_unlearned(
    model: str, target: str | None, alpha: float | None = None, gate: float | None = None
) -> ULDForCausalLM:
    """
    Load an unlearned model, on the accelerator if there is one.

    Args:
        model (`str`):
            Folder or hub id.
        target (`str`, *optional*):
            Folder or hub id of the target, if it has moved.
        alpha (`float`, *optional*):
            Weight of the assistant's logits, in place of the saved one.
        gate (`float`, *optional*):
            Certainty below which an assistant is not subtracted, in place of the saved one.

    Returns:
        [`ULDForCausalLM`]: The model.
    """
    settings = {"alpha": alpha, "gate": gate}
    if target is None:
        return ULDForCausalLM.from_pretrained(model, **settings, **_where())
    return ULDForCausalLM.from_pretrained(model, target=load_model(target), **settings)


def load_tokenizer(model: ULDForCausalLM, folder: str) -> PreTrainedTokenizerBase:
    """
    The tokenizer saved with an unlearned model, or its target's, of the revision that it was trained on.

    Args:
        model ([`ULDForCausalLM`]):
            The unlearned model.
        folder (`str`):
            Folder or hub id it was loaded from.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: The tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config.target_config)
    except (OSError, ValueError, ImportError):  # `model.save_pretrained` saves the model only
        name, config = model.target.name_or_path, model.config
        revision = config.target_revision if name == config.target_name_or_path else None
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    return tokenizer
