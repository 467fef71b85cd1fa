"""Forget and retain sets in every format: what becomes of them, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from families import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from uld_hf import ULDConfig, ULDTrainer
from uld_hf.training.preparation import (
    check_dataset,
    check_disjoint,
    is_blank,
    split_long_rows,
    split_turns,
    to_trainable_rows,
)


IGNORED = -100
EOS = 2
TEXT = [{"text": "w50 w51"}]
# The tokenizer's words: w0 is token 4. Users speak after w1, assistants after w2, systems after w3.
USER, ASSISTANT, SYSTEM = 5, 6, 7
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'user': 'w1', 'assistant': 'w2', 'system': 'w3'}[message.role] }} {{ message.content }} </s> "
    "{% endfor %}{% if add_generation_prompt %}w2 {% endif %}"
)


def say(*messages: tuple[str, str | None]) -> list[dict[str, str | None]]:
    """A conversation."""
    return [{"role": role, "content": content} for role, content in messages]


Prepare = Callable[..., list[tuple[list[int], list[int]]]]


@pytest.fixture
def prepare(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Prepare:
    """Tokens and labels of a forget set, as [`ULDTrainer`] trains on them."""
    tokenizer.chat_template = CHAT_TEMPLATE

    def run(forget: list[dict[str, Any]], **settings: Any) -> list[tuple[list[int], list[int]]]:
        trainer = ULDTrainer(
            tiny_model("llama", num_layers=1),
            ULDConfig(str(tmp_path), num_assistant_layers=1, use_cpu=True, report_to="none", **settings),
            forget_dataset=Dataset.from_list(forget),
            retain_dataset=Dataset.from_list(TEXT),
            processing_class=tokenizer,
        )
        return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset if not row["is_retain"]]

    return run


# Formats


def test_all_tokens_of_a_text_count(prepare: Prepare):
    assert prepare([{"text": "w6 w7"}]) == [([10, 11, EOS], [10, 11, EOS])]


def test_text_column_can_have_another_name(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    trainer = ULDTrainer(
        tiny_model("llama", num_layers=1),
        ULDConfig(str(tmp_path), num_assistant_layers=1, use_cpu=True, report_to="none", dataset_text_field="story"),
        forget_dataset=Dataset.from_list([{"story": "w6 w7"}]),
        retain_dataset=Dataset.from_list([{"story": "w8 w9"}]),
        processing_class=tokenizer,
    )
    assert trainer.train_dataset["input_ids"] == [[10, 11, EOS], [12, 13, EOS]]


def test_only_the_completion_of_a_prompt_counts(prepare: Prepare):
    rows = prepare([{"prompt": "w6 w7", "completion": " w8 w9"}])
    assert rows == [([10, 11, 12, 13, EOS], [IGNORED, IGNORED, 12, 13, EOS])]


def test_only_the_completion_of_a_conversational_prompt_counts(prepare: Prepare):
    rows = prepare([{"prompt": say(("user", "w6")), "completion": say(("assistant", "w8 w9"))}])
    assert rows == [([USER, 10, EOS, ASSISTANT, 12, 13, EOS], [IGNORED] * 4 + [12, 13, EOS])]


def test_prompt_counts_where_asked_for(prepare: Prepare):
    rows = prepare([{"prompt": "w6 w7", "completion": " w8"}], completion_only_loss=False)
    assert rows == [([10, 11, 12, EOS], [10, 11, 12, EOS])]


def test_only_the_answer_of_messages_counts(prepare: Prepare):
    rows = prepare([{"messages": say(("user", "w6"), ("assistant", "w8"))}])
    assert rows == [([USER, 10, EOS, ASSISTANT, 12, EOS], [IGNORED] * 4 + [12, EOS])]


def test_each_answer_of_messages_is_a_row(prepare: Prepare):
    rows = prepare([{"messages": say(("user", "w6"), ("assistant", "w8"), ("user", "w7"), ("assistant", "w9"))}])
    first = [USER, 10, EOS, ASSISTANT, 12, EOS]
    assert rows == [
        (first, [IGNORED] * 4 + [12, EOS]),
        ([*first, USER, 11, EOS, ASSISTANT, 13, EOS], [IGNORED] * 10 + [13, EOS]),
    ]


def test_system_message_stays_before_every_answer(prepare: Prepare):
    rows = prepare([{"messages": say(("system", "w5"), ("user", "w6"), ("assistant", "w8"))}])
    assert rows == [([SYSTEM, 9, EOS, USER, 10, EOS, ASSISTANT, 12, EOS], [IGNORED] * 7 + [12, EOS])]


def test_conversations_are_messages(prepare: Prepare):
    rows = prepare([{"conversations": [{"from": "user", "value": "w6"}, {"from": "assistant", "value": "w8"}]}])
    assert rows == [([USER, 10, EOS, ASSISTANT, 12, EOS], [IGNORED] * 4 + [12, EOS])]


def test_tokenized_rows_keep_their_labels(prepare: Prepare):
    rows = prepare([{"input_ids": [8, 9, 10], "labels": [IGNORED, IGNORED, 10]}])
    assert rows == [([8, 9, 10], [IGNORED, IGNORED, 10])]


def test_all_tokens_of_tokenized_rows_without_labels_count(prepare: Prepare):
    assert prepare([{"input_ids": [8, 9, 10]}]) == [([8, 9, 10], [8, 9, 10])]


def test_other_columns_are_dropped(prepare: Prepare):
    rows = prepare([{"prompt": "w6", "completion": " w8", "author": "w9", "year": 1999}])
    assert rows == [([10, 12, EOS], [IGNORED, 12, EOS])]


def test_documents_longer_than_the_context_are_split(prepare: Prepare):
    rows = prepare([{"text": "w6 w7 w8 w9 w10"}], max_length=3)
    assert [tokens for tokens, _ in rows] == [[10, 11, 12], [13, 14, EOS]]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"prompt": "w6", "completion": " w9"}, {"prompt": "w6 w7 w8 w6", "completion": " w9"}),
        (
            {"messages": say(("user", ""), ("assistant", "w8"))},
            {"messages": say(("user", "w6"), ("assistant", "w8"))},
        ),
        ({"input_ids": [4, 5, 6]}, {"input_ids": [4, 5, 6, 7, 8, 9]}),
    ],
    ids=["prompt", "messages", "input_ids"],
)
def test_long_rows_with_a_context_are_refused(prepare: Prepare, short: dict[str, Any], long: dict[str, Any]):
    with pytest.raises(ValueError, match=r"forget_dataset\[1\] has 6 tokens, more than max_length=5"):
        prepare([short, long], max_length=5)


def test_only_the_completion_of_masked_tokenized_rows_counts(prepare: Prepare):
    assert prepare([{"input_ids": [8, 9, 10], "completion_mask": [0, 0, 1]}]) == [([8, 9, 10], [IGNORED, IGNORED, 10])]


@pytest.mark.parametrize("max_length", [None, 8])
def test_tokenized_row_without_tokens_is_refused(prepare: Prepare, max_length: int | None):
    with pytest.raises(ValueError, match=r"forget_dataset\[1\] has no answer"):
        prepare([{"input_ids": [8, 9]}, {"input_ids": []}], max_length=max_length)


def test_tokenized_row_with_fewer_labels_is_refused(prepare: Prepare):
    with pytest.raises(ValueError, match=r"forget_dataset\[1\] has 3 tokens and 2 labels"):
        prepare([{"input_ids": [8, 9], "labels": [8, 9]}, {"input_ids": [8, 9, 10], "labels": [9, 10]}])


def test_token_that_the_target_does_not_have_is_refused(prepare: Prepare):
    with pytest.raises(ValueError, match=r"forget_dataset\[1\] has the token 64"):
        prepare([{"input_ids": [8, 9]}, {"input_ids": [8, 64]}])


def test_conversation_that_begins_with_an_answer_is_refused(prepare: Prepare):
    messages = say(("user", "w6"), ("assistant", "w8"))
    with pytest.raises(ValueError, match=r"forget_dataset\[1\]"):
        prepare([{"messages": messages}, {"messages": messages[1:]}])


def test_tools_reach_the_chat_template(prepare: Prepare, tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = "{% if tools %}w50 w51 {% endif %}" + CHAT_TEMPLATE
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
    for row in (
        {"messages": say(("user", "w6"), ("assistant", "w8"))},
        {"prompt": say(("user", "w6")), "completion": say(("assistant", "w8"))},
    ):
        ((tokens, _),) = prepare([{**row, "tools": json.dumps(tools)}])
        assert tokens[:3] == [54, 55, USER]


def test_the_same_row_with_and_without_the_end_token_is_in_both():
    with pytest.raises(ValueError, match=r"retain_dataset\[0\] is also forget_dataset\[0\]"):
        check_disjoint(tokenized([5, 6, EOS]), tokenized([5, 6]), EOS)


def test_long_conversation_is_named_by_its_row(prepare: Prepare):
    messages = say(("user", "w6"), ("assistant", "w8"))
    with pytest.raises(ValueError, match=r"forget_dataset\[1\] has 18 tokens, more than max_length=12"):
        prepare([{"messages": 2 * messages}, {"messages": 3 * messages}], max_length=12)


# check_dataset


def test_missing_set_is_refused():
    with pytest.raises(TypeError, match="retain_dataset is missing: ULD needs both"):
        check_dataset(None, "retain", "text")


def test_empty_set_is_refused():
    with pytest.raises(ValueError, match="forget_dataset is empty"):
        check_dataset(Dataset.from_list([]), "forget", "text")


def test_streamed_set_is_refused():
    with pytest.raises(TypeError, match="forget_dataset is streamed"):
        check_dataset(Dataset.from_list(TEXT).to_iterable_dataset(), "forget", "text")


@pytest.mark.parametrize("dataset", [TEXT, DatasetDict({"train": Dataset.from_list(TEXT)})], ids=["list", "splits"])
def test_what_is_not_a_dataset_is_refused(dataset: Any):
    with pytest.raises(TypeError, match=r"forget_dataset must be a datasets\.Dataset, got"):
        check_dataset(dataset, "forget", "text")


def test_unknown_columns_are_refused():
    with pytest.raises(ValueError, match=r"forget_dataset has the columns \['prompt'\]"):
        check_dataset(Dataset.from_list([{"prompt": "w6"}]), "forget", "text")


def test_text_column_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"has the columns \['text'\].*'messages', 'story' or 'input_ids'"):
        check_dataset(Dataset.from_list(TEXT), "forget", "story")


def test_question_and_answer_columns_get_a_hint():
    with pytest.raises(ValueError, match=r"use uld_hf\.question_answer_to_prompt_completion"):
        check_dataset(Dataset.from_list([{"question": "w6", "answer": "w7"}]), "forget", "text")


def test_other_columns_get_no_hint():
    with pytest.raises(ValueError, match=r"or 'input_ids'\.$"):
        check_dataset(Dataset.from_list([{"question": "w6", "reply": "w7"}]), "forget", "text")


# split_turns and is_blank


@pytest.mark.parametrize("message", [{"role": "user", "contents": "a"}, {"from": "user", "content": "a"}], ids=str)
def test_a_message_with_other_fields_is_refused(message):
    answer = {"role": "assistant", "content": "b"}
    with pytest.raises(ValueError, match=r"A message has .* and lacks \['(content|role)'\]: .* Rename the fields"):
        split_turns({"messages": [message, answer]})
    if "role" in message:
        with pytest.raises(ValueError, match="Rename the fields"):
            is_blank([message])


def test_conversation_without_answers_has_no_turns():
    assert split_turns({"messages": say(("system", "a"), ("user", "b"))}) == []


def test_turn_has_everything_before_its_answer_as_prompt():
    messages = say(("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"), ("assistant", "e"))
    assert split_turns({"messages": messages}) == [
        {"prompt": messages[:2], "completion": messages[2:3]},
        {"prompt": messages[:4], "completion": messages[4:]},
    ]


@pytest.mark.parametrize("completion", ["", " \n", [], say(("assistant", "")), say(("assistant", None))])
def test_completion_without_text_is_blank(completion: Any):
    assert is_blank(completion)


@pytest.mark.parametrize("completion", [" a", say(("assistant", "a")), say(("assistant", ""), ("assistant", "a"))])
def test_completion_with_text_is_not_blank(completion: Any):
    assert not is_blank(completion)


# to_trainable_rows


@pytest.mark.parametrize(
    ("good", "bad", "match"),
    [
        ({"text": "a"}, {"text": " "}, r"forget_dataset\[1\] has no answer: its 'text' is empty"),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": "a", "completion": "\n"},
            r"forget_dataset\[1\] has no answer: its 'completion' is empty",
        ),
        (
            {"prompt": say(("user", "a")), "completion": say(("assistant", "b"))},
            {"prompt": say(("user", "a")), "completion": say(("assistant", " "))},
            r"forget_dataset\[1\] has no answer: its 'completion' is empty",
        ),
        (
            {"messages": say(("user", "a"), ("assistant", "b"))},
            {"messages": say(("user", "a"))},
            r"forget_dataset\[1\] has no assistant message with text",
        ),
        (
            {"messages": say(("user", "a"), ("assistant", "b"))},
            {"messages": say(("user", "a"), ("assistant", ""))},
            r"forget_dataset\[1\] has no assistant message with text",
        ),
        (
            {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
            {"conversations": [{"from": "user", "value": "a"}]},
            r"forget_dataset\[1\] has no assistant message with text",
        ),
    ],
    ids=["text", "completion", "conversational", "no-answer", "blank-answer", "conversations"],
)
def test_row_without_an_answer_is_refused(good: dict[str, Any], bad: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=match):
        to_trainable_rows(Dataset.from_list([good, bad]), "forget", "text")


@pytest.mark.parametrize("row", [{"text": "a"}, {"prompt": "a", "completion": "b"}], ids=["text", "completion"])
def test_row_of_which_the_answer_is_missing_is_refused(row: dict[str, str]):
    with pytest.raises(ValueError, match=r"forget_dataset\[1\] has no answer"):
        to_trainable_rows(Dataset.from_list([row, {**row, list(row)[-1]: None}]), "forget", "text")


def test_message_names_the_retain_set():
    with pytest.raises(ValueError, match=r"retain_dataset\[0\] has no answer"):
        to_trainable_rows(Dataset.from_list([{"text": ""}]), "retain", "text")


def test_blank_prompt_is_allowed():
    rows = [{"prompt": "", "completion": "b"}]
    assert to_trainable_rows(Dataset.from_list(rows), "forget", "text").to_list() == rows


def test_tokenized_rows_are_left_alone():
    dataset = Dataset.from_list([{"input_ids": [4, 5], "labels": [IGNORED, 5]}])
    assert to_trainable_rows(dataset, "forget", "text") is dataset


def test_padding_of_tokenized_rows_is_dropped():
    left = {"input_ids": [0, 0, 4, 5], "attention_mask": [0, 0, 1, 1], "labels": [0, 0, IGNORED, 5]}
    right = {"input_ids": [6, 7, 8, 0], "attention_mask": [1, 1, 1, 0], "labels": [IGNORED, 7, 8, 0]}
    prepared = to_trainable_rows(Dataset.from_list([left, right]), "forget", "text")
    assert list(prepared["input_ids"]) == [[4, 5], [6, 7, 8]]
    assert list(prepared["labels"]) == [[IGNORED, 5], [IGNORED, 7, 8]]


def test_tokenized_rows_without_padding_are_left_alone():
    dataset = Dataset.from_list([{"input_ids": [4, 5], "attention_mask": [1, 1]}])
    assert to_trainable_rows(dataset, "forget", "text") is dataset


def test_a_mask_of_another_length_than_the_row_is_refused():
    row = {"input_ids": [4, 5, 0], "attention_mask": [1, 0]}
    with pytest.raises(ValueError, match=r"forget_dataset\[0\] has 2 values of attention_mask and 3 of input_ids"):
        to_trainable_rows(Dataset.from_list([row]), "forget", "text")


def test_given_dataset_is_not_changed():
    dataset = Dataset.from_list(
        [{"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]}]
    )
    before = dataset.to_list()
    to_trainable_rows(dataset, "forget", "text")
    assert dataset.to_list() == before


# split_long_rows


def tokenized(*rows: list[int], prompt: int = 0) -> Dataset:
    """Tokenized rows, the first tokens of which do not count."""
    return Dataset.from_list([{"input_ids": row, "labels": [IGNORED] * prompt + row[prompt:]} for row in rows])


@given(length=st.integers(2, 60), limit=st.integers(2, 20))
@settings(deadline=None, max_examples=30)
def test_pieces_join_back_to_the_document(length: int, limit: int):
    pieces = split_long_rows(tokenized(list(range(length))), {"max_length": limit}, "forget", True)["input_ids"]
    joined = []
    for piece in pieces:
        joined += piece[1:] if joined and piece[0] == joined[-1] else piece  # a piece may begin with a token of context
    assert joined == list(range(length))


@given(length=st.integers(2, 60), limit=st.integers(2, 20))
@settings(deadline=None, max_examples=30)
def test_pieces_fit_the_context_and_predict_something(length: int, limit: int):
    pieces = split_long_rows(tokenized(list(range(length))), {"max_length": limit}, "forget", True)["input_ids"]
    assert all(2 <= len(piece) <= limit for piece in pieces)


def test_pieces_have_the_labels_of_their_tokens():
    pieces = split_long_rows(tokenized(list(range(10))), {"max_length": 4}, "forget", True)
    assert pieces["labels"] == pieces["input_ids"]


def test_last_token_alone_gets_the_one_before_it_as_context():
    pieces = split_long_rows(tokenized([1, 2, 3, 4, 5]), {"max_length": 4}, "forget", True)
    assert pieces["input_ids"] == [[1, 2, 3, 4], [4, 5]]


def test_rows_that_fit_are_left_alone():
    rows = tokenized([1, 2, 3], [4, 5], prompt=1)
    assert split_long_rows(rows, {"max_length": 3}, "forget", False).to_list() == rows.to_list()


def test_rows_are_not_split_without_a_limit():
    pieces = split_long_rows(tokenized(list(range(500))), {"max_length": None}, "forget", True)["input_ids"]
    assert pieces == [list(range(500))]


def test_row_that_must_not_be_split_is_refused():
    with pytest.raises(ValueError, match=r"retain_dataset\[1\] has 4 tokens, more than max_length=3"):
        split_long_rows(tokenized([1, 2, 3], [4, 5, 6, 7], prompt=1), {"max_length": 3}, "retain", False)


def test_row_of_which_nothing_counts_is_refused():
    with pytest.raises(ValueError, match=r"forget_dataset\[1\] has no answer: no token of it counts"):
        split_long_rows(tokenized([1, 2, 3], [4, 5], prompt=2), {}, "forget", False)


def test_row_of_which_only_the_first_token_counts_is_refused():
    rows = Dataset.from_list([{"input_ids": [4, 5], "labels": [4, IGNORED]}])
    with pytest.raises(ValueError, match=r"forget_dataset\[0\] has no answer: no token of it counts"):
        split_long_rows(rows, {}, "forget", False)


def test_row_of_one_token_is_refused():
    with pytest.raises(ValueError, match=r"forget_dataset\[0\] has no answer: no token of it counts"):
        split_long_rows(tokenized([4]), {"max_length": 8}, "forget", True)


# check_disjoint


def test_row_in_both_sets_is_refused():
    forget, retain = tokenized([1, 2], [3, 4]), tokenized([5, 6], [7, 8], [3, 4])
    with pytest.raises(ValueError, match=r"retain_dataset\[2\] is also forget_dataset\[1\]"):
        check_disjoint(forget, retain)


def test_rows_with_the_same_beginning_are_different_rows():
    assert check_disjoint(tokenized([1, 2, 3]), tokenized([1, 2], [1, 2, 3, 4])) is None


def test_row_twice_in_one_set_is_allowed():
    assert check_disjoint(tokenized([1, 2], [1, 2]), tokenized([3, 4], [3, 4])) is None


def test_the_models_context_limits_documents_too():
    limits = {"max_length": 1024, "the model's context": 4}
    pieces = split_long_rows(tokenized(list(range(10))), limits, "forget", True)["input_ids"]
    assert pieces == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(ValueError, match=r"has 6 tokens, more than the model's context=4\. Shorten the row"):
        split_long_rows(tokenized(list(range(6)), prompt=1), limits, "forget", False)
