"""What tells models and data from others, so that figures of different things are never put side by side."""

import filecmp
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..hub import fingerprint_target, fingerprint_tokenizer, fingerprint_tokenizer_of
from ..intact import identify_assistant
from ..modeling_uld import ULDForCausalLM
from .loading import find_base
from .parsing import check_model_path


def identify(model: PreTrainedModel) -> dict[str, str | None]:
    """
    What tells a model from others, wherever it lies: the fingerprint of all of its layers.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.

    Returns:
        `dict[str, str]`: See [`uld_hf.hub.fingerprint_target`]; and `"packed"` of quantized weights and adapters, which
            it leaves out, where there are any.
    """
    found = fingerprint_target(model, model.config.get_text_config(decoder=True).num_hidden_layers)
    packed = hashlib.sha256()
    left_out = {
        name: weight
        for name, weight in model.named_parameters()
        if not weight.is_meta and ("lora_" in name or not weight.is_floating_point())
    }
    for name, weight in left_out.items():
        packed.update(name.encode())
        packed.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return {**found, "packed": packed.hexdigest()} if left_out else found


def identify_unlearned(model: ULDForCausalLM) -> dict[str, dict[str, Any]]:
    """
    What tells an unlearned model from others: its target's fingerprint and its assistants' weights.

    Args:
        model ([`ULDForCausalLM`]):
            The model.

    Returns:
        `dict[str, dict]`: Under `"target"` and `"lora"`.
    """
    lora = {name: identify_assistant(assistant, name) for name, assistant in model.assistants.items()}
    return {"target": identify(model.target), "lora": lora}


def identify_any(model: PreTrainedModel) -> dict[str, Any]:
    """
    What tells a model from others, whether it is composed or has weights of its own.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.

    Returns:
        `dict[str, Any]`: Its fingerprints and, if it is composed, how.
    """
    if isinstance(model, ULDForCausalLM):
        return {**identify_unlearned(model), **model.config.subtraction}
    return {"model": identify(model)}


def check_is_not_target(argument: str, path: str, is_target: bool) -> None:
    """
    Refuse to measure the target as a model that has forgotten.

    Args:
        argument (`str`):
            What named the model: `"MODEL"`, `"--retrained"` or `"--others"`.
        path (`str`):
            Folder or hub id of the model.
        is_target (`bool`):
            Whether it is the target, by place, files or fingerprint.

    Raises:
        ValueError: If it is.
    """
    if is_target:
        advice = {
            "MODEL": "give the one that has forgotten",
            "--retrained": "give one that was trained without it",
            "--others": "leave it out",
        }[argument]
        raise ValueError(
            f"{argument} {path} is the target itself, which knows the forget set and is measured anyway: {advice}."
        )


def has_same_files(path: str, other: str) -> bool:
    """
    Whether two folders hold the same weights byte for byte, as copies do: it is told without loading a model.

    Args:
        path (`str`):
            Folder or hub id of a model.
        other (`str`):
            The same of another.

    Returns:
        `bool`: `False` where there is no such folder, or its weights are not in safetensors.
    """
    names, others = (sorted(file.name for file in Path(each).glob("*.safetensors")) for each in (path, other))
    pairs = ((Path(path) / name, Path(other) / name) for name in names)
    return bool(names) and names == others and all(filecmp.cmp(*pair, shallow=False) for pair in pairs)


def hash_rows(sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """
    SHA-256 of datasets.

    Args:
        sets (`Mapping[str, Sequence[Mapping[str, Any]]]`):
            Rows by set.

    Returns:
        `dict[str, str]`: Hexadecimal digests by set, of the rows as JSON.
    """
    return {name: hashlib.sha256(json.dumps(rows).encode()).hexdigest() for name, rows in sets.items()}


def check_tokenizer(name_or_path: str, tokenizer: PreTrainedTokenizerBase, base: str | None = None) -> None:
    """
    Refuse a model whose own tokenizer is another one, with which its figures would mean nothing.

    Args:
        name_or_path (`str`):
            Hub id or folder of the model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that it is going to be measured with.
        base (`str`, *optional*):
            Hub id or folder of its base, if it is an adapter. Defaults to the one that the adapter names.

    Raises:
        ValueError: If there is a tokenizer beside it, and it differs, or this one has tokens that it does not know; or
            there is no such base.
    """
    if fingerprint_tokenizer_of(name_or_path) not in (None, fingerprint_tokenizer(tokenizer)):
        raise ValueError(
            f"{name_or_path} has another tokenizer than the target: the two cannot be compared token by token. Give a "
            "model that was trained from the same base."
        )
    named = find_base(name_or_path)
    source = base if base is not None and named != name_or_path else named
    check_model_path(source)  # an adapter's base may have moved
    known = AutoConfig.from_pretrained(source).get_text_config().vocab_size
    if len(tokenizer) > known:
        raise ValueError(
            f"{name_or_path} knows {known} tokens and the target's tokenizer has {len(tokenizer)}: some were "
            "added later, as chat templates do. Give a model that knows them."
        )
