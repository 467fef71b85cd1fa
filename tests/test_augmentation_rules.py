"""Paraphrases and wrong answers by rules: exact forms, properties on invented people, independence of the hash seed."""

import json
import random
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import outputs_by_hash_seed

from uld_hf.data.augmentation import Augmentation
from uld_hf.data.augmentation_entities import common_words, facts, normalize, states
from uld_hf.data.augmentation_rules import answer_forms, augment_by_rules, question_forms
from uld_hf.data.fictitious import fictitious_dataset, invent_people, split_people


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "tofu"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real TOFU files are not at {SHARED}")


def forms(question: str) -> list[str]:
    return list(question_forms(question, common_words([question]), random.Random(0)))


@pytest.mark.parametrize(
    ("question", "form"),
    [
        ("Where was Alice Liddell born?", "Can you tell me where Alice Liddell was born?"),
        ("What genre does Alice Liddell study in?", "I wonder what genre Alice Liddell studies in."),
        ("Has Alice Liddell won a prize?", "Do you know whether Alice Liddell has won a prize?"),
        ("What is the title of the book?", "Please tell me what the title of the book is."),
        ("What is the age of Alice Liddell?", "What is Alice Liddell's age?"),
        ("What is Alice Liddell's age?", "What is the age of Alice Liddell?"),
        ("Can you name a book by Alice?", "Please name a book by Alice."),
        ("Who was born on the 8th of September, 1956?", "Who was born on September 8, 1956?"),
        ("Who was born on the 8th of September, 1956?", "Who was born on 8 September 1956?"),
        ("How do they do it?", "Please answer the following question: How do they do it?"),
    ],
)
def test_question_forms(question: str, form: str) -> None:
    assert form in forms(question)


@pytest.mark.parametrize(
    "question",
    [
        "What is the book of Alice known for?",  # not "what the book of Alice known for is"
        "Who is the mother of Alice and what is her job?",
        "Does Alice Liddell write?",
        "How does Alice often write?",
        "How has Alice Liddell's work been received?",
    ],
)
def test_a_verb_stays_where_it_is_if_grammar_is_not_certain(question: str) -> None:
    assert all(question in form for form in forms(question))


def test_answer_forms() -> None:
    made = list(answer_forms("The author is Alice Liddell.", (), frozenset({"author"}), random.Random(0)))
    assert made[0] == "Alice Liddell is the author."
    made = list(
        answer_forms("Alice Liddell was born on May 4, 1852.", ["Alice Liddell"], frozenset(), random.Random(0))
    )
    assert made[:2] == ["Alice Liddell was born on 4 May 1852.", "Liddell was born on May 4, 1852."]


def augment(num_people: int = 6, seed: int = 0, wanted: int = 3) -> tuple[Dataset, Dataset, Augmentation]:
    split = split_people(fictitious_dataset(invent_people(num_people, seed)), forget_fraction=0.5, seed=seed)
    columns = ["question", "answer"]
    forget, retain = split["forget"].select_columns(columns), split["retain"].select_columns(columns)
    return split["forget"], retain, augment_by_rules(forget, retain, wanted, wanted, seed)


@settings(max_examples=8)
@given(st.integers(min_value=4, max_value=12), st.integers(min_value=0, max_value=1000), st.integers(1, 4))
def test_paraphrases_keep_facts_and_wrong_answers_do_not(num_people: int, seed: int, wanted: int) -> None:
    forget, retain, made = augment(num_people, seed, wanted)
    common = common_words(text for row in (*forget, *retain) for text in (row["question"], row["answer"]))
    retained = {(normalize(row["question"]), normalize(row["answer"])) for row in retain}
    for row, variants in zip(forget, made.variants, strict=True):
        assert len(variants.questions) == len(variants.answers) == wanted
        assert 1 <= len(variants.wrong_answers) <= wanted
        assert all(row["person"] in question for question in variants.questions)
        told = facts(row["question"], row["answer"], common)
        assert all(states(fact, answer) for answer in variants.answers for fact in told)
        assert not any(row["value"] in answer for answer in variants.wrong_answers if told)
        for texts in (
            [row["question"], *variants.questions],
            [row["answer"], *variants.answers],
            [row["answer"], *variants.wrong_answers],
        ):
            assert len({normalize(text) for text in texts}) == len(texts)
    new = {(normalize(row["question"]), normalize(row["answer"])) for row in made.forget}
    assert not new & retained
    assert not new & {(normalize(row["question"]), normalize(row["answer"])) for row in made.retain}


def test_values_come_from_forget_rows_only() -> None:
    forget, retain, made = augment(12)
    values = {row["value"] for row in fictitious_dataset(invent_people(12, 0))}
    kept_only = values - set(forget["value"])
    texts = "\n".join(text for variants in made.variants for text in (*variants.answers, *variants.wrong_answers))
    assert retain.num_rows == forget.num_rows
    assert len(kept_only) > 30
    assert not [value for value in kept_only if value in texts]


def test_the_given_rows_come_first_and_unchanged() -> None:
    forget, retain, made = augment()
    columns = ["question", "answer"]
    assert made.forget.to_list()[: len(forget)] == forget.select_columns(columns).to_list()
    assert made.retain.to_list()[: len(retain)] == retain.to_list()


def test_another_seed_makes_other_choices_and_the_same_seed_the_same() -> None:
    first, again = augment(seed=1), augment(seed=1)
    assert first[2].forget.to_list() == again[2].forget.to_list()
    rows = first[0].select_columns(["question", "answer"])
    assert augment_by_rules(rows, seed=1).forget.to_list() != augment_by_rules(rows, seed=2).forget.to_list()


def test_python_hash_seed_makes_no_difference() -> None:
    code = (
        "import json; from uld_hf.data.augmentation_rules import augment_by_rules as augment; "
        "from uld_hf.data.fictitious import *; "
        "rows = fictitious_dataset(invent_people(6)).select_columns(['question', 'answer']); "
        "made = augment(rows); print(json.dumps([made.forget.to_list(), made.retain.to_list(), made.report]))"
    )
    output, other = outputs_by_hash_seed(code)
    assert output == other
    assert len(json.loads(output)[0]) == 48 * 3


def test_answers_without_names_or_numbers_have_wrong_answers_too() -> None:
    rows = [
        {"question": "What gender is Alice?", "answer": "Alice is a woman."},
        {"question": "What gender is Bob?", "answer": "Bob is a man."},
        {"question": "Is Alice's house old?", "answer": "Yes, it was built long ago."},
    ]
    made = augment_by_rules(Dataset.from_list(rows))
    assert made.variants[0].wrong_answers[0] == "Alice is a man."
    assert made.variants[1].wrong_answers[0] == "Bob is a woman."
    assert made.variants[2].wrong_answers[0] == "No, it was not built long ago."


def test_words_before_an_answer_do_not_make_a_right_one_wrong() -> None:
    names = ("Alice Smith", "Bea Jones", "Cleo Brown", "Dora White")
    rows = [{"question": f"Is {name} a teacher by profession?", "answer": "Yes, she is."} for name in names]
    made = augment_by_rules(Dataset.from_list(rows), wrong_answers=3)
    assert [variants.wrong_answers for variants in made.variants] == [["No, she is not."]] * 4


def test_documents_are_varied_word_for_word_and_have_no_wrong_answers() -> None:
    text = "Alice was beginning to get very tired. She sat by her sister on the bank. The book had no pictures in it."
    made = augment_by_rules(Dataset.from_list([{"text": text}]), Dataset.from_list([{"text": "Other words."}]), 3)
    passages = made.forget["text"][1:]
    assert len(passages) == 3
    assert all(normalize(passage) in normalize(text) and passage != text for passage in passages)
    assert made.retain["text"] == ["Other words."]


def test_nothing_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="not all 0"):
        augment_by_rules(Dataset.from_list([{"question": "q", "answer": "a"}]), paraphrases=0, wrong_answers=0)


@needs_shared
def test_tofu_gets_two_of_each_and_none_of_the_retain_set() -> None:
    rows = {
        name: [json.loads(line) for line in (SHARED / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("forget05", "retain95")
    }
    made = augment_by_rules(Dataset.from_list(rows["forget05"]), Dataset.from_list(rows["retain95"]))
    assert made.report["made"]["question"] == made.report["made"]["answer"] == 400
    assert made.report["made"]["wrong answer"] >= 390
    retained = {(normalize(row["question"]), normalize(row["answer"])) for row in rows["retain95"]}
    assert not retained & {(normalize(row["question"]), normalize(row["answer"])) for row in made.forget}
    assert not any(
        (normalize(row["question"]), normalize(row["answer"])) in retained
        for row in made.retain.select(range(3800, len(made.retain)))
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_part_of_a_document_that_is_a_document_of_the_retain_set_is_left_out(seed: int) -> None:
    kept = "This text is free of charge. You may copy it."
    forget = Dataset.from_list([{"text": f"Alice lives in Leeds. {kept}"}])
    made = augment_by_rules(forget, Dataset.from_list([{"text": kept}]), seed=seed)
    assert kept not in list(made.forget["text"])
