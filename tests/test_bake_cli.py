"""`uld bake` from the shell: a plain model in a folder, and one line for a user's mistake."""

import json
import sys
from pathlib import Path

import pytest
import torch
from families import make_tokenizer, tiny_model, train_like
from processes import free_port, launch
from transformers import AutoModelForCausalLM

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cli.main import main as uld


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A command that bakes a tiny unlearned model in two steps."""
    tiny_model("llama").save_pretrained(tmp_path / "target")
    make_tokenizer().save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    teacher = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    teacher.save_pretrained(tmp_path / "unlearned")
    for name, first in (("forget", 4), ("retain", 34), ("general", 44)):
        rows = [{"question": f"w{first + i} w{i}", "answer": f"w{first + i} w{first}"} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "model": tmp_path / "unlearned",
        "forget_dataset": tmp_path / "forget.jsonl",
        "retain_dataset": tmp_path / "retain.jsonl",
        "general_dataset": tmp_path / "general.jsonl",
        "output": tmp_path / "baked",
        "max_steps": 2,
        "max_new_tokens": 4,
        "report_to": "none",
    }
    return ["bake", "--use_cpu", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


@pytest.mark.parametrize("more", [[], ["--use_peft", "--lora_r", "4"]], ids=["all weights", "LoRA"])
def test_a_plain_model_is_written(arguments: list[str], tmp_path: Path, more: list[str]) -> None:
    assert uld([*arguments, *more]) == 0
    baked = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    assert type(baked).__name__ == "LlamaForCausalLM"
    assert (tmp_path / "baked" / "tokenizer.json").exists()
    assert not (tmp_path / "baked" / "adapter_config.json").exists()


@pytest.mark.slow
def test_two_processes_bake_together(arguments: list[str], tmp_path: Path) -> None:
    port = f"--master_port={free_port()}"
    program = str(Path(sys.executable).with_name("uld"))
    launch("torch.distributed.run", "--nproc_per_node=2", port, program, *arguments)
    AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    assert "| rows per step | 16 |" in (tmp_path / "baked" / "README.md").read_text()


def test_trl_has_nothing_to_ignore(arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert uld(arguments) == 0
    assert "model_init_kwargs" not in caplog.text


def test_the_teacher_is_loaded_in_the_type_it_was_saved_in(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AutoModelForCausalLM.from_pretrained(tmp_path / "target").bfloat16().save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    teacher = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    teacher.save_pretrained(tmp_path / "unlearned")
    trainers = []
    monkeypatch.setattr("uld_hf.cli.bake.train_until_done", lambda trainer, command: trainers.append(trainer))
    monkeypatch.setattr("uld_hf.cli.bake.ULDBakeTrainer.save_model", lambda trainer: None)
    assert uld(arguments) == 0
    assert trainers[0].teacher.target.dtype == torch.bfloat16


def test_the_bytes_of_the_teachers_top_tokens_are_stated(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    assert uld([*arguments, "--teacher_top_k", "5", "--teacher_cache_dir", str(cache)]) == 0
    size = sum(file.stat().st_size for file in (cache / "top-k").iterdir())
    assert f"The teacher's top 5 took {size:,} bytes in {cache}" in capsys.readouterr().out


def test_a_plain_model_is_no_teacher(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments[arguments.index("--model") + 1] = str(tmp_path / "target")
    assert uld(arguments) == 2
    assert "is not an unlearned model" in capsys.readouterr().err


def test_a_folder_that_is_not_empty_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uld(arguments) == 0
    arguments[arguments.index("--forget_dataset") + 1] = "nowhere.jsonl"  # before anything is read
    assert uld(arguments) == 2
    assert "is not empty" in capsys.readouterr().err


def test_output_dir_beside_output_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uld([*arguments, "--output_dir", str(tmp_path / "elsewhere")]) == 2
    assert "give --output only" in capsys.readouterr().err
