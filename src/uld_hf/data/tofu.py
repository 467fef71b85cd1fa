"""TOFU, "A Task of Fictitious Unlearning for LLMs" (arXiv 2401.06121): its splits, from the hub or a local folder."""

import os
from pathlib import Path

from datasets import Dataset, load_dataset


HUB_ID = "locuslab/TOFU"

TOFU_SPLITS: tuple[str, ...] = (
    "full",
    "forget01",
    "forget05",
    "forget10",
    "retain90",
    "retain95",
    "retain99",
    "forget01_perturbed",
    "forget05_perturbed",
    "forget10_perturbed",
    "retain_perturbed",
    "holdout01",
    "holdout05",
    "holdout10",
    "real_authors",
    "world_facts",
    "real_authors_perturbed",
    "world_facts_perturbed",
)


def expected_columns(split: str) -> tuple[str, ...]:
    """
    The columns that a TOFU split has at least.

    Args:
        split (`str`):
            One of [`TOFU_SPLITS`].

    Returns:
        `tuple[str, ...]`: Names of the columns, as published.
    """
    columns: tuple[str, ...] = ("question", "answer")
    if split.endswith("_perturbed"):
        columns += ("perturbed_answer",)
        # The questions about the real world have wrong answers, but no paraphrases.
        if split.startswith(("forget", "retain")):
            columns += ("paraphrased_question", "paraphrased_answer")
    return columns


def load_tofu(split: str, path: str | os.PathLike | None = None) -> Dataset:
    """
    Load one split of TOFU.

    Args:
        split (`str`):
            One of [`TOFU_SPLITS`], e.g. `"forget10"` or `"forget10_perturbed"`.
        path (`str` or `os.PathLike`, *optional*):
            Folder of JSONL files named after the splits, e.g. `forget10.jsonl`. If `None`, the split is loaded from
            `locuslab/TOFU` on the hub.

    Returns:
        [`~datasets.Dataset`]: The rows with the fields as published: `question` and `answer`; in the perturbed splits
        also `perturbed_answer` (a list) and, for the invented authors, `paraphrased_question` and
        `paraphrased_answer`.

    Raises:
        ValueError: If the split is unknown, or the rows loaded are not rows of that split's form.
        FileNotFoundError: If the folder has no file for the split.
    """
    if split not in TOFU_SPLITS:
        raise ValueError(f"TOFU has no split '{split}'. Use one of: {', '.join(TOFU_SPLITS)}.")
    if path is None:
        source = f"{HUB_ID} ({split})"
        dataset = load_dataset(HUB_ID, split, split="train")
    else:
        file = Path(path) / f"{split}.jsonl"
        if not file.is_file():
            there = ", ".join(sorted(other.name for other in Path(path).glob("*.jsonl"))) or "none"
            raise FileNotFoundError(f"{file} does not exist. JSONL files in that folder: {there}.")
        source = str(file)
        # The JSON reader fails without a reason on a file without rows.
        dataset = Dataset.from_json(str(file)) if file.read_text(encoding="utf-8").strip() else Dataset.from_dict({})
    _check_rows(dataset, split, source)
    return dataset


def _check_rows(dataset: Dataset, split: str, source: str) -> None:
    if len(dataset) == 0:
        raise ValueError(f"{source} has no rows. Download it again.")
    columns = expected_columns(split)
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(f"{source} has no column {missing}: it has {dataset.column_names}.")
    if "perturbed_answer" in columns:
        # A bare string would pass for a list, of letters, all the way to the metrics.
        for index, wrong in enumerate(dataset["perturbed_answer"]):
            if not (isinstance(wrong, list) and wrong and all(isinstance(text, str) for text in wrong)):
                raise ValueError(
                    f"{source}, rows[{index}]: `perturbed_answer` must be a list of strings, not {wrong!r}."
                )
