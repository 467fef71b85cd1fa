"""A loaded model goes to the trainer's device as a whole, before anything takes some of its tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model, train_like
from transformers import PreTrainedModel, TrainingArguments

from uld_hf import (
    OffsetConfig,
    OffsetTrainer,
    ULDBakeConfig,
    ULDBakeTrainer,
    ULDConfig,
    ULDForCausalLM,
    ULDTrainer,
    build_assistant,
)
from uld_hf.training.target import place_whole


ROWS = Dataset.from_list([{"prompt": "w1 w2", "completion": " w3"}])
OTHERS = Dataset.from_list([{"prompt": "w4 w5", "completion": " w6"}])


def devices(model: PreTrainedModel) -> set[str]:
    return {parameter.device.type for parameter in model.parameters()}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device than the models': this machine may have no second one that holds values."""
    monkeypatch.setattr(TrainingArguments, "device", torch.device("meta"))


def test_all_of_a_model_is_moved(tmp_path: Path, elsewhere: None):
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    place_whole(model, ULDConfig(str(tmp_path), use_cpu=True))
    assert devices(model) == devices(target) == {"meta"}


def test_a_model_that_was_spread_over_devices_stays(tmp_path: Path, elsewhere: None):
    target = tiny_model("llama")
    target.hf_device_map = {"": "cpu"}
    for model in (target, ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))):
        place_whole(model, ULDConfig(str(tmp_path), use_cpu=True))
        assert devices(model) == {"cpu"}


def test_who_wants_no_model_moved_gets_none_moved(tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingArguments, "place_model_on_device", False)
    target = tiny_model("llama")
    place_whole(target, ULDConfig(str(tmp_path), use_cpu=True))
    assert devices(target) == {"cpu"}


@pytest.mark.parametrize(
    ("trainer", "config"),
    [(ULDTrainer, ULDConfig), (OffsetTrainer, OffsetConfig), (ULDBakeTrainer, ULDBakeConfig)],
    ids=lambda each: each.__name__,
)
def test_trainers_move_what_they_are_given_before_they_share_its_tensors(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch, trainer: type, config: type
):
    class MovedError(Exception):
        """What comes next needs values, which the meta device has not."""

    given: list[PreTrainedModel] = []

    def place(model: PreTrainedModel, args: TrainingArguments) -> None:
        given.append(model)
        raise MovedError

    monkeypatch.setattr(f"{trainer.__module__}.place_whole", place)
    model: Any = tiny_model("llama")
    if trainer is ULDBakeTrainer:
        model = ULDForCausalLM(target=model, assistant=train_like(build_assistant(model, 2)))
    layers = {} if trainer is ULDBakeTrainer else {"num_assistant_layers": 2}
    args = config(str(tmp_path), use_cpu=True, report_to="none", **layers)
    with pytest.raises(MovedError):
        trainer(model, args, forget_dataset=ROWS, retain_dataset=OTHERS, processing_class=make_tokenizer())
    assert given == [model]
