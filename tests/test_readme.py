"""The README's code blocks run as they stand, on small models made on the spot."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from families import make_tokenizer, tiny_model

from uld_hf.cli.demo import EXPLANATION, DemoRow, format_table
from uld_hf.cli.main import main as uld


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    """Fenced blocks of a language; those without one are shell commands."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fences if name == language]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README assumes: my-finetuned-model, forget.jsonl, retain.jsonl."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama", num_layers=9).save_pretrained("my-finetuned-model")
    make_tokenizer().save_pretrained("my-finetuned-model")
    for name, first in (("forget", 4), ("retain", 34)):
        rows = [{"prompt": f"w{first + i} w{i}", "completion": f" w{first + i} w{first}"} for i in range(6)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_python_blocks_run_in_order(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = code_blocks("python")
    assert len(blocks) == 3
    namespace: dict[str, object] = {}
    for block in blocks:
        if "forget-bob" in block:  # a second request, trained like the first
            shutil.copytree("forget-alice", "forget-bob")
        exec(compile(block, "README.md", "exec"), namespace)
    assert "Who is Alice?" in capsys.readouterr().out  # the pipeline prints prompt and continuation
    assert namespace["output"].shape[1] > namespace["inputs"]["input_ids"].shape[1]


def test_shell_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in code_blocks("") for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line.startswith("uld ")]
    assert [command.split()[1] for command in commands] == ["train", "generate"]
    for command in commands:
        assert uld(shlex.split(command)[1:]) == 0
    output = capsys.readouterr().out
    assert "target " in output
    assert "unlearned " in output


def test_commands_are_targets_of_the_makefile() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_shown_demo_output_has_the_form_of_the_real_one() -> None:
    shown = README.split("<!-- demo output: begin -->")[1].split("<!-- demo output: end -->")[0]
    header = format_table([DemoRow("target", 1.0, 1.0, 1.0, 1.0, 1.0, 0, 1.0, 1)]).splitlines()[:2]
    for line in header:
        assert line.rstrip() in shown
    for line in EXPLANATION.strip().splitlines():
        assert line in shown
    assert re.search(r"^target +\d+%", shown, flags=re.MULTILINE)
