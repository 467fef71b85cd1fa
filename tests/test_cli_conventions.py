"""What all commands have in common: words, quiet and JSON modes, exit statuses, completion, Ctrl-C."""

import argparse
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets.exceptions import DatasetsError
from families import make_tokenizer, tiny_model, train_like
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, HTTPError, Response
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from uld_hf import ULDBakeConfig, ULDConfig, ULDForCausalLM, ULDTrainer, UnlearnConfig, build_assistant
from uld_hf.cli import output
from uld_hf.cli.interrupt import without_resuming, without_tokens
from uld_hf.cli.main import COMMANDS, exit_status, load_command
from uld_hf.cli.main import main as uld


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a target, an unlearned model of it, and data, where the commands run."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("target")
    make_tokenizer().save_pretrained("target")
    target = AutoModelForCausalLM.from_pretrained("target")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    model.save_pretrained("unlearned")
    make_tokenizer().save_pretrained("unlearned")
    for name, first in (("forget", 4), ("retain", 34)):
        rows = [{"question": f"w{first + i} w{i}", "answer": f"w{first + i} w{first}"} for i in range(4)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


DATA = ["--forget_dataset", "forget.jsonl", "--retain_dataset", "retain.jsonl"]
TRAIN = [
    *("train", "target", *DATA, "--output_dir", "trained", "--num_assistant_layers", "2", "--max_steps", "6"),
    *("--per_device_train_batch_size", "4", "--report_to", "none", "--use_cpu", "--logging_steps", "1"),
]
BAKE = [
    *("bake", "unlearned", *DATA, "--output", "baked", "--max_steps", "2", "--max_new_tokens", "2"),
    *("--report_to", "none", "--use_cpu"),
]
EVAL = ["eval", "unlearned", *DATA, "--output_dir", "evaluation", "--max_new_tokens", "2", "--num_samples", "0"]


# --- words and options ---


def test_the_first_word_is_what_the_command_works_on(workplace: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--prompt", "w5", "--max_new_tokens", "3"]
    assert uld(["generate", "unlearned", *options]) == 0
    by_place = capsys.readouterr().out
    assert uld(["generate", "--model", "unlearned", *options]) == 0
    assert capsys.readouterr().out == by_place


def test_a_part_of_an_options_name_is_not_an_option(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert uld(["train", "target", "--metho", "npo", *DATA, "--output_dir", "never"]) == 2
    assert "Unknown option --metho (did you mean --method?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["generate", "unlearned", "target", "--prompt", "w5"],
            "'target' is not understood: what comes first is MODEL",
        ),
        (["generate", "unlearned", "--model", "unlearned"], "MODEL is given twice: 'unlearned', and with --model"),
        (["generate", "unlearned", "--model=unlearned"], "MODEL is given twice"),
    ],
)
def test_words_that_mean_nothing(capsys: pytest.CaptureFixture[str], argv: list[str], message: str):
    assert uld(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--config", "push.yaml"], ["--config=push.yaml"]], ids=" ".join)
def test_every_command_reads_a_yaml_file(workplace: Path, capsys: pytest.CaptureFixture[str], words: list[str]):
    Path("push.yaml").write_text("folder: target\nrepo_id: me/it\n")
    assert uld(["push", *words]) == 2
    assert "is not an unlearned model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "--config is the last word: give a YAML file after it."),
        (["--config", "a.yaml", "--config=b.yaml"], "--config is given twice: put all options into one file."),
    ],
    ids=["without a file", "twice"],
)
def test_one_yaml_file_is_read(capsys: pytest.CaptureFixture[str], words: list[str], message: str):
    assert uld(["push", "target", "me/it", *words]) == 2
    assert capsys.readouterr().err == f"uld push: {message}\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "lm_eval"])
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        uld([name, "--help"])
    shown = capsys.readouterr().out
    assert f"\n  uld {name}" in shown
    assert all(option in shown for option in ("--config", "--quiet", "--traceback"))


# --- what is printed ---


def test_json_is_all_there_is_on_standard_output(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert uld([*TRAIN, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert (trained["output_dir"], trained["steps"]) == ("trained", 6)
    assert trained["metrics"]["forget_loss"] > 0
    assert uld(["generate", "trained", "--prompt", "w5", "--max_new_tokens", "2", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"prompt", "target", "unlearned"}


def test_json_of_eval_sweep_and_report(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert uld([*EVAL, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads(Path("evaluation/summary.json").read_text())
    assert uld(["sweep", "unlearned", *DATA, "--alphas", "0.5", "1", "--output", "sweep.json", "--json"]) == 0
    swept = json.loads(capsys.readouterr().out)
    assert [setting["alpha"] for setting in swept["settings"]] == [0.5, 1.0]
    assert swept == json.loads(Path("sweep.json").read_text())
    assert uld(["report", "evaluation", "--output", "report.html", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["output"] == "report.html"
    assert all(isinstance(check["passed"], bool) for check in reported["checks"])


def test_results_go_to_standard_output_and_the_rest_elsewhere(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert uld(TRAIN) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Saved to trained.")
    assert "forget_loss" in err


def test_quiet_leaves_results_and_errors(workplace: Path, capfd: pytest.CaptureFixture[str]):
    # A new process: pytest keeps logs and progress bars from the terminal by itself.
    command = [sys.executable, "-c", "import sys; from uld_hf.cli.main import main; sys.exit(main())"]
    done = subprocess.run([*command, *EVAL, "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "unlearned" in done.stdout
    assert done.stderr == ""


def test_no_command_speaks_of_bitsandbytes():
    pytest.importorskip("bitsandbytes")
    # `uld completion` imports the modules of all commands. A new process: what is imported speaks once.
    code = "import sys; from uld_hf.cli.main import main; sys.exit(main(['completion', 'bash']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "bake"])
def test_quiet_leaves_only_the_warnings_of_a_training(workplace: Path, command: str):
    arguments = TRAIN if command == "train" else BAKE
    code = [sys.executable, "-c", "import sys; from uld_hf.cli.main import main; sys.exit(main())"]
    done = subprocess.run([*code, *arguments, "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Saved to ")
    warnings = [line for line in done.stderr.splitlines() if "Train for more epochs" not in line]
    assert warnings == []


@pytest.mark.parametrize("config_class", [ULDConfig, UnlearnConfig, ULDBakeConfig])
def test_memory_is_pinned_for_an_accelerator_only(config_class: type[SFTConfig]):
    assert config_class("out", use_cpu=True).dataloader_pin_memory == torch.accelerator.is_available()


def test_quiet_and_json_end_with_the_command(workplace: Path):
    before = sys.stdout, vars(tqdm)["__init__"]
    assert uld(["generate", "unlearned", "--prompt", "w5", "--max_new_tokens", "1", "--quiet", "--json"]) == 0
    assert (sys.stdout, vars(tqdm)["__init__"]) == before
    assert not output.is_quiet()


def test_a_prompt_without_a_token_is_refused_before_the_first_answer(
    workplace: Path, capsys: pytest.CaptureFixture[str]
):
    Path("prompts.jsonl").write_text('{"prompt": "w5"}\n{"prompt": ""}\n')
    assert uld(["generate", "unlearned", "--prompts_file", "prompts.jsonl", "--max_new_tokens", "2"]) == 2
    shown, error = capsys.readouterr()
    assert shown == ""
    assert "The prompt '' has no token" in error


def test_answers_are_written_as_they_come(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    Path("prompts.txt").write_text("w5\nw6\nw7\n")
    asked = []

    def answer(model: Any, tokenizer: Any, prompt: str, arguments: Any) -> str:
        asked.append(prompt)
        if len(asked) > 4:
            raise KeyboardInterrupt
        return "yes"

    monkeypatch.setattr("uld_hf.cli.generate.answer", answer)
    assert uld(["generate", "unlearned", "--prompts_file", "prompts.txt", "--output", "answers.jsonl"]) == 130
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["w5", "w6"]


# --- exit statuses ---


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("alpha"), 2),
        (FileNotFoundError("forget.jsonl"), 2),
        (DatasetsError("no such split"), 2),
        (ImportError("pip install"), 2),
        (OSError(28, "No space left on device"), 1),
        (HTTPError("Name or service not known"), 1),
        (FloatingPointError("loss"), 1),
        (torch.OutOfMemoryError("14 GiB"), 1),
        (KeyError("a bug"), None),
    ],
)
def test_exit_statuses(error: Exception, status: int | None):
    assert exit_status(error) == status


def fail_with(error: BaseException) -> Any:
    def main(argv: list[str]) -> None:
        raise error

    return main


def test_traceback_only_if_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("uld_hf.cli.report.main", fail_with(ValueError("what to do")))
    assert uld(["report"]) == 2
    assert capsys.readouterr().err == "uld report: what to do\n"
    assert uld(["report", "--traceback"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_push_without_a_network_is_one_line(workplace: Path):
    # A new process: whether there is a hub is read when huggingface_hub is imported. Nothing listens on port 9.
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none"}
    command = [sys.executable, "-c", "import sys; from uld_hf.cli.main import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "push", "unlearned", "me/it"], capture_output=True, text=True, env={**os.environ, **hub}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"uld push: The Hub could not be reached: [^\n]+\n", done.stderr)


def test_a_refusal_of_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    response = Response(403, request=get_session().build_request("POST", "https://hub"))
    refusal = HfHubHTTPError("403 Forbidden\n\nYou may not write here.", response=response)
    monkeypatch.setattr("uld_hf.cli.push.main", fail_with(refusal))
    assert uld(["push"]) == 1
    assert capsys.readouterr().err == "uld push: The Hub refused: 403 Forbidden You may not write here.\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("uld_hf.cli.report.main", fail_with(KeyError("bug")))
    with pytest.raises(KeyError):
        uld(["report"])


def test_a_missing_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        uld(["eval", "unlearned"])
    assert "--output_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "example"),
    [
        (["completion"], "  uld completion bash > "),
        (["estimate", "target"], "--forget_rows 200 --tokens_per_row 300"),
        (["train"], "  uld train my-finetuned-model .*\\\\\n.* --output_dir forget-alice\n$"),
    ],
    ids=str,
)
def test_a_missing_option_is_shown_in_an_example(capsys: pytest.CaptureFixture[str], argv: list[str], example: str):
    with pytest.raises(SystemExit, match="2"):
        uld(argv)
    assert re.search(f"required: .*\nexample:\n.*{example}", capsys.readouterr().err)


# --- completion ---


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_shells_its_options(name: str):
    parser = load_command(name).build_parser().hide()
    assert isinstance(parser, argparse.ArgumentParser)
    shown = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
    assert {"--quiet", "--config"} <= {option for action in shown for option in action.option_strings}


@pytest.fixture
def complete(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., list[str]]:
    """What bash makes of the last word of a command line."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    assert uld(["completion", "bash"]) == 0
    (tmp_path / "uld").write_text(capsys.readouterr().out)

    def complete(*words: str) -> list[str]:
        line = shlex.join(words)
        code = (
            f"source {tmp_path / 'uld'}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
            'COMP_POINT=${#COMP_LINE}; _shtab_uld; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
        return [word.strip() for word in done.stdout.splitlines()]

    return complete


def test_bash_completes_commands_and_options(complete: Callable[..., list[str]]):
    assert complete("uld", "ev") == ["eval"]
    assert complete("uld", "train", "--retain_w") == ["--retain_weight"]
    assert complete("uld", "train", "--deeps") in ([], [""])  # one of transformers' hundreds
    assert "--json" in complete("uld", "generate", "--")


def test_bash_completes_what_is_given_by_its_place(
    complete: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("fb1", "fb2"):
        Path(name).mkdir()
    assert sorted(complete("uld", "generate", "fb")) == ["fb1", "fb2"]
    assert complete("uld", "report", "fb2") == ["fb2"]
    assert complete("uld", "completion", "z") == ["zsh"]
    assert "--prompt" in complete("uld", "generate", "fb1", "--prom")


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        uld(["completion", "cmd.exe"])
    assert "invalid choice: 'cmd.exe'" in capsys.readouterr().err


# --- Ctrl-C ---


def test_an_interrupted_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("uld_hf.cli.report.main", fail_with(KeyboardInterrupt()))
    assert uld(["report"]) == 130
    assert capsys.readouterr().err == "uld report: interrupted\n"


def test_a_command_is_interrupted_while_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("uld_hf.cli.main.load_command", fail_with(KeyboardInterrupt()))
    assert uld(["train"]) == 130
    assert capsys.readouterr().err == "uld train: interrupted\n"


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sends this process a signal in the middle of some steps of the training."""

    def install(number: signal.Signals, *steps: int) -> None:
        step = ULDTrainer.training_step

        def interrupted(self: ULDTrainer, *args: Any, **kwargs: Any) -> Any:
            loss = step(self, *args, **kwargs)
            if self.state.global_step + 1 in steps:
                os.kill(os.getpid(), number)
            return loss

        monkeypatch.setattr(ULDTrainer, "training_step", interrupted)

    return install


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupt_at: Any,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
):
    assert uld([*TRAIN, "--output_dir", "uninterrupted"]) == 0
    before = signal.getsignal(number)
    interrupt_at(number, 3)
    assert uld(TRAIN) == 130
    monkeypatch.undo()
    os.chdir(workplace)
    assert signal.getsignal(number) == before
    message = capsys.readouterr().err
    assert "stopped after step 3 of 6, saved in trained" in message
    assert not Path("trained/config.json").exists()  # it is no finished model
    command = shlex.split(message.strip().splitlines()[-1])
    assert command == ["uld", *TRAIN, "--resume_from_checkpoint", "True"]
    assert uld(command[1:]) == 0
    weights = [load_file(f"{folder}/assistant/adapter_model.safetensors") for folder in ("uninterrupted", "trained")]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=0, atol=0)


def test_a_training_that_starts_over_says_that_there_is_a_checkpoint(
    workplace: Path, interrupt_at: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    note = "starts over; to go on from trained/checkpoint-3, add --resume_from_checkpoint True."
    interrupt_at(signal.SIGINT, 3)
    assert uld(TRAIN) == 130
    assert note not in capsys.readouterr().err
    monkeypatch.undo()
    os.chdir(workplace)
    assert uld(TRAIN) == 0
    assert note in capsys.readouterr().err


def test_a_training_that_goes_on_does_not_speak_of_starting_over(
    workplace: Path, interrupt_at: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    interrupt_at(signal.SIGINT, 3)
    assert uld(TRAIN) == 130
    monkeypatch.undo()
    os.chdir(workplace)
    assert uld([*TRAIN, "--resume_from_checkpoint", "True"]) == 0
    assert "starts over" not in capsys.readouterr().err


def test_a_second_interrupt_does_not_wait(
    workplace: Path, interrupt_at: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    step, before = ULDTrainer.training_step, signal.getsignal(signal.SIGINT)

    def twice(self: ULDTrainer, *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ULDTrainer, "training_step", twice)
    assert uld(TRAIN) == 130
    assert "interrupted, without saving" in capsys.readouterr().err
    assert not list(Path("trained").glob("checkpoint-*"))
    assert signal.getsignal(signal.SIGINT) is before


STEP_OF_TWO_PROCESSES = """
import sys
from types import SimpleNamespace
import torch
from uld_hf.cli.interrupt import SaveOnInterrupt
rank, meeting_point = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
interrupt, told = SaveOnInterrupt(), []
for step in range(3):
    interrupt.interrupted = interrupt.interrupted or (rank == 1 and step == 1)
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    interrupt.on_step_end(SimpleNamespace(world_size=2, device="cpu"), None, control)
    told.append((control.should_save, control.should_training_stop))
print(told)
"""


@pytest.mark.slow
def test_all_processes_stop_at_the_step_at_which_one_was_told_to(tmp_path: Path):
    command = [sys.executable, "-c", STEP_OF_TWO_PROCESSES]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    expected = str([(False, False), (True, True), (True, True)])
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == [expected, expected]


def test_an_interrupted_evaluation_says_how_to_go_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("uld_hf.cli.eval.evaluate", interrupted)
    assert uld(EVAL) == 130
    assert "what was measured is in evaluation, and the same command goes on from there" in capsys.readouterr().err


def test_the_command_to_go_on_resumes_once():
    argv = ["target", "--resume_from_checkpoint", "trained/checkpoint-3", "--seed", "1"]
    assert without_resuming(argv) == ["target", "--seed", "1"]
    assert without_resuming(["--resume_from_checkpoint=True", "--seed", "1"]) == ["--seed", "1"]


def test_the_command_to_go_on_shows_no_token_and_runs():
    given = json.dumps({"revision": "a'b", "token": "hf_secret"})
    words = ["my target", "--hub_token", "hf_secret", "--hub-token=hf_secret", "--eos_token", "</s>"]
    argv = [*words, "--model_init_kwargs", given, f"--model_init_kwargs={given}"]
    shown = without_tokens(argv)
    assert "hf_secret" not in shown
    command = ["bash", "-c", f"printf '%s\\n' {shown}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "HF_TOKEN": "hf_new"})
    assert done.stdout.splitlines() == [part.replace("hf_secret", "hf_new") for part in argv]


def test_help_says_of_inherited_options_what_is_so_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        uld(["train", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "documents are split there, never cut" in printed
    assert "truncated" not in printed


def test_json_has_no_infinity():
    data = {"models": [{"word perplexity": math.inf, "rows": 2}, (math.nan, 1.5)], "name": "Ann"}
    assert json.loads(output.to_json(data), parse_constant=pytest.fail) == {
        "models": [{"word perplexity": None, "rows": 2}, [None, 1.5]],
        "name": "Ann",
    }
