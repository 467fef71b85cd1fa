"""Relearning: it trains what finetuning trains, stops when enough is back, and leaves the model alone."""

from collections.abc import Iterator

import pytest
import torch
from datasets import Dataset
from families import tiny_model
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast
from trl import SFTTrainer

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.evaluation.relearning import relearn


ROWS = Dataset.from_list(
    [
        {"prompt": "w1 w2 w3", "completion": " w4 w5"},
        {"prompt": "w6 w7", "completion": " w8 w9 w10"},
    ]
)


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def never(model: PreTrainedModel) -> float:
    return 0.0


def test_steps_are_those_of_plain_finetuning_on_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    seen = []
    relearn(model, tokenizer, ROWS, lambda each: seen.append(weights(each)) or 0.0, 1.0, 1e-2, 2, 1, 3)

    plain = tiny_model("llama").train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    ids = torch.tensor([[5, 6, 7, 8, 9, 2, 0], [10, 11, 12, 13, 14, 2, 0]])
    labels = torch.tensor([[-100, -100, -100, 8, 9, 2, -100], [-100, -100, 12, 13, 14, 2, -100]])
    for step in range(4):
        expected = weights(plain)
        for name, value in seen[step].items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-4)
        plain(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_long_rows_are_taught_whole(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = []

    class Trainer(SFTTrainer):
        def train(self) -> None:
            taught.extend(map(len, self.train_dataset["input_ids"]))

    monkeypatch.setattr("uld_hf.evaluation.relearning.SFTTrainer", Trainer)
    long = " ".join(["w1"] * 1500)
    for rows in ([{"text": long}], [{"prompt": long, "completion": " w2"}]):
        relearn(tiny_model("llama"), tokenizer, Dataset.from_list(rows), never, 1.0)
    assert taught == [1501, 1502]


def test_the_model_is_not_changed(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    before = weights(model)
    assert not model.training
    relearn(model, tokenizer, ROWS, never, 1.0, 1e-2, max_steps=4)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def answers(values: list[float]) -> Iterator[float]:
    yield from values


@pytest.mark.parametrize(
    ("said", "steps", "tests"),
    [
        ([0.5], 0, 1),  # there from the beginning: nothing is trained
        ([0.1, 0.2, 0.5], 4, 3),
        ([0.1, 0.2, 0.3, 0.6], 5, 4),  # the last test is at the last step, wherever that is
        ([0.1, 0.2, 0.3, 0.4], None, 4),
    ],
)
def test_it_stops_when_enough_is_back(
    tokenizer: PreTrainedTokenizerFast, said: list[float], steps: int | None, tests: int
) -> None:
    left = answers(said)
    found = relearn(tiny_model("llama"), tokenizer, ROWS, lambda _: next(left), 0.5, test_every=2, max_steps=5)
    assert found.steps == steps
    assert found.remembered == said[:tests]


def test_it_is_asked_out_of_training_mode(tokenizer: PreTrainedTokenizerFast) -> None:
    modes = []
    relearn(tiny_model("llama"), tokenizer, ROWS, lambda each: modes.append(each.training) or 0.0, 1.0, max_steps=4)
    assert modes == [False, False]


def test_a_seed_gives_the_same_steps(tokenizer: PreTrainedTokenizerFast) -> None:
    def last(seed: int) -> torch.Tensor:
        seen = []
        options = {"rows_per_step": 1, "max_steps": 3, "seed": seed}
        relearn(tiny_model("llama"), tokenizer, rows, lambda each: seen.append(weights(each)) or 0.0, 1.0, **options)
        return seen[-1]["lm_head.weight"]

    rows = Dataset.from_list([{"prompt": f"w{i}", "completion": f" w{i + 1}"} for i in range(8)])
    assert torch.equal(last(1), last(1))
    assert not torch.equal(last(1), last(2))


def test_half_precision_is_trained_in_float32(tokenizer: PreTrainedTokenizerFast) -> None:
    types = set()
    model = tiny_model("llama").to(torch.bfloat16)
    relearn(model, tokenizer, ROWS, lambda each: types.add(each.dtype) or 0.0, 1.0, max_steps=1)
    assert types == {torch.float32}


def test_an_unlearned_model_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    target = tiny_model("llama")
    with pytest.raises(TypeError, match="bake it first"):
        relearn(ULDForCausalLM(target=target, assistant=build_assistant(target, 2)), tokenizer, ROWS, never, 1.0)


def test_a_quantized_model_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ValueError, match="quantized"):
        relearn(model, tokenizer, ROWS, never, 1.0)


@pytest.mark.parametrize("name", ["rows_per_step", "test_every", "max_steps"])
def test_numbers_below_one_are_refused(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        relearn(tiny_model("llama"), tokenizer, ROWS, never, 1.0, **{name: 0})


def test_no_rows_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="no rows"):
        relearn(tiny_model("llama"), tokenizer, ROWS.select([]), never, 1.0)
