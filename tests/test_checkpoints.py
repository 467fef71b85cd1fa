"""A training that is killed, at any moment, ends as if it had not been: this file is also the script that is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from families import make_tokenizer, tiny_model
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from uld_hf import ULDConfig, ULDTrainer
from uld_hf.training.checkpoints import find_last_checkpoint, is_whole, resolve_checkpoint


def make_trainer(output_dir: Path, **changes) -> ULDTrainer:
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{i + 2} w{i}"} for i in range(24)]
    settings = {
        "num_assistant_layers": 2, "max_steps": 12, "save_steps": 2, "per_device_train_batch_size": 4,
        "learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return ULDTrainer(
        model=tiny_model("llama"),
        args=ULDConfig(str(output_dir), **(settings | changes)),
        forget_dataset=Dataset.from_list(rows[:8]),
        retain_dataset=Dataset.from_list(rows[8:]),
        processing_class=make_tokenizer(),
    )


class StopAtStepSix(TrainerCallback):
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 6


def make_checkpoint(folder: Path, step: int, state: str = '{"global_step": 1}') -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(state)
    return checkpoint


# --- which checkpoint ---


def test_the_last_whole_checkpoint_is_found_by_its_number(tmp_path):
    for step in (2, 10, 9):
        make_checkpoint(tmp_path, step)
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("state", [None, "", '{"global_st', "[]", "{}"], ids=str)
def test_half_a_checkpoint_is_passed_over(tmp_path, state):
    make_checkpoint(tmp_path, 2)
    half = make_checkpoint(tmp_path, 4, state or "")
    if state is None:
        (half / "trainer_state.json").unlink()
    assert not is_whole(half)
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_other_folders_are_no_checkpoints(tmp_path):
    make_checkpoint(tmp_path, 2)
    (tmp_path / "checkpoint-best").mkdir()
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("given", [None, False, "False"])
def test_nothing_is_resumed_unless_asked_for(tmp_path, given):
    make_checkpoint(tmp_path, 2)
    assert resolve_checkpoint(given, tmp_path) is None


def test_half_a_checkpoint_that_is_named_is_refused(tmp_path):
    half = make_checkpoint(tmp_path, 4, "")
    with pytest.raises(ValueError, match=r"checkpoint-4 is not a whole checkpoint: its trainer_state.json is absent"):
        resolve_checkpoint(str(half), tmp_path)


def test_resuming_where_there_is_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no whole checkpoint in"):
        resolve_checkpoint("true", tmp_path)


# --- a training that is cut off ---


def test_training_resumes_from_the_last_whole_checkpoint(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    cut = make_trainer(tmp_path / "cut")
    cut.add_callback(StopAtStepSix())
    cut.train()
    state = tmp_path / "cut" / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    (tmp_path / "cut" / "checkpoint-6" / "optimizer.pt").write_bytes(b"half of it")
    resumed = make_trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    for trainer, folder in ((whole, "whole"), (resumed, "cut")):
        trainer.save_model(str(tmp_path / folder / "end"))
    weights = [load_file(tmp_path / name / "end/assistant/adapter_model.safetensors") for name in ("whole", "cut")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path):
    def start(folder: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, __file__, str(folder)], stderr=subprocess.PIPE)

    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=300) == 0, whole.stderr.read().decode()[-2000:]
    # In the midst of writing a checkpoint's weights, of its optimizer, and between two of them.
    for seen in ("checkpoint-4", "checkpoint-6/assistant", "checkpoint-10/optimizer.pt"):
        process = start(tmp_path / "killed")
        deadline = time.monotonic() + 300
        while not (tmp_path / "killed" / seen).exists():
            assert process.poll() is None, process.stderr.read().decode()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "end").exists()
    last = start(tmp_path / "killed")
    assert last.wait(timeout=300) == 0, last.stderr.read().decode()[-2000:]
    weights = [load_file(tmp_path / name / "end/assistant/adapter_model.safetensors") for name in ("whole", "killed")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


if __name__ == "__main__":
    output_dir = Path(sys.argv[1])
    script_trainer = make_trainer(output_dir)
    script_trainer.train(resume_from_checkpoint=find_last_checkpoint(output_dir) is not None)
    script_trainer.save_model(str(output_dir / "end"))
