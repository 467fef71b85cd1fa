"""FSDP and DeepSpeed bake the same student as one process: this file is also the script that each process runs."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from families import make_tokenizer, tiny_model, train_like
from peft import LoraConfig
from processes import free_port, launch
from test_trainer_sharded import CONFIGS, Stop, call_cpu_an_accelerator
from transformers import AutoModelForCausalLM, TrainerCallback

from uld_hf import ULDBakeConfig, ULDBakeTrainer, ULDForCausalLM, build_assistant
from uld_hf.training import losses


WRAPPERS = {
    "fsdp": "FSDPLlamaForCausalLM",
    "deepspeed_zero2": "DeepSpeedEngine",
    "deepspeed_zero3": "DeepSpeedEngine",
}
STUDENTS = {
    "all": {},
    "noise": {"noise": 0.3},
    "on_policy": {"on_policy_fraction": 0.5},
    "lora": {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")},
}
NUM_STEPS = 6


def make_trainer(
    folder: Path,
    output_dir: str,
    batch_size: int,
    peft_config: LoraConfig | None = None,
    callbacks: list[TrainerCallback] | None = None,
    **arguments: Any,
) -> ULDBakeTrainer:
    """A trainer with four rows to a step of all processes."""
    rows = [
        {"prompt": f"w{i} w{i + 1}", "completion": " " + " ".join(f"w{i + k}" for k in range(i % 4 + 1))}
        for i in range(24)
    ]
    args = ULDBakeConfig(
        str(folder / output_dir),
        per_device_train_batch_size=batch_size,
        teacher_answers=1,
        generation_temperature=1e-4,  # no chance: answers are drawn in batches of a process's size
        max_new_tokens=6,
        max_steps=NUM_STEPS,
        learning_rate=1e-2,
        adam_epsilon=1e-3,  # or Adam would blow up the last digits of small gradients
        warmup_steps=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    return ULDBakeTrainer(
        str(folder / "teacher"),
        args,
        forget_dataset=Dataset.from_list(rows[:8]),
        retain_dataset=Dataset.from_list(rows[8:]),
        peft_config=peft_config,
        callbacks=callbacks,
    )


def main(folder: Path, name: str) -> None:
    """What each process does."""
    if name == "fsdp":
        call_cpu_an_accelerator()
    losses.CHUNK_SIZE = 2  # tokens per tile: not as many tiles in each process
    for student, settings in STUDENTS.items():
        trainer = make_trainer(folder, f"{name}-{student}", 2, **settings)
        trainer.train()
        trainer.save_model()
        if trainer.is_world_process_zero():
            logs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            torch.save(logs, folder / f"{name}-{student}.losses")
    make_trainer(folder, f"{name}-resumed", 2, callbacks=[Stop(NUM_STEPS // 2)]).train()
    rest = Stop(0)
    resumed = make_trainer(folder, f"{name}-resumed", 2, callbacks=[rest])
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model()
    (folder / f"{name}-how").write_text(f"{rest.num_steps} {type(resumed.model_wrapped).__name__}")
    torch.distributed.barrier()
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher on disk, and its target."""
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
    name = request.param
    if "deepspeed" in name and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed")
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | {"use_cpu": True, "mixed_precision": "no"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    config_file = ("--config_file", str(folder / f"{name}.yaml"))
    port = ("--main_process_port", str(free_port()))
    launch("accelerate.commands.launch", *config_file, *port, __file__, str(folder), name, DS_ACCELERATOR="cpu")
    return name


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_sharded_baking_is_that_of_one_process(folder: Path, name: str, student: str):
    alone = make_trainer(folder, f"alone-{name}-{student}", 4, **STUDENTS[student])
    alone.train()
    logs = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert torch.load(folder / f"{name}-{student}.losses") == pytest.approx(logs, rel=1e-3)
    saved = dict(AutoModelForCausalLM.from_pretrained(folder / f"{name}-{student}").named_parameters())
    torch.testing.assert_close(saved, dict(alone.baked_model().named_parameters()), rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_sharded_baking_goes_on_from_a_checkpoint(folder: Path, name: str):
    assert (folder / f"{name}-how").read_text() == f"{NUM_STEPS - NUM_STEPS // 2} {WRAPPERS[name]}"
    saved, expected = (AutoModelForCausalLM.from_pretrained(folder / f"{name}-{which}") for which in ("resumed", "all"))
    torch.testing.assert_close(dict(saved.named_parameters()), dict(expected.named_parameters()), rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
