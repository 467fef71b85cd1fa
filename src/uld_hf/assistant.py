"""The assistant: the target's first K decoder layers, its embeddings, norm and head, with LoRA on top.

Nothing is copied. The truncated model is made of new modules that hold the target's own tensors, so an assistant costs
its LoRA weights and nothing else.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain
from numbers import Real
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_bitsandbytes_available, logging

from .truncated_config import ADAPTER_NAME, check_num_layers, select_layers, truncate_config


# Stands where PEFT names an adapter's base. With the target's name there, AutoModelForCausalLM and AutoPeftModel would
# put the adapter on the whole target: a model that recites.
NO_BASE = "(none: load the repository with uld_hf.ULDForCausalLM; the adapter fits the target's first layers only)"

# What an assistant's LoraConfig may say; whatever else PEFT knows must be as it is by default.
_LORA_SETTINGS = {
    *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "target_parameters", "exclude_modules"),
    *("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "runtime_config"),
    *("layers_to_transform", "layers_pattern", "init_lora_weights", "loftq_config"),
}


def default_lora_config() -> LoraConfig:
    """LoRA as in the paper (appendix, hyper-parameters): rank 32, alpha 32, on every linear layer but the head."""
    return LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=32, target_modules="all-linear")


def find_decoder_layers(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """
    Find a model's list of decoder layers: the only `ModuleList` of the right length in `model.get_decoder()`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model of any family.

    Returns:
        `tuple[nn.Module, str]`: The module that holds the list, and the list's attribute name.

    Raises:
        ValueError: If there is no such list, or more than one.
    """
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        (module, name)
        for module in model.get_decoder().modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers
    ]
    # A list of experts inside a layer may have the same length: the decoder's own list is the outermost.
    inner = {id(module) for holder, name in found for layer in holder.get_submodule(name) for module in layer.modules()}
    found = [(holder, name) for holder, name in found if id(holder) not in inner]
    if len(found) != 1:
        raise ValueError(
            f"Found {len(found)} lists of {num_layers} layers in the decoder of {type(model).__name__}, expected one: "
            "this architecture is not supported as a target."
        )
    return found[0]


def check_no_adapter(model: nn.Module) -> None:
    """
    Refuse a model into which transformers has put a PEFT adapter (`load_adapter`, or a repository of an adapter).

    Args:
        model (`nn.Module`):
            The target, or its first layers.

    Raises:
        ValueError: If a layer has an adapter.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "The target has a PEFT adapter: the assistant would be cut from the layers without it, and the fingerprint "
            "would not know of it. Merge it into the weights first (peft.PeftModel.merge_and_unload) and save the "
            "result."
        )


def check_target(target: PreTrainedModel) -> None:
    """
    Refuse a target that an assistant cannot be cut from.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The model that must forget.

    Raises:
        TypeError: If `target` is a PEFT model, or not a transformers model.
        ValueError: If `target` has an adapter, is an encoder-decoder model, or already an unlearned one.
    """
    if isinstance(target, PeftModel):
        raise TypeError(
            "The target is a PEFT model: its adapter would be shared with the assistant. Merge it first: "
            "target = target.merge_and_unload()."
        )
    if not isinstance(target, PreTrainedModel):
        raise TypeError(f"The target must be a transformers PreTrainedModel, got {type(target).__name__}.")
    if target.config.is_encoder_decoder:
        raise ValueError(f"{type(target).__name__} is an encoder-decoder: only decoder-only targets are supported.")
    if target.config.model_type == "uld":
        raise ValueError("The target is already an unlearned model: pass the model it was made from (`model.target`).")
    check_no_adapter(target)


def is_8bit(module: nn.Module) -> bool:
    """
    Whether a module is a linear layer in bitsandbytes' 8-bit form.

    Args:
        module (`nn.Module`):
            Any module.

    Returns:
        `bool`: `False` too where bitsandbytes is not installed.
    """
    if not is_bitsandbytes_available():
        return False
    from bitsandbytes.nn import Linear8bitLt

    return isinstance(module, Linear8bitLt)


def shared_with(target: PreTrainedModel) -> dict[int, Any]:
    """
    A memo for `copy.deepcopy` of a model: new modules, but the target's own tensors, in memory or offloaded.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The model to copy.

    Returns:
        `dict[int, Any]`: What is not copied, by its `id`.
    """
    hooks = [vars(module)["_hf_hook"] for module in target.modules() if "_hf_hook" in vars(module)]
    # What accelerate offloads is not in the modules but in its hooks' maps.
    offloaded = [
        kept for hook in hooks for name, kept in vars(hook).items() if name in ("weights_map", "tied_params_map")
    ]
    # Of an 8-bit weight, bitsandbytes moves the scales into the first module that uses it: all must look at one place.
    states = [module.state for module in target.modules() if is_8bit(module)]
    return {id(kept): kept for kept in chain(target.parameters(), target.buffers(), offloaded, states)}


def check_has_attention(num_layers: int, config: PreTrainedConfig) -> None:
    """
    Refuse an assistant without a layer of attention, as the first layers of hybrid models may be.

    Args:
        num_layers (`int`):
            Number of decoder layers K of the assistant.
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the target.

    Raises:
        ValueError: If the cache of the first `num_layers` layers would not know how many tokens it has seen.
    """

    def counts_tokens(layers: int) -> bool:
        # States of one size (linear attention, convolutions) are no CacheLayerMixin; without kinds of layers all are.
        cached = DynamicCache(config=truncate_config(config, layers)).layers
        return not cached or any(isinstance(layer, CacheLayerMixin) for layer in cached)

    if not counts_tokens(num_layers):
        available = config.get_text_config(decoder=True).num_hidden_layers
        enough = next((layers for layers in range(num_layers + 1, available + 1) if counts_tokens(layers)), None)
        advice = "This architecture is not supported as a target." if enough is None else f"Use at least {enough}."
        raise ValueError(
            f"An assistant of {num_layers} of this target's layers would have no attention: its cache would not know "
            f"how long a text is, and generate() would fail. {advice}"
        )


def truncate_model(target: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """
    The target's first `num_layers` decoder layers with its embeddings, norm and head, on the target's own tensors.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The model that must forget. It is not changed.
        num_layers (`int`):
            Number of decoder layers K to keep.

    Returns:
        [`~transformers.PreTrainedModel`]: A model of the same class. Its modules are new, every parameter and buffer
        is the target's own.

    Raises:
        ValueError: If the target does not have that many layers.
    """
    check_target(target)
    check_num_layers(num_layers, target.config)
    holder, name = find_decoder_layers(target)
    # deepcopy keeps what `memo` already maps, so the tensors are shared and only the Python objects are new. The
    # layers to drop are mapped to placeholders: hundreds of modules need not be copied to be thrown away.
    memo = shared_with(target)
    memo.update({id(layer): nn.Identity() for layer in holder.get_submodule(name)[num_layers:]})
    truncated = copy.deepcopy(target, memo)

    holder, name = find_decoder_layers(truncated)
    setattr(holder, name, holder.get_submodule(name)[:num_layers])
    # Model and decoder may hold one config or one each.
    text_configs = [
        module.config.get_text_config(decoder=True)
        for module in truncated.modules()
        if isinstance(module, PreTrainedModel)
    ]
    for config in {id(config): config for config in text_configs}.values():
        select_layers(config, list(range(num_layers)))
    return truncated


def load_truncated_model(model_id: str, num_layers: int, **kwargs: Any) -> PreTrainedModel:
    """
    Load only the first `num_layers` decoder layers of a checkpoint; the weights of the others are never read.

    Args:
        model_id (`str`):
            Hub id or folder of the target.
        num_layers (`int`):
            Number of decoder layers K to load.
        **kwargs:
            Passed to [`~transformers.AutoModelForCausalLM.from_pretrained`] (`revision`, `dtype`, `device_map`,
            `quantization_config`, ...).

    Returns:
        [`~transformers.PreTrainedModel`]: The truncated target.

    Raises:
        ValueError: If the target does not have that many layers, or weights are missing from the checkpoint.
    """
    source = ("revision", "token", "cache_dir", "subfolder", "trust_remote_code", "local_files_only")
    hub_kwargs = {name: value for name, value in kwargs.items() if name in source}
    config = truncate_config(AutoConfig.from_pretrained(model_id, **hub_kwargs), num_layers)
    # transformers reports every weight of the upper layers as unexpected, which is what is wanted here; a missing one
    # is not, and is looked for below.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, loading_info = AutoModelForCausalLM.from_pretrained(
            model_id, config=config, output_loading_info=True, **kwargs
        )
    finally:
        logging.set_verbosity(verbosity)
    check_no_adapter(model)
    if loading_info["missing_keys"]:
        raise ValueError(
            f"{model_id} lacks the weights {sorted(loading_info['missing_keys'])[:5]}: not a whole checkpoint."
        )
    return model


# The others of PEFT (PiSSA, OLoRA, ...) take what they begin with out of the base weights.
INITS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "orthogonal")


def keeps_the_base(peft_config: LoraConfig) -> bool:
    """
    Whether LoRA leaves the base as it is: with the adapter disabled, the model is what it was.

    Args:
        peft_config ([`~peft.LoraConfig`]):
            Configuration of the adapter.

    Returns:
        `bool`: Whether it rewrites no weights and trains no biases.
    """
    return peft_config.init_lora_weights in INITS_THAT_KEEP_THE_BASE and peft_config.bias == "none"


def check_lora_config(peft_config: PeftConfig) -> None:
    """
    Refuse adapters that would train more than LoRA on the decoder's linear layers.

    Args:
        peft_config ([`~peft.PeftConfig`]):
            Configuration of the adapter.

    Raises:
        ValueError: If it is not LoRA, trains embeddings, head or biases, or rewrites weights that the target shares.
    """
    if not isinstance(peft_config, LoraConfig):
        raise ValueError(f"The assistant's adapter must be a peft.LoraConfig, got {type(peft_config).__name__}.")
    if peft_config.modules_to_save or peft_config.trainable_token_indices or peft_config.bias != "none":
        raise ValueError(
            "The assistant's LoraConfig must leave modules_to_save and trainable_token_indices empty and bias='none': "
            "the assistant shares its embeddings, head and biases with the target."
        )
    if peft_config.alora_invocation_tokens:
        raise ValueError("alora_invocation_tokens: the assistant must work on every token. Leave it out.")
    if peft_config.init_lora_weights not in INITS_THAT_KEEP_THE_BASE:
        raise ValueError(
            f"init_lora_weights={peft_config.init_lora_weights!r} rewrites the base weights, which the target owns. "
            "Leave it out, or use 'gaussian' or 'orthogonal'."
        )
    other = {
        field.name: vars(peft_config)[field.name]
        for field in fields(LoraConfig)
        if field.name not in _LORA_SETTINGS and vars(peft_config)[field.name] != vars(LoraConfig())[field.name]
    }
    if other:
        raise ValueError(f"The assistant's LoraConfig has {other}, which is not supported. Leave it out.")
    ranks = [peft_config.r, *peft_config.rank_pattern.values()]
    if any(type(rank) is not int or rank < 1 for rank in ranks):
        raise ValueError(f"The assistant's LoRA has the ranks {ranks}: integers above 0 are needed, e.g. r=32.")
    scales = [peft_config.lora_alpha, *peft_config.alpha_pattern.values()]
    # Without its LoRA the assistant would know nothing more than the target's first layers do.
    if any(not isinstance(scale, Real) or not math.isfinite(scale) or scale <= 0 for scale in scales):
        raise ValueError(f"The assistant's LoRA has lora_alpha {scales}: numbers above 0 are needed, e.g. 32.")


def _refuse_push(*args: Any, **kwargs: Any) -> None:
    """In place of PEFT's `push_to_hub` of an assistant, and transformers' of its base: public unless told otherwise."""
    raise ValueError(
        "An assistant is a concentrated copy of the forget set. Push it with ULDTrainer.push_to_hub, "
        "ULDForCausalLM.push_to_hub or `uld push`: they push privately, together with what is needed to load it."
    )


@contextmanager
def without_old_name_warning() -> Iterator[None]:
    """No warning of an old name by which PEFT up to 0.21 asks transformers, whenever it makes a model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def put_adapter(model: PreTrainedModel, peft_config: PeftConfig, name: str = "default") -> PeftModel:
    """
    PEFT's `get_peft_model`, [`without_old_name_warning`] and, with "all-linear", without LoRA on routers.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The base.
        peft_config ([`~peft.PeftConfig`]):
            Configuration of the adapter. It is changed.
        name (`str`, *optional*, defaults to `"default"`):
            Name of the adapter.

    Returns:
        [`~peft.PeftModel`]: The model with the adapter.
    """
    is_all = isinstance(peft_config, LoraConfig) and peft_config.target_modules == "all-linear"
    # Linear layers that return more than a product (Llama 4, PhiMoE), which PEFT cannot add anything to.
    if (
        is_all
        and peft_config.exclude_modules is None
        and any(
            name.endswith(".router") and isinstance(module, nn.Linear) and "transformers." in type(module).__module__
            for name, module in model.named_modules()
        )
    ):
        peft_config.exclude_modules = ["router"]
    with without_old_name_warning():
        return get_peft_model(model, peft_config, adapter_name=name)


def add_lora(truncated: PreTrainedModel, peft_config: PeftConfig | None = None, name: str = ADAPTER_NAME) -> PeftModel:
    """
    Put LoRA on a truncated model; its base is frozen.

    Args:
        truncated ([`~transformers.PreTrainedModel`]):
            What [`truncate_model`] or [`load_truncated_model`] returned.
        peft_config ([`~peft.PeftConfig`], *optional*):
            A [`~peft.LoraConfig`]. Defaults to the paper's: rank 32, alpha 32, all linear layers but the head.
        name (`str`, *optional*, defaults to `"assistant"`):
            Name of the adapter.

    Returns:
        [`~peft.PeftModel`]: The assistant, with one adapter of that name.

    Raises:
        ValueError: If the adapter is not LoRA, or would train the embeddings or the head.
    """
    peft_config = copy.deepcopy(peft_config) if peft_config is not None else default_lora_config()
    check_lora_config(peft_config)
    # GPT-2 stores its linear layers transposed; saying so spares PEFT's warning that it noticed.
    peft_config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in truncated.modules())
    peft_config.base_model_name_or_path = None  # PEFT fills it in
    assistant = put_adapter(truncated, peft_config, name)
    assistant.peft_config[name].base_model_name_or_path = NO_BASE
    assistant.push_to_hub = truncated.push_to_hub = _refuse_push
    for layer in assistant.modules():
        if not isinstance(layer, LoraLayer):
            continue
        hook = vars(layer.get_base_layer()).get("_hf_hook")
        if hook is not None and any(weight.is_meta for weight in layer.lora_A.parameters()):
            # The base is offloaded, and PEFT has put the LoRA where the weight seems to be: nowhere.
            device = hook.execution_device
            for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
                part.to_empty(device=device)
            layer.reset_lora_parameters(name, peft_config.init_lora_weights)
    shared = (truncated.get_input_embeddings(), truncated.get_output_embeddings())
    if any(isinstance(module, BaseTunerLayer) for module in shared):
        raise ValueError(
            f"target_modules={peft_config.target_modules} puts LoRA on the embeddings or the head. Leave them out: "
            "they are the target's own."
        )
    return assistant


def remember_settings(
    assistant: PeftModel, settings: Mapping[str, Any], training: Mapping[str, Any] | None = None
) -> PeftModel:
    """
    Tie the settings of the subtraction to the assistant that was trained for them.

    Args:
        assistant ([`~peft.PeftModel`]):
            The assistant.
        settings (`Mapping[str, Any]`):
            `alpha` and those of [`~configuration_uld.SHARED_SETTINGS`] that it was trained for.
        training (`Mapping[str, Any]`, *optional*):
            How it was trained, for the model card.

    Returns:
        [`~peft.PeftModel`]: The same assistant.
    """
    assistant.uld_settings = dict(settings)
    assistant.uld_training = dict(training or {})
    return assistant


def remembered_settings(assistant: PeftModel) -> dict[str, Any]:
    """
    The settings of the subtraction that an assistant was trained for.

    Args:
        assistant ([`~peft.PeftModel`]):
            The assistant.

    Returns:
        `dict[str, Any]`: Empty for one that was only built.
    """
    return dict(vars(assistant).get("uld_settings", {}))


def lora_weights(assistant: PeftModel) -> dict[str, torch.Tensor]:
    """
    The weights that are the assistant's own.

    Unlike `state_dict()`, this neither gathers an offloaded base nor repacks a quantized one.

    Args:
        assistant ([`~peft.PeftModel`]):
            The assistant.

    Returns:
        `dict[str, torch.Tensor]`: LoRA weights by name.
    """
    return {name: weight.detach() for name, weight in assistant.named_parameters() if "lora_" in name}


def check_trained(weights: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """
    Refuse assistants none of which has ever been trained: subtracting them would not forget.

    One of several may be untrained on purpose: Offset unlearning adds what the trained one began as.

    Args:
        weights (`Mapping[str, Mapping[str, torch.Tensor]]`):
            LoRA weights by the assistant's name.

    Raises:
        ValueError: If all of them are as they began.
    """
    if not any(weight.any() for of_one in weights.values() for name, weight in of_one.items() if ".lora_B." in name):
        raise ValueError(
            f"The assistants {list(weights)} were never trained (their LoRA is zero): they know nothing of what must "
            "be forgotten. Train them with ULDTrainer or `uld train` first."
        )


def remembered_training(assistant: PeftModel) -> dict[str, Any]:
    """
    How an assistant was trained.

    Args:
        assistant ([`~peft.PeftModel`]):
            The assistant.

    Returns:
        `dict[str, Any]`: Empty for one that was only built.
    """
    return dict(vars(assistant).get("uld_training", {}))


def shares_tensors(assistant: PeftModel, target: PreTrainedModel) -> bool:
    """
    Whether an assistant's base is made of a target's own tensors, as [`build_assistant`] makes it.

    Args:
        assistant ([`~peft.PeftModel`]):
            The assistant.
        target ([`~transformers.PreTrainedModel`]):
            The target.

    Returns:
        `bool`: `False` if any parameter but the LoRA is not the target's.
    """
    owned = {id(parameter) for parameter in target.parameters()}
    return all(id(parameter) in owned for name, parameter in assistant.named_parameters() if "lora_" not in name)


def build_assistant(target: PreTrainedModel, num_layers: int = 8, peft_config: PeftConfig | None = None) -> PeftModel:
    """
    Build an untrained assistant on a target's own tensors (paper section 3.3).

    The tensors that the assistant shares with the target stop requiring gradients.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The model that must forget.
        num_layers (`int`, *optional*, defaults to `8`):
            Number of decoder layers K of the assistant.
        peft_config ([`~peft.PeftConfig`], *optional*):
            A [`~peft.LoraConfig`]. Defaults to the paper's: rank 32, alpha 32, all linear layers but the head.

    Returns:
        [`~peft.PeftModel`]: The assistant, with one adapter named `"assistant"`.

    Raises:
        TypeError: If the target is a PEFT model.
        ValueError: If the target does not have that many layers, none of them is attention, or the adapter is not LoRA
            on its linear layers.
    """
    truncated = truncate_model(target, num_layers)
    check_has_attention(num_layers, target.config)
    return add_lora(truncated, peft_config)
