"""Two processes train the same assistant as one: this file is also the script that each of them runs."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model
from processes import end_together
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from uld_hf import ULDConfig, ULDForCausalLM, ULDTrainer


# Rows per process and micro-batch, and micro-batches per step: 8 rows per step of the two processes. With one row per
# micro-batch, one process sees nothing but forget rows and the other nothing but retain rows.
LAYOUTS = {"4x1": (4, 1), "2x2": (2, 2), "1x4": (1, 4)}
NUM_STEPS = 9  # three epochs of 24 rows
INTERRUPTED_AT = 4  # in the second epoch


def make_rows(number: int, seed: int) -> Dataset:
    """Questions and answers of random words, of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def words(least: int, most: int) -> str:
        length = int(torch.randint(least, most + 1, (1,), generator=generator))
        return " ".join(f"w{int(token)}" for token in torch.randint(50, (length,), generator=generator))

    return Dataset.from_list([{"prompt": words(2, 6), "completion": f" {words(1, 8)}"} for _ in range(number)])


class Stop(TrainerCallback):
    """Saves a checkpoint at a step and stops there, as if interrupted."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = control.should_save = state.global_step == INTERRUPTED_AT


def make_trainer(
    output_dir: Path, batch_size: int, steps: int, padding_free: bool | None = None, **arguments: Any
) -> ULDTrainer:
    """A trainer of a 2-layer assistant of a tiny llama, with as many rows per step in every layout."""
    args = ULDConfig(
        str(output_dir),
        num_assistant_layers=2,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=steps,
        padding_free=padding_free,
        num_train_epochs=3,
        optim="sgd",  # unlike Adam, it does not blow up the last digits of a gradient
        learning_rate=0.1,
        warmup_steps=0,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return ULDTrainer(
        tiny_model("llama"),
        args,
        forget_dataset=make_rows(12, seed=0),
        retain_dataset=make_rows(30, seed=1),
        processing_class=make_tokenizer(),
        **arguments,
    )


@dataclass
class Run:
    """What is left of a training."""

    weights: dict[str, torch.Tensor]
    logs: list[dict[str, float]]

    @classmethod
    def of(cls, trainer: ULDTrainer) -> "Run":
        weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if "lora_" in name}
        return cls(weights, [entry for entry in trainer.state.log_history if "loss" in entry])

    def save(self, path: Path) -> None:
        torch.save(self.weights, path.with_suffix(".pt"))
        path.with_suffix(".json").write_text(json.dumps(self.logs))

    @classmethod
    def load(cls, path: Path) -> "Run":
        return cls(torch.load(path.with_suffix(".pt")), json.loads(path.with_suffix(".json").read_text()))


def main(folder: Path) -> None:
    """What each process does."""
    rank = os.environ["RANK"]
    for name, layout in LAYOUTS.items():
        trainer = make_trainer(folder / name, *layout)
        trainer.train()
        Run.of(trainer).save(folder / f"{name}-{rank}")
    trainer.save_model()
    make_trainer(folder / "resumed", 4, 1, callbacks=[Stop()]).train()
    trainer = make_trainer(folder / "resumed", 4, 1)
    trainer.train(resume_from_checkpoint=True)
    Run.of(trainer).save(folder / f"resumed-{rank}")
    end_together()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same training in one process, 8 rows at once."""
    trainer = make_trainer(tmp_path_factory.mktemp("alone"), 8, 1)
    trainer.train()
    return Run.of(trainer)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_end_with_the_weights_of_one(left_by_two: Path, alone: Run, layout: str):
    run = Run.load(left_by_two / f"{layout}-0")
    torch.testing.assert_close(run.weights, alone.weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_end_with_the_same_weights(left_by_two: Path, layout: str):
    first, second = (Run.load(left_by_two / f"{layout}-{rank}").weights for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_have_the_loss_of_one(left_by_two: Path, alone: Run, layout: str):
    losses = [entry["loss"] for entry in Run.load(left_by_two / f"{layout}-0").logs]
    assert losses == pytest.approx([entry["loss"] for entry in alone.logs], rel=1e-5)
    assert len(losses) == NUM_STEPS


@pytest.mark.parametrize("name", ["forget_loss", "forget_accuracy", "retain_kl", "num_tokens"])
def test_two_processes_log_what_one_logs(left_by_two: Path, alone: Run, name: str):
    values = [entry[name] for entry in Run.load(left_by_two / "4x1-0").logs]
    assert values == pytest.approx([entry[name] for entry in alone.logs], rel=1e-4, abs=1e-5)


def test_resumed_processes_end_with_the_weights_of_one(left_by_two: Path, alone: Run):
    run = Run.load(left_by_two / "resumed-0")
    torch.testing.assert_close(run.weights, alone.weights, rtol=1e-3, atol=1e-5)


def test_model_saved_by_two_processes_is_the_trained_one(left_by_two: Path):
    last = list(LAYOUTS)[-1]
    model = ULDForCausalLM.from_pretrained(left_by_two / last, target=tiny_model("llama"))
    saved = {name: value for name, value in model.assistant.named_parameters() if "lora_" in name}
    torch.testing.assert_close(saved, Run.load(left_by_two / f"{last}-0").weights, rtol=0, atol=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
