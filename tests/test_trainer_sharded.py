"""FSDP and DeepSpeed train the same assistant as one process: this file is also the script that each process runs.

accelerate takes FSDP on accelerators only; the script tells it that two processes on a CPU are one. DeepSpeed is tested
where it is installed (it builds its communication with a compiler on first use).
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType
from families import make_tokenizer, tiny_model
from processes import end_together, free_port, launch
from test_trainer_ddp import INTERRUPTED_AT, Run, make_rows
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from uld_hf import ULDConfig, ULDForCausalLM, ULDTrainer
from uld_hf.training import losses


CONFIGS = Path(__file__).parents[1] / "examples" / "accelerate"
WRAPPERS = {
    "fsdp": "FSDPPeftModelForCausalLM",
    "deepspeed_zero2": "DeepSpeedEngine",
    "deepspeed_zero3": "DeepSpeedEngine",
}


class Stop(TrainerCallback):
    """Saves a checkpoint at a step and stops there, as if interrupted; counts the steps."""

    def __init__(self, step: int) -> None:
        self.step, self.num_steps = step, 0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.num_steps += 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = control.should_save = True


def make_trainer(
    output_dir: Path, target: str, batch_size: int, callbacks: list[TrainerCallback] | None = None
) -> ULDTrainer:
    """A trainer of a 2-layer assistant of a tiny llama."""
    args = ULDConfig(
        str(output_dir),
        num_assistant_layers=2,
        per_device_train_batch_size=batch_size,
        num_train_epochs=3,
        learning_rate=1e-2,
        adam_epsilon=1e-3,  # or Adam would blow up the last digits of small gradients
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return ULDTrainer(
        target,
        args,
        forget_dataset=make_rows(12, seed=0),
        retain_dataset=make_rows(30, seed=1),
        processing_class=make_tokenizer(),
        callbacks=callbacks,
    )


def call_cpu_an_accelerator() -> None:
    """Let accelerate shard models over processes without a GPU."""
    initialize = PartialState.__init__

    def patched(self: PartialState, *args: object, **kwargs: object) -> None:
        initialize(self, *args, **kwargs)
        if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = patched


def launch_sharded(script: str, folder: Path, name: str, mixed_precision: str = "no") -> None:
    """Run a script in two processes with one of the examples' configurations; it is told folder, name and precision."""
    if "deepspeed" in name and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed")
    changes = {"use_cpu": True, "mixed_precision": mixed_precision}
    file = folder / f"{name}-{mixed_precision}.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | changes))
    options = ("--config_file", str(file), "--main_process_port", str(free_port()))
    arguments = (str(folder), name, mixed_precision)
    launch("accelerate.commands.launch", *options, script, *arguments, DS_ACCELERATOR="cpu")


def main(folder: Path, name: str) -> None:
    """What each process does."""
    if name == "fsdp":
        call_cpu_an_accelerator()
    losses.CHUNK_SIZE = 2  # tokens per tile: not as many tiles in each process
    trainer = make_trainer(folder / name, str(folder / "target"), 4)
    trainer.train()
    trainer.save_model()
    Run({}, [entry for entry in trainer.state.log_history if "loss" in entry]).save(
        folder / f"{name}-{os.environ['RANK']}"
    )
    (folder / f"{name}-wrapper").write_text(type(trainer.model_wrapped).__name__)
    resumed = folder / f"{name}-resumed"
    make_trainer(resumed, str(folder / "target"), 4, [Stop(INTERRUPTED_AT)]).train()
    rest = Stop(0)
    trainer = make_trainer(resumed, str(folder / "target"), 4, [rest])
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    (folder / f"{name}-steps").write_text(f"{rest.num_steps} of {trainer.state.global_step}")
    end_together()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target on disk."""
    path = tmp_path_factory.mktemp("sharded")
    tiny_model("llama").save_pretrained(path / "target")
    make_tokenizer().save_pretrained(path / "target")
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> ULDTrainer:
    """The same training in one process, 8 rows at once."""
    trainer = make_trainer(folder / "alone", str(folder / "target"), 8)
    trainer.train()
    return trainer


def lora_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """LoRA's tensors by name."""
    return {name: value for name, value in model.named_parameters() if "lora_" in name}


def saved_lora(folder: Path) -> dict[str, torch.Tensor]:
    """LoRA's tensors of a saved assistant."""
    return lora_of(ULDForCausalLM.from_pretrained(folder, target=tiny_model("llama")).assistant)


@pytest.mark.parametrize("name", ["ddp", *WRAPPERS])
def test_configurations_are_accelerates(name: str):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert config["distributed_type"] in {kind.value for kind in DistributedType}
    assert config["num_processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_sharded_training_is_that_of_one_process(folder: Path, alone: ULDTrainer, name: str):
    launch_sharded(__file__, folder, name)
    assert (folder / f"{name}-wrapper").read_text() == WRAPPERS[name]
    logs = [entry for entry in alone.state.log_history if "loss" in entry]
    for field in ("loss", "forget_loss", "retain_kl"):
        values = [entry[field] for entry in Run.load(folder / f"{name}-0").logs]
        assert values == pytest.approx([entry[field] for entry in logs], rel=1e-3), field
    torch.testing.assert_close(saved_lora(folder / name), lora_of(alone.model), rtol=1e-2, atol=1e-4)
    assert (folder / f"{name}-steps").read_text() == "5 of 9"
    torch.testing.assert_close(saved_lora(folder / f"{name}-resumed"), saved_lora(folder / name), rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
