"""Trainings that stop when the time of a run is over and go on in the next one; their seconds and peak memory."""

import ctypes
import gc
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ledger import Deadline, OutOfTimeError
from presets import Preset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from uld_hf.training.checkpoints import find_last_checkpoint


@dataclass(frozen=True)
class Cost:
    """
    What a training took.

    Args:
        seconds (`float`):
            From loading the model to the end of `train()`, of all runs together.
        peak_memory (`int`):
            Bytes above what was allocated before it was loaded: of the GPU, or of the process where there is none.
        trained_parameters (`int`):
            Parameters with a gradient.
    """

    seconds: float
    peak_memory: int
    trained_parameters: int


class StopAtDeadline(TrainerCallback):
    """
    Saves a checkpoint and stops when the time is over.

    Args:
        deadline ([`Deadline`]):
            The time.
    """

    def __init__(self, deadline: Deadline):
        self.deadline = deadline

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """After every step."""
        if self.deadline.is_over() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


def common_options(preset: Preset, seed: int) -> dict[str, Any]:
    """What all trainings have in common."""
    gpu = torch.cuda.is_available()
    return {
        "seed": seed,
        "bf16": gpu or preset.mixed_precision,
        "use_cpu": not gpu,
        "gradient_checkpointing": None,
        "save_strategy": "no",  # but at the deadline
        "save_total_limit": 1,
        "logging_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
    }


def loading_options() -> dict[str, Any]:
    """How models are loaded: in float32, on the GPU if there is one."""
    return {"dtype": "float32", "device_map": "auto" if torch.accelerator.is_available() else None}


def train_within(build_trainer: Callable[[], Trainer], deadline: Deadline, notes: Path | None = None) -> Cost:
    """
    Train to the end, or as far as the time goes, and save the model.

    Args:
        build_trainer (`Callable[[], Trainer]`):
            Makes the trainer, and loads what it needs; its output folder holds the checkpoint of an earlier run, if
            there was one.
        deadline ([`Deadline`]):
            The time.
        notes (`Path`, *optional*):
            Folder for cost and log, where the trainer wants its own for itself. Defaults to the output folder.

    Returns:
        [`Cost`]: Of all runs together.

    Raises:
        OutOfTimeError: If the training is not finished.
    """
    before = _reset_peak()
    start = time.perf_counter()
    trainer = build_trainer()
    folder = Path(trainer.args.output_dir)
    notes = folder if notes is None else notes
    file = notes / "cost.json"
    # One that was cut off while it was written does not count.
    checkpoint = find_last_checkpoint(folder)
    earlier = Cost(**json.loads(file.read_text())) if checkpoint is not None and file.exists() else Cost(0.0, 0, 0)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StopAtDeadline(deadline))
    trainer.train(resume_from_checkpoint=checkpoint)
    cost = Cost(
        seconds=earlier.seconds + time.perf_counter() - start,
        peak_memory=max(earlier.peak_memory, _peak() - before),
        trained_parameters=sum(each.numel() for each in trainer.model.parameters() if each.requires_grad),
    )
    finished = trainer.state.global_step >= trainer.state.max_steps
    if finished:
        trainer.save_model()
    notes.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(cost)))
    if not finished:
        raise OutOfTimeError(str(folder))
    (notes / "log.json").write_text(json.dumps(trainer.state.log_history))
    for each in folder.glob("checkpoint-*"):
        shutil.rmtree(each)  # three times the model's size, with the optimizer's state
    return cost


def read_cost(folder: Path) -> dict[str, float]:
    """What a finished training took."""
    return json.loads((folder / "cost.json").read_text())


def is_trained(folder: Path) -> bool:
    """Whether a training was finished: the log is written last."""
    return (folder / "log.json").exists()


def _reset_peak() -> int:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # What earlier trainings have freed would be used again, and counted for nothing, if the allocator kept it.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    return _status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
