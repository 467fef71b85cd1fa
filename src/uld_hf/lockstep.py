"""Lockstep execution: one pass over the layers that target and assistants have in common, instead of one for each.

The first K layers of target and assistant are the same weights. Their rows go through these layers together, with the
LoRA added to the assistant's rows only; behind layer K the target's rows go on alone, and the assistant's wait for them
before the norm and the head. Every weight is then read once per token, which is what decoding spends its time on.
"""

import copy
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.pytorch_utils import Conv1D

from .assistant import find_decoder_layers, shared_with
from .cache_name import CACHE


_ONE_AT_A_TIME = threading.RLock()

# `model_type` of the text models that run in lockstep as they do one after the other (tests/test_lockstep.py). Another
# may read a layer's weight itself, or hand rows on in a way of its own.
FAMILIES = frozenset({
    "apertus", "arcee", "aria_text", "biogpt", "bitnet", "bloom", "cohere", "cohere2", "ctrl", "cwm",
    "deepseek_v3", "diffllama", "doge", "ernie4_5", "exaone4", "falcon", "flint", "gemma", "gemma2",
    "gemma3_text", "gemma4_unified_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese",
    "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hy_v3", "hyperclovax", "inkling2_text", "inkling_text", "internlm3", "iquestcoder",
    "jais2", "jetmoe", "kolibri1", "laguna", "lfm2", "llama", "mimo_v2_flash", "minimax_m3_vl_text",
    "ministral", "ministral3", "mistral", "mixtral", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "opt",
    "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe", "seed_oss",
    "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm",
})  # fmt: skip


def lora_layers(assistant: PeftModel) -> dict[str, LoraLayer]:
    """
    The assistant's LoRA layers, by the name that each has in the target.

    Args:
        assistant ([`~peft.PeftModel`]):
            The assistant.

    Returns:
        `dict[str, LoraLayer]`: Layers by name.
    """
    return {name: layer for name, layer in assistant.get_base_model().named_modules() if isinstance(layer, LoraLayer)}


def why_no_lockstep(target: PreTrainedModel, assistants: Sequence[PeftModel]) -> str | None:
    """
    What keeps a target and its assistants from running in lockstep.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The target.
        assistants (`Sequence[PeftModel]`):
            Its assistants.

    Returns:
        `str` or `None`: The reason, `None` if they can.
    """
    config = target.config.get_text_config(decoder=True)
    if config.model_type not in FAMILIES:
        return f"nobody has shown that {config.model_type!r} runs so"
    if vars(config).get("num_kv_shared_layers"):
        return "the target's last layers take keys and values of all rows from earlier ones"
    if any(parameter.is_meta for parameter in target.parameters()):
        return "the target is offloaded"
    if vars(target).get("hf_device_map") and len(set(target.hf_device_map.values())) > 1:
        return "the target is spread over several devices"
    if any(isinstance(parameter, DTensor) for parameter in target.parameters()):
        return "the target is tensor-parallel"
    if "quantization_config" in vars(target.config):
        return "kernels of quantized weights are made for few rows, and 8-bit ones mix rows"
    for assistant in assistants:
        holder, attribute = find_decoder_layers(assistant.get_base_model())
        of_layers = set(holder.get_submodule(attribute).modules())
        for name, lora in lora_layers(assistant).items():
            if lora not in of_layers:
                return f"{name} has LoRA, and is in no decoder layer"
            if not isinstance(lora.get_base_layer(), nn.Linear | Conv1D) or lora.lora_variant:
                return f"{name} has LoRA of a kind that cannot be added to some rows only ({type(lora).__name__})"
    return None


def can_join(cache: Cache | None) -> bool:
    """
    Whether the layers of a cache can be handed out for the rows of target and assistants together.

    Args:
        cache ([`~transformers.Cache`], *optional*):
            The cache of N + K layers, if there is one.

    Returns:
        `bool`: `False` for caches that are offloaded or quantized.
    """
    return cache is None or (not cache.offloading and all(type(layer) in JOINABLE for layer in cache.layers))


# What has a row for each text, or none.
_OF_TEXT = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids", "logits_to_keep"}


def is_text_only(inputs: Mapping[str, Any]) -> bool:
    """
    Whether there is nothing beside text, such as images, or lengths of several texts in one row.

    Args:
        inputs (`Mapping[str, Any]`):
            What a model's forward takes.

    Returns:
        `bool`: Whether all else are settings.
    """
    return all(name in _OF_TEXT or isinstance(value, bool | int | float | str | None) for name, value in inputs.items())


def has_rows_of_several_texts(inputs: Mapping[str, Any], attention: str | None) -> bool:
    """
    Whether texts stand in one row behind each other, told apart by positions: of a batch of one only.

    Args:
        inputs (`Mapping[str, Any]`):
            What a model's forward takes.
        attention (`str`, *optional*):
            The attention's implementation. `"eager"` and `"sdpa"` get a mask, which tells texts of any batch apart.

    Returns:
        `bool`: Whether they do, or positions have a dimension before the batch's.
    """
    position_ids = inputs.get("position_ids")
    if position_ids is None or position_ids.dim() < 2:
        return False
    if position_ids.dim() > 2:
        return True
    if attention in ("eager", "sdpa") or len(position_ids) > 1 or position_ids.shape[1] < 2:
        return False
    return bool((position_ids.diff() != 1).any())


def _multiply(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a linear layer does, fast for the few rows of decoding."""
    rows = x.numel() // x.shape[-1]
    plain = type(linear) is nn.Linear and not (linear._forward_hooks or linear._forward_pre_hooks)
    if not plain or x.device.type != "cpu" or x.dtype != torch.float32 or not 1 < rows <= 64:
        return linear(x)
    # MKL takes up to five times as long for x W^T with few float32 rows as for the same product from the other side.
    result = (linear.weight @ x.reshape(rows, -1).T).T.contiguous()  # or attention takes a slower path
    result = result.reshape(*x.shape[:-1], -1)
    return result if linear.bias is None else result + linear.bias


class _RowsLinear(nn.Module):
    """A linear layer of the target that adds to the rows of each assistant what its LoRA adds."""

    def __init__(self, base: nn.Module, loras: dict[int, LoraLayer], num_groups: int):
        super().__init__()
        self.base = base
        self.loras = loras  # by the assistant's place among the groups of rows; a dict, so as not to own its modules
        self.num_groups = num_groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = _multiply(self.base, x)
        # Some families have flattened the tokens by here: rows are still grouped, whatever their number.
        rows = len(x) // self.num_groups
        for group, lora in self.loras.items():
            if lora.disable_adapters or lora.merged:
                raise RuntimeError("The assistant's adapter is disabled or merged: nothing would be subtracted.")
            own = slice(group * rows, (group + 1) * rows)
            for name in lora.active_adapters:
                lora_a, lora_b = lora.lora_A[name], lora.lora_B[name]
                dropped = lora.lora_dropout[name](x[own].to(lora_a.weight.dtype))
                result[own].add_(lora_b(lora_a(dropped)) * lora.scaling[name])
        return result


# By exact type: a subclass may store what handing out rows does not reach.
JOINABLE = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer)


ROOM = 64  # tokens for which a buffer has room when it is made: it is copied once in so many steps


class _Buffer:
    """
    Keys or values of a growing cache layer, of target and assistants side by side and with room for more tokens.

    Each cache layer holds its rows as a view, as long as its text. What a view shows is never written over: rows of a
    layer that was cropped, reordered or taken from somewhere else are copied into a new buffer.
    """

    def __init__(self):
        self.rows: torch.Tensor | None = None
        self.length = 0  # tokens written

    def append(self, parts: Sequence[torch.Tensor], new: torch.Tensor) -> torch.Tensor:
        """Rows of all parts with new tokens behind them."""
        length = parts[0].shape[-2] if parts[0].numel() else 0
        total = length + new.shape[-2]
        if not self._ends_with(parts, length) or total > self.rows.shape[-2]:
            self.rows = new.new_empty((*new.shape[:-2], total + ROOM, new.shape[-1]))
            for part, place in zip(parts, self.rows.chunk(len(parts)), strict=True):
                if length:
                    place[..., :length, :] = part
        self.rows[..., length:total, :] = new
        self.length = total
        return self.rows[..., :total, :]

    def _ends_with(self, parts: Sequence[torch.Tensor], length: int) -> bool:
        if self.rows is None or length != self.length:
            return False
        if self.rows.is_inference() and not torch.is_inference_mode_enabled():  # may not be written to
            return False
        return all(
            part.data_ptr() == own.data_ptr() and part.shape[0] == own.shape[0] and part.stride() == own.stride()
            for part, own in zip(parts, self.rows.chunk(len(parts)), strict=True)
        )


class _JoinedLayer(CacheLayerMixin):
    """The same layer of the caches of target and assistants, as one layer for all of their rows."""

    def __init__(self, layers: Sequence[DynamicLayer | StaticLayer]):
        self.layers = layers
        self.is_sliding = layers[0].is_sliding
        self.is_compileable = layers[0].is_compileable
        self.is_initialized = layers[0].is_initialized

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise NotImplementedError("Each layer does it for itself.")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Graphs know no addresses, and autograd keeps what would be written to.
        if type(self.layers[0]) is DynamicLayer and not torch.compiler.is_compiling() and not key_states.requires_grad:
            return self._grow(key_states, value_states)
        rows = zip(key_states.chunk(len(self.layers)), value_states.chunk(len(self.layers)), strict=True)
        updated = [layer.update(*states, *args, **kwargs) for layer, states in zip(self.layers, rows, strict=True)]
        keys, values = zip(*updated, strict=True)
        return torch.cat(keys), torch.cat(values)

    def _grow(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the update of every layer does, without copying all that the layers hold for every token."""
        rows = zip(key_states.chunk(len(self.layers)), value_states.chunk(len(self.layers)), strict=True)
        for layer, states in zip(self.layers, rows, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(*states)
        # Kept with the cache, and as long as it.
        keys, values = vars(self.layers[0]).setdefault("uld_buffers", (_Buffer(), _Buffer()))
        joined_keys = keys.append([layer.keys for layer in self.layers], key_states)
        joined_values = values.append([layer.values for layer in self.layers], value_states)
        parts = zip(joined_keys.chunk(len(self.layers)), joined_values.chunk(len(self.layers)), strict=True)
        for layer, (own_keys, own_values) in zip(self.layers, parts, strict=True):
            layer.keys, layer.values = own_keys, own_values
        return joined_keys, joined_values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.layers[0].get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        return self.layers[0].get_seq_length()

    def get_max_length(self) -> int:
        return self.layers[0].get_max_length()


class Lockstep:
    """
    Target and assistants as one model over rows of each: the target's, then each assistant's, the deepest first.

    Its modules are new and hold the target's own tensors and the assistants' own LoRA layers.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The target.
        assistants (`Sequence[PeftModel]`):
            Its assistants, see [`why_no_lockstep`].
    """

    def __init__(self, target: PreTrainedModel, assistants: Sequence[PeftModel]):
        memo = shared_with(target)
        # The target's configs, not copies: what changes its attention later must change it here as well.
        memo.update(
            {id(module.config): module.config for module in target.modules() if isinstance(module, PreTrainedModel)}
        )
        self.target, self.assistants = target, tuple(assistants)
        self.model: PreTrainedModel = copy.deepcopy(target, memo).eval()  # whatever the target is in at the moment
        holder, name = find_decoder_layers(self.model)
        layers = holder.get_submodule(name)
        num_layers = [assistant.config.get_text_config(decoder=True).num_hidden_layers for assistant in assistants]
        self.order = sorted(range(len(assistants)), key=lambda index: -num_layers[index])
        depths = [len(layers), *(num_layers[index] for index in self.order)]
        self.num_groups = len(depths)

        loras: dict[str, dict[int, LoraLayer]] = {}
        for group, index in enumerate(self.order, start=1):
            for path, lora in lora_layers(assistants[index]).items():
                loras.setdefault(path, {})[group] = lora
        for path, of_groups in loras.items():
            # Groups are nested: those of a layer are the first so many.
            layer_depths = [depth for depth in depths if depth > _layer_index(self.model, layers, path)]
            base = self.model.get_submodule(path)
            self.model.set_submodule(path, _RowsLinear(base, of_groups, len(layer_depths)))

        head = self.model.get_output_embeddings()
        if head is not None:
            self.model.set_output_embeddings(_RowsLinear(head, {}, self.num_groups))

        self.active = [sum(depth > index for depth in depths) for index in range(len(layers))]
        self.waiting: list[torch.Tensor] = []
        self.batch_size = 0
        for index, layer in enumerate(layers):
            if self.active[index] < self.num_groups:
                layer.register_forward_pre_hook(_Enter(self, index), with_kwargs=True)
        layers[-1].register_forward_hook(self._rejoin)

    def is_of(self, target: PreTrainedModel, assistants: Sequence[PeftModel]) -> bool:
        """
        Whether it is of these models, and not of what was exchanged for them.

        Args:
            target ([`~transformers.PreTrainedModel`]):
                The target.
            assistants (`Sequence[PeftModel]`):
                Its assistants.

        Returns:
            `bool`: Whether it is.
        """
        given = (target, *assistants)
        own = (self.target, *self.assistants)
        return len(given) == len(own) and all(one is other for one, other in zip(given, own, strict=True))

    def __call__(
        self, inputs: dict[str, Any], caches: Sequence[Cache | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Logits of the target and of each assistant.

        Args:
            inputs (`dict[str, Any]`):
                What either's forward takes, for the rows of the batch.
            caches (`Sequence[Cache]`):
                The target's cache and each assistant's.

        Returns:
            `tuple[torch.Tensor, list[torch.Tensor]]`: Logits of shape `(batch_size, sequence_length, vocab_size)`
            of the target, and of each assistant in the order of `assistants`.
        """
        given = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
        # Rows of one call wait here for its last layer: those of another thread's would be taken for them.
        with nullcontext() if torch.compiler.is_compiling() else _ONE_AT_A_TIME:
            self.batch_size = len(given)
            self.waiting = []
            logits = self.model(**{CACHE: self._join(caches)}, **self._repeat(inputs)).logits
        target_logits, *of_groups = logits.chunk(self.num_groups)
        assistant_logits = [logits for _, logits in sorted(zip(self.order, of_groups, strict=True), key=lambda x: x[0])]
        return target_logits, assistant_logits

    def _join(self, caches: Sequence[Cache | None]) -> Cache | None:
        target_cache, *others = caches
        if target_cache is None:
            return None
        ordered = [others[index] for index in self.order]
        layers = [
            layer if active == 1 else _JoinedLayer([layer, *(cache.layers[index] for cache in ordered[: active - 1])])
            for index, (layer, active) in enumerate(zip(target_cache.layers, self.active, strict=True))
        ]
        return Cache(layers=layers)

    def _repeat(self, value: Any) -> Any:
        """Rows of a batch for every group; what has no rows is left as it is."""
        if isinstance(value, dict):
            return {name: self._repeat(each) for name, each in value.items()}
        if isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == self.batch_size:
            return value.repeat(self.num_groups, *[1] * (value.dim() - 1))
        return value

    def narrow(self, value: Any, groups: int) -> Any:
        """The rows of the first groups, of what holds rows of all."""
        if isinstance(value, tuple):
            return tuple(self.narrow(each, groups) for each in value)
        if (
            isinstance(value, torch.Tensor)
            and value.dim() > 1
            and len(value) % (self.num_groups * self.batch_size) == 0
        ):
            return value[: len(value) // self.num_groups * groups]
        return value

    def _rejoin(self, module: nn.Module, args: Any, output: Any) -> Any:
        hidden_states = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden_states, torch.Tensor):
            raise NotImplementedError(
                f"Lockstep does not know the output of {type(module).__name__}, a {type(output).__name__}. Set "
                "model.execution = 'two passes'."
            )
        joined = torch.cat([hidden_states, *reversed(self.waiting)])
        self.waiting = []
        return (joined, *output[1:]) if isinstance(output, tuple) else joined


class _Enter:
    """Before a decoder layer: rows whose layers end here wait, and what the model gives to every layer is narrowed."""

    def __init__(self, lockstep: Lockstep, index: int):
        self.lockstep = lockstep
        self.groups = lockstep.active[index]
        self.groups_before = lockstep.active[index - 1]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden_states, *args = args or (kwargs.pop("hidden_states"),)
        if self.groups < self.groups_before:
            rows = len(hidden_states) // self.groups_before * self.groups
            self.lockstep.waiting.append(hidden_states[rows:])
            hidden_states = hidden_states[:rows]
        args = (hidden_states, *self.lockstep.narrow(tuple(args), self.groups))
        return args, {name: self.lockstep.narrow(value, self.groups) for name, value in kwargs.items()}


def _layer_index(model: PreTrainedModel, layers: nn.Module, path: str) -> int:
    (prefix,) = [name for name, module in model.named_modules() if module is layers]
    return int(path.removeprefix(prefix + ".").split(".")[0])
