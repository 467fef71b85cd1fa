"""The files of a saved unlearned model: written all or none, and read only as they were written.

config.json holds the size and hash of each assistant's files, and a checksum of itself. A save that was cut off, two
saves at once, a full disk or a damaged download then give an error, never an assistant that nobody trained.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import PreTrainedConfig


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
CHECKSUM = "checksum"
CONFIG_FILE = "config.json"
LOCK_FILE = ".saving.lock"
_LOCK_TIMEOUT = 600.0  # seconds; a save is small, a network file system may be slow
_STAGING = ".saving-"


class DamagedFileError(ValueError):
    """A file is not the one that was saved."""


def compute_checksum(content: dict[str, Any]) -> str:
    """
    Checksum of what a config.json says.

    Args:
        content (`dict[str, Any]`):
            Its content. The checksum itself and what transformers notes while loading (`_commit_hash`) do not count.

    Returns:
        `str`: SHA-256.
    """
    counted = {name: value for name, value in content.items() if name != CHECKSUM and not name.startswith("_")}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def read_json_object(file: Path) -> dict[str, Any] | None:
    """
    What a JSON file says.

    Args:
        file (`Path`):
            The file.

    Returns:
        `dict[str, Any]` or `None`: `None` if it is damaged: no text, no JSON, nested without end, or no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def check_checksum(content: dict[str, Any]) -> None:
    """
    Refuse a config.json that is not as it was saved.

    Args:
        content (`dict[str, Any]`):
            Its content.

    Raises:
        DamagedFileError: If the checksum is missing or another.
    """
    if content.get(CHECKSUM) != compute_checksum(content):
        raise DamagedFileError(
            "config.json is damaged or was edited: its checksum is another. Download or save it again. To change a "
            "setting, give it to from_pretrained (alpha=...), then call save_pretrained."
        )


def describe_file(file: Path) -> dict[str, Any]:
    """
    Size and hash of a file, as config.json holds them.

    Args:
        file (`Path`):
            The file.

    Returns:
        `dict[str, Any]`: `"size"` in bytes and `"sha256"`.
    """
    content = file.read_bytes()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_as_saved(file: Path, expected: Any) -> bytes:
    """
    Read a file if it is the one that was saved.

    Args:
        file (`Path`):
            The file.
        expected (`dict[str, Any]`):
            What [`describe_file`] said of it.

    Returns:
        `bytes`: Its content.

    Raises:
        DamagedFileError: If its size or its hash is another.
    """
    advice = "Download it again, or save the model again (another process may have written it just now)."
    if not isinstance(expected, dict) or set(expected) != {"size", "sha256"}:
        raise DamagedFileError(f"config.json does not say what {file} must be. {advice}")
    with file.open("rb") as stream:
        # Nothing of a wrong size is read: it may be larger than the memory.
        size = os.fstat(stream.fileno()).st_size
        if size != expected["size"]:
            raise DamagedFileError(f"{file} is damaged: it has {size} bytes instead of {expected['size']}. {advice}")
        content = stream.read()
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise DamagedFileError(f"{file} is damaged: it is not the file that was saved with config.json. {advice}")
    return content


def find_stale_files(old: dict[str, Any] | None, files: Collection[str]) -> list[str]:
    """
    Files of assistants that an earlier save wrote and a new one does not.

    Args:
        old (`dict[str, Any]`, *optional*):
            What the earlier config.json says, if anything.
        files (`Collection[str]`):
            Paths of the new save's assistants' files, in its folder.

    Returns:
        `list[str]`: Their paths: `<assistant>/adapter_config.json` and `<assistant>/adapter_model.safetensors`, and no
        other that the earlier one may name.
    """
    named = (old or {}).get("files")
    one_of_ours = re.compile(f"[A-Za-z0-9_-]+/({'|'.join(map(re.escape, ADAPTER_FILES))})")
    if not isinstance(named, dict):
        return []
    return sorted(file for file in named if file not in files and one_of_ours.fullmatch(file))


def delete_stale_files(folder: Path, files: Collection[str]) -> None:
    """
    Delete the files of assistants that the save in a folder has and the next one will not: copies of what was revoked.

    Args:
        folder (`Path`):
            The folder.
        files (`Collection[str]`):
            Paths of the next save's assistants' files.

    Raises:
        OSError: If one cannot be deleted.
    """
    config_file = folder / CONFIG_FILE
    if not config_file.exists():
        return
    for file in find_stale_files(read_json_object(config_file), files):
        if (folder / file).parent.is_symlink():  # it leads out of the folder
            continue
        (folder / file).unlink(missing_ok=True)
        with suppress(OSError):  # there is something else in it, or it is gone
            (folder / file).parent.rmdir()


def sign_config(folder: Path) -> None:
    """
    Put the checksum into the config.json of a folder.

    Args:
        folder (`Path`):
            The folder.
    """
    file = folder / CONFIG_FILE
    content = json.loads(file.read_text(encoding="utf-8"))
    # Of what transformers makes of the file: infinite numbers, for example, are spelt in a way of its own.
    content[CHECKSUM] = compute_checksum(PreTrainedConfig.get_config_dict(folder)[0])
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_together(folder: Path, write: Callable[[Path], None]) -> None:
    """
    Write files to a folder: all of them, or after an error none.

    Args:
        folder (`Path`):
            Where they belong; made if absent. Other files there are left alone.
        write (`Callable[[Path], None]`):
            Writes them to the empty folder that it is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_FILE, timeout=_LOCK_TIMEOUT):
        for left_behind in folder.glob(f"{_STAGING}*"):  # by a process that died: nobody else has the lock
            shutil.rmtree(left_behind, ignore_errors=True)
        # Beside their place, so that moving them is a rename.
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
        try:
            write(staging)
            files = [file.relative_to(staging) for file in staging.rglob("*") if file.is_file()]
            # config.json comes last: until then it does not fit the new files, and nothing is loaded.
            for file in sorted(files, key=lambda file: file == Path(CONFIG_FILE)):
                (folder / file).parent.mkdir(exist_ok=True)
                os.replace(staging / file, folder / file)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def wait_for_save(folder: Path) -> None:
    """
    Wait until no process is saving to a folder.

    Args:
        folder (`Path`):
            The folder.
    """
    if (folder / LOCK_FILE).exists() and os.access(folder / LOCK_FILE, os.W_OK):
        with FileLock(folder / LOCK_FILE, timeout=_LOCK_TIMEOUT):
            pass
