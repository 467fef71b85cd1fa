"""Rows one after another in a sequence are what they are one by one."""

import pytest
import torch
from all_families import ALL_FAMILIES, any_model
from families import tiny_model
from transformers import PreTrainedModel

from uld_hf.training.collator import DataCollatorForULD
from uld_hf.training.padding_free import (
    BY_ROW,
    attention_by_row,
    attention_set_to,
    keeps_rows_apart,
    takes_rows_without_padding,
)


# Attention without this interface (ALiBi, sinks), layers that do not pass on where rows begin, or linear attention,
# which needs kernels for that.
PADDED = ("bloom", "falcon", "gpt_oss", "stablelm", "qwen3_5_text")


def make_rows(lengths: tuple[int, ...]) -> list[dict]:
    """Rows of different tokens."""
    return [
        {"input_ids": [(7 * i + 3 * j) % 60 + 3 for j in range(n)], "labels": [1] * n, "is_retain": False}
        for i, n in enumerate(lengths)
    ]


def flat_inputs(lengths: tuple[int, ...], multiple: int | None = None) -> dict:
    """What the collator makes of rows, as the model's own arguments."""
    batch = DataCollatorForULD(pad_token_id=0, padding_free=True, pad_to_multiple_of=multiple)(make_rows(lengths))
    return {name: value for name, value in batch.items() if name not in ("labels", "retain_mask")}


def one_by_one(model: PreTrainedModel, lengths: tuple[int, ...]) -> torch.Tensor:
    """Hidden states of each row by itself, one after another."""
    rows = [torch.tensor([row["input_ids"]]) for row in make_rows(lengths)]
    return torch.cat([model.base_model(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows])


# Of 20 tokens: longer than the sliding windows of 8.
@pytest.mark.parametrize("family", [name for name in ALL_FAMILIES if name not in PADDED])
@pytest.mark.parametrize("lengths", [(13, 4, 1, 20), (6,)], ids=str)
def test_rows_without_padding_are_what_they_are_one_by_one(family: str, lengths: tuple[int, ...]):
    # Kernels of some CPUs differ by more than the tolerance in float32; fused experts have no float64.
    model = any_model(family, num_layers=4).double()
    model.set_experts_implementation("eager")
    with torch.no_grad(), attention_by_row(model):
        actual = model.base_model(**flat_inputs(lengths), use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(actual, one_by_one(model, lengths), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_it_is_known_which_families_keep_rows_apart(family: str):
    assert keeps_rows_apart(any_model(family)) is (family not in PADDED)


def test_gradients_are_those_of_rows_one_by_one():
    model, lengths = tiny_model("gemma3").requires_grad_(True), (13, 4, 20)
    gradients = []
    for flat in (True, False):
        with attention_by_row(model):
            if flat:
                states = model.base_model(**flat_inputs(lengths), use_cache=False).last_hidden_state[0]
        if not flat:
            states = one_by_one(model, lengths)
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
        model.zero_grad()
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_tokens_that_pad_the_sequence_do_not_matter():
    model = tiny_model("llama")
    with torch.no_grad(), attention_by_row(model):
        actual = model.base_model(**flat_inputs((13, 4), multiple=16), use_cache=False).last_hidden_state[0]
    assert len(actual) == 32
    torch.testing.assert_close(actual[:17], one_by_one(model, (13, 4)), rtol=1e-5, atol=1e-5)


def test_attention_in_chunks_is_padded():
    model = tiny_model("llama")
    model.config.attention_chunk_size = 4
    assert not keeps_rows_apart(model)


@pytest.mark.parametrize("training", [False, True])
def test_the_check_leaves_the_model_as_it_was(training: bool):
    model = tiny_model("llama").train(training)
    keeps_rows_apart(model)
    assert model.training is training
    assert model.config._attn_implementation == "sdpa"


def test_attention_is_set_back_after_an_error():
    model = tiny_model("llama")

    def fail() -> None:
        with attention_by_row(model):
            assert model.config._attn_implementation == BY_ROW
            raise KeyError("an error")

    with pytest.raises(KeyError, match="an error"):
        fail()
    assert model.config._attn_implementation == "sdpa"


def test_attention_other_than_sdpa_stays():
    model = any_model("gemma2")
    with attention_by_row(model):
        assert model.config._attn_implementation == "eager"


def test_any_attention_can_be_set_for_a_while():
    model = tiny_model("llama")
    with attention_set_to("eager", model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("family", "asked", "expected"),
    [
        ("llama", None, True),
        ("llama", False, False),
        ("llama", True, True),
        ("gemma2", None, False),  # eager attention works on all tokens by all tokens
        ("gemma2", True, True),
        ("stablelm", None, False),
    ],
)
def test_default_is_what_the_attention_allows(family: str, asked: bool | None, expected: bool):
    assert takes_rows_without_padding(any_model(family), asked) is expected


def test_flash_attention_before_the_model_is_on_its_device_is_taken_at_the_users_word():
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"  # would raise if it ran here
    assert takes_rows_without_padding(model, None) is False
    assert takes_rows_without_padding(model, True) is True
