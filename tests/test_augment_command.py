"""`uld augment`: two files that `uld train` takes as they are, a report, and one line for a user's mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from families import make_tokenizer, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from uld_hf.cli.demo import train_tokenizer
from uld_hf.cli.main import main as uld
from uld_hf.cli.questions import read_questions
from uld_hf.data.formatting import read_json_lines


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "given_forget.jsonl", tmp_path / "given_retain.jsonl"
    for path, first in zip(paths, (4, 34), strict=True):
        rows = [{"question": f"w{first + i} w{i} 1", "answer": f"w{first + i} w{first} {70 + i}"} for i in range(4)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def augment(data: tuple[Path, Path], folder: Path, *options: str) -> int:
    files = ["--forget_dataset", str(data[0]), "--retain_dataset", str(data[1])]
    return uld(["augment", *files, "--output_dir", str(folder), *options])


def test_train_takes_the_files_as_they_are(data: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "augmented"
    assert augment(data, folder, "--paraphrases", "3") == 0
    assert len(read_json_lines(str(folder / "forget.jsonl"))) == 4 + 4 * 3
    assert len(read_json_lines(str(folder / "retain.jsonl"))) == 4 + 4 * 2
    assert len(read_json_lines(str(folder / "variants.jsonl"))) == 4
    assert json.loads((folder / "report.json").read_text())["retain rows"] == {"given": 4, "made": 8}
    tokenizer = train_tokenizer([])  # knows every byte: no two rows are the same to it
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    config = LlamaConfig(**sizes, num_attention_heads=2, eos_token_id=tokenizer.eos_token_id)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    # fmt: off
    status = uld([
        "train", "--model", str(tmp_path / "target"), "--output_dir", str(tmp_path / "unlearned"), "--use_cpu",
        "--forget_dataset", str(folder / "forget.jsonl"), "--retain_dataset", str(folder / "retain.jsonl"),
        "--num_assistant_layers", "2", "--max_steps", "1", "--report_to", "none",
    ])
    # fmt: on
    assert status == 0


def test_too_few_held_out_answers_are_told(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--paraphrases", "1", "--wrong_answers", "1", "--held_out")
    assert augment(data, tmp_path / "enough", *options, "1") == 0
    assert "of these have fewer than" not in capsys.readouterr().out
    assert augment(data, tmp_path / "augmented", *options, "50") == 0
    asked = read_json_lines(str(tmp_path / "augmented" / "questions.jsonl"))
    fewest = min(len(row["perturbed_answer"]) for row in asked)
    assert f"{len(asked)} of these have fewer than 50 wrong answers: {fewest} or more." in capsys.readouterr().out


def test_what_only_later_rows_have_is_kept(data: tuple[Path, Path], tmp_path: Path) -> None:
    rows = read_json_lines(str(data[0]))
    rows[2] |= {"fact": "w6", "paraphrased_question": "w9 w6 w2"}
    data[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert augment(data, tmp_path / "augmented", "--held_out", "1") == 0
    asked = {row["question"]: row for row in read_json_lines(str(tmp_path / "augmented" / "questions.jsonl"))}
    found = asked[rows[2]["question"]]
    assert (found["fact"], found["paraphrased_question"]) == ("w6", "w9 w6 w2")
    assert "fact" not in asked[rows[0]["question"]]


def test_rows_of_several_formats_are_refused(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_json_lines(str(data[1]))
    rows[1]["tools"] = []
    data[1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert augment(data, tmp_path / "augmented") == 2
    assert "Row 2 of" in (error := capsys.readouterr().err)
    assert "write all rows of a file alike" in error


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda asked, told: {"question": asked, "answer": told}, lambda row: row["answer"]),
        (lambda asked, told: {"prompt": f"{asked}:", "completion": f" {told}"}, lambda row: row["completion"]),
        (
            lambda asked, told: {
                "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
            },
            lambda row: row["messages"][-1]["content"],
        ),
    ],
    ids=["question and answer", "prompt and completion", "messages"],
)
def test_sweeps_and_evaluations_take_the_questions(
    data: tuple[Path, Path], tmp_path: Path, write: Callable[[str, str], dict], read: Callable[[dict], str]
) -> None:
    for path in data:
        rows = [
            write(row["question"], row["answer"]) | {"paraphrased_question": "Who?", "fact": row["answer"]}
            for row in read_json_lines(str(path))
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--paraphrases", "1", "--wrong_answers", "1", "--held_out", "2")
    assert augment(data, tmp_path / "augmented", *options) == 0
    given, questions = read_json_lines(str(data[0])), tmp_path / "augmented" / "questions.jsonl"
    variants = read_json_lines(str(tmp_path / "augmented" / "variants.jsonl"))
    asked = read_json_lines(str(questions))
    assert len(asked) == len(given) == 4
    for row, source, made in zip(asked, given, variants, strict=True):
        trained = {*made["answers"], *made["wrong_answers"], read(source).strip()}
        asked_with = [row.pop("paraphrased_answer"), *row.pop("perturbed_answer")]
        assert row == source
        assert len(asked_with) == 3
        assert trained.isdisjoint(text.strip() for text in asked_with)
        assert {text[: len(text) - len(text.lstrip())] for text in asked_with} == {" " if "completion" in row else ""}
        assert [len(made[kind]) for kind in ("questions", "answers", "wrong_answers")] == [1, 1, 1]
    made = json.loads((tmp_path / "augmented" / "report.json").read_text())
    assert made["forget rows"] == made["retain rows"] == {"given": 4, "made": 4}
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    if "messages" not in asked[0]:
        tokenizer.chat_template = None
    for question, source in zip(read_questions(str(questions), tokenizer), given, strict=True):
        assert question.answer.strip() == read(source).strip()
        texts = (question.answer, question.paraphrased_answer, *question.perturbed_answers)
        assert len(texts) == 4
        assert len({len(text) - len(text.lstrip()) for text in texts}) == 1  # the same space before all


def test_what_a_chat_model_has_not_finished_stays_when_rules_make_the_files(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "augmented"
    folder.mkdir()
    for name in ("work.jsonl", "work_drawn.jsonl"):
        (folder / name).write_text("hours of work")
    assert augment(data, folder) == 0
    assert (folder / "report.json").exists()
    assert {path.read_text() for path in folder.glob("work*.jsonl")} == {"hours of work"}
    assert len(list(folder.glob("work*.jsonl"))) == 2


def test_a_chat_model_writes_them(data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    tiny_model("llama").save_pretrained(tmp_path / "chat")
    options = ["--model", str(tmp_path / "chat"), "--max_new_tokens", "4", "--attempts", "1", "--wrong_answers", "1"]
    assert augment(data, tmp_path / "augmented", *options) == 0
    report = json.loads((tmp_path / "augmented" / "report.json").read_text())
    assert report["settings"]["model"] == str(tmp_path / "chat")
    assert report["made"]["wrong answer"] == 4
    assert not (tmp_path / "augmented" / "work.jsonl").exists()
    assert "wrong answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--paraphrases", "-1"], "must not be negative"),
        (["--temperature", "0"], "temperature=0.0"),
        (["--model", "./missing"], "There is no folder './missing'"),
        (["--forget_dataset", "missing.jsonl"], "There is no file 'missing.jsonl'"),
    ],
)
def test_mistakes_are_one_line(
    data: tuple[Path, Path],
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert augment(data, tmp_path / "augmented", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "augmented").exists()


def test_what_was_made_is_not_overwritten(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert augment(data, tmp_path / "augmented") == 0
    before = (tmp_path / "augmented" / "forget.jsonl").read_text()
    assert augment(data, tmp_path / "augmented", "--seed", "5") == 2
    assert "holds an augmentation already" in capsys.readouterr().err
    assert (tmp_path / "augmented" / "forget.jsonl").read_text() == before


@pytest.mark.parametrize("spelling", ["{}", "{}/elsewhere/.."], ids=["same", "by another way"])
@pytest.mark.parametrize("place", [0, 1], ids=["forget", "retain"])
def test_the_users_own_files_are_not_overwritten(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int, spelling: str
) -> None:
    own = data[place].rename(tmp_path / f"{('forget', 'retain')[place]}.jsonl")
    before = own.read_bytes()
    (tmp_path / "elsewhere").mkdir()
    paths = (own, data[1]) if place == 0 else (data[0], own)
    assert augment(paths, Path(spelling.format(tmp_path))) == 2
    assert f"{own} would be overwritten: choose another --output_dir" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_without_a_retain_set_the_user_is_told(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uld(["augment", "--forget_dataset", str(data[0]), "--output_dir", str(tmp_path / "augmented")]) == 0
    assert "add what must be kept before you train" in capsys.readouterr().out
