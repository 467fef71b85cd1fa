"""Configurations that divide weights among processes: what is seen of them, and refused, before anything is loaded.

What they train is tested in test_trainer_sharded.py and test_bake_sharded.py.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from datasets import Dataset
from families import make_tokenizer, tiny_model, train_like
from peft import LoraConfig
from torch import nn

from uld_hf import (
    ULDBakeConfig,
    ULDBakeTrainer,
    ULDConfig,
    ULDForCausalLM,
    ULDTrainer,
    UnlearnConfig,
    UnlearnTrainer,
    build_assistant,
)
from uld_hf.bake.student import build_student
from uld_hf.training.sharding import check_whole_weights, is_sharded


ROWS = Dataset.from_list([{"prompt": "w1 w2", "completion": " w3"}])
OTHERS = Dataset.from_list([{"prompt": "w4 w5", "completion": " w6"}])


def arguments(folder: Path, kind: type = ULDBakeConfig) -> ULDBakeConfig | ULDConfig:
    """A configuration for this machine."""
    return kind(str(folder), use_cpu=True, report_to="none", disable_tqdm=True)


@pytest.fixture
def teacher() -> ULDForCausalLM:
    """An unlearned model."""
    target = tiny_model("llama")
    return ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))


@pytest.fixture
def launched_with_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch` says to a process."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")


def test_a_plain_training_is_not_sharded(tmp_path: Path):
    assert not is_sharded(arguments(tmp_path))


def test_accelerates_fsdp_is_seen(tmp_path: Path, launched_with_fsdp: None):
    assert is_sharded(arguments(tmp_path))


def test_weights_in_the_first_process_only_are_refused(
    tmp_path: Path, launched_with_fsdp: None, monkeypatch: pytest.MonkeyPatch
):
    check_whole_weights(arguments(tmp_path))
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading=true would give all processes but the first"):
        ULDTrainer("nowhere", arguments(tmp_path, ULDConfig), forget_dataset=ROWS, retain_dataset=OTHERS)
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading=true would give all processes but the first"):
        ULDBakeTrainer("nowhere", arguments(tmp_path), forget_dataset=ROWS, retain_dataset=OTHERS)


def test_rivals_are_not_sharded(tmp_path: Path, launched_with_fsdp: None):
    with pytest.raises(ValueError, match="UnlearnTrainer does not train with FSDP or DeepSpeed"):
        UnlearnTrainer("nowhere", arguments(tmp_path, UnlearnConfig), forget_dataset=ROWS, retain_dataset=OTHERS)


def test_that_setting_means_nothing_without_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    check_whole_weights(arguments(tmp_path))


def test_a_teacher_that_zero_3_has_taken_apart_is_refused(tmp_path: Path, teacher: ULDForCausalLM):
    next(teacher.target.parameters()).ds_id = 0  # as DeepSpeed numbers what it divides
    with pytest.raises(NotImplementedError, match="give the name of the unlearned model in its place"):
        ULDBakeTrainer(teacher, arguments(tmp_path), forget_dataset=ROWS, retain_dataset=OTHERS)


def make_trainer(folder: Path, teacher: ULDForCausalLM) -> ULDBakeTrainer:
    """A trainer in one process."""
    rows = {"forget_dataset": ROWS, "retain_dataset": OTHERS}
    return ULDBakeTrainer(teacher, arguments(folder), **rows, processing_class=make_tokenizer())


def test_fsdp_of_version_1_is_refused(tmp_path: Path, teacher: ULDForCausalLM):
    trainer = make_trainer(tmp_path, teacher)
    trainer.is_fsdp_enabled = True  # which transformers has set to what accelerate says
    with pytest.raises(ValueError, match="use fsdp_version: 2"):
        trainer._check_sharding(trainer.model)


def check_zero_3(trainer: ULDBakeTrainer, gathers: bool | str | None, of_accelerate: bool = False) -> None:
    """Let a trainer look at a configuration of ZeRO-3."""
    trainer.is_deepspeed_enabled = True
    config = {"stage": 3, **({} if gathers is None else {"stage3_gather_16bit_weights_on_model_save": gathers})}
    trainer.accelerator.state = SimpleNamespace(
        deepspeed_plugin=SimpleNamespace(
            zero_stage=3,
            zero3_save_16bit_model=of_accelerate,
            hf_ds_config=HfDeepSpeedConfig({"zero_optimization": config}),
        )
    )
    trainer._check_sharding(trainer.model)


@pytest.mark.parametrize(("gathers", "of_accelerate"), [(True, False), ("auto", True)])
def test_zero_3_that_can_save_is_accepted(
    tmp_path: Path, teacher: ULDForCausalLM, gathers: bool | str, of_accelerate: bool
):
    check_zero_3(make_trainer(tmp_path, teacher), gathers, of_accelerate)


@pytest.mark.parametrize(("gathers", "of_accelerate"), [(False, True), ("auto", False), (None, False)])
def test_zero_3_that_could_not_save_is_refused(
    tmp_path: Path, teacher: ULDForCausalLM, gathers: bool | str | None, of_accelerate: bool
):
    with pytest.raises(ValueError, match="zero3_save_16bit_model: true"):
        check_zero_3(make_trainer(tmp_path, teacher), gathers, of_accelerate)


def test_zero_3_with_parts_in_the_head_is_refused(tmp_path: Path, teacher: ULDForCausalLM):
    trainer = make_trainer(tmp_path, teacher)
    trainer.model.lm_head.add_module("lora_A", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Leave the head out"):
        check_zero_3(trainer, True)


def test_a_student_that_shares_nothing_leaves_the_teacher_its_tensors(teacher: ULDForCausalLM):
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    owned = {parameter.data_ptr() for parameter in teacher.target.parameters()}
    shared = build_student(teacher, None, lora, noise=0.0, seed=0)
    apart = build_student(teacher, None, lora, noise=0.0, seed=0, share=False)
    assert owned <= {parameter.data_ptr() for parameter in shared.parameters()}
    assert owned.isdisjoint(parameter.data_ptr() for parameter in apart.parameters())
    torch.testing.assert_close(dict(shared.named_parameters()), dict(apart.named_parameters()))
