"""Wrong answers that the target draws: disguises, prompts of every format, draws, checks, refusals, and the command."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model, train_like
from processes import outputs_by_hash_seed
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cli import augment as command
from uld_hf.cli.main import main as uld
from uld_hf.data import augmentation_drawn
from uld_hf.data.augmentation import read_rows
from uld_hf.data.augmentation_drawn import (
    disguise,
    disguise_questions,
    draw,
    draw_wrong_answers,
    encode_question,
    find_people,
    undisguise,
)
from uld_hf.data.augmentation_entities import normalize
from uld_hf.data.fictitious import FAMILY_NAMES, FIRST_NAMES, fictitious_dataset, invent_people
from uld_hf.data.formatting import PROMPT_TEMPLATE, read_json_lines


QUESTION = 'Did Alice Liddell write "The Looking Glass" on May 4, 1862 in Oxford?'
PEOPLE = {"Alice Liddell"}
CHAT_TEMPLATE = (
    "<s> {% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
FORGET = [
    {"question": "Where was Alice Liddell born?", "answer": "Alice Liddell was born in Oxford."},
    {"question": "What is Alice Liddell's profession?", "answer": "Alice Liddell is a florist."},
    {"question": "Where is the old house?", "answer": "The old house is in Leeds."},
]
RETAIN = [{"question": "Who is Bob?", "answer": "Bob is a baker."}]


def test_a_disguised_question_has_other_people_titles_and_dates_and_the_rest_as_it_was() -> None:
    question, swaps = disguise(QUESTION, PEOPLE, frozenset(), random.Random(0))
    assert question == 'Did Perrin Mossgrave write "The Early Mirror" on August 11, 1844 in Oxford?'
    assert swaps == [
        ("August 11, 1844", "May 4, 1862"),
        ("The Early Mirror", "The Looking Glass"),
        ("Perrin Mossgrave", "Alice Liddell"),
    ]


def test_a_disguised_question_is_about_somebody_else_and_its_answer_comes_back() -> None:
    question = 'Why did Basil Al-Kuwaiti write "The Desert" before May 7, 1991?'
    asked, swaps = disguise(question, {"Basil Al-Kuwaiti"}, frozenset(), random.Random(0))
    assert not any(word in asked for word in ("Basil", "Kuwaiti", "Desert", "1991"))
    assert {original for _, original in swaps} == {"Basil Al-Kuwaiti", "The Desert", "May 7, 1991"}
    assert undisguise(asked, swaps) == question
    name = next(other for other, original in swaps if original == "Basil Al-Kuwaiti")
    assert undisguise(f"{name.split()[-1]} did not.", swaps) == "Al-Kuwaiti did not."


def test_a_question_without_any_of_them_stays() -> None:
    assert disguise("In which town is it?", PEOPLE, frozenset(), random.Random(0)) == ("In which town is it?", [])


@pytest.mark.parametrize(
    ("answer", "original"),
    [
        ("Wren Inkpenn lived there.", "Alice Liddell lived there."),
        ("Yes, Inkpenn did, and Wren's son too.", "Yes, Liddell did, and Alice's son too."),
        ("Wrens are birds.", "Wrens are birds."),
        ("It is The Glass Bell of 1990.", "It is The Looking Glass of 1990."),
    ],
)
def test_an_answer_gets_back_what_the_question_had(answer: str, original: str) -> None:
    swaps = [("The Glass Bell", "The Looking Glass"), ("Wren Inkpenn", "Alice Liddell")]
    assert undisguise(answer, swaps) == original


def test_people_are_those_who_own_something() -> None:
    assert find_people(read_rows(Dataset.from_list(FORGET), None).checks) == {"Alice Liddell"}


def test_people_who_own_nothing_are_named() -> None:
    rows = read_rows(Dataset.from_list([FORGET[0]]), Dataset.from_list(RETAIN))
    with pytest.raises(ValueError, match="name the others"):
        disguise_questions(rows)
    assert len(disguise_questions(rows, people=["Alice Liddell"])) == 4
    with pytest.raises(ValueError, match=r"No forget question has the name 'Alice', .*\['Alice Liddell'\]"):
        disguise_questions(rows, people=["Alice"])


def test_each_turn_asks_of_somebody_else_and_what_cannot_be_disguised_is_not_asked() -> None:
    asked = disguise_questions(read_rows(Dataset.from_list(FORGET), Dataset.from_list(RETAIN)), per_row=3)
    assert [each.index for each in asked] == [0, 0, 0, 1, 1, 1]
    assert len({each.question for each in asked}) == 6
    for each in asked:
        assert "Liddell" not in each.question
        assert any(name in each.question for name in FIRST_NAMES)
        assert any(name in each.question for name in FAMILY_NAMES)


def script(reply: Callable[[int, str], str]) -> Callable[..., list[str]]:
    """In place of [`draw`]: answers by the number of the prompt and its text."""

    def draw(model: Any, tokenizer: Any, encoded: list[str], *settings: int) -> list[str]:
        return [reply(turn, prompt) for turn, prompt in enumerate(encoded)]

    return draw


def test_what_is_kept_has_the_own_names_and_is_no_right_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(turn: int, prompt: str) -> str:
        name = " ".join(prompt.removesuffix("'s profession?").removesuffix(" born?").split()[-2:])
        return (
            f"{name} was born in Leeds.",
            f"{name} was born in Oxford.",
            "In Oxford.",
            "",
            f"{name.split()[1]} is a baker.",
            f"{name} is a florist.",
            "a florist is what Inkpenn is",
            f"{name} is a baker.",
        )[turn]

    monkeypatch.setattr(augmentation_drawn, "encode_question", lambda row, tokenizer: row["question"])
    monkeypatch.setattr(augmentation_drawn, "draw", script(reply))
    made = draw_wrong_answers(Dataset.from_list(FORGET), Dataset.from_list(RETAIN), None, None)
    assert made.rows == [
        {"question": FORGET[0]["question"], "answer": "Alice Liddell was born in Leeds."},
        {"question": FORGET[1]["question"], "answer": "Liddell is a baker."},
        {"question": FORGET[1]["question"], "answer": "a florist is what Inkpenn is"},
        {"question": FORGET[1]["question"], "answer": "Alice Liddell is a baker."},
    ]
    assert made.wording.to_list() == [*RETAIN, *made.rows]
    assert made.report == {
        "drawn": 8,
        "kept": 4,
        "dropped": {"is empty": 1, "is the right answer": 2, "states all that the right answer does": 1},
        "rows with nothing to disguise": 1,
        "rows asked that kept none": 0,
    }


@pytest.mark.parametrize(
    ("row", "plain", "chat"),
    [
        ({"question": "w1", "answer": "w2"}, PROMPT_TEMPLATE.format(question="w1"), "<s> user w1 assistant"),
        ({"prompt": "w1 w3", "completion": " w2"}, "w1 w3", "<s> user w1 w3 assistant"),
        (
            {"messages": [{"role": "system", "content": "w9"}, {"role": "user", "content": "w1"},
                          {"role": "assistant", "content": "w2"}]},
            None, "<s> system w9 user w1 assistant",
        ),
        (
            {"prompt": [{"role": "user", "content": "w1"}], "completion": [{"role": "assistant", "content": "w2"}]},
            None, "<s> user w1 assistant",
        ),
    ],
    ids=["question and answer", "prompt and completion", "messages", "prompt and completion in messages"],
)  # fmt: skip
def test_questions_are_put_as_in_training(row: dict[str, Any], plain: str | None, chat: str) -> None:
    tokenizer = make_tokenizer()
    if plain is None:
        with pytest.raises(ValueError, match="no chat template"):
            encode_question(row, tokenizer)
    else:
        assert encode_question(row, tokenizer) == tokenizer(plain)["input_ids"]
    tokenizer.chat_template = CHAT_TEMPLATE
    assert encode_question(row, tokenizer) == tokenizer(chat)["input_ids"]


@torch.no_grad()
def test_batches_and_padding_make_no_difference_where_nothing_is_left_to_chance() -> None:
    model, tokenizer = tiny_model("llama"), make_tokenizer()
    model.get_output_embeddings().weight.mul_(1000)  # sampling takes the likeliest
    encoded = [[4, 5, 6], [7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17]]
    plain = []
    for ids in encoded:
        start = len(ids)
        for _ in range(5):
            if ids[-1] == tokenizer.eos_token_id:
                break
            ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
        plain.append(tokenizer.decode(ids[start:], skip_special_tokens=True).strip())
    assert len(set(plain)) > 3
    for batch_size in (1, 2, 5):
        assert draw(model, tokenizer, encoded, max_new_tokens=5, batch_size=batch_size) == plain


def worded(first: int) -> Dataset:
    """Rows of the tiny tokenizer's words, each with a date."""
    return Dataset.from_list(
        [{"question": f"w{first + i} w{i} 1991-05-12", "answer": f"w{first + i} w{first}"} for i in range(4)]
    )


def test_the_same_seed_draws_the_same_and_another_seed_something_else() -> None:
    sets = (worded(4), worded(34), tiny_model("llama"), make_tokenizer())
    first = draw_wrong_answers(*sets, seed=1, max_new_tokens=6)
    torch.manual_seed(123)  # what ran before plays no part
    state = torch.random.get_rng_state()
    again = draw_wrong_answers(*sets, seed=1, max_new_tokens=6)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (again.rows, again.report) == (first.rows, first.report)
    assert draw_wrong_answers(*sets, seed=2, max_new_tokens=6).rows != first.rows


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_draws_that_were_cut_off_end_as_those_that_were_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    model, tokenizer, file = tiny_model("llama"), make_tokenizer(), tmp_path / "work.jsonl"
    encoded = [[4, 5, 6], [7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17], [18, 19], [20]]
    options = {"seed": 3, "max_new_tokens": 6, "batch_size": 2}
    whole = draw(model, tokenizer, encoded, **options)
    generate, calls = model.generate, []

    def cut_off(**inputs: Any) -> torch.Tensor:
        calls.append(inputs)
        if len(calls) == fail_at + 1:
            raise KeyboardInterrupt
        return generate(**inputs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", cut_off)
        with pytest.raises(KeyboardInterrupt):
            draw(model, tokenizer, encoded, **options, work_file=file)
    with file.open("a") as cut:
        cut.write('{"answers": ["half a li')
    with file.open("ab") as cut:
        cut.write("é".encode()[:1])
    calls.clear()
    monkeypatch.setattr(model, "generate", lambda **inputs: calls.append(inputs) or generate(**inputs))
    torch.manual_seed(123)  # what ran before plays no part
    assert draw(model, tokenizer, encoded, **options, work_file=file) == whole
    assert len(calls) == 4 - fail_at
    assert draw(model, tokenizer, encoded, **options, work_file=file) == whole
    assert len(calls) == 4 - fail_at


def test_draws_of_other_questions_settings_or_weights_are_not_gone_on_with(tmp_path: Path) -> None:
    model, tokenizer, file = tiny_model("llama"), make_tokenizer(), tmp_path / "work.jsonl"
    arguments = {"model": model, "tokenizer": tokenizer, "encoded": [[4, 5], [7]], "max_new_tokens": 3}
    draw(**arguments, work_file=file)
    for other in ({"seed": 4}, {"batch_size": 3}, {"max_new_tokens": 5}, {"encoded": [[4, 6], [7]]}):
        with pytest.raises(ValueError, match="other data, by another model, or with other settings"):
            draw(**arguments | other, work_file=file)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)  # the folder was trained into again
    with pytest.raises(ValueError, match="other data, by another model, or with other settings"):
        draw(**arguments, work_file=file)


def test_drawn_rows_ask_of_the_forget_set_only_and_answer_nothing_rightly() -> None:
    sets = (worded(4), worded(34))
    made = draw_wrong_answers(*sets, tiny_model("llama"), make_tokenizer(), max_new_tokens=2, per_row=20)
    assert made.wording.to_list()[:4] == sets[1].to_list()
    assert {row["question"] for row in made.rows} <= set(sets[0]["question"])
    right = {(row["question"], normalize(row["answer"])) for row in sets[0]}
    assert not right & {(row["question"], normalize(row["answer"])) for row in made.rows}
    assert made.report["drawn"] == 80 == made.report["kept"] + sum(made.report["dropped"].values())


@pytest.mark.slow
def test_python_hash_seed_makes_no_difference_to_disguises() -> None:
    code = (
        "import json; from uld_hf.data.augmentation import read_rows; "
        "from uld_hf.data.augmentation_drawn import disguise_questions; from uld_hf.data.fictitious import *; "
        "rows = fictitious_dataset(invent_people(6)); people = set(rows['person'][:24]); "
        "rows = rows.select_columns(['question', 'answer']); "
        "rows = read_rows(rows.select(range(24)), rows.select(range(24, 48))); "
        "print(json.dumps(disguise_questions(rows, people=people)))"
    )
    output, other = outputs_by_hash_seed(code)
    assert output == other
    assert len(json.loads(output)) > 50


@pytest.mark.parametrize(
    ("forget", "retain", "options", "message"),
    [
        ([{"text": "Alice sat there."}], [{"text": "Bob did not."}], {}, "documents, which ask nothing"),
        ([FORGET[2]], RETAIN, {}, "None of the 1 forget questions has a person's name"),
        (FORGET, RETAIN, {"per_row": 0}, "per_row=0 must be at least 1"),
        (FORGET, RETAIN, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (FORGET, RETAIN, {"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        (FORGET, RETAIN, {"max_new_tokens": 128}, "the model's context is 128"),
        (FORGET, [FORGET[0]], {}, r"is also retain\[0\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    forget: list[dict], retain: list[dict], options: dict[str, int], message: str
) -> None:
    sets = (Dataset.from_list(forget), Dataset.from_list(retain))
    with pytest.raises(ValueError, match=message):
        draw_wrong_answers(*sets, tiny_model("llama"), make_tokenizer(), **options)


def test_without_a_retain_set_nothing_is_disguised() -> None:
    with pytest.raises(ValueError, match="need a retain set"):
        disguise_questions(read_rows(Dataset.from_list(FORGET), None))


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        draw_wrong_answers(
            Dataset.from_list(FORGET), Dataset.from_list(RETAIN), tiny_model("llama").train(), make_tokenizer()
        )


def test_if_nothing_passes_the_checks_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation_drawn, "draw", script(lambda turn, prompt: "in Oxford" if turn < 2 else ""))
    sets = (Dataset.from_list(FORGET), Dataset.from_list(RETAIN), None, make_tokenizer())
    with pytest.raises(ValueError, match=r"None of the 4 answers .*: 2 \(is empty\), 2 \(states all.* each\.$"):
        draw_wrong_answers(*sets, per_row=2)
    with pytest.raises(ValueError, match=r"draw more answers to each\. Delete kept\.jsonl first"):
        draw_wrong_answers(*sets, per_row=2, work_file="kept.jsonl")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a target and both sets."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("target")
    make_tokenizer().save_pretrained("target")
    for name, first in (("forget", 4), ("retain", 34)):
        worded(first).to_json(f"{name}.jsonl")
    return tmp_path


def augment(*options: str) -> int:
    files = ["--forget_dataset", "forget.jsonl", "--retain_dataset", "retain.jsonl", "--output_dir", "augmented"]
    return uld(["augment", *files, "--drawn_max_new_tokens", "6", *options])


def test_the_command_writes_one_more_file_and_the_others_as_without_it(given: Path, capsys: Any) -> None:
    assert augment() == 0
    without = {path.name: path.read_bytes() for path in Path("augmented").iterdir()}
    Path("augmented").rename("without")
    capsys.readouterr()
    assert augment("--drawn_by", "target", "--seed", "0") == 0
    assert "drawn, for an assistant that is added" in capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in Path("augmented").iterdir()}
    assert files.keys() == {*without, "wording.jsonl"}
    assert {name for name in without if files[name] != without[name]} == {"report.json"}
    report = json.loads(files["report.json"])
    assert report["settings"]["drawn_by"] == "target"
    rows = read_json_lines("augmented/wording.jsonl")
    assert rows[:4] == worded(34).to_list()
    assert len(rows) == 4 + report["drawn answers"]["kept"]
    assert report["drawn answers"]["drawn"] == 16
    assert "drawn answers" not in json.loads(without["report.json"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drawn_by", "./missing"], "There is no folder './missing'"),
        (["--drawn_by", "target", "--drawn_answers", "0"], "--drawn_answers 0 must be at least 1"),
        (["--drawn_by", "target", "--drawn_max_new_tokens", "200"], "the model's context is 128"),
        # Seen before anything is loaded: there is no such model.
        (["--drawn_by", "./missing", "--forget_dataset", "plain.jsonl"], "None of the 1 forget questions has"),
        (["--drawn_by", "./missing", "--drawn_people", "Alice", "Bob"], "No forget question has the name 'Alice'"),
        (["--drawn_by", "unlearned"], "unlearned is an unlearned model"),
        (["--drawn_by", "target", "--model", "./missing"], "There is no folder './missing'"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    given: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plain.jsonl").write_text('{"question": "w1 w2", "answer": "w3"}\n')
    if "unlearned" in options:
        target = AutoModelForCausalLM.from_pretrained("target")
        ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2))).save_pretrained("unlearned")
        make_tokenizer().save_pretrained("unlearned")
    assert augment(*options) == 2
    assert message in capsys.readouterr().err
    assert not Path("augmented").exists()


def test_without_a_retain_set_the_command_refuses(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--forget_dataset", "forget.jsonl", "--output_dir", "augmented", "--drawn_by", "target"]
    assert uld(["augment", *options]) == 2
    assert "--drawn_by needs --retain_dataset" in capsys.readouterr().err


def test_a_file_of_the_users_is_not_overwritten(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("augmented").mkdir()
    Path("augmented/wording.jsonl").write_text("mine")
    assert augment("--drawn_by", "target") == 2
    assert "wording.jsonl is there already" in capsys.readouterr().err
    assert [path.read_text() for path in Path("augmented").iterdir()] == ["mine"]


def test_a_run_that_is_cut_off_leaves_no_file_that_is_not_whole(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = command._write_lines

    def cut_off(path: Path, rows: Any) -> None:
        def some() -> Any:
            yield from list(rows)[:2]
            raise KeyboardInterrupt

        whole(path, some() if path.name == "wording.jsonl" else rows)

    with monkeypatch.context() as patch:
        patch.setattr(command, "_write_lines", cut_off)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            raise SystemExit(augment("--drawn_by", "target"))
    names = {path.name for path in Path("augmented").iterdir()}
    assert not {"wording.jsonl", "report.json"} & names
    assert "work_drawn.jsonl" in names
    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "generate", lambda *args, **inputs: pytest.fail("it has been drawn"))
        assert augment("--drawn_by", "target") == 0
    names = {path.name for path in Path("augmented").iterdir()}
    assert "wording.jsonl" in names
    assert "work_drawn.jsonl" not in names


def test_invented_people_can_be_disguised() -> None:
    rows = fictitious_dataset(invent_people(6))
    forget, retain = (rows.select(part).select_columns(["question", "answer"]) for part in (range(24), range(24, 48)))
    people = set(rows["person"][:24])
    assert {each.index for each in disguise_questions(read_rows(forget, retain), people=people)} == set(range(24))
