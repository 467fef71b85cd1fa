"""Whether target and assistants are still what they were when the model was built: enabled, unmerged, and all there.

PEFT offers many ways to switch an adapter off, and all of them leave a model that runs. One pass over the LoRA layers
before every forward pass is cheap, and turns each of these ways into an error. So is a look at the assistants' weights:
what one takes away another may put back.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from .assistant import lora_weights
from .subtraction import SMALLEST_ALPHA


@dataclass
class _Place:
    """Where a LoRA layer belongs, and how strong it is."""

    parent: nn.Module
    attribute: str
    layer: LoraLayer
    scaling: float


def _places(assistant: PeftModel, name: str) -> list[_Place]:
    root = assistant.peft_config[name].use_rslora

    def trained_scaling(layer: LoraLayer) -> float:  # what it is now may have been set since
        rank = layer.r[name]
        return layer.lora_alpha[name] / (math.sqrt(rank) if root else rank)

    return [
        _Place(parent, attribute, layer, trained_scaling(layer))
        for parent in assistant.get_base_model().modules()
        for attribute, layer in parent.named_children()
        if isinstance(layer, LoraLayer)
    ]


def _vocab_size(target: PreTrainedModel) -> int:
    return target.config.get_text_config(decoder=True).vocab_size


class Watch:
    """
    Remembers target and assistants as they are, and notices what has been done to them.

    Args:
        assistants (`Mapping[str, PeftModel]`):
            The assistants by name.
        target ([`~transformers.PreTrainedModel`], *optional*):
            The target that they are subtracted from, where it is known.
    """

    def __init__(self, assistants: Mapping[str, PeftModel], target: PreTrainedModel | None = None):
        self._target = target
        self._vocab_size = None if target is None else _vocab_size(target)
        self._assistants = {name: (assistant, _places(assistant, name)) for name, assistant in assistants.items()}

    def check(self, assistants: Mapping[str, nn.Module], target: nn.Module | None = None) -> None:
        """
        Refuse to go on with a target or assistants that no longer are what they were.

        Args:
            assistants (`Mapping[str, nn.Module]`):
                The model's assistants now.
            target ([`~torch.nn.Module`], *optional*):
                The model's target now.

        Raises:
            RuntimeError: If one was replaced or removed, the target was given an adapter, or an assistant's is
                disabled, merged, deleted, rescaled, or not the only active one.
        """
        if target is not self._target:
            raise RuntimeError(
                "The target was replaced: nobody has looked at whether the assistants belong to it. Build the model "
                "anew: ULDForCausalLM(target=..., assistant=...)."
            )
        if target is not None and _vocab_size(target) != self._vocab_size:
            raise RuntimeError(
                f"The target's vocabulary was resized from {self._vocab_size} to {_vocab_size(target)}: the assistants "
                "have the one that they were trained with. Resize and train the target first, then train an assistant."
            )
        parts = [] if target is None else [target, target.base_model, target.get_decoder()]
        if any("peft_config" in vars(part) for part in parts):  # PEFT leaves it with what it changes
            raise RuntimeError(
                "The target was given an adapter: whether the assistants would see it depends on the execution, and "
                "neither belongs to it. Merge the adapter into the target and save that, then train an assistant for "
                "it."
            )
        for name, (assistant, places) in self._assistants.items():
            if name not in assistants:
                raise RuntimeError(f"The assistant {name!r} was taken out: use remove_assistant.")
            if assistants[name] is not assistant:
                raise RuntimeError(f"The assistant {name!r} was replaced: use remove_assistant and add_assistant.")
            for place in places:
                layer = place.layer
                if layer.merged:
                    raise RuntimeError(
                        f"The assistant {name!r} is merged: that wrote into the target's own weights. Load target and "
                        "assistant again."
                    )
                if vars(place.parent)["_modules"].get(place.attribute) is not layer or name not in layer.lora_A:
                    raise RuntimeError(
                        f"The assistant {name!r} has lost its adapter (unload, delete_adapter): nothing would be "
                        "subtracted. Load it again. For the target's own output call model.target."
                    )
                if layer.disable_adapters or layer.active_adapters != [name] or layer.scaling[name] != place.scaling:
                    raise RuntimeError(
                        f"The assistant {name!r} is disabled, rescaled, or not the only active adapter "
                        f"({layer.active_adapters}): something else would be subtracted. Undo that, or load it again. "
                        "For the target's own output call model.target."
                    )


def identify_assistant(assistant: PeftModel, name: str) -> str:
    """
    What two assistants of one target have in common if they compute the same.

    Args:
        assistant ([`~peft.PeftModel`]):
            The assistant.
        name (`str`):
            Name of its adapter.

    Returns:
        `str`: Its number of layers, and a hash of its LoRA unless that is untrained, which changes nothing.
    """
    num_layers = assistant.config.get_text_config(decoder=True).num_hidden_layers
    weights = lora_weights(assistant)
    if not any(weight.any() for weight_name, weight in weights.items() if "lora_B" in weight_name):
        return f"{num_layers} layers, untrained"
    content = hashlib.sha256()
    for place in _places(assistant, name):
        content.update(str(place.scaling).encode())
    for weight_name, weight in sorted(weights.items()):
        # The adapter's name stands behind LoRA's own; layers and modules may be called the same.
        content.update(re.sub(rf"(lora_\w+)\.{re.escape(name)}(?=\.|$)", r"\1", weight_name).encode())
        if isinstance(weight, DTensor):  # tensor parallel
            weight = weight.full_tensor()
        content.update(weight.float().cpu().numpy().tobytes())
    return f"{num_layers} layers, {content.hexdigest()}"


class NetEffect:
    """
    Knows which assistants compute the same, and refuses weights under which all of them together take nothing away.

    Args:
        assistants (`Mapping[str, PeftModel]`):
            The assistants by name.
    """

    def __init__(self, assistants: Mapping[str, PeftModel]):
        # One assistant cannot cancel itself.
        one = len(assistants) == 1
        self._identities = {
            name: name if one else identify_assistant(assistant, name) for name, assistant in assistants.items()
        }

    def check(self, alphas: Mapping[str, float]) -> None:
        """
        Refuse weights that only add, or under which what is subtracted is added again.

        Args:
            alphas (`Mapping[str, float]`):
                Weight of each assistant.

        Raises:
            ValueError: If no weight is positive, or nothing is left of a positive one once equal assistants are added
                up.
        """
        if not any(alpha > 0 for alpha in alphas.values()):
            raise ValueError(
                f"All assistants are added, none is subtracted ({dict(alphas)}): nothing would be forgotten. Give what "
                "must be forgotten a positive alpha. An assistant that learned the retain set is added to a model that "
                "has one of the forget set: model.add_assistant(...)."
            )
        for identity in {self._identities[name] for name, alpha in alphas.items() if alpha > 0}:
            equal = {name: alpha for name, alpha in alphas.items() if self._identities[name] == identity}
            if sum(equal.values()) < SMALLEST_ALPHA:
                raise ValueError(
                    f"The assistants {list(equal)} compute the same, and what is subtracted is added again ({equal}): "
                    "it would not be forgotten. Train or remove one of them, or change an alpha."
                )
