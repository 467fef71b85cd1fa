"""The card of a model that [`UnlearnTrainer`] changed: method, settings and sizes, never texts."""

import os

from huggingface_hub import ModelCard, ModelCardData

from .unlearn_config import UnlearnConfig


# Name and paper of each method.
METHODS = {
    "ga": ("gradient ascent", "2401.06121"),
    "npo": ("negative preference optimization (NPO)", "2404.05868"),
    "simnpo": ("SimNPO", "2410.07163"),
    "dpo": ("direct preference optimization of refusals (DPO)", "2401.06121"),
    "undial": ("UNDIAL", "2402.10052"),
    "rmu": ("representation misdirection (RMU)", "2403.03218"),
}


def unlearn_card(
    config: UnlearnConfig, num_rows: dict[str, int], target: str | None, license: dict[str, str], steps: int
) -> ModelCard:
    """
    The card of a model whose weights were changed.

    Args:
        config ([`UnlearnConfig`]):
            How it was trained.
        num_rows (`dict[str, int]`):
            `"forget_rows"` and, where there were any, `"retain_rows"`.
        target (`str`, *optional*):
            Hub id or folder of the model that it was.
        license (`dict[str, str]`):
            The target's licence, see [`uld_hf.model_card.find_license`].
        steps (`int`):
            Optimizer steps so far.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card, with the hub's metadata.
    """
    name, paper = METHODS[config.loss_type]
    on_hub = target is not None and not os.path.isdir(target)
    data = ModelCardData(
        **license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", config.loss_type, f"arxiv:{paper}"],
        base_model=target if on_hub else None,
    )
    names = ("retain_loss_type", "retain_weight", "beta", "margin", "learning_rate", "num_train_epochs", "seed")
    rows = {"steps": steps, **num_rows, **{name: vars(config)[name] for name in names}}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return ModelCard(f"""---
{data.to_yaml()}
---

# Unlearned model ({config.loss_type})

`{target if on_hub else "A local model"}` after unlearning by {name}, [arXiv {paper}](https://arxiv.org/abs/{paper}), as
implemented in uld_hf.

| | |
|---|---|
{table}

Such methods change what a model says more than what it knows: a little finetuning, quantization or a rephrased
question can bring back what was forgotten. Measure before you rely on it.
""")
