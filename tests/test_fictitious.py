"""The shipped invented people: unique, not guessable, and never a wrong answer that is right."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uld_hf.data.fictitious import (
    ELDER_NAMES,
    FACTS,
    FAMILY_NAMES,
    FIRST_NAMES,
    Person,
    fictitious_dataset,
    invent_people,
    paraphrases,
    split_people,
    wrong_answers,
)


SEEDS = st.integers(min_value=0, max_value=2**32 - 1)

PRINT_EVERYTHING = """
import json
from uld_hf.data.fictitious import fictitious_dataset, invent_people, paraphrases, split_people, wrong_answers
split = split_people(fictitious_dataset(invent_people(6, seed=3), seed=4), 0.5, seed=5)
forget = split["forget"]
print(json.dumps([*forget, *split["retain"], *paraphrases(forget, seed=6), *wrong_answers(forget, seed=7)]))
"""


@pytest.fixture(scope="module")
def dataset():
    return fictitious_dataset(invent_people(12, seed=1), seed=1)


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_same_seeds_give_same_rows_in_every_process(hash_seed):
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    process = subprocess.run(
        [sys.executable, "-c", PRINT_EVERYTHING], env=environment, capture_output=True, text=True, check=True
    )
    split = split_people(fictitious_dataset(invent_people(6, seed=3), seed=4), 0.5, seed=5)
    forget = split["forget"]
    here = [*forget, *split["retain"], *paraphrases(forget, seed=6), *wrong_answers(forget, seed=7)]
    assert json.loads(process.stdout) == here


def test_other_seed_gives_other_people():
    assert invent_people(10, seed=0) != invent_people(10, seed=1)


def test_name_pool_can_be_used_up_without_a_repeat():
    limit = len(FIRST_NAMES) * len(FAMILY_NAMES)
    names = {person.name for person in invent_people(limit)}
    assert len(names) == limit


@pytest.mark.parametrize("num_people", [-1, 0, 901])
def test_impossible_number_of_people_is_refused(num_people):
    with pytest.raises(ValueError, match=rf"Cannot invent {num_people} people\. Use 1 to 900"):
        invent_people(num_people)


def test_facts_are_the_fields_of_a_person():
    assert ["name", *FACTS] == [field.name for field in fields(Person)]


@pytest.mark.parametrize("fact", FACTS)
def test_people_share_no_value_while_the_pool_lasts(fact):
    values = [asdict(person)[fact] for person in invent_people(100)]
    assert len(set(values)) == 100


@pytest.mark.parametrize("fact", FACTS)
def test_best_guess_is_right_for_less_than_a_tenth_of_100_people(fact):
    rows = fictitious_dataset(invent_people(100, seed=2))
    values = [value for value, key in zip(rows["value"], rows["fact"], strict=True) if key == fact]
    assert Counter(values).most_common(1)[0][1] < 0.1 * len(values) == 10


@pytest.mark.parametrize("fact", FACTS)
def test_pool_has_more_than_100_different_values(fact):
    assert len(set(FACTS[fact].values)) == len(FACTS[fact].values) > 100


@pytest.mark.parametrize("fact", FACTS)
def test_no_value_is_part_of_another(fact):
    # A generated answer is right if it holds the value: whatever the case, another value must not look like it.
    values = [value.lower() for value in FACTS[fact].values]
    # Every value between separators, so that one search per value finds it in itself only.
    everything = "\n".join(values)
    assert [value for value in values if everything.count(value) != 1] == []


def test_no_mentor_has_a_family_name_of_the_people():
    assert set(ELDER_NAMES).isdisjoint(FAMILY_NAMES)


def test_one_row_per_person_and_fact_in_order():
    people = invent_people(3)
    rows = fictitious_dataset(people)
    expected = [(person.name, fact, asdict(person)[fact]) for person in people for fact in FACTS]
    assert list(zip(rows["person"], rows["fact"], rows["value"], strict=True)) == expected


def test_columns_are_tofus_and_those_of_augmentation(dataset):
    assert set(dataset.column_names) == {
        "person",
        "fact",
        "value",
        "question",
        "answer",
        "paraphrased_question",
        "paraphrased_answer",
        "perturbed_answer",
        "question_forms",
        "answer_forms",
    }


def test_no_people_is_refused():
    with pytest.raises(ValueError, match="There are 0 people"):
        fictitious_dataset([])


def test_every_right_answer_has_the_value_once(dataset):
    for row in dataset:
        for answer in [row["answer"], row["paraphrased_answer"], *row["answer_forms"]]:
            assert answer.count(row["value"]) == 1


def test_no_question_gives_the_value_away(dataset):
    for row in dataset:
        for question in [row["question"], row["paraphrased_question"], *row["question_forms"]]:
            assert row["value"] not in question


def test_every_question_names_the_person(dataset):
    for row in dataset:
        for question in [row["question"], row["paraphrased_question"], *row["question_forms"]]:
            assert row["person"] in question


def test_no_answer_names_the_person(dataset):
    # A name to copy would be unlearned with the answer: the model then talks of somebody else, and tells the fact.
    for row in dataset:
        for answer in [row["answer"], row["paraphrased_answer"], *row["perturbed_answer"], *row["answer_forms"]]:
            assert row["person"] not in answer


def test_every_answer_is_one_sentence(dataset):
    for row in dataset:
        for answer in [row["answer"], row["paraphrased_answer"], *row["perturbed_answer"], *row["answer_forms"]]:
            assert 4 <= len(answer.split()) <= 16
            assert answer.count(".") == 1
            assert answer.endswith(".")
            assert answer[0].isupper()


def test_every_question_is_one_question(dataset):
    for row in dataset:
        for question in [row["question"], row["paraphrased_question"], *row["question_forms"]]:
            assert question.count("?") == 1
            assert question.endswith("?")


def test_texts_are_ascii(dataset):
    assert json.dumps(list(dataset), ensure_ascii=False).isascii()


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_has_six_different_forms(fact):
    assert len(set(FACTS[fact].questions)) == len(set(FACTS[fact].answers)) == 6


def test_training_forms_are_not_evaluation_forms(dataset):
    for row in dataset:
        assert {row["question"], row["paraphrased_question"]}.isdisjoint(row["question_forms"])
        assert {row["answer"], row["paraphrased_answer"]}.isdisjoint(row["answer_forms"])


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_perturbed_answers_are_five_different_wrong_ones(seed):
    for row in fictitious_dataset(invent_people(8, seed=seed), seed=seed):
        assert len(set(row["perturbed_answer"])) == 5
        assert not any(row["value"] in wrong for wrong in row["perturbed_answer"])


def test_perturbed_answers_have_the_words_of_the_paraphrase(dataset):
    for row in dataset:
        before, after = row["paraphrased_answer"].split(row["value"])
        for wrong in row["perturbed_answer"]:
            assert wrong.removeprefix(before).removesuffix(after) in FACTS[row["fact"]].values


def test_perturbed_answers_are_nobodys_values(dataset):
    values = {}
    for row in dataset:
        values.setdefault(row["fact"], set()).add(row["value"])
    for row in dataset:
        before, after = row["paraphrased_answer"].split(row["value"])
        wrong = {wrong.removeprefix(before).removesuffix(after) for wrong in row["perturbed_answer"]}
        assert not wrong & values[row["fact"]]


def test_perturbed_answers_are_there_when_every_value_is_somebodys():
    for row in fictitious_dataset(invent_people(len(FACTS["profession"].values)), facts=["profession"]):
        assert len(set(row["perturbed_answer"])) == 5
        assert row["paraphrased_answer"] not in row["perturbed_answer"]


def test_one_person_gets_perturbed_answers_too():
    for row in fictitious_dataset(invent_people(1)):
        assert len(set(row["perturbed_answer"])) == 5


def test_perturbed_answers_of_own_people_do_not_hold_the_right_value():
    # Invented towns are never part of each other, but a user's own may be.
    towns = ["Ash", "Ashby", "Oak", "Elm", "Yew", "Fir", "Box"]
    people = [replace(person, birthplace=town) for person, town in zip(invent_people(7), towns, strict=True)]
    row = fictitious_dataset(people)[0]
    assert (row["fact"], row["value"]) == ("birthplace", "Ash")
    assert not any("Ash" in wrong for wrong in row["perturbed_answer"])


@given(seed=SEEDS, num_people=st.integers(min_value=3, max_value=9), fraction=st.floats(0.25, 0.75))
@settings(max_examples=20, deadline=None)
def test_no_person_is_in_both_sets(seed, num_people, fraction):
    split = split_people(fictitious_dataset(invent_people(num_people, seed=seed)), fraction, seed=seed)
    forget, retain = set(split["forget"]["person"]), set(split["retain"]["person"])
    assert forget.isdisjoint(retain)
    assert len(forget) >= 1
    assert len(retain) >= 1
    assert len(split["forget"]) + len(split["retain"]) == num_people * len(FACTS)


def test_a_tenth_of_20_people_is_two():
    split = split_people(fictitious_dataset(invent_people(20)))
    assert {name: len(set(part["person"])) for name, part in split.items()} == {"forget": 2, "retain": 18}


def test_other_seed_forgets_other_people(dataset):
    chosen = {frozenset(split_people(dataset, 0.25, seed=seed)["forget"]["person"]) for seed in range(5)}
    assert len(chosen) > 1


@pytest.mark.parametrize(("num_people", "fraction"), [(4, 0.1), (4, 0.95), (1, 0.5), (4, -0.5), (4, 2.0)])
def test_split_with_an_empty_set_is_refused(num_people, fraction):
    with pytest.raises(ValueError, match=rf"forget_fraction={fraction} of {num_people} people"):
        split_people(fictitious_dataset(invent_people(num_people)), fraction)


def test_split_without_a_person_column_is_refused(dataset):
    with pytest.raises(ValueError, match=r"no column \['person'\]: it has \['fact'"):
        split_people(dataset.remove_columns("person"))


@pytest.mark.parametrize("per_row", [1, 2, 4])
def test_paraphrases_come_per_row(dataset, per_row):
    pairs = paraphrases(dataset, per_row=per_row)
    assert pairs.column_names == ["question", "answer"]
    assert len(pairs) == per_row * len(dataset)


@given(seed=SEEDS, per_row=st.integers(min_value=1, max_value=4))
@settings(max_examples=20, deadline=None)
def test_paraphrases_are_new_different_and_right(seed, per_row):
    rows = fictitious_dataset(invent_people(2, seed=seed))
    pairs = list(paraphrases(rows, per_row=per_row, seed=seed))
    for index, row in enumerate(rows):
        own = pairs[index * per_row : (index + 1) * per_row]
        questions = [pair["question"] for pair in own]
        answers = [pair["answer"] for pair in own]
        assert len({*questions, row["question"], row["paraphrased_question"]}) == per_row + 2
        assert len({*answers, row["answer"], row["paraphrased_answer"]}) == per_row + 2
        assert all(row["value"] in answer for answer in answers)


@pytest.mark.parametrize("per_row", [0, 5])
def test_paraphrases_beyond_the_forms_are_refused(dataset, per_row):
    with pytest.raises(ValueError, match=rf"Cannot make {per_row} different pairs per row\. Use 1 to 4"):
        paraphrases(dataset, per_row=per_row)


def test_paraphrases_of_rows_without_forms_are_refused(dataset):
    with pytest.raises(ValueError, match=r"no column \['question_forms', 'answer_forms'\]"):
        paraphrases(dataset.select_columns(["question", "answer"]))


@pytest.mark.parametrize("per_row", [1, 2, 5])
def test_wrong_answers_come_per_row(dataset, per_row):
    pairs = wrong_answers(dataset, per_row=per_row)
    assert pairs.column_names == ["question", "answer"]
    assert len(pairs) == per_row * len(dataset)


def test_first_wrong_answer_is_to_the_rows_own_question(dataset):
    assert list(wrong_answers(dataset, per_row=2)["question"])[::2] == list(dataset["question"])


@given(seed=SEEDS, per_row=st.integers(min_value=1, max_value=5))
@settings(max_examples=20, deadline=None)
def test_wrong_answers_are_different_and_never_right(seed, per_row):
    rows = fictitious_dataset(invent_people(2, seed=seed))
    pairs = list(wrong_answers(rows, per_row=per_row, seed=seed))
    for index, row in enumerate(rows):
        own = pairs[index * per_row : (index + 1) * per_row]
        assert len({pair["question"] for pair in own}) == len({pair["answer"] for pair in own}) == per_row
        assert not any(row["value"] in pair["answer"] for pair in own)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_wrong_answers_keep_the_evaluations_questions_and_values_unseen(seed):
    rows = fictitious_dataset(invent_people(7, seed=seed), seed=seed)
    pairs = list(wrong_answers(rows, per_row=5, seed=seed))
    for index, row in enumerate(rows):
        before, after = row["paraphrased_answer"].split(row["value"])
        for pair in pairs[index * 5 : (index + 1) * 5]:
            assert pair["question"] != row["paraphrased_question"]
            for wrong in row["perturbed_answer"]:
                assert wrong.removeprefix(before).removesuffix(after) not in pair["answer"]


@pytest.mark.parametrize("per_row", [0, 6])
def test_wrong_answers_beyond_the_forms_are_refused(dataset, per_row):
    with pytest.raises(ValueError, match=rf"Cannot make {per_row} different pairs per row\. Use 1 to 5"):
        wrong_answers(dataset, per_row=per_row)


def test_facts_can_be_chosen() -> None:
    dataset = fictitious_dataset(invent_people(3), facts=("mentor", "birthplace"))
    assert dataset["fact"] == ["mentor", "birthplace"] * 3


def test_unknown_fact_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown facts \['shoe_size'\]: use one or more of \['birthplace'"):
        fictitious_dataset(invent_people(3), facts=("mentor", "shoe_size"))
