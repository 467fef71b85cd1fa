"""What configurations say of an assistant: the name it has by default, and the target's first K layers.

Importing this needs transformers' configurations and no model: `import uld_hf` goes no further.
"""

import copy

from transformers import PreTrainedConfig


ADAPTER_NAME = "assistant"


def check_num_layers(num_layers: int, config: PreTrainedConfig) -> None:
    """
    Refuse a number of assistant layers that the target does not have, or cannot be cut to.

    Args:
        num_layers (`int`):
            Number of decoder layers K of the assistant.
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the target.

    Raises:
        ValueError: If `num_layers` is not between 1 and the target's number of layers, or lower than that where the
            target has embeddings for every layer.
    """
    text_config = config.get_text_config(decoder=True)
    available = text_config.num_hidden_layers
    if not 1 <= num_layers <= available:
        small = available < 16
        suggested = max(1, available // (2 if small else 4))
        raise ValueError(
            f"The assistant cannot have {num_layers} layers: the target has {available}. Use 1 to {available}, "
            f"e.g. {suggested} ({'half, as the model is small' if small else 'a quarter, as in the paper'})."
        )
    # Gemma 3n and the small ones of Gemma 4: one table holds what all layers add to every token.
    if num_layers < available and vars(text_config).get("hidden_size_per_layer_input"):
        raise ValueError(
            f"The assistant cannot have {num_layers} layers: embeddings of all {available} of the target's are in one "
            f"table, which cannot be cut. Use {available}, with which the assistant costs as much time as the target, "
            "or another target."
        )


def select_layers(config: PreTrainedConfig, indices: list[int]) -> None:
    """
    Make a text config describe the layers with the given indices, in place: their number, every per-layer list
    and how many share keys and values.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Text configuration to change.
        indices (`list[int]`):
            Indices of the layers, e.g. `[0, 1]` for the first two. An index may come twice.
    """
    available = config.num_hidden_layers
    per_layer = {
        name: [value[index] for index in indices]
        for name, value in vars(config).items()
        # Token ids are the one kind of list in a config that is not per-layer and may have the same length.
        if isinstance(value, list | tuple) and len(value) == available and "token" not in name
    }
    for name, value in per_layer.items():
        setattr(config, name, value)
    if vars(config).get("num_kv_shared_layers"):  # of the last layers
        first = available - config.num_kv_shared_layers
        config.num_kv_shared_layers = sum(index >= first for index in indices)
    config.num_hidden_layers = len(indices)


def truncate_config(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """
    A copy of a model's configuration for its first `num_layers` decoder layers.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the target.
        num_layers (`int`):
            Number of decoder layers K to keep.

    Returns:
        [`~transformers.PreTrainedConfig`]: The truncated configuration.

    Raises:
        ValueError: If the target does not have that many layers.
    """
    check_num_layers(num_layers, config)
    truncated = copy.deepcopy(config)
    select_layers(truncated.get_text_config(decoder=True), list(range(num_layers)))
    return truncated
