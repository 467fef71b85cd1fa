"""Question-answer rows in trl's prompt-completion format, so that only the answer's tokens are learned."""

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import Dataset


PROMPT_TEMPLATE = "Question: {question}\nAnswer:"
# What a row may give a chat template besides messages.
TEMPLATE_COLUMNS = {"tools", "chat_template_kwargs"}


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    What a row gives a chat template besides messages, as trl gives it in training.

    Args:
        row (`Mapping[str, Any]`):
            A row.

    Returns:
        `dict[str, Any]`: Keyword arguments of `apply_chat_template`.
    """
    tools = row.get("tools")
    given = {} if tools is None else {"tools": json.loads(tools) if isinstance(tools, str) else tools}
    more = row.get("chat_template_kwargs") or {}
    return given | {name: value for name, value in more.items() if value is not None}  # others' in a dataset's table


def conversion_command(path: str, reader: str) -> str:
    """
    What converts a file to JSONL, to be copied into a shell.

    Args:
        path (`str`):
            The file.
        reader (`str`):
            Name of [`~datasets.Dataset`]'s method that reads it.

    Returns:
        `str`: A command line. It writes a file of the same name that ends in `.jsonl`.
    """
    # As JSON writes a text, so does Python; and its double quotes need no others within those of a shell.
    source, converted = (json.dumps(name, ensure_ascii=False) for name in (path, str(Path(path).with_suffix(".jsonl"))))
    program = f"from datasets import Dataset; Dataset.{reader}({source}).to_json({converted})"
    return f"python -c {shlex.quote(program)}"


def read_text(path: str) -> str:
    """
    Read a text file.

    Args:
        path (`str`):
            The file.

    Returns:
        `str`: Its text, without the mark that some editors begin files with.

    Raises:
        ValueError: If the file holds no text in UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): save it as such, or give another file.") from error


def read_json_lines(path: str) -> list[dict[str, Any]]:
    """
    Read a JSONL file.

    Args:
        path (`str`):
            The file.

    Returns:
        `list[dict[str, Any]]`: Its rows; blank lines are left out.

    Raises:
        ValueError: If there are none, a line is not a JSON object, or the file holds no text.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        with suppress(json.JSONDecodeError):
            if isinstance(json.loads(text), list):
                raise ValueError(
                    f"{path} is one JSON array, and not JSONL, which is one object a line. Convert it with:\n"
                    f"  {conversion_command(path, 'from_json')}"
                )
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # a JSON text may hold other ends of lines
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"Line {number} of {path} is not JSON ({error}). Write one object a line.") from error
        if not isinstance(row, dict):
            raise ValueError(f"Line {number} of {path} is not a JSON object but {line.strip()[:40]!r}.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty.")
    return rows


def question_answer_to_prompt_completion(
    dataset: Dataset,
    conversational: bool = False,
    question_column: str = "question",
    answer_column: str = "answer",
) -> Dataset:
    """
    Convert question-answer rows to trl's prompt-completion format.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with a question and an answer. Their other columns are dropped, but for what a chat template is given
            (`tools`, `chat_template_kwargs`) where there are messages for one.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether to write messages for a chat template instead of plain text in [`PROMPT_TEMPLATE`].
        question_column (`str`, *optional*, defaults to `"question"`):
            Column of the questions.
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Column of the answers.

    Returns:
        [`~datasets.Dataset`]: The same rows in the same order, with `prompt` and `completion`.

    Raises:
        ValueError: If the dataset lacks one of the two columns, or a row has no text there.
    """
    missing = [column for column in (question_column, answer_column) if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The dataset has no column {missing}: it has {dataset.column_names}. "
            "Name the right ones with `question_column` and `answer_column`."
        )

    def convert(row: dict, index: int) -> dict:
        question, answer = row[question_column], row[answer_column]
        for column, text in ((question_column, question), (answer_column, answer)):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"dataset[{index}] has {text!r} under {column!r}, and no text. Write it, or remove the row."
                )
        if conversational:
            return {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
        # The space belongs to the completion: tokenizers glue it to the answer's first word.
        return {"prompt": PROMPT_TEMPLATE.format(question=question), "completion": f" {answer}"}

    kept = TEMPLATE_COLUMNS if conversational else set()
    return dataset.map(convert, with_indices=True, remove_columns=[*(set(dataset.column_names) - kept)])
