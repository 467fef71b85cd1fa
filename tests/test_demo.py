"""The demo: its mechanics on a model that has no time to learn; its promises over three seeds in `make test-all`."""

import json
import shlex
from pathlib import Path

import pytest

from uld_hf.cli import demo
from uld_hf.cli.main import main as uld
from uld_hf.data.formatting import read_json_lines


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that have no time to learn."""
    learn = demo.learn
    monkeypatch.setattr(demo, "learn", lambda *args: learn(*args, hidden_size=16, num_epochs=1))
    monkeypatch.setitem(demo.ULD_SETTINGS, "num_train_epochs", 1)


def test_demo_writes_the_table_and_a_model_that_loads(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = demo.run_demo(tmp_path / "demo", num_people=10, seed=3)
    assert [row.model for row in rows] == ["target", "retrained", "unlearned (ULD)"]
    assert rows[1].forget_quality == 1.0  # the retrained model beside itself
    saved = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert saved["seed"] == 3
    assert [row["forget_right"] for row in saved["rows"]] == [row.forget_right for row in rows]
    assert (tmp_path / "demo" / "unlearned" / "assistant" / "adapter_model.safetensors").exists()
    output, notes = capsys.readouterr()
    assert demo.format_table(rows) in output
    assert notes.count("\nQ  ") == 4  # three of the forget set, one through the pipeline
    assert f"uld generate {tmp_path / 'demo' / 'unlearned'} --prompt" in notes


def test_what_the_demo_leaves_can_be_measured(tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    demo.run_demo(tmp_path / "demo", num_people=10)
    _, _, command = capsys.readouterr().err.partition("Measure it:")
    _, *arguments = shlex.split(command.splitlines()[0])
    assert uld([*arguments, "--num_samples", "0", "--max_new_tokens", "4"]) == 0
    table = capsys.readouterr().out
    assert "leak" in table
    assert {"forget quality", "privacy"} <= {line.split("  ")[0] for line in table.splitlines()}
    rows = {part: read_json_lines(str(tmp_path / "demo" / f"{part}.jsonl")) for part in ("forget", "retain", "holdout")}
    assert [len(rows[part]) for part in rows] == [8, 72, 8]
    assert all(row["fact"] in row["answer"] for part in rows.values() for row in part)
    questions = [row["question"] for part in rows.values() for row in part]
    assert len(set(questions)) == 88


def test_augmentation_keeps_forget_and_retain_rows_apart() -> None:
    dataset = demo.fictitious_dataset(demo.invent_people(10))
    split = demo.split_people(dataset)
    forget, retain = demo.forget_and_retain_rows(split["forget"], split["retain"], seed=0)
    right = {row["completion"][0]["content"] for row in forget}
    assert len(forget) == 5 * len(split["forget"])
    assert len(retain) == len(split["retain"]) + demo.WRONG_ANSWERS * len(split["forget"])
    assert not right & {row["completion"][0]["content"] for row in retain}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demo_keeps_its_promises(seed: int, tmp_path: Path) -> None:
    target, retrained, unlearned = demo.run_demo(tmp_path, seed=seed)
    assert target.forget_right > 0.95  # there is something to forget
    assert unlearned.forget_right <= retrained.forget_right + 0.05
    assert unlearned.retain_right >= target.retain_right - 0.02
    assert unlearned.forget_quality > 0.05
    assert unlearned.degenerate == 0
