"""The baked model's folder: what `save_pretrained` writes, the target's tokenizer and licence, and a card."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import cached_file

from ..configuration_uld import SHARED_SETTINGS, ULDModelConfig
from ..model_card import training_table
from ..publish import TOKENIZER_FILES
from ..saved_files import CONFIG_FILE, LOCK_FILE, write_together


TEACHER_FOLDER = ".teacher"
LOG_FOLDER = "runs"  # TensorBoard's, by transformers
# What a checkpoint has in place of a model: nothing loads a student that has not forgotten yet.
STUDENT_FILE = "student.safetensors"
# What a licence may ask to be handed on with the weights.
_LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")


def is_working_file(file: Path) -> bool:
    """
    Whether a file of the output folder is one of an unfinished bake.

    Args:
        file (`Path`):
            The file or folder.

    Returns:
        `bool`: `True` for a bake's checkpoints, what the teacher said, and an unfinished save.
    """
    if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", file.name):
        # One that was cut off before anything was in it is a bake's as much as another trainer's.
        return (file / STUDENT_FILE).exists() or not any(file.iterdir())
    return file.name == TEACHER_FOLDER or file.name.startswith(".saving")


def check_output_folder(folder: Path, goes_on: bool = False) -> None:
    """
    Refuse a folder that holds anything but an unfinished bake.

    Args:
        folder (`Path`):
            Where the baked model is to be saved.
        goes_on (`bool`, *optional*, defaults to `False`):
            Whether a bake is resumed, whose logs may be there as well (TensorBoard's `runs`).

    Raises:
        ValueError: If it is not a folder, or something else is in it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder that is empty or not there.")
    names = {file.name for file in folder.iterdir() if not is_working_file(file)} if folder.exists() else set()
    if CONFIG_FILE not in names and (folder / LOCK_FILE).exists():  # a save that was cut off
        return
    is_bake = any((file / STUDENT_FILE).exists() for file in folder.iterdir()) if folder.exists() else False
    others = sorted(names - ({LOG_FOLDER} if goes_on and is_bake else set()))
    if others:
        raise ValueError(
            f"{folder} is not empty (it holds {others[0]}): files of two models would be mixed. Give another folder, "
            "or empty it."
        )


def find_companions(name_or_path: str, **hub_kwargs: Any) -> list[Path]:
    """
    What belongs beside a model's weights: the licence's own files, and the tokenizer's, which other programs read.

    Args:
        name_or_path (`str`):
            Hub id or folder.
        **hub_kwargs:
            `revision`, `token`, `cache_dir`, ... of its repository.

    Returns:
        `list[Path]`: Those that are there.
    """
    found = [
        cached_file(
            name_or_path,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub_kwargs,
        )
        for file in (*_LICENSE_FILES, *TOKENIZER_FILES)
        if file != "chat_template.jinja"  # the tokenizer writes its own, if it has one
    ]
    return [Path(file) for file in found if file is not None]


def _is_on_hub(name: str | None) -> bool:
    return bool(name) and not os.path.isabs(name)


def _name(name: str | None) -> str:
    return f"`{name}`" if _is_on_hub(name) else "a local model"


def baked_model_card(
    config: ULDModelConfig, student: str | None, license_data: dict[str, str], training: dict[str, Any]
) -> ModelCard:
    """
    The card of a baked model: what was done to the target, never texts.

    Args:
        config ([`ULDModelConfig`]):
            The teacher's configuration.
        student (`str`, *optional*):
            Name of the model that was trained, where that is not a copy of the target; may be empty.
        license_data (`dict[str, str]`):
            The student's licence, see [`uld_hf.model_card.find_license`].
        training (`dict[str, Any]`):
            Sizes, settings, metrics and versions.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card, with the hub's metadata.
    """
    target = config.target_name_or_path
    base = target if student is None else student
    on_hub = _is_on_hub(base)
    data = ModelCardData(
        **license_data,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "uld", "distillation", "arxiv:2406.08607"],
        base_model=base if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
    )
    assistants = "\n".join(
        f"| `{name}` | {entry['num_layers']} | {entry['alpha']} |" for name, entry in config.assistants.items()
    )
    settings = ", ".join(f"`{name}={vars(config)[name]!r}`" for name in SHARED_SETTINGS)
    rows = ", ".join(f"{number:,} {name}" for name, number in training["rows"].items())
    return ModelCard(f"""---
{data.to_yaml()}
---

# A model that was made to forget

The target, {_name(target)}, was unlearned with ULD ("Unlearning from Logit Difference",
arXiv 2406.08607), and its output distribution was distilled into these weights. They have the architecture, tokenizer
and type of {"the target" if student is None else f"another model, {_name(student)}, which they began as"},
and need nothing but transformers. Its licence applies{"" if license_data else ", which is not known"}.

The teacher was the target minus alpha times the logits of its assistants, which know what was to be forgotten:

| assistant | layers | alpha |
|---|---|---|
{assistants}

Settings of the subtraction: {settings}. Rows: {rows}.

## Limits

- What was forgotten was distilled away on the rows that were given, not proven to be gone. Training on a part of it,
  many draws or other words may bring some of it back: measure before you promise anything.
- The distillation's metrics say how near this model is to its teacher, not how well the teacher forgot.

## Distillation

{training_table(training)}
""")


def save_baked_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: ModelCard,
    companions: list[Path],
) -> list[str]:
    """
    Write the baked model: nothing loads from the folder until all of it is there. Checkpoints are removed then.

    Args:
        folder (`Path`):
            Folder to write to; made if absent.
        model ([`~transformers.PreTrainedModel`]):
            The plain model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The target's tokenizer.
        card ([`~huggingface_hub.ModelCard`]):
            Its card.
        companions (`list[Path]`):
            Files beside the target, see [`find_companions`]; what the tokenizer writes itself is not replaced.

    Returns:
        `list[str]`: Names of the files that were written.

    Raises:
        OSError: If the files cannot be written.
    """

    written: list[str] = []

    def write(staging: Path) -> None:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for file in companions:
            if not (staging / file.name).exists():
                shutil.copy(file, staging / file.name)
        card.save(staging / "README.md")
        written.extend(file.name for file in staging.iterdir())

    write_together(folder, write)
    (folder / LOCK_FILE).unlink(missing_ok=True)
    # Students that had not yet forgotten have no place in a folder that is handed on.
    for file in folder.iterdir():
        if is_working_file(file):
            shutil.rmtree(file, ignore_errors=True)
    return written
