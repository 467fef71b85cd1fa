"""The teacher: an unlearned model that is what it should be, and its distribution at the tokens of a batch."""

import hashlib
import json
import os
from contextlib import suppress
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..assistant import check_trained, lora_weights
from ..configuration_uld import ULDModelConfig
from ..hub import check_target_name, fingerprint_target
from ..intact import identify_assistant
from ..modeling_uld import ULDForCausalLM
from ..training.losses import make_head
from .losses import ComposedTargets


def check_teacher(teacher: Any, divergence: str, likelihood_weight: float = 0.0) -> None:
    """
    Refuse a teacher from which a student would learn something else than to forget.

    Args:
        teacher ([`ULDForCausalLM`]):
            The teacher.
        divergence (`str`):
            What the student minimizes, see [`uld_hf.bake.losses.token_divergence`].
        likelihood_weight (`float`, *optional*, defaults to `0.0`):
            Weight of [`uld_hf.bake.losses.likelihood_gap`].

    Raises:
        TypeError: If it is not an unlearned model: a plain one would teach the student to be itself.
        ValueError: If nothing is subtracted, an assistant was never trained, the target's weights can't be the
            student's, or the divergence would be infinite.
        NotImplementedError: If the target is offloaded or spread over processes.
    """
    if not isinstance(teacher, ULDForCausalLM):
        raise TypeError(
            f"The teacher is a {type(teacher).__name__} without an assistant: distilled, it would be the target again, "
            "with everything it knows. Pass an unlearned model: ULDForCausalLM.from_pretrained(...)."
        )
    check_subtracts(teacher)
    check_trained({name: lora_weights(assistant) for name, assistant in teacher.assistants.items()})
    target = teacher.target
    if "quantization_config" in vars(target.config) or not all(p.is_floating_point() for p in target.parameters()):
        raise ValueError(
            "The target is quantized, and the baked model would have its rounding in it. Load the unlearned model "
            "without quantization_config; quantize the baked one afterwards."
        )
    # DeepSpeed ZeRO-3 leaves parameters without values, and with a number of its own.
    if any(
        parameter.is_meta or isinstance(parameter, DTensor) or "ds_id" in vars(parameter)
        for parameter in target.parameters()
    ):
        raise NotImplementedError(
            "The target is offloaded or spread over processes, and its weights are what the student begins with. Load "
            "it onto one device, or give the name of the unlearned model in its place: each process then loads it."
        )
    config = teacher.config
    rules_out = config.remove_top_k or (config.outside == "mask" and config.relative_top > 0)
    if likelihood_weight and rules_out:
        raise ValueError(
            "likelihood_weight has no meaning where the unlearned model rules tokens out (outside='mask', "
            "remove_top_k). Set it to 0, or load the model with other settings."
        )
    if divergence == "reverse_kl" and rules_out:
        raise ValueError(
            "divergence='reverse_kl' is infinite where the unlearned model rules tokens out (outside='mask', "
            "remove_top_k). Use 'forward_kl' or 'js', or load it with other settings."
        )


def check_subtracts(teacher: ULDForCausalLM) -> None:
    """
    Refuse a teacher whose assistants are not subtracted, as its own forward pass would.

    Args:
        teacher ([`ULDForCausalLM`]):
            The teacher.

    Raises:
        RuntimeError: If an assistant was disabled, merged or taken apart.
        ValueError: If a setting of the subtraction is out of range, such as an alpha of 0.
    """
    if not len(teacher.assistants):
        raise ValueError("The teacher has no assistant: distilled, it would be the target again. Use add_assistant.")
    teacher._check()


def load_target_tokenizer(config: ULDModelConfig, folder: str | None) -> PreTrainedTokenizerBase:
    """
    The target's own tokenizer, or else the one that was saved with the unlearned model.

    Args:
        config ([`ULDModelConfig`]):
            Configuration of the unlearned model.
        folder (`str`, *optional*):
            Hub id or folder that it was saved to, if any.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: The tokenizer.

    Raises:
        OSError: If there is none in either place.
        ValueError: If neither place is known, or the configuration names a place that it may not.
    """
    target = config.target_name_or_path
    if folder is not None:
        check_target_name(config, folder)
    if target is not None:
        revision = {} if os.path.isdir(target) else {"revision": config.target_revision or "main"}
        with suppress(OSError, ValueError):
            return AutoTokenizer.from_pretrained(target, **revision)
    if folder is None:
        raise ValueError(f"There is no tokenizer in the target's place ({target}): pass it as processing_class.")
    return AutoTokenizer.from_pretrained(folder, config=config.target_config)


@torch.no_grad()
def composed_targets(teacher: ULDForCausalLM, batch: dict[str, torch.Tensor]) -> ComposedTargets:
    """
    The teacher's distribution at the tokens of a batch that count in the loss.

    Args:
        teacher ([`ULDForCausalLM`]):
            The teacher.
        batch (`dict[str, torch.Tensor]`):
            `input_ids`, `labels` and `attention_mask`.

    Returns:
        [`ComposedTargets`]: In the order of the labels; logits are made when they are asked for.
    """
    check_subtracts(teacher)
    teacher.eval()
    counted = batch["labels"][:, 1:] != -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    models = [teacher.target, *(assistant.get_base_model() for assistant in teacher.assistants.values())]
    with torch.autocast(teacher.target.device.type, enabled=False):
        hidden = [model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][counted] for model in models]
    return ComposedTargets(hidden, make_head(teacher.target), teacher.subtract)


def fingerprint_teacher(teacher: ULDForCausalLM) -> str:
    """
    Hash what a teacher's distribution depends on.

    Args:
        teacher ([`ULDForCausalLM`]):
            The teacher.

    Returns:
        `str`: SHA-256 of samples of every tensor of the target, of the assistants' LoRA and of the settings.
    """
    target = teacher.target
    num_layers = target.config.get_text_config(decoder=True).num_hidden_layers
    content = {
        "target": fingerprint_target(target, num_layers),
        "subtraction": teacher.config.subtraction,
        "assistants": {name: identify_assistant(assistant, name) for name, assistant in teacher.assistants.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
