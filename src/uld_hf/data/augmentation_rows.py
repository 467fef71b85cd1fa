"""Question and answer of a row, whatever the format, and the row with other texts in their place."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from datasets import Dataset


RowFormat = Literal["question and answer", "prompt and completion", "messages", "text"]

# "Question: ...\nAnswer:", "Q: ...\nA:", "### Instruction:\n...\n\n### Response:\n": the label at the end makes it one.
_LABEL = r"#*[ \t]*[A-Z]\w*(?: \w+){0,2}:"
_TEMPLATE = re.compile(rf"(?P<before>(?:{_LABEL}\s+)?)(?P<question>\S.*?)(?P<after>\s*\n\s*{_LABEL}\s*)", re.DOTALL)


class Pair(NamedTuple):
    """
    What a row asks and answers.

    Args:
        question (`str`):
            The question, without template.
        answer (`str`):
            The answer, without the space before it.
    """

    question: str
    answer: str


def row_format(dataset: Dataset, name: str) -> RowFormat:
    """
    The format of a set's rows.

    Args:
        dataset ([`~datasets.Dataset`]):
            The rows.
        name (`str`):
            `"forget"` or `"retain"`, for the message.

    Returns:
        `str`: `"question and answer"`, `"prompt and completion"`, `"messages"` or `"text"`.

    Raises:
        ValueError: If it is none of them, or there are no rows.
    """
    if len(dataset) == 0:
        raise ValueError(f"The {name} set has no rows.")
    formats: dict[RowFormat, tuple[str, ...]] = {
        "question and answer": ("question", "answer"),
        "prompt and completion": ("prompt", "completion"),
        "messages": ("messages",),
        "text": ("text",),
    }
    for kind, columns in formats.items():
        if set(columns) <= set(dataset.column_names):
            return kind
    raise ValueError(
        f"The {name} set has the columns {dataset.column_names}: give it 'question' and 'answer', 'prompt' and "
        "'completion', 'messages' or 'text'."
    )


def training_columns(dataset: Dataset, kind: RowFormat) -> list[dict[str, Any]]:
    """
    The rows with nothing but what is trained on.

    Args:
        dataset ([`~datasets.Dataset`]):
            The rows.
        kind (`str`):
            Their format, see [`row_format`].

    Returns:
        `list[dict[str, Any]]`: The rows.
    """
    return dataset.select_columns(kind.split(" and ")).to_list()


def read_pair(row: Mapping[str, Any], kind: RowFormat, source: str) -> Pair:
    """
    Question and answer of a row.

    Args:
        row (`Mapping[str, Any]`):
            A row, not of plain text.
        kind (`str`):
            Its format.
        source (`str`):
            What to call it in messages, e.g. `"Row 3 of the forget set"`.

    Returns:
        [`Pair`]: The two texts.

    Raises:
        ValueError: If there is no question or answer, or a conversation does not end with one question and the only
            answer in it.
    """
    if kind == "question and answer":
        question, answer = row["question"], row["answer"]
    elif kind == "messages":
        _check_conversation(row["messages"], source)
        question, answer = row["messages"][-2]["content"], row["messages"][-1]["content"]
    elif isinstance(row["prompt"], str):
        template = _TEMPLATE.fullmatch(row["prompt"])
        question, answer = template["question"] if template else row["prompt"], row["completion"]
    else:
        _check_conversation([*row["prompt"], *row["completion"]], source)
        question, answer = row["prompt"][-1]["content"], row["completion"][-1]["content"]
    if not all(isinstance(text, str) and text.strip() for text in (question, answer)):
        raise ValueError(f"{source} lacks a question or an answer: {dict(row)!r}. Remove it, or give it both.")
    return Pair(question.strip(), answer.strip())


def _check_conversation(messages: Sequence[Mapping[str, str]], source: str) -> None:
    roles = [message["role"] for message in messages]
    if roles[-2:] != ["user", "assistant"] or roles.count("assistant") > 1:
        raise ValueError(
            f"{source} is a conversation of {roles}: only one question and its answer can be varied. Give each "
            "exchange a row of its own."
        )


def answer_of(row: Mapping[str, Any], kind: RowFormat) -> str:
    """
    The answer of a row as it stands there, with the space before it.

    Args:
        row (`Mapping[str, Any]`):
            A row, not of plain text.
        kind (`str`):
            Its format.

    Returns:
        `str`: The text.
    """
    answer = row[{"question and answer": "answer", "prompt and completion": "completion", "messages": "messages"}[kind]]
    return answer if isinstance(answer, str) else answer[-1]["content"]


def write_pair(row: Mapping[str, Any], kind: RowFormat, pair: Pair) -> dict[str, Any]:
    """
    The row with another question and answer; template, system message and leading space stay.

    Args:
        row (`Mapping[str, Any]`):
            The row that the pair comes from.
        kind (`str`):
            Its format.
        pair ([`Pair`]):
            The new texts.

    Returns:
        `dict[str, Any]`: A row of the same format.
    """
    if kind == "question and answer":
        return {"question": pair.question, "answer": pair.answer}
    user, assistant = {"role": "user", "content": pair.question}, {"role": "assistant", "content": pair.answer}
    if kind == "messages":
        return {"messages": [*row["messages"][:-2], user, assistant]}
    if not isinstance(row["prompt"], str):
        return {"prompt": [*row["prompt"][:-1], user], "completion": [assistant]}
    template = _TEMPLATE.fullmatch(row["prompt"])
    before, after = (template["before"], template["after"]) if template else ("", _space_after(row["prompt"]))
    space = row["completion"][: len(row["completion"]) - len(row["completion"].lstrip())]
    return {"prompt": before + pair.question + after, "completion": space + pair.answer}


def _space_after(text: str) -> str:
    return text[len(text.rstrip()) :]
