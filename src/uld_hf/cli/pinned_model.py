"""What stands for parts of transformers' server: one model, whatever a client names, and text as its only output."""

import copy
import time
from typing import Any, NoReturn

from fastapi import HTTPException
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import CBGenerateManager


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
        return [{"id": self.force_model, "object": "model", "created": int(time.time()), "owned_by": ""}]

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


class PinnedBatches(CBGenerateManager):
    """Transformers' continuous batching, in which the first request's settings would be those of all that follow."""

    def init_cb(self, model: PreTrainedModel, gen_config: GenerationConfig) -> None:
        """
        Begin with the model's own settings, whatever temperature a client asks for.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                The model.
            gen_config ([`~transformers.GenerationConfig`]):
                A request's: its end tokens and length are given with it, all else is of no effect.
        """
        super().init_cb(model, copy.deepcopy(model.generation_config))


class NoDecisions:
    """
    What stands for `/v1/systemone`, which gives probabilities of answers that the client chooses.

    Args:
        **kwargs:
            Of no effect.
    """

    def __init__(self, **kwargs: Any):
        pass

    async def handle_request(self, body: dict[str, Any], request_id: str) -> NoReturn:
        """
        Refuse: probabilities tell what was forgotten apart from what was never known.

        Args:
            body (`dict`):
                Of no effect.
            request_id (`str`):
                Of no effect.

        Raises:
            HTTPException: Always.
        """
        raise HTTPException(
            status_code=403, detail="This server gives text and no probabilities; use /v1/chat/completions."
        )
