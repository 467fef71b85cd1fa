"""A training that is killed, at any moment, ends as if it had not been: this file is also the script that is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, concatenate_datasets
from families import make_tokenizer, tiny_model
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from uld_hf import ULDConfig, ULDTrainer
from uld_hf.cli.main import main as uld
from uld_hf.training.checkpoints import (
    TRAINED_ON,
    find_last_checkpoint,
    fingerprint_training,
    is_whole,
    resolve_checkpoint,
)


def make_trainer(
    output_dir: Path,
    forget: str | None = None,
    retain: str | None = None,
    lora_r: int = 4,
    lora_alpha: int = 8,
    target: Any = None,
    target_seed: int = 0,
    **changes,
) -> ULDTrainer:
    """A trainer of 8 forget and 16 retain rows; of the last of each the prompt may be another one."""
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{i + 2} w{i}"} for i in range(24)]
    for index, prompt in ((7, forget), (23, retain)):
        rows[index]["prompt"] = prompt or rows[index]["prompt"]
    settings = {
        "num_assistant_layers": 2, "max_steps": 12, "save_steps": 2, "per_device_train_batch_size": 4,
        "learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return ULDTrainer(
        model=tiny_model("llama", seed=target_seed) if target is None else target,
        args=ULDConfig(str(output_dir), **(settings | changes)),
        forget_dataset=Dataset.from_list(rows[:8]),
        retain_dataset=Dataset.from_list(rows[8:]),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=lora_r, lora_alpha=lora_alpha, target_modules="all-linear"),
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


def test_half_a_checkpoint_over_an_older_one_is_not_whole(tmp_path, monkeypatch):
    make_trainer(tmp_path, max_steps=4).train()
    again = make_trainer(tmp_path, max_steps=4, seed=1)

    def killed(output_dir: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(KeyboardInterrupt):
        again.train()
    assert not is_whole(tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").exists()  # of the older training


def test_a_training_that_started_over_is_not_resumed_from_the_earlier_one(tmp_path):
    make_trainer(tmp_path, max_steps=8).train()
    again = make_trainer(tmp_path, max_steps=8, seed=1)
    again.add_callback(StopAtStepSix())
    again.train()
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    assert is_whole(tmp_path / "checkpoint-2")
    assert json.loads((tmp_path / "checkpoint-8" / "earlier_trainer_state.json").read_text())["global_step"] == 8


def test_a_training_that_started_over_keeps_its_own_checkpoint_where_few_are_kept(tmp_path):
    make_trainer(tmp_path, max_steps=6).train()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        os.utime(checkpoint, (1e9, 1e9))
    make_trainer(tmp_path, max_steps=2, save_total_limit=1).train()
    assert [checkpoint.name for checkpoint in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_checkpoint_is_whole_only_after_every_process_has_written(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, max_steps=2)
    waited = []

    def wait() -> None:
        folder = tmp_path / "checkpoint-2"
        if (folder / "rng_state.pth").exists():
            waited.append((folder / "trainer_state.json").exists())

    monkeypatch.setattr(trainer.accelerator, "wait_for_everyone", wait)
    trainer.train()
    assert waited[0] is False
    assert is_whole(tmp_path / "checkpoint-2")


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for two checkpoints and a half."""
    make_trainer(tmp_path / "probe", max_steps=2).train()
    files = [path for path in (tmp_path / "probe" / "checkpoint-2").rglob("*") if path.is_file()]
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)  # in whole pages, as they are kept
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size * 5 // 2}", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, small_disk):
    with pytest.raises(OSError, match=r"is full \(\d+ bytes are left\): the checkpoint of step 6 could not be written"):
        make_trainer(small_disk / "out").train()
    kept = find_last_checkpoint(small_disk / "out")
    assert kept == str(small_disk / "out" / "checkpoint-4")
    shutil.copytree(kept, tmp_path / "larger" / "checkpoint-4")
    resumed, whole = make_trainer(tmp_path / "larger"), make_trainer(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    weights = [
        {name: value for name, value in trainer.model.named_parameters() if "lora_" in name}
        for trainer in (resumed, whole)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_a_full_disk_is_one_line_in_the_shell(small_disk, capsys):
    tiny_model("llama").save_pretrained(small_disk.parent / "target")
    make_tokenizer().save_pretrained(small_disk.parent / "target")
    for name, first in (("forget", 0), ("retain", 20)):
        rows = [{"prompt": f"w{first + i}", "completion": f" w{i}"} for i in range(8)]
        (small_disk.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = {
        "model": small_disk.parent / "target", "forget_dataset": small_disk.parent / "forget.jsonl",
        "retain_dataset": small_disk.parent / "retain.jsonl", "output_dir": small_disk / "out",
        "num_assistant_layers": 2, "max_steps": 12, "save_steps": 2, "report_to": "none",
    }  # fmt: skip
    options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    assert uld(["train", *options, "--use_cpu"]) == 1
    assert "uld train: The disk of " in capsys.readouterr().err  # after the progress bar


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


# --- a checkpoint of another training ---


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"forget": "w9 w8 w7"}, "forget rows"),
        ({"retain": "w9 w8 w7"}, "retain rows"),
        ({"num_assistant_layers": 1}, "trained parameters"),
        ({"lora_r": 3}, "trained parameters"),
        ({"lora_alpha": 64}, "trained parameters"),
        ({"target_seed": 1}, "target"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, change, differs):
    make_trainer(tmp_path, max_steps=2).train()
    with pytest.raises(ValueError, match=rf"checkpoint-2 is of a training with other {differs}: .* leave out"):
        make_trainer(tmp_path, max_steps=4, **change).train(resume_from_checkpoint=True)


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path):
    make_trainer(tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / TRAINED_ON).unlink()
    with pytest.raises(ValueError, match=r"does not say what it was trained on: trained_on\.json is not there"):
        make_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=True)


def test_a_checkpoint_that_does_not_say_of_which_target_it_is_is_refused(tmp_path):
    make_trainer(tmp_path, max_steps=2).train()
    file = tmp_path / "checkpoint-2" / TRAINED_ON
    file.write_text(json.dumps({name: each for name, each in json.loads(file.read_text()).items() if name != "target"}))
    with pytest.raises(ValueError, match="does not say which target it was trained on: an earlier version wrote it"):
        make_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=True)


def test_a_target_that_is_loaded_whole_or_in_part_is_one_target(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "target")
    make_trainer(tmp_path, max_steps=2).train()
    resumed = make_trainer(tmp_path, max_steps=4, target=str(tmp_path / "target"))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def test_a_checkpoint_of_the_model_alone_is_refused_as_such(tmp_path):
    make_trainer(tmp_path, max_steps=2, save_only_model=True).train()
    with pytest.raises(ValueError, match="a model without what a training goes on from, as save_only_model=True"):
        make_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=True)


def test_the_order_in_which_rows_are_stored_is_not_what_they_hold():
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4]}, {"input_ids": [5, 6]}]
    whole, parts = Dataset.from_list(rows), concatenate_datasets([Dataset.from_list([row]) for row in rows])
    chosen = Dataset.from_list([*rows, {"input_ids": [7]}]).select(range(3))
    target = {"config": "a", "layers": "b", "rest": "c"}

    def fingerprint(rows: Dataset) -> str:
        return fingerprint_training(nn.Linear(1, 1), {"forget": rows}, target)["forget rows"]

    found = [fingerprint(each) for each in (whole, parts, chosen)]
    assert found == [found[0]] * 3
    split = Dataset.from_list([{"input_ids": [1, 2]}, {"input_ids": [3, 4]}, {"input_ids": [5, 6]}])
    assert fingerprint(split) != found[0]


def test_a_training_that_is_at_its_end_says_that_nothing_was_trained(tmp_path, transformers_log, caplog):
    for checkpoint in (False, True):
        make_trainer(tmp_path, max_steps=-1, num_train_epochs=1).train(resume_from_checkpoint=checkpoint)
        assert ("Nothing was trained" in caplog.text) == checkpoint
