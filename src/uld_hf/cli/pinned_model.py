"""A model manager for transformers' server: one model, whatever a client names, and no chats without a template."""

import time
from typing import Any, NoReturn

from fastapi import HTTPException
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cli.serving.model_manager import ModelManager


def refuse_chat(*args: Any, **kwargs: Any) -> NoReturn:
    """
    What stands for `apply_chat_template` where there is none.

    Args:
        *args:
            Of no effect.
        **kwargs:
            Of no effect.

    Raises:
        HTTPException: Always; without it the client would be told of an internal error.
    """
    raise HTTPException(
        status_code=400, detail="The model has no chat template to put messages in; use /v1/completions with a prompt."
    )


class PinnedModelManager(ModelManager):
    """Transformers' manager, which pins a model for some endpoints only: others load what a client names."""

    def process_model_name(self, model_id: str) -> str:
        """
        Name and revision of the model to load, which every endpoint asks for first.

        Args:
            model_id (`str`):
                What the client names.

        Returns:
            `str`: `"model@revision"`.

        Raises:
            HTTPException: If it is not the model that the server was started with.
        """
        name = super().process_model_name(model_id)
        if name != super().process_model_name(self.force_model):
            raise HTTPException(
                status_code=400, detail=f"This server answers as {self.force_model!r} and loads nothing else."
            )
        return name

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """
        What `/v1/models` lists: this model, and not what lies in the cache, which is not served.

        Args:
            cache_dir (`str`, *optional*):
                Of no effect.

        Returns:
            `list[dict[str, Any]]`: One entry in OpenAI's format.
        """
        name = self.force_model.removesuffix("@main")  # as the server was asked for it
        return [{"id": name, "object": "model", "created": int(time.time()), "owned_by": ""}]

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """
        Load the model, and have its tokenizer refuse chats if it has no template for them.

        Args:
            *args:
                Passed on.
            **kwargs:
                Passed on.

        Returns:
            `tuple`: The model and its tokenizer.
        """
        model, processor = super().load_model_and_processor(*args, **kwargs)
        if processor.chat_template is None:
            processor.apply_chat_template = refuse_chat
        return model, processor
