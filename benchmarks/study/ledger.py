"""Results on disk, one JSON file for each unit of work; what is there is not done again, and time is limited."""

import glob
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class OutOfTimeError(Exception):
    """The time of this run is used up; the next one goes on from here."""


class Deadline:
    """
    The time that a run may take.

    Args:
        minutes (`float`):
            From now on.
    """

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes

    def is_over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() > self._end

    def minutes_left(self) -> float:
        """What is left of it."""
        return max(0.0, (self._end - time.monotonic()) / 60)


class Ledger:
    """
    Folder of results.

    Args:
        folder (`Path`):
            The folder; made if it is not there.
        deadline ([`Deadline`]):
            After it no unit is begun.
    """

    def __init__(self, folder: Path, deadline: Deadline):
        self.folder, self.deadline = folder, deadline
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether the result of a unit is there."""
        return (self.folder / f"{name}.json").exists()

    def read(self, name: str) -> dict[str, Any]:
        """The result of a unit that is there."""
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def unit(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """
        The result of a unit, computed unless it is there.

        Args:
            name (`str`):
                Name of the unit and of its file.
            compute (`Callable`):
                Makes the result; may raise [`OutOfTimeError`].

        Returns:
            `dict[str, Any]`: The result.

        Raises:
            OutOfTimeError: If it is not there and the time is used up.
        """
        path = self.folder / f"{name}.json"
        if self.has(name):
            return self.read(name)
        if self.deadline.is_over():
            raise OutOfTimeError(name)
        start = time.perf_counter()
        result = compute()
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        # As it will be read the next time: keys of dictionaries are texts then.
        return self.read(name)

    def remove(self, prefix: str) -> None:
        """Remove the results of units whose names begin so."""
        for path in self.folder.glob(f"{glob.escape(prefix)}*.json"):
            path.unlink()

    def results(self) -> dict[str, dict[str, Any]]:
        """All results so far, by name."""
        return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*.json"))}
