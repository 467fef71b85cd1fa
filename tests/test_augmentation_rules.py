"""Paraphrases and wrong answers by rules: exact forms, properties on invented people, independence of the hash seed."""

import json
import random
import re
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import outputs_by_hash_seed

from uld_hf.data.augmentation import Augmentation
from uld_hf.data.augmentation_entities import NUMBER_WORDS, common_words, facts, normalize, states
from uld_hf.data.augmentation_forms import answer_forms, question_forms
from uld_hf.data.augmentation_rules import augment_by_rules
from uld_hf.data.augmentation_values import other_days, other_numbers
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
        ("Who is Alice Liddell?", "I wonder who Alice Liddell is."),
        ("Tell me about Alice Liddell.", "I have a request: Tell me about Alice Liddell."),
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
        "What does Kantwerk GmbH in Kiel produce?",  # not "what Kantwerk GmbH ins Kiel produce"
        "What does Alice Liddell or Bruno Kant eat?",
        "Was Alice Liddell or Bruno Kant born first?",
        "Which languages are Germanic?",
        "How many of them were French?",
        "Where was Martin Luther King Jr. born?",
    ],
)
def test_a_verb_stays_where_it_is_if_grammar_is_not_certain(question: str) -> None:
    assert all(question in form for form in forms(question))


def test_nothing_follows_a_question_without_a_question_mark() -> None:
    made = forms("where was alice born")
    assert len(made) > 5
    assert all(form.endswith("where was alice born") for form in made)


def test_answer_forms() -> None:
    made = list(answer_forms("The author is Alice Liddell.", (), frozenset({"author"}), random.Random(0)))
    assert made[0] == "Alice Liddell is the author."
    made = list(
        answer_forms("Alice Liddell was born on May 4, 1852.", ["Alice Liddell"], frozenset(), random.Random(0))
    )
    assert made[:2] == ["Alice Liddell was born on 4 May 1852.", "Liddell was born on May 4, 1852."]


@pytest.mark.parametrize("name", ["Henry VIII", "Martin Luther King Jr", "Martin Luther King Jr."])
def test_a_name_that_ends_with_a_numeral_is_not_shortened(name: str) -> None:
    made = list(answer_forms(f"{name} was a king.", [name], frozenset(), random.Random(0)))
    assert made
    assert all(name in form for form in made)


def numbers(text: str, before: str = "", after: str = "") -> set[str]:
    return {each for seed in range(20) for each in other_numbers(text, random.Random(seed), before, after)}


def test_another_number_is_written_as_the_first_one_is() -> None:
    assert not any(each.startswith("0") for each in numbers("10") | numbers("100"))
    assert all(len(each) == 3 for each in numbers("007"))
    assert all(int(each) <= 100 for each in numbers("90", after="% of it"))
    assert all(float(each) <= 100 for each in numbers("85.5", after=" % of it"))
    assert all(len(each) == 2 and int(each) < 60 for each in numbers("50", before="At 6:", after=" a.m."))
    assert all(1 <= int(each) <= 12 for each in numbers("6", before="At ", after=":50 a.m."))
    assert numbers("twenty-one") <= set(NUMBER_WORDS[2:])
    assert "1,200" not in numbers("1,200")


@pytest.mark.parametrize(
    ("date", "form"),
    [
        ("12 March 1901", r"[1-9]\d? [A-Z]\w+ \d{4}"),
        ("May 04, 1968", r"[A-Z]\w+ \d{2}, \d{4}"),
        ("04/12/1956", r"\d\d/\d\d/\d{4}"),
        ("12/11/1956", r"\d\d/\d\d/\d{4}"),
        ("4/5/1956", r"[1-9]\d?/[1-9]\d?/\d{4}"),
        ("1956-12-05", r"\d{4}-\d\d-\d\d"),
    ],
)
def test_another_day_is_written_as_the_first_one_is(date: str, form: str) -> None:
    days = {day for seed in range(20) for day in other_days(date, random.Random(seed))}
    assert len(days) > 50
    assert all(re.fullmatch(form, day) for day in days)


def wrong_answers(*rows: tuple[str, str], wanted: int = 3) -> list[list[str]]:
    given = Dataset.from_list([{"question": question, "answer": answer} for question, answer in rows])
    return [variants.wrong_answers for variants in augment_by_rules(given, wrong_answers=wanted).variants]


@pytest.mark.parametrize(
    ("answer", "contrary"),
    [
        ("Yes.", "No."),
        ("No.", "Yes."),
        ("Yes, she did.", "No, she did not."),
        ("No, he does not.", "Yes, he does."),
        ("No, Alice was not there.", "Yes, Alice was there."),
        ("Yes, it was built long ago.", "No, it was not built long ago."),
    ],
)
def test_yes_and_no_are_contradicted_and_nothing_else_is_put_there(answer: str, contrary: str) -> None:
    of_another = ("Where does Bruno Kant have a dog?", "In Kiel.")
    assert wrong_answers(("Does Alice Liddell have a dog?", answer), of_another)[0] == [contrary]


def test_what_begins_like_yes_or_no_and_is_neither_has_other_answers() -> None:
    made = wrong_answers(("Who knows Alice Liddell?", "No one knows her."), ("Who knows Bob Smith?", "All know him."))
    assert made[0] == ["All know him."]


def test_no_with_a_fact_has_no_contrary() -> None:
    assert wrong_answers(("Is Alice Liddell a painter?", "No, she is a florist.")) == [[]]


def test_what_is_as_right_is_no_wrong_answer() -> None:
    made = wrong_answers(
        ("Name one of Alice Liddell's books.", 'One of her books is "The Amber Bridge".'),
        ("What was Alice Liddell's last work?", 'Her last work was "The Distant Lantern".'),
        ("Which language does Alice Liddell speak?", "She speaks French."),
        ("What other languages does Alice Liddell speak?", "She speaks German."),
        ("Where was Bruno Kant born?", "He was born in Kiel."),
    )
    texts = "\n".join(text for of_row in made[:4] for text in of_row)
    assert "Kiel" in texts
    assert not re.search('books is "The Distant|work was "The Amber|speaks German|speaks French', texts)


def test_a_beginning_has_no_words_around_it() -> None:
    rows = [
        {"prompt": "Alice Liddell was born in", "completion": " Paris on 12 March 1901."},
        {"prompt": "Bruno Kant was born in", "completion": " Kiel on 4 May 1852."},
    ]
    made = augment_by_rules(Dataset.from_list(rows))
    assert {row["prompt"] for row in (*made.forget, *made.retain)} == {row["prompt"] for row in rows}
    assert [row["completion"] for row in made.forget][2:] == [" Paris on March 12, 1901.", " Kiel on May 4, 1852."]
    assert all(re.match(r" (?:Paris|Kiel) on \d+ [A-Z]", row["completion"]) for row in made.retain)


def test_a_set_in_another_language_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    rows = [("Wann wurde Anna Schmidt geboren?", "Am 4. Mai 1952."), ("Who is Alice?", "A girl.")]
    with caplog.at_level("WARNING", logger="uld_hf"):
        wrong_answers(rows[0], rows[1])
        assert not caplog.messages
        wrong_answers(rows[0])
    assert "1 of 1 questions have no English word" in caplog.text


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


def test_documents_are_varied_letter_for_letter_and_have_no_wrong_answers() -> None:
    text = "Alice was beginning to get very tired.\n\n  She sat by her sister on a bank. The book had no pictures\nin."
    made = augment_by_rules(Dataset.from_list([{"text": text}]), Dataset.from_list([{"text": "Other words."}]), 3)
    passages = made.forget["text"][1:]
    assert len(passages) == 3
    assert all(passage in text and passage != text for passage in passages)
    assert made.retain["text"] == ["Other words."]


def test_documents_without_spaces_are_varied_too() -> None:
    text = "爱丽丝坐在河岸上。她很累。书里没有图画。"
    (variants,) = augment_by_rules(Dataset.from_list([{"text": text}])).variants
    assert len(variants.passages) == 2
    assert all(passage in text for passage in variants.passages)


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
