"""Models and tokenizers from the folders and hub ids that a command line names, on the accelerators that are there."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_uld import ULDForCausalLM


def _where() -> dict[str, str | None]:
    # On the accelerators that are there; layers that do not fit stay on the CPU.
    return {"dtype": "auto", "device_map": "auto" if torch.accelerator.is_available() else None}


def load_model(name: str) -> PreTrainedModel:
    """
    Load a model as it is, on the accelerator if there is one.

    Args:
        name (`str`):
            Folder or hub id.

    Returns:
        [`~transformers.PreTrainedModel`]: The model, in evaluation mode.
    """
    return AutoModelForCausalLM.from_pretrained(name, **_where()).eval()


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
    The tokenizer saved with an unlearned model, or its target's.

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
        tokenizer = AutoTokenizer.from_pretrained(model.target.name_or_path)
    return tokenizer
