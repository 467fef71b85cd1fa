"""How many tokens a model can be given."""

from transformers import PreTrainedConfig


def context_length(config: PreTrainedConfig) -> int | None:
    """
    Most tokens that a model can be given.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            The model's configuration.

    Returns:
        `int` or `None`: `None` if there is no limit: models with ALiBi (BLOOM) have no positions to run out of.
    """
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
