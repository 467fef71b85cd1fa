"""Datasets from the Hub, or from a local folder of JSON files with the same rows."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, load_dataset

from .formatting import read_json_lines


def load_from_hub(name: str) -> Dataset:
    """
    Load the training split of a dataset on the Hub.

    Args:
        name (`str`):
            Hub id, with an optional configuration after a colon: `"locuslab/TOFU:forget10_perturbed"`.

    Returns:
        [`~datasets.Dataset`]: The rows.

    Raises:
        FileNotFoundError: If it looks like a file, which then is not there.
        ValueError: If it is the folder of a model.
    """
    if os.path.isfile(os.path.join(name, "config.json")):
        raise ValueError(f"{name} is a model's folder, and not a dataset: give a JSONL file or a hub id (owner/name).")
    if name.endswith((".jsonl", ".json")) or name.startswith((".", os.sep)):
        raise FileNotFoundError(f"There is no file {name!r}. Give a JSONL file or a hub id (owner/name).")
    hub_id, _, config = name.partition(":")
    return load_dataset(hub_id, config or None, split="train")


def load_rows(hub_id: str, config: str, split: str, columns: Sequence[str], path: str | os.PathLike | None) -> Dataset:
    """
    Load one split of a dataset, and see that it has the columns it should have.

    Args:
        hub_id (`str`):
            Hub id of the dataset.
        config (`str`):
            Its configuration.
        split (`str`):
            Its split.
        columns (`Sequence[str]`):
            Columns that the rows must have.
        path (`str` or `os.PathLike`, *optional*):
            File of JSON lines, or with one JSON list, to read in place of the Hub.

    Returns:
        [`~datasets.Dataset`]: The rows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing.
    """
    if path is None:
        source, dataset = f"{hub_id} ({config}, {split})", load_dataset(hub_id, config, split=split)
    else:
        source, file = str(path), Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist.")
        text = file.read_text(encoding="utf-8").strip()
        dataset = Dataset.from_list(json.loads(text) if text.startswith("[") else read_json_lines(str(file)))
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(f"{source} has no column {missing}: it has {dataset.column_names}.")
    return dataset
