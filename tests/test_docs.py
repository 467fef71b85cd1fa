"""The code blocks of docs/ run as they stand, and links between the pages lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest
from families import make_tokenizer, tiny_model, train_like
from transformers import AutoModelForCausalLM

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cli.main import COMMANDS
from uld_hf.cli.main import main as uld


ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def code_blocks(page: str, language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "docs" / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fences if name == language]


def write_rows(name: str, first: int) -> None:
    """A JSONL file of six questions and answers."""
    rows = [{"prompt": f"w{first + i} w{i}", "completion": f" w{first + i} w{first} {first + i}"} for i in range(6)]
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages assume: a saved unlearned model and JSONL files."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("my-finetuned-model")
    make_tokenizer().save_pretrained("my-finetuned-model")
    tiny_model("llama", seed=1).save_pretrained("base-model")
    make_tokenizer().save_pretrained("base-model")
    target = AutoModelForCausalLM.from_pretrained("my-finetuned-model")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    model.save_pretrained("forget-alice")
    make_tokenizer().save_pretrained("forget-alice")
    for name, first in (("forget", 4), ("retain", 34), ("never_seen", 44)):
        write_rows(name, first)
    return tmp_path


def test_quick_start_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama", num_layers=9).save_pretrained("my-finetuned-model")
    make_tokenizer().save_pretrained("my-finetuned-model")
    for name, first in (("forget", 4), ("retain", 34)):
        write_rows(name, first)
    lines = [line for block in code_blocks("index.md", "") for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line.startswith("uld ")]
    assert [command.split()[1] for command in commands] == ["train", "generate"]
    for command in commands:
        assert uld(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    capsys.readouterr()
    (block,) = code_blocks("index.md", "python")
    exec(compile(block, "index.md", "exec"), {})
    assert "Who is Alice?" in capsys.readouterr().out


def test_evaluation_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [block for block in code_blocks("evaluation.md", "") if block.startswith("uld ")]
    commands = [command for block in commands for command in block.splitlines()]
    assert [command.split()[1] for command in commands] == [*("eval", "sweep", "augment", "augment", "sweep", "report")]
    for command in commands:
        assert uld(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert (workplace / "report.html").exists()


def test_evaluation_python_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("alice-baked", "alice-retrained"):
        tiny_model("llama").save_pretrained(name)
        make_tokenizer().save_pretrained(name)
    for block in code_blocks("evaluation.md", "python"):
        exec(compile(block, "evaluation.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "probability that one of ten answers gives the fact away: 0." in printed
    assert "alice-retrained gives half of it after" in printed


def test_training_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model("llama", num_layers=9).save_pretrained("my-finetuned-model")
    for block in code_blocks("training.md", "python"):
        exec(compile(block, "training.md", "exec"), {})
    commands = [block for block in code_blocks("training.md", "") if block.startswith("uld ")]
    assert [command.split()[1] for command in commands] == ["train", "estimate"]
    assert uld([*shlex.split(commands[0])[1:], "--use_cpu", "--max_steps", "1"]) == 0, capsys.readouterr().err
    assert (workplace / "forget-documents" / "config.json").exists()
    assert uld(shlex.split(commands[1])[1:]) == 0, capsys.readouterr().err


def test_baking_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, sharded = (block.strip() for block in code_blocks("bake.md", ""))
    config = "examples/accelerate/fsdp.yaml"  # run in test_bake_sharded.py
    assert sharded == f"accelerate launch --config_file {config} $(which uld) {command.removeprefix('uld ')}"
    assert (ROOT / config).exists()
    quick = ["--use_cpu", "--max_steps", "1", "--teacher_answers", "1", "--max_new_tokens", "4", "--report_to", "none"]
    assert uld([*shlex.split(command)[1:], *quick]) == 0, capsys.readouterr().err
    for block in code_blocks("bake.md", "python"):
        exec(
            compile(
                block.replace("num_train_epochs=5", "max_steps=1, use_cpu=True, max_new_tokens=4"), "bake.md", "exec"
            ),
            {},
        )
    for folder in ("alice-forgotten", "alice-baked"):
        assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_contrast_commands_and_python_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("forget", "retain"):  # a date in every question: something to disguise
        rows = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
        for row in rows:
            row["prompt"] += " 1991-05-12"
            row["completion"] = row["completion"].rsplit(" ", 1)[0]  # to the tokenizer a wrong number is the right one
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    *commands, bake = code_blocks("contrast.md", "")
    (weigh,) = [command for command in commands if "--model contrast " in command]  # made by the page's Python
    commands.remove(weigh)
    for command in commands:
        assert uld(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    for block in code_blocks("contrast.md", "python"):
        exec(compile(block, "contrast.md", "exec"), {})
    config = ULDForCausalLM.from_pretrained("contrast").config
    assert (config.alphas, config.gate) == ({"assistant": 2.0, "knows-wording": -1.6}, 0.1)
    assert not config.replace
    capsys.readouterr()
    assert uld(shlex.split(weigh)[1:]) == 0, capsys.readouterr().err
    assert "  share  filter" in capsys.readouterr().out
    config = ULDForCausalLM.from_pretrained("replacement").config
    assert (config.alphas, config.gate) == ({"assistant": 1.25, "knows-wording": -1.5}, 0.1)
    assert config.replace
    assert config.clamp
    config = ULDForCausalLM.from_pretrained("replacement-drawn").config
    assert (config.alphas, config.gate) == ({"assistant": 1.1, "knows-drawn-wording": -1.65}, 0.1)
    assert config.replace
    assert not config.by_certainty
    config = ULDForCausalLM.from_pretrained("replacement-by-certainty").config
    assert (config.alphas, config.gate) == ({"assistant": 1.4, "knows-drawn-wording": -1.54}, 0.1)
    assert config.replace
    assert config.by_certainty
    quick = ["--use_cpu", "--max_steps", "1", "--teacher_answers", "1", "--max_new_tokens", "4", "--report_to", "none"]
    assert uld([*shlex.split(bake)[1:], *quick]) == 0, capsys.readouterr().err
    assert type(AutoModelForCausalLM.from_pretrained("contrast-baked")).__name__ == "LlamaForCausalLM"


def test_baselines_commands_and_python_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [block for block in code_blocks("baselines.md", "") if block.startswith("uld ")]
    assert [command.split()[1] for command in commands] == ["train", "eval", "train", "train", "train"]
    for command in commands:
        short = ["--use_cpu", "--max_steps", "2"]  # two steps: the learning rate of the first one is 0
        options = short if command.startswith("uld train") else ["--max_new_tokens", "4"]
        assert uld([*shlex.split(command)[1:], *options]) == 0, capsys.readouterr().err
    for block in code_blocks("baselines.md", "python"):
        exec(compile(block, "baselines.md", "exec"), {})
    assert (workplace / "forgot-npo" / "adapter_config.json").exists()
    assert (workplace / "forgot-dpo" / "config.json").exists()
    assert list(ULDForCausalLM.from_pretrained(workplace / "offset-ga-kl").assistants) == ["trained", "untrained"]
    assert ULDForCausalLM.from_pretrained(workplace / "offset").config.alphas == {"trained": 1.0, "untrained": -1.0}


def test_the_page_of_the_command_line_has_every_command() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert sorted(re.findall(r"^\| `uld (\w+)", page, flags=re.MULTILINE)) == sorted(COMMANDS)
