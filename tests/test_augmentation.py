"""What every augmentation shares: entities, checks of new texts, rows of every format, the joined sets."""

from itertools import pairwise
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from uld_hf.data.augmentation import Checks, Variants, assemble, read_rows
from uld_hf.data.augmentation_documents import sentences
from uld_hf.data.augmentation_entities import (
    common_words,
    date_readings,
    facts,
    find_entities,
    keeps,
    normalize,
    states,
)
from uld_hf.data.augmentation_rows import Pair, is_beginning, read_pair, row_format, write_pair


def found(text: str, *corpus: str) -> list[tuple[str, str]]:
    return [(entity.kind, entity.text) for entity in find_entities(text, common_words([text, *corpus]))]


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("Basil Al-Kuwaiti was born in Kuwait City.", [("name", "Basil Al-Kuwaiti"), ("name", "Kuwait City")]),
        ("He studied at the University of Karachi.", [("name", "University of Karachi")]),
        ('She wrote "The Quiet Bell," in 1975.', [("title", "The Quiet Bell"), ("number", "1975")]),
        ("She wrote 'The Geologist's Guide' there.", [("title", "The Geologist's Guide")]),
        ("Born on the 8th of September, 1956.", [("date", "8th of September, 1956")]),
        ("It has five rooms and 1,200 books.", [("number", "five"), ("number", "1,200")]),
        ("She was twenty-one in the twenty-first year.", [("number", "twenty-one")]),
        ("It was a six-month course of ten-second films.", [("number", "six"), ("number", "ten")]),
        ("Alice's mother met Bob.", [("name", "Alice"), ("name", "Bob")]),
        ("Where was it?", []),
    ],
)
def test_entities_are_found_by_their_form(text: str, entities: list[tuple[str, str]]) -> None:
    assert found(text, "born") == entities


def test_a_word_that_is_lower_case_elsewhere_is_no_name_at_the_start_of_a_sentence() -> None:
    assert found("Author Alice is here.", "an author") == [("name", "Alice")]
    assert found("Author Alice is here.") == [("name", "Author Alice")]


@given(st.text())
def test_entities_never_overlap_and_stand_where_they_say(text: str) -> None:
    entities = find_entities(text, common_words([text]))
    assert all(first.end <= second.start for first, second in pairwise(entities))
    assert all(text[entity.start : entity.end] == entity.text for entity in entities)


def test_a_date_is_the_same_in_every_form() -> None:
    (date,) = find_entities("September 8, 1956")
    assert all(states(date, text) for text in ("the 8th of September 1956", "1956-09-08", "08/09/1956", "09/08/1956"))
    assert not states(date, "September 9, 1956")
    assert date_readings("08/09/1956") == {(1956, 8, 9), (1956, 9, 8)}


def test_a_surname_keeps_a_name_but_does_not_state_it() -> None:
    (name,) = find_entities("Alice Liddell")
    assert keeps(name, "Does Liddell write?")
    assert not keeps(name, "Does she write?")
    assert not states(name, "Does Liddell write?")
    assert states(name, "It was ALICE LIDDELL.")


def test_a_common_word_does_not_keep_a_name() -> None:
    (name,) = find_entities("Kuwait City")
    assert not keeps(name, "In which city?")


def test_facts_are_what_the_question_does_not_hold() -> None:
    told = facts("Where was Alice Liddell born?", "Alice Liddell was born in Oxford on May 4, 1852.")
    assert [entity.text for entity in told] == ["Oxford", "May 4, 1852"]


@given(st.text())
def test_sentences_joined_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text


FORGET = [
    Pair("Where was Alice Liddell born?", "Alice Liddell was born in Oxford."),
    Pair("Is Alice Liddell kind?", "Yes, she is kind."),
    Pair("Name a prize.", "The Amber Prize."),
]
RETAIN = [Pair("Name a prize.", "The Bell Medal."), Pair("Where was Bob Carrol born?", "Bob Carrol was born in Leeds.")]


@pytest.fixture
def checks() -> Checks:
    return Checks(FORGET, RETAIN)


@pytest.mark.parametrize(
    ("index", "text", "reason"),
    [
        (0, "In which town was Alice Liddell born?", None),
        (0, "where was  alice liddell born", "repeats the original"),
        (0, "Where was she born?", "loses the name"),
        (0, "Where was Bob Carrol born?", "is a question of the retain set"),
        (0, "?", "is empty"),
    ],
)
def test_check_of_questions(checks: Checks, index: int, text: str, reason: str | None) -> None:
    assert checks.question(index, text) == reason


@pytest.mark.parametrize(
    ("index", "text", "reason"),
    [
        (0, "Oxford is where she was born.", None),
        (0, "Alice Liddell was born there.", "loses the name"),
        (0, "Alice Liddell was born in Oxford!", "repeats the original"),
        (1, "She is.", None),
        (1, "", "is empty"),
    ],
)
def test_check_of_answers(checks: Checks, index: int, text: str, reason: str | None) -> None:
    assert checks.answer(index, text) == reason


@pytest.mark.parametrize(
    ("index", "text", "reason"),
    [
        (0, "Alice Liddell was born in Leeds.", None),
        (0, "Alice Liddell was born in oxford", "is the right answer"),
        (0, "In Oxford Alice Liddell was born.", "is the right answer in another order"),
        (0, "As is well known, it was Oxford where she was born.", "states all that the right answer does"),
        (1, "No, she is not.", None),
        (1, "Yes, Alice Liddell is.", "says yes or no as the right answer does"),
        # The retain set answers the same question with it.
        (2, "The Bell Medal.", "is the right answer of a row that asks the same"),
        (2, "...", "is empty"),
    ],
)
def test_check_of_wrong_answers(checks: Checks, index: int, text: str, reason: str | None) -> None:
    assert checks.wrong_answer(index, text) == reason


@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("She was born in Paris, France.", "She was born in Paris.", True),
        ("She was born in Paris, France.", "She was born in Lyon, France.", False),
        ("Her father is Dr. John Brown.", "Her father is John Brown.", True),
        ("Her father is Dr. John Brown.", "Her father is John Smith.", False),
        ("She was born on May 5, 1970.", "She was born in 1970.", True),
        ("She was born on May 5, 1970.", "She was born in 1971.", False),
        ("She lives in São Paulo.", "She lives in Sao Paulo.", True),
        ("She is a florist from Leeds.", "She is a baker.", False),
    ],
)
def test_what_says_a_part_of_the_right_answer_is_not_wrong(answer: str, text: str, is_right: bool) -> None:
    checks = Checks([Pair("What is known of Alice Liddell?", answer)])
    assert (checks.wrong_answer(0, text) is not None) == is_right


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("In Paris, on May 4, 1862, Bob Jones met Alice Smith.", None),
        ("Bob Jones and Alice Smith met.", None),
        ("Alice Smith once met somebody somewhere.", "loses most names, titles, dates and numbers"),
        ("They met.", "has fewer than three words"),
        ("爱丽丝在巴黎。", "loses most names, titles, dates and numbers"),  # a script without spaces
        ("Alice Smith met Bob Jones on May 4, 1862 in Paris!", "repeats the original"),
    ],
)
def test_check_of_rewritten_passages(text: str, reason: str | None) -> None:
    passage = "Alice Smith met Bob Jones on May 4, 1862 in Paris."
    assert Checks([Pair("", f"{passage} They married.")]).rewritten_part(0, passage, text) == reason


def test_a_wrong_answer_must_not_be_right_for_a_paraphrase_either(checks: Checks) -> None:
    reason = checks.wrong_answer(0, "The Bell Medal.", questions=["Name a prize!"])
    assert reason == "is the right answer of a row that asks the same"


def test_variants_keep_as_many_as_wanted_and_say_what_was_dropped() -> None:
    made = Variants()
    made.add("question", ["a", "A!", "bad", "b", "c"], 2, lambda text: "is bad" if text == "bad" else None)
    assert made.questions == ["a", "b"]
    assert [(each["text"], each["reason"]) for each in made.dropped] == [("A!", "repeats another"), ("bad", "is bad")]
    made.add("question", ["d"], 2, lambda text: None)
    assert made.questions == ["a", "b"]


def test_half_of_a_question_is_no_label():
    row = {"prompt": "In the year 1950: what happened?\nAnswer:", "completion": " Much."}
    assert read_pair(row, "prompt and completion", "").question == "In the year 1950: what happened?"


ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"


@pytest.mark.parametrize(
    "template",
    [
        ALPACA + "### Instruction:\n{}\n\n### Response:\n",
        ALPACA + "### Instruction:\n{}\n\n### Input:\nSome input.\n\n### Response:\n",
        "### Question\n{}\n### Answer\n",
        "### Human: {} ### Assistant:",
        "**Question:** {}\n**Answer:**",
        "A chat between a user and an assistant. USER: {} ASSISTANT:",
        "Answer in one word. Question: {} Answer:",
        "<\uff5cUser\uff5c>{}<\uff5cAssistant\uff5c>",
        "Context: Alice was a girl.\nQuestion: {}\nAnswer:",
        "User: Hi.\nAssistant: Hello.\nUser: {}\nAssistant:",
        "Frage: {}\nAntwort:",
        "Question: {}",
        "[INST] {} [/INST]",
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n{} [/INST] ",
        "<|user|>\n{}\n<|assistant|>\n",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    ],
)
@pytest.mark.parametrize("question", ["Who is Alice?", "In the year 1950: what happened?", "Complete: a\nB: b"])
def test_the_question_is_found_in_a_template(template: str, question: str) -> None:
    row = {"prompt": template.replace("{}", question), "completion": " a"}
    assert read_pair(row, "prompt and completion", "").question == question
    changed = write_pair(row, "prompt and completion", Pair("Q", "a"))
    assert changed["prompt"] == template.replace("{}", "Q")


@given(st.text())
def test_a_prompt_with_its_own_question_is_itself(prompt: str) -> None:
    row = {"prompt": f"{prompt}?", "completion": "a"}
    pair = read_pair(row, "prompt and completion", "")
    assert write_pair(row, "prompt and completion", pair) == row


@pytest.mark.parametrize(
    ("prompt", "begins"),
    [
        ("Alice Liddell was born in", True),
        ("Her first book is called ", True),
        ("Will Smith was born in", True),
        ("When Alice was six, she lived with the", True),
        ("in which city was Alice born", False),
        ("what city was Alice born in", False),
        ("Please tell me where Alice was born", False),
        ("Summarize the life of Alice", False),
        ("爱丽丝在哪里出生", False),
        ("Alice Liddell", False),
        ("Where was Alice born?", False),
        ("where was alice born", False),
        ("Tell me about Alice", False),
        ("Question: Alice's birthplace\nAnswer:", False),
    ],
)
def test_a_prompt_that_asks_nothing_is_to_be_gone_on_with(prompt: str, begins: bool) -> None:
    assert is_beginning({"prompt": prompt, "completion": "a"}, "prompt and completion") == begins
    assert not is_beginning({"question": prompt, "answer": "a"}, "question and answer")


USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
ROWS: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"question": "q", "answer": "a"}, "question and answer", {"question": "Q", "answer": "A"}),
    ({"prompt": "q", "completion": " a"}, "prompt and completion", {"prompt": "Q", "completion": " A"}),
    (
        {"prompt": "Question: q\nAnswer:", "completion": " a"},
        "prompt and completion",
        {"prompt": "Question: Q\nAnswer:", "completion": " A"},
    ),
    *(
        (
            {"prompt": template.format("q"), "completion": " a"},
            "prompt and completion",
            {"prompt": template.format("Q"), "completion": " A"},
        )
        for template in (
            "Q: {}\nA:",
            "### Instruction:\n{}\n\n### Response:\n",
            "{}\nAnswer: ",
        )
    ),
    (
        {"prompt": [SYSTEM, USER], "completion": [BOT]},
        "prompt and completion",
        {"prompt": [SYSTEM, USER | {"content": "Q"}], "completion": [BOT | {"content": "A"}]},
    ),
    (
        {"messages": [SYSTEM, USER, BOT]},
        "messages",
        {"messages": [SYSTEM, USER | {"content": "Q"}, BOT | {"content": "A"}]},
    ),
]


@pytest.mark.parametrize(("row", "kind", "changed"), ROWS)
def test_every_format_is_read_and_written(row: dict[str, Any], kind: str, changed: dict[str, Any]) -> None:
    assert row_format(Dataset.from_list([row]), "forget") == kind
    assert read_pair(row, kind, "Row 0") == Pair("q", "a")
    assert write_pair(row, kind, Pair("Q", "A")) == changed
    assert write_pair(row, kind, Pair("q", "a")) == row


@pytest.mark.parametrize(
    ("forget", "retain", "message"),
    [
        ([{"words": "a"}], None, "the columns"),
        ([{"question": "q", "answer": " "}], None, r"forget\[0\] lacks"),
        ([{"messages": [USER, BOT, USER, BOT]}], None, "a row of its own"),
        ([{"question": "q", "answer": "a"}], [{"text": "t"}], "the same format"),
        ([{"question": "q", "answer": "a"}], [{"question": "Q!", "answer": "A."}], r"is also retain\[0\]"),
        ([{"text": " "}], None, "has no text"),
    ],
)
def test_what_cannot_be_augmented_is_refused(forget: list[dict], retain: list[dict] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rows(Dataset.from_list(forget), None if retain is None else Dataset.from_list(retain))


def test_the_new_rows_join_the_two_sets() -> None:
    forget = Dataset.from_list([{"question": "q", "answer": "a", "author": "x"}])
    rows = read_rows(forget, Dataset.from_list([{"question": "r", "answer": "b"}]))
    made = assemble(
        rows, [Variants(questions=["q1", "q2"], answers=["a1"], wrong_answers=["w0", "w1", "w2", "w3"])], 2, 4
    )
    assert [tuple(row.values()) for row in made.forget] == [("q", "a"), ("q1", "a1"), ("q2", "a")]
    assert [tuple(row.values()) for row in made.retain] == [
        ("r", "b"), ("q", "w0"), ("q1", "w1"), ("q2", "w2"), ("q", "w3"),
    ]  # fmt: skip
    assert made.report["made"] == {"question": 2, "answer": 1, "wrong answer": 4}
    assert made.report["rows with fewer than wanted"] == {"question": 0, "answer": 1, "wrong answer": 0}


def test_normalize_leaves_words_only() -> None:
    assert normalize("“It’s  the LGBTQ+ Award!”") == "it s the lgbtq+ award"
    assert normalize("Águeda, Győr & Łódź") == normalize("Agueda, Gyor & Łodz")
    assert normalize("한국 한국") == "한국 한국"
