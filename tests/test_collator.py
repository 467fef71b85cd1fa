"""Batches of forget and retain rows, tensor by tensor."""

from typing import Any

import pytest
import torch

from uld_hf.training.collator import DataCollatorForULD


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """A forget row with a prompt, and a shorter retain row."""
    return [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "is_retain": False},
        {"input_ids": [8, 9], "labels": [8, 9], "is_retain": True},
    ]


def assert_batch(batch: dict[str, Any], **expected: list) -> None:
    """A batch has these tensors, exactly, among others."""
    assert {name: batch[name].tolist() for name in expected} == expected


def test_rows_are_padded(rows: list[dict[str, Any]]):
    batch = DataCollatorForULD(pad_token_id=3)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "retain_mask"}
    assert_batch(
        batch,
        input_ids=[[5, 6, 7], [8, 9, 3]],
        attention_mask=[[1, 1, 1], [1, 1, 0]],
        labels=[[-100, 6, 7], [8, 9, -100]],
        retain_mask=[[False, False, False], [True, True, False]],
    )


def test_rows_are_padded_to_a_multiple(rows: list[dict[str, Any]]):
    assert_batch(
        DataCollatorForULD(pad_token_id=3, pad_to_multiple_of=4)(rows),
        input_ids=[[5, 6, 7, 3], [8, 9, 3, 3]],
        attention_mask=[[1, 1, 1, 0], [1, 1, 0, 0]],
        labels=[[-100, 6, 7, -100], [8, 9, -100, -100]],
        retain_mask=[[False, False, False, False], [True, True, False, False]],
    )


def test_rows_are_flattened(rows: list[dict[str, Any]]):
    batch = DataCollatorForULD(pad_token_id=3, padding_free=True)(rows)
    assert "attention_mask" not in batch
    assert_batch(
        batch,
        input_ids=[[5, 6, 7, 8, 9]],
        position_ids=[[0, 1, 2, 0, 1]],
        labels=[[-100, 6, 7, -100, 9]],  # the first token of a row is not predicted from the row before
        retain_mask=[[False, False, False, True, True]],
    )


def test_rows_are_flattened_to_a_multiple(rows: list[dict[str, Any]]):
    assert_batch(
        DataCollatorForULD(pad_token_id=3, padding_free=True, pad_to_multiple_of=4)(rows),
        input_ids=[[5, 6, 7, 8, 9, 3, 3, 3]],
        labels=[[-100, 6, 7, -100, 9, -100, -100, -100]],
        retain_mask=[[False, False, False, True, True, False, False, False]],
    )


def test_mask_is_boolean(rows: list[dict[str, Any]]):
    assert DataCollatorForULD(pad_token_id=3)(rows)["retain_mask"].dtype == torch.bool


@pytest.mark.parametrize("padding_free", [False, True])
def test_mask_has_the_shape_of_the_labels(rows: list[dict[str, Any]], padding_free: bool):
    batch = DataCollatorForULD(pad_token_id=3, padding_free=padding_free, pad_to_multiple_of=8)(rows)
    assert batch["retain_mask"].shape == batch["labels"].shape


def test_rows_of_one_set_are_a_batch(rows: list[dict[str, Any]]):
    assert_batch(
        DataCollatorForULD(pad_token_id=3)([rows[1], rows[1]]),
        input_ids=[[8, 9], [8, 9]],
        retain_mask=[[True, True], [True, True]],
    )
