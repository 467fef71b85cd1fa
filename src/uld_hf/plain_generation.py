"""Draws from a model's own distribution, whatever its generation config would make of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel


@contextmanager
def plain_generation(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """
    Let `generate()` draw without the penalties, cuts and forbidden tokens that many checkpoints come with.

    What `generate()` is not given it takes from the model's generation config, so that is another one for a while.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
    """
    owners = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    configs = [owner.generation_config for owner in owners]
    ends = None if configs[0] is None else configs[0].eos_token_id
    plain = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, eos_token_id=ends)
    try:
        for owner in owners:
            owner.generation_config = plain
        yield
    finally:
        for owner, config in zip(owners, configs, strict=True):
            owner.generation_config = config
