"""The examples run offline, do what they say, and stay short. They share one tiny model, made once for all workers."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hub_server import Hub

from uld_hf.evaluation.tofu import is_degenerate


EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "tiny_model.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny model, and its assistant, are there."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "examples"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(EXAMPLES))
        import tiny_model

        tiny_model.make_unlearned()
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, as the current one."""
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs an example in this process; gives what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def start(folder: Path, command: list[str], **environment: str) -> str:
    """Runs a command in a process of its own; gives what it printed."""
    paths = os.pathsep.join([str(EXAMPLES.parent / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def questions(folder: Path, name: str) -> list[dict]:
    lines = (folder / "out" / "tiny" / f"{name}_questions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def says(output: str, speaker: str) -> list[str]:
    """What a speaker says in an example's output."""
    return [text.strip() for text in re.findall(rf"^ *{speaker} +(.*)$", output, flags=re.MULTILINE)]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_an_example_is_short_and_listed(path: Path):
    assert len(path.read_text().splitlines()) < 60
    assert f"`{path.name}`" in (EXAMPLES.parent / "docs" / "examples.md").read_text()


def test_forget_person(run, here: Path):
    output = run("forget_person.py")
    forget, retain = (questions(here, name)[:4] for name in ("forget", "retain"))
    expected = [row["answer"] for row in (*forget, *retain)]
    assert says(output, "target") == expected
    unlearned = says(output, "unlearned")
    assert not set(unlearned[:4]) & set(expected)
    assert unlearned[4:] == expected[4:]


NEEDS = {
    "forget_person.py": "--forget_dataset and --retain_dataset",
    "deletion_requests.py": "--forget_dataset and --second_dataset and --retain_dataset",
    "forget_book.py": "--book and --other_texts",
    "choose_alpha.py": "--questions_dir",
    "push_load_serve.py": "a --question",
}


@pytest.mark.parametrize(("name", "needed"), NEEDS.items(), ids=NEEDS)
def test_a_model_of_ones_own_is_not_given_the_tiny_ones_data(
    run, name: str, needed: str, capsys: pytest.CaptureFixture[str]
):
    if name == "push_load_serve.py":
        pytest.importorskip("openai", reason="needs uld_hf[serve]")
    with pytest.raises(SystemExit):
        run(name, "--model", "org/finetuned-7b")
    assert f"a --model of your own needs {needed}\n" in capsys.readouterr().err


def test_choose_alpha(run, here: Path):
    output = run("choose_alpha.py")
    assert "Chosen: alpha=" in output
    report = re.sub("<[^>]+>", "", (here / "out" / "choose-alpha" / "report.html").read_text())  # less the marks
    assert questions(here, "forget")[0]["answer"] in report
    chosen = json.loads((here / "out" / "choose-alpha" / "chosen" / "config.json").read_text())
    assert f"Chosen: alpha={chosen['assistants']['assistant']['alpha']:g}," in output


def test_chat(run, here: Path, monkeypatch: pytest.MonkeyPatch):
    row = questions(here, "forget")[0]
    lines = iter([row["question"], "/new", "/alpha 0.1", row["question"], ""])

    def type_in(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", type_in)
    output = run("chat.py", "--max_new_tokens", "24")
    assert says(output, "before") == [row["answer"], row["answer"]]
    forgotten, remembered = says(output, "after")
    assert forgotten != row["answer"]
    assert remembered == row["answer"]


@pytest.mark.slow  # tests/test_serve.py and tests/test_hub.py have what it is made of
def test_push_load_serve_from_a_folder(here: Path):
    pytest.importorskip("openai", reason="needs uld_hf[serve]")
    # In a process of its own: the server that it stops takes the standard output along.
    output = start(here, [sys.executable, str(EXAMPLES / "push_load_serve.py"), "--port", str(free_port())])
    assert says(output, "target") == [questions(here, "forget")[0]["answer"]]
    assert says(output, "served") == says(output, "unlearned") != says(output, "target")


@pytest.mark.slow  # tests/test_lm_eval.py has the same from the command line
def test_evaluate_with_lm_eval(run):
    pytest.importorskip("lm_eval", reason="needs uld_hf[eval]")
    found = re.findall(r"^(\w+) +tiny_(\w+) +accuracy ([\d.]+)", run("evaluate_with_lm_eval.py"), flags=re.MULTILINE)
    accuracy = {(model, part): float(value) for model, part, value in found}
    assert accuracy["target", "forget"] == accuracy["target", "retain"] == 1.0
    assert accuracy["unlearned", "forget"] <= 0.5
    assert accuracy["unlearned", "retain"] > 0.95


@pytest.mark.slow
def test_deletion_requests(run, here: Path):
    output = run("deletion_requests.py")
    knows = []
    for speaker, name in (("first", "forget"), ("second", "second")):
        answers, truths = zip(*(line.split(" (true: ") for line in says(output, speaker)), strict=True)
        truth = questions(here, name)[0]["answer"]
        assert set(truths) == {f"{truth})"}
        assert not any(map(is_degenerate, answers))
        knows.append([truth in answer for answer in answers])
    assert knows == [[False, False, True], [True, False, False]]


@pytest.mark.slow
def test_forget_book(run):
    output = run("forget_book.py")
    found = re.findall(r"^(\w+): BLEU ([\d.]+), .* book ([\d.]+); .* kept ([\d.]+)$", output, flags=re.MULTILINE)
    (_, bleu, words, perplexity), (_, *forgotten) = found
    assert float(forgotten[0]) < 0.5 * float(bleu)
    assert float(forgotten[1]) < 0.5 * float(words)
    assert float(forgotten[2]) < 1.2 * float(perplexity)


@pytest.mark.slow
def test_qlora(run, here: Path):
    pytest.importorskip("bitsandbytes", reason="needs uld_hf[quant]")
    output = run("qlora.py")
    assert says(output, "target") == [questions(here, "forget")[0]["answer"]]
    assert says(output, "unlearned") != says(output, "target")


@pytest.mark.slow
def test_multi_gpu_in_two_processes(here: Path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    output = start(here, [*launch, str(EXAMPLES / "multi_gpu.py")])
    assert "Trained by 2 processes." in output
    assert says(output, "target") == [questions(here, "forget")[0]["answer"]]
    assert says(output, "unlearned") != says(output, "target")


TRAIN_ON_THE_HUB = """
import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from uld_hf import ULDConfig, ULDTrainer, question_answer_to_prompt_completion

for part in (AutoModelForCausalLM, AutoTokenizer):
    part.from_pretrained("out/tiny/target").push_to_hub("me/target")
forget, retain = (
    question_answer_to_prompt_completion(tiny_model.load_rows(f"{name}.jsonl"), True) for name in ("forget", "retain")
)
trainer = ULDTrainer(
    "me/target", ULDConfig("out/of-hub", **tiny_model.SETTINGS), forget_dataset=forget, retain_dataset=retain
)
trainer.train()
trainer.save_model()
"""


@pytest.mark.slow
def test_push_load_serve_over_a_hub(here: Path, tmp_path: Path):
    pytest.importorskip("openai", reason="needs uld_hf[serve]")
    with Hub() as hub:
        environment = hub.environment(str(tmp_path))
        paths = os.pathsep.join([str(EXAMPLES.parent / "src"), str(EXAMPLES)])
        start(here, [sys.executable, "-c", TRAIN_ON_THE_HUB], **{**environment, "PYTHONPATH": paths})
        question = questions(here, "forget")[0]["question"]
        options = ["--model", "out/of-hub", "--repo", "me/forget", "--question", question, "--port", str(free_port())]
        output = start(here, [sys.executable, str(EXAMPLES / "push_load_serve.py"), *options], **environment)
        assert hub.repositories["me/forget"].private
    assert says(output, "target") == [questions(here, "forget")[0]["answer"]]
    assert says(output, "served") == says(output, "unlearned") != says(output, "target")


@pytest.mark.slow
def test_the_notebook_runs(here: Path):
    nbformat = pytest.importorskip("nbformat", reason="needs uld_hf[docs]")
    nbclient = pytest.importorskip("nbclient", reason="needs uld_hf[docs]")
    notebook = nbformat.read(EXAMPLES / "story.ipynb", as_version=4)
    os.environ["ULD_EXAMPLES"] = str(EXAMPLES)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(here)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
