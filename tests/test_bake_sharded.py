"""FSDP and DeepSpeed bake the same student as one process: this file is also the script that each process runs."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_tokenizer, tiny_model, train_like
from peft import LoraConfig
from processes import end_together
from test_bake_ddp import LORA, NUM_STEPS, OPTIONS, SETS, losses_of
from test_trainer_sharded import Stop, call_cpu_an_accelerator, launch_sharded
from transformers import AutoModelForCausalLM, TrainerCallback

from uld_hf import ULDBakeConfig, ULDBakeTrainer, ULDForCausalLM, build_assistant
from uld_hf.training import losses


WRAPPERS = {
    "fsdp": "FSDPLlamaForCausalLM",
    "deepspeed_zero2": "DeepSpeedEngine",
    "deepspeed_zero3": "DeepSpeedEngine",
}
HALF = {"bf16": True, "max_steps": 1}
STUDENTS = {
    "all": {},
    "noise": {"noise": 0.3},
    "on_policy": {"on_policy_fraction": 0.5},
    "top_k": {"teacher_top_k": 20},
    "lora": {"peft_config": LORA},
}
RESUMED = ("all", "lora")


def make_trainer(
    folder: Path,
    output_dir: str,
    batch_size: int,
    peft_config: LoraConfig | None = None,
    callbacks: list[TrainerCallback] | None = None,
    **arguments: Any,
) -> ULDBakeTrainer:
    """A trainer with four rows to a step of all processes."""
    args = ULDBakeConfig(
        str(folder / output_dir),
        per_device_train_batch_size=batch_size,
        learning_rate=1e-2,
        adam_epsilon=1e-3,  # or Adam would blow up the last digits of small gradients
        **{**OPTIONS, **arguments},
    )
    return ULDBakeTrainer(
        str(folder / "teacher"),
        args,
        **SETS,
        peft_config=peft_config,
        callbacks=callbacks,
    )


def bake(folder: Path, output_dir: str, batch_size: int, **settings: Any) -> ULDBakeTrainer:
    """A trainer that has trained."""
    trainer = make_trainer(folder, output_dir, batch_size, **settings)
    trainer.train()
    return trainer


def main(folder: Path, name: str, mixed_precision: str) -> None:
    """What each process does."""
    if name == "fsdp":
        call_cpu_an_accelerator()
    losses.CHUNK_SIZE = 2  # tokens per tile: not as many tiles in each process
    if mixed_precision == "bf16":
        for student in ("all", "top_k"):
            bake(folder, f"{name}-{student}-half", 2, **STUDENTS[student], **HALF).save_model()
    else:
        bake_all(folder, name)
    end_together()


def bake_all(folder: Path, name: str) -> None:
    """Every kind of student, some of them in two goes, and what is refused."""
    for student, settings in STUDENTS.items():
        trainer = bake(folder, f"{name}-{student}", 2, **settings)
        trainer.save_model()
        if trainer.is_world_process_zero():
            torch.save(losses_of(trainer), folder / f"{name}-{student}.losses")
    for student in RESUMED:
        output_dir, rest = f"{name}-{student}-resumed", Stop(0)
        bake(folder, output_dir, 2, callbacks=[Stop(NUM_STEPS // 2)], **STUDENTS[student])
        resumed = make_trainer(folder, output_dir, 2, callbacks=[rest], **STUDENTS[student])
        resumed.train(resume_from_checkpoint=True)
        resumed.save_model()
        (folder / f"{output_dir}.how").write_text(f"{rest.num_steps} {type(resumed.model_wrapped).__name__}")
    with pytest.raises(ValueError, match="save_only_model=True would write checkpoints without the student"):
        make_trainer(folder, f"{name}-refused", 2, save_only_model=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher on disk, and its target, in float32."""
    path = tmp_path_factory.mktemp("sharded")
    tiny_model("llama").save_pretrained(path / "target")
    make_tokenizer().save_pretrained(path / "target")
    target = AutoModelForCausalLM.from_pretrained(path / "target")
    teacher = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    teacher.save_pretrained(path / "teacher")
    return path


@pytest.fixture(scope="module", params=WRAPPERS)
def name(request: pytest.FixtureRequest, folder: Path) -> str:
    """How two processes have baked."""
    launch_sharded(__file__, folder, request.param)
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_sharded_baking_is_that_of_one_process(folder: Path, name: str, student: str):
    alone = bake(folder, f"alone-{name}-{student}", 4, **STUDENTS[student])
    assert torch.load(folder / f"{name}-{student}.losses") == pytest.approx(losses_of(alone), rel=1e-3)
    saved = dict(AutoModelForCausalLM.from_pretrained(folder / f"{name}-{student}").named_parameters())
    torch.testing.assert_close(saved, dict(alone.baked_model().named_parameters()), rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("student", RESUMED)
def test_sharded_baking_goes_on_from_a_checkpoint(folder: Path, name: str, student: str):
    how = (folder / f"{name}-{student}-resumed.how").read_text()
    wrapper = WRAPPERS[name].replace("Llama", "PeftModel" if student == "lora" else "Llama")
    assert how == f"{NUM_STEPS - NUM_STEPS // 2} {wrapper}"
    saved, expected = (
        dict(AutoModelForCausalLM.from_pretrained(folder / f"{name}-{which}").named_parameters())
        for which in (f"{student}-resumed", student)
    )
    torch.testing.assert_close(saved, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_students_in_half_precision_learn_from_a_teacher_in_its_own(folder: Path, name: str):
    launch_sharded(__file__, folder, name, "bf16")
    start = dict(AutoModelForCausalLM.from_pretrained(folder / "target").named_parameters())
    for student in ("all", "top_k"):
        alone = bake(folder, f"alone-half-{name}-{student}", 4, **STUDENTS[student], max_steps=1)
        expected = dict(alone.baked_model().named_parameters())
        saved = dict(AutoModelForCausalLM.from_pretrained(folder / f"{name}-{student}-half").named_parameters())
        step = torch.cat([(expected[key] - start[key]).flatten() for key in start])
        error = torch.cat([(expected[key] - saved[key]).flatten() for key in start])
        assert error.norm() < 0.2 * step.norm()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
