"""Whether target and assistants are still what they were when the model was built: enabled, unmerged, and all there.

PEFT offers many ways to switch an adapter off, and all of them leave a model that runs. One pass over the LoRA layers
before every forward pass is cheap, and turns each of these ways into an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn


@dataclass
class _Place:
    """Where a LoRA layer belongs, and how strong it is."""

    parent: nn.Module
    attribute: str
    layer: LoraLayer
    scaling: float


def _places(assistant: PeftModel, name: str) -> list[_Place]:
    return [
        _Place(parent, attribute, layer, layer.scaling[name])
        for parent in assistant.get_base_model().modules()
        for attribute, layer in parent.named_children()
        if isinstance(layer, LoraLayer)
    ]


class Watch:
    """
    Remembers target and assistants as they are, and notices what has been done to them.

    Args:
        assistants (`Mapping[str, PeftModel]`):
            The assistants by name.
        target ([`~torch.nn.Module`], *optional*):
            The target that they are subtracted from, where it is known.
    """

    def __init__(self, assistants: Mapping[str, PeftModel], target: nn.Module | None = None):
        self._target = target
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
            RuntimeError: If one was replaced or removed, or an adapter is disabled, merged, deleted, rescaled, or not
                the only active one.
        """
        if target is not self._target:
            raise RuntimeError(
                "The target was replaced: nobody has looked at whether the assistants belong to it. Build the model "
                "anew: ULDForCausalLM(target=..., assistant=...)."
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
