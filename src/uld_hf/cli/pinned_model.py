"""A model manager for transformers' server that loads one model, whatever a client names."""

from fastapi import HTTPException
from transformers.cli.serving.model_manager import ModelManager


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
