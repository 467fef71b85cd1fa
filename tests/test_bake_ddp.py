"""Two processes bake the same student as one: this file is also the script that each of them runs."""

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model, train_like
from peft import LoraConfig
from processes import end_together
from transformers import AutoModelForCausalLM

from uld_hf import ULDBakeConfig, ULDBakeTrainer, ULDForCausalLM, build_assistant


LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
STUDENTS = {"all": None, "lora": LORA}
NUM_STEPS = 6
ROWS = [
    {"prompt": f"w{i} w{i + 1}", "completion": " " + " ".join(f"w{i + k}" for k in range(i % 4 + 1))} for i in range(24)
]
SETS = {"forget_dataset": Dataset.from_list(ROWS[:8]), "retain_dataset": Dataset.from_list(ROWS[8:])}
OPTIONS = {
    "teacher_answers": 1,
    "generation_temperature": 1e-4,  # no chance: answers are drawn in batches of a process's size
    "max_new_tokens": 6,
    "max_steps": NUM_STEPS,
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def make_trainer(output_dir: Path, student: str, batch_size: int) -> ULDBakeTrainer:
    """A trainer with four rows to a step of all processes."""
    target = tiny_model("llama")
    args = ULDBakeConfig(
        str(output_dir),
        per_device_train_batch_size=batch_size,
        optim="sgd",  # unlike Adam, it does not blow up the last digits of a gradient
        learning_rate=0.05,
        max_grad_norm=0.0,
        gradient_checkpointing=None,
        teacher_top_k=20,
        **OPTIONS,
    )
    return ULDBakeTrainer(
        ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2))),
        args,
        **SETS,
        processing_class=make_tokenizer(),
        peft_config=STUDENTS[student],
    )


def losses_of(trainer: ULDBakeTrainer) -> list[float]:
    """The losses of its steps."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main(folder: Path) -> None:
    """What each process does."""
    for student in STUDENTS:
        trainer = make_trainer(folder / student, student, batch_size=2)
        trainer.train()
        trainer.save_model()
        torch.save(losses_of(trainer), folder / f"{student}.losses")
    end_together()


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_two_processes_bake_what_one_bakes(left_by_two: Path, student: str, tmp_path: Path) -> None:
    alone = make_trainer(tmp_path / student, student, batch_size=4)
    alone.train()
    assert torch.load(left_by_two / f"{student}.losses") == pytest.approx(losses_of(alone), rel=1e-4)
    expected = dict(alone.baked_model().named_parameters())
    for name, parameter in AutoModelForCausalLM.from_pretrained(left_by_two / student).named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
