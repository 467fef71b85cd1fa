"""Checkpoints that were written to their end: a process that is killed while it saves leaves half of one behind."""

import json
import os
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


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
            (folder / TRAINER_STATE_NAME).replace(folder / f"earlier_{TRAINER_STATE_NAME}")


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
