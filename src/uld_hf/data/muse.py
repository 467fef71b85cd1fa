"""MUSE (arXiv 2407.06460): news and books to forget, questions about them, and passages for membership tests."""

import os
from pathlib import Path
from typing import Literal

from datasets import Dataset

from .local import load_rows


HUB_IDS = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
# Columns of each part of the benchmark.
PARTS = {"verbmem": ("prompt", "gt"), "knowmem": ("question", "answer"), "privleak": ("text",), "raw": ("text",)}


def load_muse(
    corpus: Literal["news", "books"],
    part: Literal["verbmem", "knowmem", "privleak", "raw"],
    split: str,
    path: str | os.PathLike | None = None,
) -> Dataset:
    """
    Load one split of MUSE.

    Args:
        corpus (`"news"` or `"books"`):
            Which corpus.
        part (`str`):
            `"verbmem"` (passages to continue), `"knowmem"` (questions), `"privleak"` (passages for membership tests)
            or `"raw"` (the documents).
        split (`str`):
            As on the Hub: `"forget"` for `verbmem`; `"forget_qa"`, `"retain_qa"` and their `"_icl"` for `knowmem`;
            `"forget"`, `"retain"`, `"holdout"` for `privleak`.
        path (`str` or `os.PathLike`, *optional*):
            Folder with `<part>/<split>.json` (or `.jsonl`) in place of the Hub.

    Returns:
        [`~datasets.Dataset`]: The rows, with the fields as published.

    Raises:
        FileNotFoundError: If the folder has no such file.
        ValueError: If corpus or part is unknown, or a field is missing.
    """
    if corpus not in HUB_IDS or part not in PARTS:
        raise ValueError(f"MUSE has no {corpus!r}, {part!r}: use one of {list(HUB_IDS)} and one of {list(PARTS)}.")
    return load_rows(HUB_IDS[corpus], part, split, PARTS[part], _find(path, Path(part) / split))


def _find(folder: str | os.PathLike | None, name: Path) -> Path | None:
    if folder is None:
        return None
    lines = Path(folder) / name.with_suffix(".jsonl")
    return lines if lines.exists() else Path(folder) / name.with_suffix(".json")
