"""RWKU (arXiv 2406.10890): real people to forget, with questions in three degrees of disguise, and their neighbours."""

import os
from pathlib import Path

from datasets import Dataset

from .local import load_rows


HUB_ID = "jinzhuoran/RWKU"
# Configuration on the Hub, and its split there.
PARTS = {
    "forget_level1": "test",  # fill in the blank
    "forget_level2": "test",  # question and answer
    "forget_level3": "test",  # adversarial prompts
    "neighbor_level1": "test",
    "neighbor_level2": "test",
}


def load_rwku(part: str, subject: str | None = None, path: str | os.PathLike | None = None) -> Dataset:
    """
    Load one part of RWKU as questions and answers.

    Args:
        part (`str`):
            `"forget_level1"` (fill in the blank), `"forget_level2"` (questions), `"forget_level3"` (adversarial
            prompts), `"neighbor_level1"` or `"neighbor_level2"` (about people close by, who must be kept).
        subject (`str`, *optional*):
            Rows of this person only.
        path (`str` or `os.PathLike`, *optional*):
            Folder with `<part>.json` in place of the Hub.

    Returns:
        [`~datasets.Dataset`]: Rows with `question`, `answer` and `subject`.

    Raises:
        FileNotFoundError: If the folder has no such file.
        ValueError: If the part is unknown, a field is missing, or there are no rows of that person.
    """
    if part not in PARTS:
        raise ValueError(f"RWKU has no part {part!r}: use one of {list(PARTS)}.")
    file = None if path is None else Path(path) / f"{part}.json"
    rows = load_rows(HUB_ID, part, PARTS[part], ("query", "answer", "subject"), file)
    if subject is not None:
        people = sorted(set(rows["subject"]))
        rows = rows.filter(lambda row: row["subject"] == subject)
        if len(rows) == 0:
            raise ValueError(f"RWKU's {part} has no rows about {subject!r}, only about {people[:10]}.")
    return rows.rename_column("query", "question").select_columns(["question", "answer", "subject"])
