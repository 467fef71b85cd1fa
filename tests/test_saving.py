"""Several processes, a process that dies, and a full disk: what is loaded is whole, and of one save."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import tiny_model, train_like
from huggingface_hub import HfApi

from uld_hf import ULDForCausalLM, build_assistant, hub, publish, saved_files
from uld_hf.saved_files import DamagedFileError, write_together


IDS = torch.tensor([[1, 9, 12, 5, 33, 21, 8]])
TESTS = Path(__file__).parent

# One process: saves one of its assistants over and over, or loads what is there, and prints what it found.
WORKER = """
import json, sys, time, torch
from pathlib import Path
from families import tiny_model, train_like
from uld_hf import ULDForCausalLM, build_assistant
torch.set_num_threads(1)
role, folder, seed, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
target = tiny_model("llama", num_layers=2)
ids = torch.tensor([[1, 9, 12, 5, 33, 21, 8]])
model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 1), seed), alpha=0.5 + seed / 10)
print("ready", flush=True)
sys.stdin.readline()
end, found = time.monotonic() + seconds, {}
while time.monotonic() < end:
    if role == "save":
        model.save_pretrained(folder)
        found["saved"] = found.get("saved", 0) + 1
        continue
    try:
        with torch.no_grad():
            key = f"{ULDForCausalLM.from_pretrained(folder, target=target)(ids).logits.sum().item():.4f}"
    except (ValueError, OSError) as error:
        key = type(error).__name__
    found[key] = found.get(key, 0) + 1
print(json.dumps(found), flush=True)
"""


def start(role: str, folder: Path, seed: int = 0, seconds: float = 3.0) -> subprocess.Popen:
    paths = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", WORKER, role, str(folder), str(seed), str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def go(process: subprocess.Popen) -> None:
    assert process.stdout.readline() == "ready\n", process.stderr.read()[-2000:]
    process.stdin.write("\n")
    process.stdin.flush()


def compose(seed: int) -> ULDForCausalLM:
    target = tiny_model("llama", num_layers=2)
    assistant = train_like(build_assistant(target, 1), seed)
    return ULDForCausalLM(target=target, assistant=assistant, alpha=0.5 + seed / 10)


@torch.no_grad()
def logits(model: ULDForCausalLM) -> torch.Tensor:
    return model(IDS).logits


def load(folder: Path) -> ULDForCausalLM:
    return ULDForCausalLM.from_pretrained(folder, target=tiny_model("llama", num_layers=2))


@pytest.mark.slow
def test_processes_that_save_and_load_at_once_see_whole_models_only(tmp_path: Path):
    compose(1).save_pretrained(tmp_path)
    workers = [start("save", tmp_path, 1), start("save", tmp_path, 2), start("load", tmp_path)]
    for worker in workers:
        go(worker)
    found = []
    for worker in workers:
        output, errors = worker.communicate()
        assert worker.returncode == 0, errors[-2000:]
        found.append(json.loads(output))
    saves, loads = found[:2], found[2]
    assert all(save["saved"] > 5 for save in saves)
    whole = {f"{logits(compose(seed)).sum().item():.4f}" for seed in (1, 2)}
    # An error is allowed where two saves fell into one load; another model is not.
    assert set(loads) <= whole | {"DamagedFileError"}, loads
    assert sum(count for key, count in loads.items() if key in whole) > 5, loads
    assert f"{logits(load(tmp_path)).sum().item():.4f}" in whole


@pytest.mark.parametrize(
    "delay", [0.02, *(pytest.param(ms / 1000, marks=pytest.mark.slow) for ms in (0, 5, 10, 30, 50))]
)
def test_a_process_killed_while_saving_leaves_a_whole_model_or_an_error(tmp_path: Path, delay: float):
    compose(1).save_pretrained(tmp_path)
    worker = start("save", tmp_path, 2, seconds=60)
    go(worker)
    time.sleep(delay)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    with suppress(DamagedFileError):  # or a whole one
        assert any(torch.equal(logits(load(tmp_path)), logits(compose(seed))) for seed in (1, 2))
    compose(3).save_pretrained(tmp_path)  # nobody holds the lock any more, and what was left behind goes
    assert not list(tmp_path.glob(".saving-*"))
    assert torch.equal(logits(load(tmp_path)), logits(compose(3)))


@pytest.mark.parametrize("moves", range(6))
def test_a_save_cut_off_between_any_two_files_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int):
    compose(1).save_pretrained(tmp_path)
    replace, moved = os.replace, []

    def die_after(source: Path, destination: Path) -> None:
        if len(moved) == moves:
            raise KeyboardInterrupt
        moved.append(Path(destination).name)
        replace(source, destination)

    monkeypatch.setattr(saved_files.os, "replace", die_after)
    if moves < 5:
        with pytest.raises(KeyboardInterrupt):
            compose(2).save_pretrained(tmp_path)
    else:
        compose(2).save_pretrained(tmp_path)
    monkeypatch.undo()
    of_assistant = {"adapter_model.safetensors", "adapter_config.json"} & set(moved)
    if moves == 5:
        assert moved[-1] == "config.json"
        assert torch.equal(logits(load(tmp_path)), logits(compose(2)))
    elif "adapter_model.safetensors" in of_assistant:
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
            load(tmp_path)
    else:
        assert torch.equal(logits(load(tmp_path)), logits(compose(1)))


def test_a_full_disk_leaves_the_old_model_as_it_was(tmp_path: Path):
    compose(1).save_pretrained(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    model = compose(2)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails, as it does on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large|cannot be written"):
            model.save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert torch.equal(logits(load(tmp_path)), logits(compose(1)))


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path):
    def write(staging: Path) -> None:
        (staging / "one").write_text("1")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_together(tmp_path, write)
    assert [file.name for file in tmp_path.iterdir() if file.name != ".saving.lock"] == []


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    compose(1).save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "uld"


def compose_two() -> ULDForCausalLM:
    model = compose(1)
    model.add_assistant(train_like(build_assistant(model.target, 1), 2), name="bob")
    return model


def test_a_removed_assistant_is_deleted_by_the_next_save(tmp_path: Path):
    model = compose_two()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "bob" / "adapter_model.safetensors").exists()
    model.remove_assistant("bob")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "bob").exists()
    assert torch.equal(logits(load(tmp_path)), logits(compose(1)))


def test_what_else_is_in_the_folder_of_a_removed_assistant_is_left_alone(tmp_path: Path):
    compose_two().save_pretrained(tmp_path)
    (tmp_path / "bob" / "notes.txt").write_text("mine")
    compose(1).save_pretrained(tmp_path)
    assert [file.name for file in (tmp_path / "bob").iterdir()] == ["notes.txt"]


def test_a_config_that_names_other_files_deletes_none_of_them(tmp_path: Path):
    compose(1).save_pretrained(tmp_path / "saved")
    names = ["../adapter_config.json", "../out/adapter_config.json", "notes.txt", "linked/adapter_config.json"]
    names.append(str(tmp_path / "out" / "adapter_config.json"))
    (tmp_path / "out").mkdir()
    (tmp_path / "saved" / "linked").symlink_to(tmp_path / "out")
    files = [tmp_path / "saved" / name for name in names]
    for file in files:
        file.write_text("mine")
    config = tmp_path / "saved" / "config.json"
    content = json.loads(config.read_text())
    content["files"] |= {name: {"size": 4, "sha256": ""} for name in names}
    config.write_text(json.dumps(content))
    compose(2).save_pretrained(tmp_path / "saved")
    assert [file.read_text() for file in files] == ["mine"] * len(names)


def test_a_loader_waits_for_a_save_that_is_under_way(tmp_path: Path):
    # The new weights are there, the new config.json is not: the loader must wait for the lock and look again.
    compose(1).save_pretrained(tmp_path / "saved")
    compose(2).save_pretrained(tmp_path / "next")
    script = """
import os, sys, time
from pathlib import Path
from filelock import FileLock
old, new = Path(sys.argv[1]), Path(sys.argv[2])
with FileLock(old / ".saving.lock"):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        os.replace(new / "assistant" / name, old / "assistant" / name)
    print("half", flush=True)
    time.sleep(1)
    os.replace(new / "config.json", old / "config.json")
"""
    command = [sys.executable, "-c", script, str(tmp_path / "saved"), str(tmp_path / "next")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saver:
        assert saver.stdout.readline() == "half\n"
        assert torch.equal(logits(load(tmp_path / "saved")), logits(compose(2)))


def test_an_evaluation_is_recorded_of_the_model_that_was_saved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compose(1).save_pretrained(tmp_path)

    def save_first(folder: Path, write: Callable[[Path], None]) -> None:
        monkeypatch.undo()
        compose(2).save_pretrained(tmp_path)
        write_together(folder, write)

    monkeypatch.setattr(hub, "write_together", save_first)
    hub.record_evaluation(tmp_path, {"forget quality": 0.5})
    model = load(tmp_path)
    assert torch.equal(logits(model), logits(compose(2)))
    assert model.config.training["assistant"]["evaluation"] == {"forget quality": 0.5}


def test_a_model_in_float64_is_saved_and_loaded(tmp_path: Path):
    model = compose(1).double()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load(tmp_path)).double(), logits(model), rtol=1e-4, atol=1e-4)


def test_a_name_without_a_folder_of_its_own_is_refused():
    model = compose(1)
    with pytest.raises(ValueError, match="cannot be called 'default'"):
        model.add_assistant(train_like(build_assistant(model.target, 1), 2), name="default")


@pytest.mark.parametrize("run_as_future", [False, True])
def test_what_is_waited_for_is_uploaded_where_ctrl_c_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_as_future: bool
):
    """A pool's thread would go on, and publish, after the command has said that it was interrupted."""

    class Hub(HfApi):
        def create_repo(self, repo_id: str, **options: object) -> SimpleNamespace:
            return SimpleNamespace(repo_id=repo_id)

        def repo_info(self, repo_id: str, **options: object) -> SimpleNamespace:
            return SimpleNamespace(id=repo_id, private=True, siblings=[])

        def file_exists(self, *args: object, **options: object) -> bool:
            return True

        def hf_hub_download(self, *args: object, cache_dir: str, **options: object) -> str:
            damaged = Path(cache_dir, "config.json")  # as an upload that was cut off leaves it
            damaged.write_text('{"model_type": ')
            return str(damaged)

        def upload_folder(self, *, folder_path: str, **options: object) -> tuple[str, bool]:
            return folder_path, threading.current_thread() is threading.main_thread()

    monkeypatch.setattr(publish, "HfApi", Hub)
    compose(1).save_pretrained(tmp_path / "saved")
    pushed = publish.push_unlearned_model(tmp_path / "saved", "me/forget", run_as_future=run_as_future)
    folder, in_this_thread = pushed.result() if run_as_future else pushed
    assert in_this_thread is not run_as_future
    if not run_as_future:
        assert not Path(folder).exists()


def test_only_the_assistants_files_are_uploaded(tmp_path: Path):
    compose(1).save_pretrained(tmp_path / "saved")
    (tmp_path / "secret").write_text("mine")
    config = hub.load_config(tmp_path / "saved")
    config.files |= {"../secret": {"size": 4, "sha256": "0"}}
    config.save_pretrained(tmp_path / "saved")
    hub.sign_config(tmp_path / "saved")
    (tmp_path / "upload" / "staging").mkdir(parents=True)
    hub.copy_unlearned_model(tmp_path / "saved", tmp_path / "upload" / "staging")
    assert [file.name for file in (tmp_path / "upload").iterdir()] == ["staging"]
    load(tmp_path / "upload" / "staging")


CHANGES = {
    "nothing": lambda model: None,
    "alpha": lambda model: model.set_alpha("assistant", 2.0),
    "gate": lambda model: setattr(model.config, "gate", 0.1),
    "another assistant": lambda model: model.add_assistant(
        train_like(build_assistant(model.target, 2), seed=3), name="b"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_figures_are_kept_only_with_the_settings_that_they_were_measured_with(tmp_path: Path, change: str):
    compose(1).save_pretrained(tmp_path)
    hub.record_evaluation(tmp_path, {"forget quality": 0.5})
    model = load(tmp_path)
    CHANGES[change](model)
    model.save_pretrained(tmp_path / "again")
    training = load(tmp_path / "again").config.training["assistant"]
    kept = change == "nothing"
    assert ("evaluation" in training) == ("evaluated" in training) == kept
    assert ("forget quality" in (tmp_path / "again" / "README.md").read_text()) == kept


def test_a_folder_that_cannot_be_written_to_can_be_loaded(tmp_path: Path):
    compose(1).save_pretrained(tmp_path)
    (tmp_path / ".saving.lock").unlink(missing_ok=True)
    for path in (tmp_path / "assistant", tmp_path):
        path.chmod(0o555)
    try:
        assert torch.equal(logits(load(tmp_path)), logits(compose(1)))
    finally:
        for path in (tmp_path, tmp_path / "assistant"):
            path.chmod(0o755)


def test_an_assistant_that_was_never_trained_does_not_load(tmp_path: Path) -> None:
    target = tiny_model("llama")
    target.save_pretrained(tmp_path / "target")
    target.name_or_path = str(tmp_path / "target")
    ULDForCausalLM(target=target, assistant=build_assistant(target, 2)).save_pretrained(tmp_path / "unlearned")
    with pytest.raises(ValueError, match="were never trained"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=target)
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    for untrained in (tmp_path / "unlearned", build_assistant(target, 2)):
        with pytest.raises(ValueError, match="were never trained"):
            model.add_assistant(untrained, name="b", alpha=1.0)
    assert list(model.assistants) == ["assistant"]
