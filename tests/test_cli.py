"""The `uld` command: train, generate, demo, help, and one line for a user's mistake."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model, train_like
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from uld_hf import ULDForCausalLM, ULDTrainer, build_assistant
from uld_hf.cli.demo import commands_to_go_on
from uld_hf.cli.generate import Prompt, after_system, read_prompts
from uld_hf.cli.loading import load_tokenizer
from uld_hf.cli.main import main as uld
from uld_hf.cli.parsing import check_model_path
from uld_hf.cli.rows import check_is_json_lines
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
    assert uld(["generate", str(tmp_path / "unlearned"), "--prompt", "w5", "--output", str(prompts)]) == 2
    assert f"{prompts} is there already" in capsys.readouterr().err
    assert prompts.read_text() == "w5 w6\n\nw7 w8\n"
    assert uld(["generate", str(tmp_path / "unlearned"), "--prompt", "w5", "--system", "w1"]) == 2
    assert "no chat template to render a system message" in capsys.readouterr().err


def test_generate_takes_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def load(model: str, **settings: object) -> None:
        given.update(settings)
        raise OSError("far enough")

    monkeypatch.setattr("uld_hf.cli.loading.ULDForCausalLM.from_pretrained", load)
    assert uld(["generate", str(tmp_path), "--prompt", "a", "--gate", "0.15", "--alpha", "2"]) != 0
    assert (given["gate"], given["alpha"]) == (0.15, 2.0)


def test_generate_needs_exactly_one_source_of_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    assert uld(["generate", "--model", "nowhere"]) == 2
    assert "one of --prompt, --question and --prompts_file" in capsys.readouterr().err


def test_missing_file_is_one_line_without_traceback(
    train_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part if not part.endswith("forget.jsonl") else "nowhere.jsonl" for part in train_arguments]
    assert uld(arguments) == 2
    error = capsys.readouterr().err
    assert "There is no file 'nowhere.jsonl'" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("source", ["flag", "yaml"])
def test_misspelt_option_gets_a_suggestion(
    train_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    (tmp_path / "config.yaml").write_text("clmap: true\n")
    extra = {"flag": ["--clmap", "true"], "yaml": ["--config", str(tmp_path / "config.yaml")]}[source]
    assert uld([*train_arguments, *extra]) == 2
    assert "Unknown option --clmap (did you mean --clamp?)" in capsys.readouterr().err


def test_broken_yaml_is_one_line(
    train_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("alpha: [1\n")
    assert uld([*train_arguments, "--config", str(tmp_path / "config.yaml")]) == 2
    assert "The file of --config is not YAML" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "generate"])
def test_missing_model_is_named(train_arguments: list[str], capsys: pytest.CaptureFixture[str], command: str) -> None:
    arguments = {
        "train": [*train_arguments, "--model", "nowhere"],
        "generate": ["generate", "--model", "nowhere", "--prompt", "a"],
    }
    assert uld(arguments[command]) == 2
    assert "There is no folder 'nowhere' here, and the Hub could not be reached" in capsys.readouterr().err


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_model_that_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    asked = []
    monkeypatch.setattr("uld_hf.cli.parsing.file_exists", lambda *args, **kwargs: asked.append((args, kwargs)))
    with pytest.raises(ValueError, match="There is no folder 'fm' here, and no such model on the Hub"):
        check_model_path("fm", revision)
    files = ("config.json", "adapter_config.json")
    assert asked == [(("fm", file), {"revision": revision}) for file in files]


def test_an_adapter_on_the_hub_is_a_model_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uld_hf.cli.parsing.file_exists", lambda name, file, revision: file == "adapter_config.json")
    check_model_path("org/forgot-npo")  # does not raise


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(
        ValueError, match=r"no folder '\.\./models/fm' here, and no model on the Hub can be called that"
    ):
        check_model_path("../models/fm")


def test_without_a_network_the_hub_is_asked_once(tmp_path: Path) -> None:
    # A new process: whether there is a hub is read when huggingface_hub is imported. Nothing listens on port 9.
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", "import sys; from uld_hf.cli.main import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "generate", "fm", "--prompt", "a"], capture_output=True, text=True, env={**os.environ, **hub}
    )
    assert done.returncode == 2
    expected = "uld generate: There is no folder 'fm' here, and the Hub could not be reached"
    assert done.stderr.startswith(expected)
    assert len(done.stderr.splitlines()) == 1


def test_a_trained_assistant_is_not_overwritten(train_arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert uld(train_arguments) == 0
    assert uld(train_arguments) == 2
    assert "holds a model already" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["uld", "npo"])
def test_an_adapter_is_no_target(
    target: Path, data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    adapter = tmp_path / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(target), LoraConfig()).save_pretrained(adapter)
    rows = ["--forget_dataset", str(data[0]), "--retain_dataset", str(data[1])]
    output = ["--output_dir", str(tmp_path / "unlearned")]
    assert uld(["train", "--use_cpu", "--method", method, "--model", str(adapter), *rows, *output]) == 2
    assert "is an adapter, not a model: merge it into its base first" in capsys.readouterr().err


def test_the_target_in_place_of_the_unlearned_model_is_refused(
    target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uld(["generate", "--model", str(target), "--prompt", "w5"]) == 2
    assert "is not an unlearned model, its config.json is of type 'llama'" in capsys.readouterr().err


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


def test_a_misspelt_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert uld(["trian"]) == 2
    assert capsys.readouterr().err == "uld: unknown command 'trian' (did you mean train?). See uld --help.\n"


def test_question_answer_rows_become_chat_for_a_target_with_a_chat_template(data: tuple[Path, Path]) -> None:
    plain = load_rows(str(data[0]), conversational=False)
    chat = load_rows(str(data[0]), conversational=True)
    assert isinstance(plain, Dataset)
    assert plain[0] == {"prompt": "Question: w4 w0\nAnswer:", "completion": " w4 w4"}
    assert chat[0]["prompt"] == [{"role": "user", "content": "w4 w0"}]


def test_prompts_from_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    assert read_prompts(str(path), conversational=True) == [Prompt("a"), Prompt("b")]
    assert read_prompts(str(path), conversational=False) == [Prompt("a"), Prompt("Question: b\nAnswer:")]
    path.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"Row 1 of .* has no text under 'prompt' or 'question'"):
        read_prompts(str(path), conversational=True)


def test_training_rows_of_messages_are_prompts_without_their_answers(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]
    answer = [{"role": "assistant", "content": "w3"}]
    options = {"chat_template_kwargs": {"thinking": False}}
    path = tmp_path / "rows.jsonl"
    for row in ({"messages": asked + answer}, {"messages": asked}, {"prompt": asked, "completion": answer}):
        path.write_text(json.dumps(row | options) + "\n")
        (prompt,) = read_prompts(str(path), conversational=True)
        assert prompt == Prompt(asked, {"thinking": False})
        assert prompt.text == "w2"
        with pytest.raises(ValueError, match="no chat template"):
            read_prompts(str(path), conversational=False)
    path.write_text('{"messages": [{"role": "user", "contents": "w2"}]}\n')
    with pytest.raises(ValueError, match=r"Row 1 of .* needs a text under 'content'"):
        read_prompts(str(path), conversational=True)


@pytest.mark.parametrize(
    "row", [{"messages": ["w1"]}, {"prompt": ["w1"]}, {"messages": "w1"}, {"messages": [{"content": "w1"}]}], ids=str
)
def test_what_are_no_messages_is_refused_by_row(tmp_path: Path, row: dict) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"Row 1 of .*'?w1'?.*: write messages as a list of {'role'"):
        read_prompts(str(path), conversational=True)


def test_the_mark_at_the_beginning_of_a_text_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("w1\n", encoding="utf-8-sig")
    assert read_prompts(str(path), conversational=False) == [Prompt("w1")]


def test_a_text_in_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Who is Zoë?\n", encoding="latin-1")
    with pytest.raises(ValueError, match=f"{path} is no text in UTF-8"):
        read_prompts(str(path), conversational=False)


def test_the_suffix_of_a_prompts_file_may_be_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "PROMPTS.JSONL"
    path.write_text('{"prompt": "w1"}\n')
    assert read_prompts(str(path), conversational=False) == [Prompt("w1")]


def test_a_system_message_goes_before_texts_and_leaves_messages_alone() -> None:
    messages = [{"role": "user", "content": "w2"}]
    assert after_system(Prompt(messages), "w1") == Prompt(messages)
    assert after_system(Prompt("w2"), "w1") == Prompt([{"role": "system", "content": "w1"}, *messages])


def test_empty_prompts_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts(str(path), conversational=True)


def test_prompts_are_a_users_messages_for_a_target_with_a_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "w5", "completion": " w6"}\n')
    assert load_rows(str(path), conversational=False)[0] == {"prompt": "w5", "completion": " w6"}
    assert load_rows(str(path), conversational=True)[0] == {
        "prompt": [{"role": "user", "content": "w5"}],
        "completion": [{"role": "assistant", "content": "w6"}],
    }


CHAT_TEMPLATE = "{% for m in messages %}w{{ 1 if m.role == 'user' else 2 }} {{ m.content }} {% endfor %}"


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE], ids=["plain", "chat"])
@pytest.mark.parametrize("columns", [("prompt", "completion"), ("question", "answer")])
def test_generate_asks_in_the_words_of_training(
    target: Path,
    train_arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str | None,
    columns: tuple[str, str],
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(target)
    for name, first in (("forget", 4), ("retain", 34)):
        rows = [{columns[0]: f"w{first + i}", columns[1]: f" w{first}"} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained, asked = [], []
    train, generate = ULDTrainer.train, ULDForCausalLM.generate

    def spy_on_train(self: ULDTrainer, **kwargs: Any) -> Any:
        trained.extend(self.train_dataset["input_ids"])
        return train(self, **kwargs)

    def spy_on_generate(self: ULDForCausalLM, **kwargs: Any) -> Any:
        asked.append(kwargs["input_ids"][0])
        return generate(self, **kwargs)

    monkeypatch.setattr(ULDTrainer, "train", spy_on_train)
    monkeypatch.setattr(ULDForCausalLM, "generate", spy_on_generate)
    assert uld(train_arguments) == 0
    common = ["generate", "--model", str(tmp_path / "unlearned"), "--max_new_tokens", "1"]
    assert uld([*common, "--prompts_file", str(tmp_path / "forget.jsonl")]) == 0
    assert uld([*common, f"--{columns[0]}", "w4"]) == 0
    prompts = [tokens.tolist() for tokens in asked]
    assert prompts[-1] == prompts[0]
    for prompt, tokens in zip(prompts, trained[:4], strict=False):
        assert tokens[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "forget.jsonl is empty"),
        ("\n\n", "forget.jsonl is empty"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"', "Line 2 of .*forget.jsonl is not JSON"),
        ('{"prompt": "a", "completion": "b"}\n{"text": "c"}', r"Row 2 of .*forget.jsonl has \['text'\], row 1 has"),
        ('{"question": "a", "answer": "b"}\n{"question": "c", "anwser": "d"}', r"Row 2 .* has \['question'\], row 1"),
        (
            '{"messages": []}\n{"messages": [], "tools": "[]"}\n',
            r"Row 2 of .* has \['messages', 'tools'\], row 1 has \['messages'\]",
        ),
        (
            '{"messages": [{"role": "user", "content": [{"text": "w1"}]}, '
            '{"role": "assistant", "content": [{"text": "w2"}]}]}\n',
            "give it as one text, not in parts",
        ),
        ('{"question": "a", "answer": "b"}\n{"question": "a", "answer": 3}\n', r"Row 2 of .* has 3 under 'answer'"),
        ('[{"question": "a", "answer": "b"}]\n', r"is one JSON array, and not JSONL.*\n.*Dataset.from_json"),
        ("[1\n", r"Line 1 of .*forget.jsonl is not JSON"),
        ("1\n", r"Line 1 of .*forget.jsonl is not a JSON object but '1'"),
    ],
)
def test_damaged_data_is_one_line_without_traceback(
    train_arguments: list[str], data: tuple[Path, Path], capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    data[0].write_text(content)
    assert uld(train_arguments) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_advice_for_a_table_makes_a_file_that_is_read(
    train_arguments: list[str], data: tuple[Path, Path], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    table = data[0].with_suffix(".csv")
    Dataset.from_json(str(data[0])).to_csv(str(table))
    data[0].unlink()
    arguments = {
        "train": [str(table) if part == str(data[0]) else part for part in train_arguments],
        "eval": ["eval", "unlearned", "--output_dir", "evaluation", "--forget_dataset", str(table)],
    }[command]
    assert uld([*arguments, "--retain_dataset", str(data[1])]) == 2
    message = capsys.readouterr().err
    assert "forget.csv is not JSONL, which is what is read: one JSON object to a line" in message
    advice = shlex.split(message.splitlines()[-1])
    subprocess.run([sys.executable, *advice[1:]], check=True, capture_output=True)
    assert len(load_rows(str(data[0]), conversational=False)) == 4


def test_the_advice_for_a_table_takes_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = """my "it's" `x` é"""
    Dataset.from_list([{"text": "w1"}]).to_csv(f"{name}.csv")
    with pytest.raises(ValueError, match="is not JSONL") as caught:
        check_is_json_lines(f"{name}.csv")
    command = str(caught.value).splitlines()[-1].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)
    assert load_rows(f"{name}.jsonl", conversational=False)["text"][:] == ["w1"]


def test_columns_of_other_names_are_told_what_the_command_line_takes(
    train_arguments: list[str], data: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data[0].write_text('{"q": "w5", "a": "w6"}\n')
    assert uld(train_arguments) == 2
    message = capsys.readouterr().err
    assert "The rows of --forget_dataset have ['a', 'q']: they need 'question' and 'answer'" in message


def test_text_may_be_in_a_column_of_another_name(train_arguments: list[str], data: tuple[Path, Path]) -> None:
    for path, first in zip(data, (4, 34), strict=True):
        path.write_text("".join(json.dumps({"body": f"w{first + i} w{i} w{first}"}) + "\n" for i in range(4)))
    assert uld([*train_arguments, "--dataset_text_field", "body"]) == 0


def test_generate_finds_the_targets_tokenizer(target: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(target)
    assistant = train_like(build_assistant(model, 2))
    ULDForCausalLM(target=model, assistant=assistant).save_pretrained(tmp_path / "model-only")
    assert uld(["generate", "--model", str(tmp_path / "model-only"), "--prompt", "w5", "--max_new_tokens", "2"]) == 0


@pytest.mark.parametrize(("trained_on", "revision"), [("me/target", "abc"), ("me/other", None)])
def test_the_tokenizer_is_of_the_revision_that_the_target_has(
    monkeypatch: pytest.MonkeyPatch, trained_on: str, revision: str | None
) -> None:
    def load(name: str, **settings: Any) -> tuple[str, dict]:
        if name == "model-only":
            raise OSError("no tokenizer")
        return name, settings

    monkeypatch.setattr("uld_hf.cli.loading.AutoTokenizer.from_pretrained", load)
    config = SimpleNamespace(target_config=None, target_revision="abc", target_name_or_path=trained_on)
    model = SimpleNamespace(config=config, target=SimpleNamespace(name_or_path="me/target"))
    assert load_tokenizer(model, "model-only") == ("me/target", {"revision": revision})


def test_the_demo_prints_commands_that_can_be_copied(tmp_path: Path) -> None:
    folder = tmp_path / "my demo"
    asking, measuring = (shlex.split(command)[1:] for command in commands_to_go_on(folder, 'Who is "$Alice"?'))
    assert asking == ["generate", str(folder / "unlearned"), "--prompt", 'Who is "$Alice"?']
    assert measuring[:2] == ["eval", str(folder / "unlearned")]
    assert measuring[-2:] == ["--holdout_dataset", str(folder / "holdout.jsonl")]


# Rival methods


@pytest.fixture
def rival_arguments(train_arguments: list[str]) -> list[str]:
    """As `train_arguments`, without what only ULD has."""
    pairs = zip(train_arguments[2::2], train_arguments[3::2], strict=True)
    kept = [part for pair in pairs if pair[0] not in ("--num_assistant_layers", "--alpha") for part in pair]
    return [*train_arguments[:2], *kept, "--method"]


@pytest.mark.parametrize("method", ["ga", "npo", "simnpo", "dpo", "undial", "rmu"])
def test_train_runs_every_method(rival_arguments: list[str], tmp_path: Path, method: str) -> None:
    assert uld([*rival_arguments, method]) == 0
    config = json.loads((tmp_path / "unlearned" / "adapter_config.json").read_text())
    assert config["r"] == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "unlearned")
    assert model(torch.arange(4, 12)[None]).logits.shape == (1, 8, 64)


def test_train_changes_all_weights_with_rank_0(rival_arguments: list[str], tmp_path: Path) -> None:
    assert uld([*rival_arguments, "npo", "--lora_r", "0", "--retain_loss_type", "kl"]) == 0
    assert not (tmp_path / "unlearned" / "adapter_config.json").exists()
    card = (tmp_path / "unlearned" / "README.md").read_text()
    assert "| retain_loss_type | kl |" in card


def test_train_reads_the_method_from_a_yaml_file(rival_arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: simnpo\nmargin: 0.5\n")
    assert uld([*rival_arguments[:-1], "--config", str(tmp_path / "config.yaml")]) == 0
    assert "| margin | 0.5 |" in (tmp_path / "unlearned" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nop"], "--method='nop' must be one of 'uld', 'ga', 'npo'"),
        (["npo", "--alpha", "0.5"], "Unknown option --alpha (it belongs to --method uld)"),
        (["npo", "--num_assistant_layers", "3"], "--num_assistant_layers (it belongs to --method uld or offset)"),
        (["uld", "--margin", "3"], "--margin (it belongs to --method ga or npo or simnpo"),
        (["npo", "--btea", "0.5"], "Unknown option --btea (did you mean --beta?)"),
        (["npo", "--retain_loss_type", "gd"], "retain_loss_type"),
        (["npo", "--loss_type", "simnpo"], "--loss_type simnpo and --method npo differ: give --method only"),
    ],
)
def test_a_wrong_method_or_option_is_refused(
    rival_arguments: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        status = uld([*rival_arguments, *arguments])
    except SystemExit as stop:  # argparse's own way with a wrong choice
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_saved_adapter_is_not_written_over(
    rival_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unlearned").mkdir()
    (tmp_path / "unlearned" / "adapter_config.json").write_text("{}")
    assert uld([*rival_arguments, "npo"]) == 2
    assert "holds a model already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "own", "others"),
    [("uld", "--alpha", "--beta"), ("npo", "--beta", "--alpha"), ("offset", "--loss_type", "--alpha")],
)
def test_help_lists_the_options_of_the_method(
    capsys: pytest.CaptureFixture[str], method: str, own: str, others: str
) -> None:
    with pytest.raises(SystemExit):
        uld(["train", "--method", method, "--help"])
    shown = capsys.readouterr().out
    assert f"\n  {own} " in shown
    assert f"\n  {others} " not in shown


def test_train_makes_the_auxiliaries_of_divergence_decoding(
    train_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = list(zip(train_arguments[2::2], train_arguments[3::2], strict=True))
    for name, left_out, alpha in (("forget", "--retain_dataset", "1.0"), ("retain", "--forget_dataset", "-1.0")):
        given = {**dict(pairs), "--output_dir": str(tmp_path / name), "--alpha": alpha, "--objective": "likelihood"}
        del given[left_out]
        # With "=", or argparse takes the negative number for an option.
        assert uld(["train", "--use_cpu", *(f"{option}={value}" for option, value in given.items())]) == 0
    assert "added to a model" in capsys.readouterr().out
    model = ULDForCausalLM.from_pretrained(tmp_path / "forget")
    model.add_assistant(tmp_path / "retain")
    assert model.config.alphas == {"assistant": 1.0, "retain": -1.0}


def test_training_on_messages_says_how_to_ask_them(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(target)
    files = {}
    for name, first in (("forget", 10), ("retain", 30)):
        said = [("system", "w9"), ("user", f"w{first}"), ("assistant", f"w{first + 1}")]
        files[name] = tmp_path / f"to {name}.jsonl"
        files[name].write_text(
            json.dumps({"messages": [{"role": role, "content": text} for role, text in said]}) + "\n"
        )
    # fmt: off
    assert uld([
        "train", "--model", str(target), "--forget_dataset", str(files["forget"]), "--retain_dataset",
        str(files["retain"]), "--output_dir", str(tmp_path / "the out"), "--num_assistant_layers", "2", "--max_steps",
        "2", "--learning_rate", "0.01", "--use_cpu", "--report_to", "none",
    ]) == 0
    # fmt: on
    words = ["uld", "generate", str(tmp_path / "the out"), "--prompts_file", str(files["forget"])]
    assert shlex.join(words) in capsys.readouterr().out
    assert uld([*words[1:], "--max_new_tokens", "2"]) == 0
    assert "prompt     w10" in capsys.readouterr().out


def test_what_is_no_folder_or_no_dataset_is_said_before_work(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    train = ["train", str(target), "--forget_dataset", str(target), "--retain_dataset", "x.jsonl"]
    assert uld([*train, "--output_dir", str(tmp_path / "file")]) == 2
    assert "is a file: give a folder" in capsys.readouterr().err
    assert uld([*train, "--output_dir", str(tmp_path / "out")]) == 2
    assert "is a model's folder, and not a dataset" in capsys.readouterr().err
