"""Rows read from files, and question-answer rows as trl's prompt-completion rows."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from trl.data_utils import is_conversational

from uld_hf.data.fictitious import fictitious_dataset, invent_people
from uld_hf.data.formatting import PROMPT_TEMPLATE, question_answer_to_prompt_completion, read_json_lines


@pytest.fixture
def rows():
    return Dataset.from_list([{"question": "Who?", "answer": "Me."}, {"question": "Where?", "answer": "Here."}])


def test_plain_rows_are_a_prompt_and_a_completion(rows):
    assert list(question_answer_to_prompt_completion(rows)) == [
        {"prompt": "Question: Who?\nAnswer:", "completion": " Me."},
        {"prompt": "Question: Where?\nAnswer:", "completion": " Here."},
    ]


def test_template_is_the_prompt_of_plain_rows(rows):
    assert question_answer_to_prompt_completion(rows)[0]["prompt"] == PROMPT_TEMPLATE.format(question="Who?")


def test_conversational_rows_are_messages(rows):
    assert question_answer_to_prompt_completion(rows, conversational=True)[1] == {
        "prompt": [{"role": "user", "content": "Where?"}],
        "completion": [{"role": "assistant", "content": "Here."}],
    }


@pytest.mark.parametrize("conversational", [False, True])
def test_trl_sees_the_format_asked_for(rows, conversational):
    row = question_answer_to_prompt_completion(rows, conversational=conversational)[0]
    assert is_conversational(row) is conversational


@pytest.mark.parametrize("conversational", [False, True])
def test_other_columns_are_dropped(conversational):
    converted = question_answer_to_prompt_completion(fictitious_dataset(invent_people(1)), conversational)
    assert sorted(converted.column_names) == ["completion", "prompt"]


def test_columns_can_be_named(rows):
    renamed = rows.rename_columns({"question": "paraphrased_question", "answer": "paraphrased_answer"})
    converted = question_answer_to_prompt_completion(
        renamed, question_column="paraphrased_question", answer_column="paraphrased_answer"
    )
    assert list(converted) == list(question_answer_to_prompt_completion(rows))


def test_columns_may_already_be_named_prompt_and_completion(rows):
    renamed = rows.rename_columns({"question": "prompt", "answer": "completion"})
    converted = question_answer_to_prompt_completion(renamed, question_column="prompt", answer_column="completion")
    assert list(converted) == list(question_answer_to_prompt_completion(rows))


def test_braces_in_a_question_are_text():
    rows = Dataset.from_list([{"question": "What is {x}?", "answer": "A {set}."}])
    assert question_answer_to_prompt_completion(rows)[0] == {
        "prompt": "Question: What is {x}?\nAnswer:",
        "completion": " A {set}.",
    }


def test_missing_column_is_refused_with_those_there(rows):
    with pytest.raises(ValueError, match=r"no column \['reply'\]: it has \['question', 'answer'\]"):
        question_answer_to_prompt_completion(rows, answer_column="reply")


@pytest.mark.parametrize("text", [None, "", "  "])
@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_row_without_text_is_refused(column: str, text: str | None):
    rows = [{"question": "w1", "answer": "w2"}, {"question": "w3", "answer": "w4"} | {column: text}]
    with pytest.raises(ValueError, match=rf"dataset\[1\] has .* under '{column}', and no text"):
        question_answer_to_prompt_completion(Dataset.from_list(rows))


def test_a_file_without_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xa1\x00\xff")
    with pytest.raises(ValueError, match=f"{path} is no text in UTF-8"):
        read_json_lines(str(path))


def test_ends_of_lines_inside_of_a_text_are_no_ends_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"text": "one\u2028two\u0085three"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_json_lines(str(path)) == [row]
