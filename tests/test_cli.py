"""The `uld` command: train, generate, demo, help, and one line for a user's mistake."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from families import make_tokenizer, tiny_model

from uld_hf import ULDForCausalLM
from uld_hf.cli.generate import read_prompts
from uld_hf.cli.main import main as uld
from uld_hf.cli.train import load_rows


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    tiny_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    for path, first in zip(paths, (4, 34), strict=True):
        rows = [{"question": f"w{first + i} w{i}", "answer": f"w{first + i} w{first}"} for i in range(4)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.fixture
def train_arguments(target: Path, data: tuple[Path, Path], tmp_path: Path) -> list[str]:
    arguments = {
        "model": target,
        "forget_dataset": data[0],
        "retain_dataset": data[1],
        "output_dir": tmp_path / "unlearned",
        "num_assistant_layers": 2,
        "max_steps": 2,
        "lora_r": 4,
        "alpha": 0.6,
        "report_to": "none",
    }
    return ["train", "--use_cpu", *(part for name, value in arguments.items() for part in (f"--{name}", str(value)))]


def test_train_saves_a_model_that_loads(train_arguments: list[str], tmp_path: Path) -> None:
    assert uld(train_arguments) == 0
    model = ULDForCausalLM.from_pretrained(tmp_path / "unlearned")
    assert model.config.alpha == 0.6
    assert model.config.num_assistant_layers == 2
    assert model.assistant.peft_config["assistant"].r == 4


def test_train_reads_a_yaml_file_and_flags_win(train_arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("alpha: 0.3\nlora_r: 2\n")
    arguments = [part for part in train_arguments if part not in ("--lora_r", "4")]
    assert uld([*arguments, "--config", str(config)]) == 0
    model = ULDForCausalLM.from_pretrained(tmp_path / "unlearned")
    assert model.config.alpha == 0.6
    assert model.assistant.peft_config["assistant"].r == 2


def test_generate_shows_both_answers(
    train_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uld(train_arguments)
    answers = tmp_path / "answers.jsonl"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w5 w6\n\nw7 w8\n")
    # fmt: off
    assert uld([
        "generate", "--model", str(tmp_path / "unlearned"), "--prompts_file", str(prompts), "--output", str(answers),
        "--max_new_tokens", "5",
    ]) == 0
    # fmt: on
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["w5 w6", "w7 w8"]
    assert all(set(row) == {"prompt", "target", "unlearned"} for row in rows)
    shown = capsys.readouterr().out
    assert all(row["target"] in shown and row["unlearned"] in shown for row in rows)


def test_generate_needs_exactly_one_source_of_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    assert uld(["generate", "--model", "nowhere"]) == 2
    assert "either --prompt or --prompts_file" in capsys.readouterr().err


def test_missing_file_is_one_line_without_traceback(
    train_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part if not part.endswith("forget.jsonl") else "nowhere.jsonl" for part in train_arguments]
    assert uld(arguments) == 2
    error = capsys.readouterr().err
    assert "There is no file 'nowhere.jsonl'" in error
    assert "Traceback" not in error


def test_too_many_layers_fails_before_anything_is_written(
    train_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uld([*train_arguments, "--num_assistant_layers", "9"]) == 2
    assert "the target has 4" in capsys.readouterr().err
    assert not (tmp_path / "unlearned").exists()


def test_help_of_train_shows_what_matters_and_help_all_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        uld(["train", "--help"])
    short = capsys.readouterr().out
    assert "--retain_weight" in short
    assert "(default: 6.5)" in short
    assert "--deepspeed" not in short
    with pytest.raises(SystemExit, match="0"):
        uld(["train", "--help-all"])
    assert "--deepspeed" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert uld(arguments) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("demo", "train", "generate"))


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert uld(["unlearn"]) == 2
    assert "unknown command 'unlearn'" in capsys.readouterr().err


def test_question_answer_rows_become_chat_for_a_target_with_a_chat_template(data: tuple[Path, Path]) -> None:
    plain = load_rows(str(data[0]), conversational=False)
    chat = load_rows(str(data[0]), conversational=True)
    assert isinstance(plain, Dataset)
    assert plain[0] == {"prompt": "Question: w4 w0\nAnswer:", "completion": " w4 w4"}
    assert chat[0]["prompt"] == [{"role": "user", "content": "w4 w0"}]


def test_prompts_from_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    assert read_prompts(str(path)) == ["a", "b"]
    path.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"Line 1 of .* has no text under 'prompt' or 'question'"):
        read_prompts(str(path))


def test_empty_prompts_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts(str(path))
