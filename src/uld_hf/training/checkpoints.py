"""Checkpoints that were written to their end, by the training that goes on from them.

A process that is killed while it saves leaves half of one behind. And of other rows than those that are to be forgotten
a checkpoint makes an assistant that looks like any other.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute
from datasets import Dataset
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


# File of a checkpoint that says what was trained on what.
TRAINED_ON = "trained_on.json"


def fingerprint_training(
    model: nn.Module, rows: Mapping[str, Dataset], target: Mapping[str, str | None]
) -> dict[str, str]:
    """
    What is trained on what, to be kept with checkpoints.

    Args:
        model (`nn.Module`):
            The model, before anything wraps it.
        rows (`Mapping[str, Dataset]`):
            Tokenized rows of each set, by its name.
        target (`Mapping[str, str]`):
            What [`~uld_hf.hub.fingerprint_target`] returns of the model that the training began with.

    Returns:
        `dict[str, str]`: A hash of the names and shapes of the trained parameters and of LoRA's scales, one of the
        target, and one of each set's tokens.
    """
    parameters = [(name, list(each.shape)) for name, each in model.named_parameters() if each.requires_grad]
    scales = [(name, each.scaling) for name, each in model.named_modules() if isinstance(each, LoraLayer)]
    # Layers above those that are trained are not always there to be looked at.
    parts = {name: target[name] for name in ("config", "layers", "rest")}
    described = {"trained parameters": _hash_json([parameters, scales]), "target": _hash_json(parts)}
    return described | {f"{name} rows": _hash_rows(dataset) for name, dataset in rows.items()}


def _hash_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _hash_rows(dataset: Dataset) -> str:
    """Of what the rows hold, and not of the batches in which they are stored."""
    found = hashlib.sha256()
    for batch in dataset.with_format("arrow").iter(1000):
        for name in sorted(set(batch.column_names) & {"input_ids", "labels"}):
            column = batch[name].combine_chunks()
            found.update(name.encode())
            found.update(pyarrow.compute.list_value_length(column).to_numpy().astype("<i8").tobytes())
            found.update(column.flatten().to_numpy().astype("<i8").tobytes())
    return found.hexdigest()


def write_training(checkpoint: str | os.PathLike, trained_on: Mapping[str, str]) -> None:
    """
    Keep with a checkpoint what it was trained on.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Its folder.
        trained_on (`Mapping[str, str]`):
            What [`fingerprint_training`] returns.
    """
    (Path(checkpoint) / TRAINED_ON).write_text(json.dumps(dict(trained_on)), encoding="utf-8")


def check_training(checkpoint: str | os.PathLike, trained_on: Mapping[str, str]) -> None:
    """
    Refuse to go on from a checkpoint of another training.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Its folder.
        trained_on (`Mapping[str, str]`):
            What is to be trained on what.

    Raises:
        ValueError: If that is not what the checkpoint was trained on, nothing says what that was, or it holds no more
            than the model.
    """
    file = Path(checkpoint) / TRAINED_ON
    if not any(Path(checkpoint).glob("rng_state*.pth")):
        raise ValueError(
            f"{checkpoint} is a model without what a training goes on from, as save_only_model=True writes it. Leave "
            "out resume_from_checkpoint to begin anew, and save_only_model to have checkpoints to go on from."
        )
    if not file.exists():
        raise ValueError(
            f"{checkpoint} does not say what it was trained on: {TRAINED_ON} is not there. It was copied without that "
            "file, or an earlier version wrote it: copy it too, or leave out resume_from_checkpoint to begin anew."
        )
    found = json.loads(file.read_text(encoding="utf-8"))
    if "target" not in found:
        raise ValueError(
            f"{checkpoint} does not say which target it was trained on: an earlier version wrote it. Leave out "
            "resume_from_checkpoint to begin anew."
        )
    differ = {name for name in found.keys() | trained_on.keys() if found.get(name) != trained_on.get(name)}
    if "trained parameters" in differ:  # of more or fewer layers, the same target is another to look at
        differ.discard("target")
    if differ:
        raise ValueError(
            f"{checkpoint} is of a training with other {' and other '.join(sorted(differ))}: what came of it would "
            "have learned something else than what is asked for now. Give the data and settings that it began with, "
            "another output_dir, or leave out resume_from_checkpoint to begin anew."
        )


def is_whole(checkpoint: str | os.PathLike) -> bool:
    """
    Whether a checkpoint was written to its end.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Its folder.

    Returns:
        `bool`: `False` if the trainer's state, the last file to be written, is absent or cut off.
    """
    try:
        state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and "global_step" in state


def _by_step(output_dir: str | os.PathLike) -> dict[int, Path]:
    return {
        int(folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")): folder
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdigit()
    }


def find_last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The last checkpoint that was written to its end.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder of the training.

    Returns:
        `str` or `None`: Its folder; `None` if there is none.
    """
    steps = _by_step(output_dir)
    return next((str(steps[step]) for step in sorted(steps, reverse=True) if is_whole(steps[step])), None)


def set_aside(output_dir: str | os.PathLike, step: int) -> None:
    """
    Take from an earlier training's checkpoints what makes them whole, where this one has not come so far.

    A training that starts over would otherwise be resumed from them: from later ones, and from what it had not yet
    replaced of one when it was killed. Their states stay, under another name.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder of the training.
        step (`int`):
            The step whose checkpoint is about to be written.
    """
    for other, folder in _by_step(output_dir).items():
        if other >= step and (folder / TRAINER_STATE_NAME).exists():
            seen = folder.stat()
            (folder / TRAINER_STATE_NAME).replace(folder / f"earlier_{TRAINER_STATE_NAME}")
            # save_total_limit deletes the folders that were changed longest ago, and this one is not to look new.
            os.utime(folder, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def resolve_checkpoint(resume_from_checkpoint: str | bool | None, output_dir: str | os.PathLike) -> str | None:
    """
    What to resume from.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*):
            A checkpoint's folder; or `True` for the last one that is whole.
        output_dir (`str` or `os.PathLike`):
            Folder of the training.

    Returns:
        `str` or `None`: The folder of a whole checkpoint; `None` to begin anew, where nothing was asked for.

    Raises:
        ValueError: If there is no whole checkpoint, or the one named is not whole.
    """
    # The command line gives text.
    if resume_from_checkpoint in (None, False, "False", "false"):
        return None
    if resume_from_checkpoint in (True, "True", "true"):
        found = find_last_checkpoint(output_dir)
        if found is None:
            raise ValueError(
                f"There is no whole checkpoint in {output_dir} to resume from: leave out resume_from_checkpoint."
            )
        return found
    if not is_whole(resume_from_checkpoint):
        raise ValueError(
            f"{resume_from_checkpoint} is not a whole checkpoint: its {TRAINER_STATE_NAME} is absent or cut off. Use "
            "resume_from_checkpoint=True for the last one that is whole."
        )
    return os.fspath(resume_from_checkpoint)
