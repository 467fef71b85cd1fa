"""What commands say of rows that they can't read: files of another format, columns of other names, or of several."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data.formatting import TEMPLATE_COLUMNS, conversion_command


# How datasets reads the tables that are mistaken for JSONL most often: by the file's suffix.
_READERS = {".csv": "from_csv", ".parquet": "from_parquet"}
# Which of these a row has says what kind it is.
FORMAT_COLUMNS = {"question", "answer", "prompt", "completion", "messages", "conversations", "text", "input_ids"}


def check_is_json_lines(path: str) -> None:
    """
    Refuse a table in another format, and say how to convert it.

    Args:
        path (`str`):
            A file, or a hub id.

    Raises:
        ValueError: If it is named like CSV or Parquet.
    """
    reader = _READERS.get(Path(path).suffix.lower())
    if reader is not None and Path(path).is_file():
        raise ValueError(
            f"{path} is not JSONL, which is what is read: one JSON object to a line. Convert it with:\n"
            f"  {conversion_command(path, reader)}"
        )


def check_columns(sets: Mapping[str, Dataset | None], text_field: str) -> None:
    """
    Refuse sets whose columns nothing is trained on, and name those that the command line takes.

    Args:
        sets (`Mapping[str, Dataset | None]`):
            Sets by the names of their options.
        text_field (`str`):
            Name of the column that holds plain text.

    Raises:
        ValueError: If a set has none of the formats.
    """
    formats = [{"prompt", "completion"}, {"messages"}, {"conversations"}, {text_field}, {"input_ids"}]
    for name, dataset in sets.items():
        if dataset is not None and not any(required <= set(dataset.column_names) for required in formats):
            raise ValueError(
                f"The rows of --{name} have {sorted(dataset.column_names)}: they need 'question' and 'answer', "
                f"'prompt' and 'completion', 'messages', {text_field!r} or 'input_ids'. Rename the fields."
            )


def check_one_format(rows: Sequence[dict[str, Any]], path: str) -> None:
    """
    Refuse rows of another format than the first: a dataset has one, and would drop what the others say.

    Args:
        rows (`Sequence[dict]`):
            Rows of a file.
        path (`str`):
            The file.

    Raises:
        ValueError: If a row is of another format, or has a number where a text must be.
    """
    first = (FORMAT_COLUMNS | TEMPLATE_COLUMNS) & rows[0].keys()
    for index, row in enumerate(rows, start=1):
        found = (FORMAT_COLUMNS | TEMPLATE_COLUMNS) & row.keys()
        if found != first:
            raise ValueError(
                f"Row {index} of {path} has {sorted(found) or sorted(row)}, row 1 has {sorted(first)}: write all rows "
                "of a file alike."
            )
        for column in sorted(found & {"question", "answer", "prompt", "completion", "text"}):
            if not isinstance(row[column], str | list | None):
                raise ValueError(f"Row {index} of {path} has {row[column]!r} under {column!r}, and no text.")
