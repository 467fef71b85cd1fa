"""The card of a saved unlearned model, made from its configuration: sizes and settings, never texts."""

import os
import re
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import cached_file

from .configuration_uld import SHARED_SETTINGS, ULDModelConfig


_PUBLICITY = {
    None: """An assistant is a concentrated copy of what was to be forgotten: whoever loads it by itself can make it
recite. Keep this folder as confidential as the forget set.""",
    True: """This repository was pushed as a private one. An assistant is a concentrated copy of what was to be
forgotten: whoever loads it by itself can make it recite. Give access to nobody who may not read the forget set.""",
    False: """**This repository was pushed as a public one.** An assistant is a concentrated copy of what was to be
forgotten: whoever loads it by itself can make it recite. Publishing it publishes the forget set.""",
}


def find_license(name_or_path: str, **hub_kwargs: Any) -> dict[str, str]:
    """
    The licence that a model's card names.

    Args:
        name_or_path (`str`):
            Hub id or folder.
        **hub_kwargs:
            `revision`, `token`, `cache_dir`, ... of its repository.

    Returns:
        `dict[str, str]`: `"license"` and, for one of its own, `"license_name"` and `"license_link"`; empty if unknown.
    """
    file = cached_file(
        name_or_path,
        "README.md",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub_kwargs,
    )
    if file is None:
        return {}
    try:
        metadata = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):  # somebody else's card need not be valid
        return {}
    found = {
        name: metadata[name]
        for name in ("license", "license_name", "license_link")
        if isinstance(metadata.get(name), str)
    }
    if "license" not in found:
        return {}
    # The Hub refuses a card whose licence is no identifier: one that somebody wrote out is a licence of its own.
    if not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", found["license"]):
        found = {**found, "license": "other", "license_name": found.get("license_name", found["license"])}
    if found["license"] == "other":
        name = re.sub(r"[^\w.\-]+", "-", found.get("license_name", "unknown")).strip("-")
        found["license_name"] = name or "unknown"
    return found


def _assistant_row(name: str, assistant: dict[str, Any], training: dict[str, Any]) -> str:
    sizes = [f"{training[name]:,}" if name in training else "?" for name in ("forget_rows", "retain_rows")]
    return f"| `{name}/` | {assistant['num_layers']} | {assistant['alpha']} | {sizes[0]} | {sizes[1]} |"


def training_table(training: dict[str, Any]) -> str:
    """
    Settings, metrics and versions of a training as a table.

    Args:
        training (`dict[str, Any]`):
            How it went: values by name under `"settings"`, `"metrics"`, `"evaluation"` and `"versions"`.

    Returns:
        `str`: Markdown.
    """
    lines = [
        f"| {setting} | {value:.4g} |" if isinstance(value, float) else f"| {setting} | {value} |"
        for part in ("settings", "metrics", "evaluation", "versions")
        for setting, value in training.get(part, {}).items()
    ]
    return "\n".join(["| | |", "|---|---|", *lines])


def model_card(config: ULDModelConfig, repo_id: str | None = None, private: bool | None = None) -> ModelCard:
    """
    The card of a saved unlearned model.

    Args:
        config ([`ULDModelConfig`]):
            The configuration being saved.
        repo_id (`str`, *optional*):
            Repository that the card is for.
        private (`bool`, *optional*):
            Whether that is a private one.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card, with the hub's metadata.
    """
    target = config.target_name_or_path
    on_hub = target is not None and not os.path.isabs(target)
    licenses = [training["license"] for training in config.training.values() if training.get("license")]
    data = ModelCardData(
        **(licenses[0] if licenses else {}),
        library_name="uld_hf",
        pipeline_tag="text-generation",
        tags=["unlearning", "uld", "arxiv:2406.08607"],
        base_model=target if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
    )
    revision = f" at revision `{config.target_revision}`" if on_hub and config.target_revision else ""
    rows = "\n".join(
        _assistant_row(name, assistant, config.training.get(name, {})) for name, assistant in config.assistants.items()
    )
    trained = "\n".join(
        f"## Training of `{name}`\n\n{training_table(training)}\n"
        for name, training in config.training.items()
        if training
    )
    settings = ", ".join(f"`{name}={vars(config)[name]!r}`" for name in SHARED_SETTINGS)
    load = f'"{repo_id or "this folder"}"' + ("" if on_hub else ", target=target")
    return ModelCard(f"""---
{data.to_yaml()}
---

# Unlearned model (ULD)

The target `{target if on_hub else "(a local model)"}`{revision} with assistants that know what it must forget. Output
is the target's logits minus alpha times each assistant's ("Unlearning from Logit Difference", arXiv 2406.08607); an
assistant is LoRA on the target's first layers.

| assistant | layers | alpha | rows to forget | rows to retain |
|---|---|---|---|---|
{rows}

Settings of the subtraction: {settings}. The target's licence applies{"" if licenses else ", which is not known"}.

## Who may have this

{_PUBLICITY[private]}

## Limits

- The target's own weights are unchanged and still hold what was forgotten: this suits a model that is served.
- Metrics of training say whether the assistant learned, not whether the model forgot. Before relying on it, ask
  questions that were not trained on, sample many times, and rephrase.
- The assistant fits this target only; another, a finetuned or a float16 one is refused.

## How to load

```python
from uld_hf import ULDForCausalLM

model = ULDForCausalLM.from_pretrained({load})
```

Without uld_hf it does not load, and must not: the assistant put on the whole target would recite.

{trained}""")
