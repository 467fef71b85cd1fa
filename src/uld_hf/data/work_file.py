"""Finished batches of a long run, kept so that one that was cut off goes on where it stopped."""

import json
import os
from pathlib import Path
from typing import Any


class WorkFile:
    """
    A JSONL file: on its first line what the batches are made from, then a batch on each line.

    Args:
        path (`str` or `os.PathLike`, *optional*):
            The file; made if it is not there. Without one nothing is kept.
        settings (`dict[str, Any]`):
            All that the batches depend on.

    Attributes:
        batches (`list`):
            The batches that are finished, of an earlier run and of this one.

    Raises:
        ValueError: If the file is of other settings.
    """

    def __init__(self, path: str | os.PathLike | None, settings: dict[str, Any]):
        self.path = None if path is None else Path(path)
        self.batches: list[Any] = []
        if self.path is None:
            return
        head = json.dumps({"made from": settings}, sort_keys=True)
        lines = [head]
        if self.path.exists():
            # After the last line break is nothing, or what was being written when the run was cut off: half a letter.
            lines = [line.decode() for line in self.path.read_bytes().split(b"\n")[:-1]]
            if lines[:1] != [head]:
                raise ValueError(
                    f"{self.path} was made from other data, by another model, or with other settings. Delete it, or "
                    "give another folder."
                )
            self.batches = [json.loads(line) for line in lines[1:]]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        unfinished.replace(self.path)

    def append(self, batch: Any) -> None:
        """
        Keep a batch.

        Args:
            batch (`Any`):
                What was made, as JSON takes it.
        """
        self.batches.append(batch)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(batch, ensure_ascii=False) + "\n")
