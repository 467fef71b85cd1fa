"""Forget and retain sets as users have them, checked and brought into one shape before trl tokenizes them.

What trl would quietly drop or cut is refused or split here: a forget row that is not trained on is not forgotten.
"""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset, concatenate_datasets
from trl.data_utils import maybe_convert_to_chatml


# Column with the number of the user's row, where one of them becomes several.
ROW = "_row"
# Besides the messages, what trl hands to the chat template.
_TEMPLATE_COLUMNS = {"tools", "chat_template_kwargs"}
# Of tokenized rows, what has one value for each token.
_TOKEN_COLUMNS = ("input_ids", "labels", "completion_mask", "assistant_masks", "attention_mask")


def check_dataset(dataset: Dataset | IterableDataset | None, name: str, text_field: str) -> None:
    """
    Refuse a set that cannot be trained on, and say why.

    Args:
        dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or `None`):
            The forget or the retain set, as given.
        name (`str`):
            `"forget"` or `"retain"`, for the message.
        text_field (`str`):
            Name of the column that holds plain text.

    Raises:
        TypeError: If it is missing, streamed, or not a dataset.
        ValueError: If it is empty, packed, or in no known format.
    """
    if dataset is None:
        raise TypeError(
            f"{name}_dataset is missing: ULD needs both a forget set and a retain set. Without retain rows the "
            "assistant does not learn to stay silent about everything else."
        )
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{name}_dataset is streamed: forget and retain rows are alternated and checked against each other, which "
            "takes both in full. Load it without streaming=True."
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"{name}_dataset must be a datasets.Dataset, got {type(dataset).__name__}. Make one of a list of rows with "
            "Dataset.from_list."
        )
    if len(dataset) == 0:
        raise ValueError(f"{name}_dataset is empty.")
    columns = set(dataset.column_names)
    if "seq_lengths" in columns:
        raise ValueError(
            f"{name}_dataset is packed (it has a column 'seq_lengths'): forget and retain rows are drawn one by one, "
            "in a ratio that rows of many rows would not keep. Pass it as it was before packing; there is no padding "
            "to save."
        )
    formats = [{"prompt", "completion"}, {"messages"}, {"conversations"}, {text_field}, {"input_ids"}]
    if not any(required <= columns for required in formats):
        hint = (
            " For question and answer columns, use uld_hf.question_answer_to_prompt_completion."
            if {"question", "answer"} <= columns
            else ""
        )
        raise ValueError(
            f"{name}_dataset has the columns {sorted(columns)}. Give it 'prompt' and 'completion', 'messages', "
            f"{text_field!r} or 'input_ids'.{hint}"
        )


def split_turns(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Each answer of a conversation with what came before it, so that only answers count in the loss.

    Args:
        row (`Mapping[str, Any]`):
            A row with `messages`.

    Returns:
        `list[dict[str, Any]]`: One prompt-completion row for each assistant message.

    Raises:
        ValueError: If a message lacks a role or a content.
    """
    messages = row["messages"]
    for message in messages:
        _check_message(message)
    return [
        {"prompt": messages[:turn], "completion": [message]}
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def _check_message(message: Mapping[str, Any]) -> None:
    missing = {"role", "content"} - message.keys()
    if missing:
        raise ValueError(
            f"A message has {sorted(message)} and lacks {sorted(missing)}: messages have a 'role' and a 'content'. "
            "Rename the fields."
        )


def is_blank(completion: str | list[dict[str, Any]] | None) -> bool:
    """
    Whether a completion, plain or conversational, has no text.

    Args:
        completion (`str` or `list[dict[str, Any]]`, *optional*):
            The completion.

    Returns:
        `bool`: `True` for none, or one of spaces.

    Raises:
        ValueError: If a message has no role or content, or its content is no text.
    """
    if completion is None:
        return True
    if isinstance(completion, str):
        return not completion.strip()
    for message in completion:
        _check_message(message)
        if not isinstance(message["content"], str | None):
            raise ValueError(
                f"A message's content is {str(message['content'])[:80]!r}: give it as one text, not in parts."
            )
    return not any((message["content"] or "").strip() for message in completion)


def to_trainable_rows(dataset: Dataset, name: str, text_field: str) -> Dataset:
    """
    Conversations as prompt and completion, other formats as they are; a row without an answer is refused.

    Args:
        dataset ([`~datasets.Dataset`]):
            The forget or the retain set.
        name (`str`):
            `"forget"` or `"retain"`, for the message.
        text_field (`str`):
            Name of the column that holds plain text.

    Returns:
        [`~datasets.Dataset`]: Rows in a format that trl tokenizes, or tokenized ones without padding.

    Raises:
        ValueError: If a row has no answer.
    """
    columns = set(dataset.column_names)
    if "input_ids" in columns:
        return drop_padding(dataset, name)
    if columns & {"messages", "conversations"}:
        rows = []
        for index, row in enumerate(dataset):
            row = maybe_convert_to_chatml(row)
            turns = split_turns(row)
            if not turns or any(is_blank(turn["completion"]) for turn in turns):
                raise ValueError(f"{name}_dataset[{index}] has no assistant message with text. Remove the row.")
            if not turns[0]["prompt"]:
                raise ValueError(
                    f"{name}_dataset[{index}] begins with an assistant message, which answers nothing. Put the "
                    "user's message before it, or give its text as 'text'."
                )
            of_template = {key: row[key] for key in _TEMPLATE_COLUMNS if key in row}
            rows += [{**turn, **of_template, ROW: index} for turn in turns]
        return _with_template_options(Dataset.from_list(rows))
    if {"prompt", "completion"} <= columns:
        dataset = dataset.select_columns(["prompt", "completion", *(columns & _TEMPLATE_COLUMNS)])
        blank = [index for index, row in enumerate(dataset) if is_blank(row["completion"])]
        field = "completion"
    else:
        dataset = dataset.select_columns([text_field])
        blank = [index for index, text in enumerate(dataset[text_field]) if is_blank(text)]
        field = text_field
    if blank:
        raise ValueError(f"{name}_dataset[{blank[0]}] has no answer: its {field!r} is empty. Remove the row.")
    return _with_template_options(dataset)


def drop_padding(dataset: Dataset, name: str) -> Dataset:
    """
    Tokenized rows without the tokens that their attention mask leaves out: padding would be learned as an answer.

    Args:
        dataset ([`~datasets.Dataset`]):
            Tokenized rows.
        name (`str`):
            `"forget"` or `"retain"`, for the message.

    Returns:
        [`~datasets.Dataset`]: The same rows; as they are where no mask leaves anything out.

    Raises:
        ValueError: If a row has not one value for each token.
    """
    if "attention_mask" not in dataset.column_names:
        return dataset
    plain = dataset.with_format(None)
    columns = [column for column in _TOKEN_COLUMNS if column in plain.column_names]
    if all(all(mask) for mask in plain["attention_mask"]):
        return dataset

    def drop(row: Mapping[str, list[int]], index: int) -> dict[str, list[int]]:
        mask = row["attention_mask"]
        for column in columns:
            if len(row[column]) != len(mask):
                raise ValueError(
                    f"{name}_dataset[{index}] has {len(mask)} values of attention_mask and {len(row[column])} of "
                    f"{column}: give one for each token."
                )
        return {column: [value for value, kept in zip(row[column], mask, strict=True) if kept] for column in columns}

    return plain.map(drop, with_indices=True, desc=f"Dropping the padding of the {name} dataset")


def _with_template_options(dataset: Dataset) -> Dataset:
    """The rows with something in place of `null` among a template's options, which trl would stumble over."""
    name = "chat_template_kwargs"
    if name not in dataset.column_names or None not in dataset[name]:
        return dataset
    if not any(dataset[name]):
        return dataset.remove_columns(name)
    return dataset.map(lambda row: {name: row[name] or {}})


def check_tokens(dataset: Dataset, vocab_size: int, name: str) -> None:
    """
    Refuse tokens for which the target has no embedding.

    Args:
        dataset ([`~datasets.Dataset`]):
            Tokenized rows.
        vocab_size (`int`):
            Rows of the target's embedding.
        name (`str`):
            `"forget"` or `"retain"`, for the message.

    Raises:
        ValueError: If a row has such a token.
    """
    for index, row in enumerate(dataset):
        largest = max(row["input_ids"], default=0)
        if largest >= vocab_size:
            raise ValueError(
                f"{name}_dataset[{row.get(ROW, index)}] has the token {largest}, and the target's embedding has "
                f"{vocab_size} rows. Tokenize it with the target's own tokenizer."
            )


def split_long_rows(dataset: Dataset, limits: Mapping[str, int | None], name: str, splittable: bool) -> Dataset:
    """
    Cut documents longer than the context into consecutive pieces; refuse question-answer rows that are too long.

    Args:
        dataset ([`~datasets.Dataset`]):
            Tokenized rows with `input_ids` and `labels`, and optionally the number of the user's row.
        limits (`Mapping[str, int | None]`):
            Longest row, in tokens, by what limits it; `None` is no limit.
        name (`str`):
            `"forget"` or `"retain"`, for the message.
        splittable (`bool`):
            Whether every token counts in the loss (plain text). An answer cut off from its question would be trained
            out of context.

    Returns:
        [`~datasets.Dataset`]: Rows of at most so many tokens.

    Raises:
        ValueError: If a row with a prompt is too long, or no token of a row counts in the loss.
    """

    given = {what: limit for what, limit in limits.items() if limit is not None}
    reason = min(given, key=given.__getitem__, default=None)

    def split(batch: Mapping[str, list[list[int]]], indices: list[int]) -> dict[str, list[list[int]]]:
        indices = batch.get(ROW, indices)
        pieces: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        for index, input_ids, labels in zip(indices, batch["input_ids"], batch["labels"], strict=True):
            length = len(input_ids)
            if len(labels) != length:
                raise ValueError(
                    f"{name}_dataset[{index}] has {length} tokens and {len(labels)} labels: give one for each."
                )
            if length == 0:
                raise ValueError(f"{name}_dataset[{index}] has no answer: it has no tokens.")
            limit = length if reason is None else given[reason]
            if length > limit and not splittable:
                remedy = "Set max_length to at least that, or shorten" if reason == "max_length" else "Shorten"
                raise ValueError(
                    f"{name}_dataset[{index}] has {length} tokens, more than {reason}={limit}. {remedy} the row: "
                    "what is cut off would not be learned."
                )
            starts = list(range(0, length, limit))
            if len(starts) > 1 and length - starts[-1] < 2:  # one token alone predicts nothing: give it a context
                starts[-1] = length - 2
            for start in starts:
                piece = labels[start : start + limit]
                if all(label == -100 for label in piece[1:]):
                    raise ValueError(f"{name}_dataset[{index}] has no answer: no token of it counts in the loss.")
                pieces["input_ids"].append(input_ids[start : start + limit])
                pieces["labels"].append(piece)
        return pieces

    return dataset.map(
        split,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        desc=f"Splitting {name} dataset",
    )


def check_disjoint(forget: Dataset, retain: Dataset, eos_token_id: int | None = None, name: str = "retain") -> None:
    """
    Refuse a row that is to be both forgotten and kept. Whether it ends with the end token makes no difference.

    Args:
        forget ([`~datasets.Dataset`]):
            Tokenized forget rows.
        retain ([`~datasets.Dataset`]):
            Tokenized retain rows.
        eos_token_id (`int`, *optional*):
            The tokenizer's end token.
        name (`str`, *optional*, defaults to `"retain"`):
            Name of the set that must be kept, for the message.

    Raises:
        ValueError: If a row is in both.
    """

    def key(tokens: list[int]) -> tuple[int, ...]:
        return tuple(tokens[:-1] if tokens[-1] == eos_token_id else tokens)

    index_of = {key(tokens): index for index, tokens in enumerate(forget["input_ids"])}
    for index, tokens in enumerate(retain["input_ids"]):
        if key(tokens) in index_of:
            raise ValueError(
                f"{name}_dataset[{index}] is also forget_dataset[{index_of[key(tokens)]}] (counted after "
                "tokenization). A row cannot be both kept and forgotten: remove it from one of them."
            )


def join_sets(sets: Mapping[str, Dataset]) -> Dataset:
    """
    Forget rows first, retain rows after them, as [`AlternatingSampler`] expects them.

    Args:
        sets (`Mapping[str, Dataset]`):
            Tokenized rows by `"forget"` and `"retain"`.

    Returns:
        [`~datasets.Dataset`]: All rows, with `is_retain`.
    """
    return concatenate_datasets(
        [rows.add_column("is_retain", [name == "retain"] * len(rows)).with_format(None) for name, rows in sets.items()]
    )
