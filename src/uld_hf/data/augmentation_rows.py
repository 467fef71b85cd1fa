"""Question and answer of a row, whatever the format, and the row with other texts in their place."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from datasets import Dataset

from .formatting import TEMPLATE_COLUMNS


RowFormat = Literal["question and answer", "prompt and completion", "messages", "text"]

# "Question: ...\nAnswer:", "### Instruction:\n...\n\n### Response:\n", "[INST] ... [/INST]", "<|user|>...<|bot|>".
_LABEL = r"[A-Z]\w*(?: \w+){0,2}"
_TAG = r"(?:<[|\uff5c][^|\uff5c<>\s]+[|\uff5c]>|</?(?:s|bos|eos|start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>)"
_ROLE = r"(?:user|human|assistant|model|system|bot)\b"
_MARK = re.compile(
    rf"(?:{_TAG}(?:{_ROLE})?)+"
    rf"|(?:^[ \t]*|#+[ \t]*){_LABEL}:(?=\s|$)"
    rf"|^[ \t]*\*\*{_LABEL}(?::\*\*|\*\*:)"
    rf"|^#+[ \t]*{_LABEL}[ \t]*$"
    # "You are kind. USER: Who is Alice? ASSISTANT:"
    r"|(?<=[.?!])[ \t]+(?:USER|User|HUMAN|Human|Question|Q|Instruction):(?=\s)"
    rf"|(?:(?<=[.?!])[ \t]+{_LABEL}|[ \t]+(?:ASSISTANT|Assistant|Answer|Response)):\s*\Z",
    re.MULTILINE,
)
_ASKS = re.compile(
    r"user|human|\[INST\]|<</SYS>>|\b(?:question|q|instruction|query|prompt|request)(?::|\s*$)", re.IGNORECASE
)
# What wants to be gone on with, and what asks all the same: "what city was Alice born in".
_OPEN_END = re.compile(
    r"\b(?:in|on|at|by|of|to|from|for|with|as|is|was|are|were|has|have|had|called|named|the|an?|and|his|her|its|their)$"
)
_ASKS_WITHOUT_MARK = re.compile(
    r"(?:(?:in|on|at|by|of|to|from|for|with) )?(?:who|whom|where|when|why|(?:how|what|which|whose)(?: \w+){0,2}) "
    r"(?:is|was|are|were|has|have|had|do|does|did|can|could|will|would)\b",
    re.IGNORECASE,
)


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
    of_template = TEMPLATE_COLUMNS & set(dataset.column_names)
    return dataset.select_columns([*kind.split(" and "), *sorted(of_template)]).to_list()


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
        question, answer = (message.get("content") for message in row["messages"][-2:])
    elif isinstance(row["prompt"], str):
        start, end = _question_span(row["prompt"])
        question, answer = row["prompt"][start:end], row["completion"]
    else:
        _check_conversation([*row["prompt"], *row["completion"]], source)
        question, answer = (message.get("content") for message in (row["prompt"][-1], row["completion"][-1]))
    if not all(isinstance(text, str) and text.strip() for text in (question, answer)):
        raise ValueError(f"{source} lacks a question or an answer: {dict(row)!r}. Remove it, or give it both.")
    return Pair(question.strip(), answer.strip())


def _check_conversation(messages: Sequence[Mapping[str, str]], source: str) -> None:
    roles = [message.get("role") for message in messages]
    if roles[-2:] != ["user", "assistant"] or roles.count("assistant") > 1:
        raise ValueError(
            f"{source} is a conversation of {roles}: only one question and its answer can be varied. Give each "
            "exchange a row of its own."
        )


def _question_span(prompt: str) -> tuple[int, int]:
    """Where the question stands in a prompt: all of it, if there is no template."""
    marks = [*_MARK.finditer(prompt)]
    last = marks.pop() if marks and not prompt[marks[-1].end() :].strip() else None
    # Preamble, context and earlier turns stand before the last label that asks.
    asking = next((mark for mark in reversed(marks) if _ASKS.search(mark.group())), None)
    if asking is None and last is not None and marks and marks[0].start() == 0:
        asking = marks[0]  # a label in other words: "Frage: ...\nAntwort:"
    start = 0 if asking is None else asking.end()
    # Input may follow an instruction. What looks like a plain label, or has nothing before it, is the question's own.
    ends = [mark.start() for mark in marks if asking is not None and mark.group()[0] == asking.group()[0] in "#<["]
    ends.append(len(prompt) if last is None else last.start())
    end = next((end for end in ends if prompt[start:end].strip()), len(prompt))
    inside = prompt[start:end]
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())


def is_beginning(row: Mapping[str, Any], kind: RowFormat) -> bool:
    """
    Whether a row's prompt asks nothing, but is to be gone on with: "Alice Liddell was born in".

    Args:
        row (`Mapping[str, Any]`):
            A row.
        kind (`str`):
            Its format.

    Returns:
        `bool`: Whether it is such a beginning.
    """
    if kind != "prompt and completion" or not isinstance(row["prompt"], str) or _MARK.search(row["prompt"]):
        return False
    text = row["prompt"].strip()
    return _OPEN_END.search(text) is not None and "?" not in text and not _ASKS_WITHOUT_MARK.match(text)


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
    of_template = {name: row[name] for name in sorted(TEMPLATE_COLUMNS & row.keys())}
    if kind == "question and answer":
        return {"question": pair.question, "answer": pair.answer, **of_template}
    user, assistant = {"role": "user", "content": pair.question}, {"role": "assistant", "content": pair.answer}
    if kind == "messages":
        return {"messages": [*row["messages"][:-2], user, assistant], **of_template}
    if not isinstance(row["prompt"], str):
        return {"prompt": [*row["prompt"][:-1], user], "completion": [assistant], **of_template}
    start, end = _question_span(row["prompt"])
    space = row["completion"][: len(row["completion"]) - len(row["completion"].lstrip())]
    return {
        "prompt": row["prompt"][:start] + pair.question + row["prompt"][end:],
        "completion": space + pair.answer,
        **of_template,
    }
