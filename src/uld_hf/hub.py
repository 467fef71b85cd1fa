"""The saved layout of an unlearned model, and the fingerprint that ties an assistant to its target.

    config.json                           model_type "uld", the target's id and fingerprint, K, alpha, ...
    generation_config.json
    README.md                             model card
    assistant/adapter_config.json         the assistant's LoRA, in PEFT's own format; further assistants are in folders
    assistant/adapter_model.safetensors   of their names

There is never an `adapter_config.json` at the root: AutoModelForCausalLM would then ignore config.json and put the
adapter on the first K layers of the whole target, which gives a model that *recites* what it should have forgotten.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from .assistant import (
    ADAPTER_NAME,
    add_lora,
    check_lora_config,
    check_num_layers,
    find_decoder_layers,
    lora_weights,
    shares_tensors,
    truncate_model,
)
from .configuration_uld import ULDModelConfig


# Values hashed of each tensor: enough to tell two finetuned models apart, cheap on a sharded 70B.
_SAMPLES_PER_TENSOR = 256


def fingerprint_target(
    model: PreTrainedModel, num_layers: int, target_config: PreTrainedConfig | None = None
) -> dict[str, str | None]:
    """
    Hash what an assistant depends on: the target's shape, its embeddings, norms and head, and its first layers.

    Evenly spaced values of every tensor are rounded to bfloat16 before hashing, so bf16 and fp32 loads agree. A
    float16 load rounds differently and counts as another target.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The target, or its first `num_layers` layers (LoRA on them is not counted).
        num_layers (`int`):
            Number of decoder layers K of the assistant.
        target_config ([`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the whole target. Defaults to the model's own.

    Returns:
        `dict[str, str | None]`: SHA-256 by part: `"config"`, `"layers"` (`None` where the layers are quantized, which
        makes their values incomparable) and `"rest"`.
    """
    text_config = (target_config or model.config).get_text_config(decoder=True)
    shape = {
        name: text_config.to_dict().get(name)
        for name in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    }
    shape["num_hidden_layers"] = text_config.num_hidden_layers  # some families save it under another name
    holder, name = find_decoder_layers(model)
    layers = holder.get_submodule(name)
    in_layers = {id(module) for layer in layers[:num_layers] for module in layer.modules()}
    above = {id(module) for layer in layers[num_layers:] for module in layer.modules()}

    hashes = {"layers": hashlib.sha256(), "rest": hashlib.sha256()}
    quantized = False
    # A tied head is the embedding once more. Tensors are told apart here, before offloaded ones come and go.
    first: dict[int, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for name, tensor in module.named_parameters(recurse=False):
            first.setdefault(id(tensor), (module, name))
    own = {(id(module), name) for module, name in first.values()}
    for module_name, module in model.named_modules():
        if id(module) in above or "lora_" in module_name:
            continue
        with align_module_device(module):
            for name, tensor in module.named_parameters(recurse=False):
                if (id(module), name) not in own:
                    continue
                if not tensor.is_floating_point():
                    quantized = True
                    continue
                part = "layers" if id(module) in in_layers and tensor.dim() > 1 else "rest"
                if isinstance(tensor, DTensor):  # tensor parallel
                    tensor = tensor.full_tensor()
                flat = tensor.detach().reshape(-1)
                step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
                sample = flat[::step].to(device="cpu", dtype=torch.bfloat16).view(torch.int16)
                label = f"{module_name.replace('.base_layer', '')}.{name}{tuple(tensor.shape)}"
                hashes[part].update(label.encode())
                hashes[part].update(sample.numpy().tobytes())
    return {
        "config": hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest(),
        "layers": None if quantized else hashes["layers"].hexdigest(),
        "rest": hashes["rest"].hexdigest(),
    }


def check_fingerprint(
    expected: dict[str, str | None], actual: dict[str, str | None], assistant_name: str, target_name: str
) -> None:
    """
    Refuse a target that is not the one an assistant was trained on.

    Args:
        expected (`dict[str, str | None]`):
            Fingerprint of the target that the assistant was trained on.
        actual (`dict[str, str | None]`):
            Fingerprint of the target at hand.
        assistant_name (`str`):
            Name of the assistant's target or folder, for the message.
        target_name (`str`):
            Name of the target at hand, for the message.

    Raises:
        ValueError: If the two differ in a part that both have.
    """
    what = {"config": "architecture", "layers": "weights of the first layers", "rest": "embeddings, norms or head"}
    for part, description in what.items():
        if part not in expected or part not in actual:
            raise ValueError(f"The fingerprint lacks {part!r}: the saved config.json is damaged. Save the model again.")
        if None in (expected[part], actual[part]):
            continue
        if expected[part] != actual[part]:
            raise ValueError(
                f"The assistant ({assistant_name or 'unnamed'}) was trained on another target than "
                f"{target_name or 'the given model'}: their {description} differ. Subtracting it would not forget. "
                "Load the target it was trained on, or train a new assistant on this one."
            )


def attach_assistant(
    target: PreTrainedModel,
    num_layers: int,
    peft_config: PeftConfig,
    state_dict: dict[str, torch.Tensor],
    name: str = ADAPTER_NAME,
) -> PeftModel:
    """
    Put an assistant's trained LoRA weights on a target's own first layers.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The target that the assistant was trained on.
        num_layers (`int`):
            Number of decoder layers K of the assistant.
        peft_config ([`~peft.PeftConfig`]):
            The adapter's configuration.
        state_dict (`dict[str, torch.Tensor]`):
            The adapter's weights, named as in PEFT's files.
        name (`str`, *optional*, defaults to `"assistant"`):
            Name of the assistant.

    Returns:
        [`~peft.PeftModel`]: The assistant, frozen.

    Raises:
        ValueError: If a weight is missing, unexpected, of another shape, or not finite.
    """
    broken = [name for name, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(
            f"The assistant's weights {broken[:3]} hold NaN or infinite values: train or download it again."
        )
    assistant = add_lora(truncate_model(target, num_layers), peft_config, name)
    expected = get_peft_model_state_dict(assistant, lora_weights(assistant), adapter_name=name)
    wrong = {
        name
        for name in expected.keys() | state_dict.keys()
        if name not in expected or name not in state_dict or expected[name].shape != state_dict[name].shape
    }
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the assistant's weights are missing or do not fit {num_layers} layers of the target, "
            f"e.g. {sorted(wrong)[:3]}: it was trained on another target, or the files are damaged."
        )
    if any(isinstance(weight, DTensor) for weight in assistant.parameters()):
        set_peft_model_state_dict(assistant, state_dict, adapter_name=name)  # knows how tensor parallelism splits LoRA
    else:
        # PEFT's way asks for the base's state_dict, which breaks 4-bit weights on a CPU (bitsandbytes 0.50).
        for weight_name, weight in expected.items():
            weight.copy_(state_dict[weight_name])
    return assistant.requires_grad_(False).eval()


def check_saved_target(config: ULDModelConfig, target: PreTrainedModel, name: str) -> None:
    """
    Refuse a target other than the one that saved assistants were trained on.

    Args:
        config ([`ULDModelConfig`]):
            The saved configuration.
        target ([`~transformers.PreTrainedModel`]):
            The target at hand.
        name (`str`):
            Where the configuration was saved, for the message.

    Raises:
        ValueError: If the fingerprint is missing or differs, or the target has too few layers.
    """
    if not config.target_fingerprint:
        raise ValueError(
            f"{name} has no target_fingerprint in its config.json, so nothing says which target its assistant belongs "
            "to. Save the model again with save_pretrained."
        )
    num_layers = config.most_assistant_layers
    check_num_layers(num_layers, target.config)
    check_fingerprint(config.target_fingerprint, fingerprint_target(target, num_layers), name, target.name_or_path)


def adopt_assistant(target: PreTrainedModel, name: str, assistant: PeftModel) -> PeftModel:
    """
    The assistant itself if it is made of the target's tensors, else its LoRA weights on them.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The target.
        name (`str`):
            Name of the assistant.
        assistant ([`~peft.PeftModel`]):
            A trained assistant.

    Returns:
        [`~peft.PeftModel`]: The assistant, with one adapter named `name`.

    Raises:
        TypeError: If it is not a PEFT model.
        ValueError: If it has several adapters, or was trained on another target.
    """
    if not isinstance(assistant, PeftModel):
        raise TypeError(f"The assistant must be a PeftModel (see build_assistant), got {type(assistant).__name__}.")
    adapters = list(assistant.peft_config)
    if adapters not in ([ADAPTER_NAME], [name]):
        raise ValueError(
            f"The assistant must have one adapter named {ADAPTER_NAME!r}, got {adapters}: use build_assistant or "
            "ULDTrainer."
        )
    num_layers = assistant.config.get_text_config(decoder=True).num_hidden_layers
    check_num_layers(num_layers, target.config)
    shared = shares_tensors(assistant, target)
    if not shared:  # trained on a copy, or on a load of the first K layers alone
        base = assistant.get_base_model()
        expected = fingerprint_target(base, num_layers, target_config=target.config)
        check_fingerprint(expected, fingerprint_target(target, num_layers), base.name_or_path, target.name_or_path)
    if shared and adapters == [name]:
        return assistant
    state_dict = get_peft_model_state_dict(
        assistant, lora_weights(assistant), adapter_name=adapters[0], save_embedding_layers=False
    )
    return attach_assistant(target, num_layers, assistant.peft_config[adapters[0]], state_dict, name)


def load_assistant(
    name_or_path: str | os.PathLike,
    target: PreTrainedModel,
    num_layers: int,
    saved_name: str = ADAPTER_NAME,
    name: str | None = None,
    **hub_kwargs: Any,
) -> PeftModel:
    """
    Load a saved assistant onto its target.

    Args:
        name_or_path (`str` or `os.PathLike`):
            Hub id or folder of a saved unlearned model.
        target ([`~transformers.PreTrainedModel`]):
            The target that the assistant was trained on.
        num_layers (`int`):
            Number of decoder layers K of the assistant.
        saved_name (`str`, *optional*, defaults to `"assistant"`):
            Name under which it was saved: its folder.
        name (`str`, *optional*):
            Name that it gets. Defaults to the saved one.
        **hub_kwargs:
            `revision`, `token`, `cache_dir`, ... of the assistant's repository.

    Returns:
        [`~peft.PeftModel`]: The assistant, frozen, on the target's own tensors.

    Raises:
        OSError: If there is no assistant at that place.
        ValueError: If it does not fit the target.
    """
    # safetensors only: a pickled adapter could run code.
    weights = cached_file(name_or_path, "adapter_model.safetensors", subfolder=saved_name, **hub_kwargs)
    config_file = cached_file(name_or_path, "adapter_config.json", subfolder=saved_name, **hub_kwargs)
    peft_config = PeftConfig.from_pretrained(os.path.dirname(config_file))
    check_lora_config(peft_config)
    try:
        state_dict = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged ({error}): download it or train the assistant again.") from error
    return attach_assistant(target, num_layers, peft_config, state_dict, name or saved_name)


def load_config(name_or_path: str | os.PathLike, **hub_kwargs: Any) -> ULDModelConfig:
    """
    Load the configuration of a saved unlearned model.

    Args:
        name_or_path (`str` or `os.PathLike`):
            Hub id or folder.
        **hub_kwargs:
            `revision`, `token`, `cache_dir`, ... of its repository.

    Returns:
        [`ULDModelConfig`]: The configuration.

    Raises:
        OSError: If there is none.
        ValueError: If it is that of another model.
    """
    content, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub_kwargs)
    if content.get("model_type") != ULDModelConfig.model_type:
        raise ValueError(
            f"{name_or_path} is not an unlearned model, its config.json is of type {content.get('model_type')!r}. Give "
            "the folder or repository that ULDTrainer or `uld train` wrote."
        )
    return ULDModelConfig.from_pretrained(name_or_path, **hub_kwargs)


def load_target(config: ULDModelConfig, **kwargs: Any) -> PreTrainedModel:
    """
    Load the target that a saved assistant was trained on.

    Args:
        config ([`ULDModelConfig`]):
            The saved configuration.
        **kwargs:
            Passed to [`~transformers.AutoModelForCausalLM.from_pretrained`].

    Returns:
        [`~transformers.PreTrainedModel`]: The target.

    Raises:
        ValueError: If the configuration names no target.
        OSError: If the target is not where the configuration says.
    """
    if config.target_name_or_path is None:
        raise ValueError(
            "The saved config.json names no target (it was trained on a model without a name). Load the target "
            "yourself and pass it: ULDForCausalLM.from_pretrained(folder, target=target)."
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            config.target_name_or_path, revision=config.target_revision or "main", **kwargs
        )
    except OSError as error:
        raise OSError(
            f"The target {config.target_name_or_path!r} of this assistant cannot be loaded. If it has moved, load it "
            "yourself and pass it: ULDForCausalLM.from_pretrained(folder, target=target), or `uld generate --target`."
        ) from error


def model_card(config: ULDModelConfig) -> ModelCard:
    """
    The card of a saved unlearned model.

    Args:
        config ([`ULDModelConfig`]):
            The configuration being saved.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card, with the hub's metadata.
    """
    target = config.target_name_or_path
    on_hub = target is not None and not os.path.isabs(target)
    data = ModelCardData(
        library_name="uld_hf",
        pipeline_tag="text-generation",
        tags=["unlearning", "uld", "arxiv:2406.08607"],
        base_model=target if on_hub else None,
    )
    rows = "\n".join(
        f"| `{name}/` | {assistant['num_layers']} | {assistant['alpha']} |"
        for name, assistant in config.assistants.items()
    )
    return ModelCard(f"""---
{data.to_yaml()}
---

# Unlearned model (ULD)

The target `{target if on_hub else "(a local model)"}` with assistants that know what it must forget. Output is the
target's logits minus alpha times each assistant's ("Unlearning from Logit Difference", arXiv 2406.08607); an assistant
is LoRA on the target's first layers.

| assistant | layers | alpha |
|---|---|---|
{rows}

**Do not publish an assistant's folder lightly: it is a concentrated copy of what was to be forgotten.** The target's
own weights are unchanged and still hold it too.

```python
from uld_hf import ULDForCausalLM

model = ULDForCausalLM.from_pretrained("this repository or folder")
```
""")


def check_layout(folder: Path) -> None:
    """
    Refuse a folder that holds another model, or in which transformers would find an adapter and ignore our
    configuration.

    Args:
        folder (`Path`):
            Where an unlearned model is to be saved.

    Raises:
        ValueError: If there is an `adapter_config.json`, or the `config.json` of another model.
    """
    config_file = folder / "config.json"
    if config_file.exists() and json.loads(config_file.read_text(encoding="utf-8")).get("model_type") != "uld":
        raise ValueError(
            f"{folder} holds another model, perhaps the target, whose config.json would be overwritten. Save to "
            "another folder."
        )
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter_config.json: transformers would load that adapter onto the whole target, "
            "which recites the forget set. Save to another folder."
        )


def save_unlearned_model(
    save_directory: str | os.PathLike,
    config: ULDModelConfig,
    assistants: Mapping[str, PeftModel],
    generation_config: GenerationConfig,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """
    Write an unlearned model: its configuration and its assistants' LoRA. The target is referred to, not copied.

    Args:
        save_directory (`str` or `os.PathLike`):
            Folder to write to; made if absent.
        config ([`ULDModelConfig`]):
            Configuration to save.
        assistants (`Mapping[str, PeftModel]`):
            The assistants by name.
        generation_config ([`~transformers.GenerationConfig`]):
            The target's generation defaults.
        state_dict (`dict[str, torch.Tensor]`, *optional*):
            Gathered weights of the only assistant, where they are sharded over processes.

    Raises:
        ValueError: If the folder holds an `adapter_config.json`, or another model.
    """
    folder = Path(save_directory)
    check_layout(folder)
    # config.json comes last: nothing can be loaded without it, so a save cut off half-way is not taken for whole.
    (folder / "config.json").unlink(missing_ok=True)
    # An adapter whose name is not "default" is written to a subfolder of that name.
    for name, assistant in assistants.items():
        weights = lora_weights(assistant) if state_dict is None else state_dict
        assistant.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False, state_dict=weights)
    generation_config.save_pretrained(folder)
    model_card(config).save(folder / "README.md")
    config.save_pretrained(folder)
