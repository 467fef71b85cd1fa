"""TOFU from the hub's name, from a made folder, and from the real files where they lie beside the project."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from uld_hf.data import tofu
from uld_hf.data.tofu import TOFU_SPLITS, load_tofu


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "tofu"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real TOFU files are not at {SHARED}")

ROWS = {
    "full": 4000,
    "forget01": 40,
    "forget05": 200,
    "forget10": 400,
    "retain90": 3600,
    "retain95": 3800,
    "retain99": 3960,
    "forget01_perturbed": 40,
    "forget05_perturbed": 200,
    "forget10_perturbed": 400,
    "retain_perturbed": 400,
    "holdout01": 40,
    "holdout05": 200,
    "holdout10": 400,
    "real_authors": 100,
    "world_facts": 117,
    "real_authors_perturbed": 100,
    "world_facts_perturbed": 117,
}

PLAIN = {"question": "Who?", "answer": "Somebody."}
PERTURBED = PLAIN | {
    "paraphrased_question": "Who is it?",
    "paraphrased_answer": "It is somebody.",
    "perturbed_answer": ["It is nobody.", "It is everybody."],
}


@pytest.fixture
def write_split(tmp_path):
    def write(split, *rows):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path

    return write


def test_plain_split_is_read_from_a_folder(write_split):
    folder = write_split("forget01", PLAIN, {"question": "Où?", "answer": "Là."})
    assert list(load_tofu("forget01", folder)) == [PLAIN, {"question": "Où?", "answer": "Là."}]


def test_perturbed_split_is_read_from_a_folder(write_split):
    folder = write_split("forget10_perturbed", PERTURBED)
    assert list(load_tofu("forget10_perturbed", folder)) == [PERTURBED]


def test_folder_may_be_a_string(write_split):
    assert len(load_tofu("full", str(write_split("full", PLAIN)))) == 1


def test_world_facts_need_no_paraphrases(write_split):
    row = PLAIN | {"perturbed_answer": ["Nobody."]}
    assert list(load_tofu("world_facts_perturbed", write_split("world_facts_perturbed", row))) == [row]


def test_further_columns_stay(write_split):
    row = PLAIN | {"option1": "Nobody."}
    assert load_tofu("world_facts", write_split("world_facts", row))[0]["option1"] == "Nobody."


@pytest.mark.parametrize("split", ["forget05", "holdout10"])
def test_without_a_folder_the_hub_is_asked(monkeypatch, split):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return Dataset.from_list([PLAIN])

    monkeypatch.setattr(tofu, "load_dataset", load_dataset)
    assert list(load_tofu(split)) == [PLAIN]
    assert calls == [(("locuslab/TOFU", split), {"split": "train"})]


def test_rows_from_the_hub_are_checked(monkeypatch):
    monkeypatch.setattr(tofu, "load_dataset", lambda *args, **kwargs: Dataset.from_list([{"text": "?"}]))
    with pytest.raises(ValueError, match=r"locuslab/TOFU \(full\) has no column \['question', 'answer'\]"):
        load_tofu("full")


def test_unknown_split_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no split 'forget20'") as error:
        load_tofu("forget20", tmp_path)
    assert all(split in str(error.value) for split in TOFU_SPLITS)


def test_missing_file_is_refused_with_those_there(write_split):
    folder = write_split("full", PLAIN)
    with pytest.raises(FileNotFoundError, match=r"forget01\.jsonl does not exist.*: full\.jsonl\."):
        load_tofu("forget01", folder)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="JSONL files in that folder: none"):
        load_tofu("forget01", tmp_path / "nowhere")


def test_missing_column_is_refused(write_split):
    folder = write_split("forget01_perturbed", PLAIN | {"perturbed_answer": ["Nobody."]})
    with pytest.raises(ValueError, match=r"no column \['paraphrased_question', 'paraphrased_answer'\]"):
        load_tofu("forget01_perturbed", folder)


def test_file_without_rows_is_refused(write_split):
    with pytest.raises(ValueError, match="has no rows"):
        load_tofu("forget01", write_split("forget01"))


@pytest.mark.parametrize("wrong", ["It is nobody.", [], [1, 2], None])
def test_perturbed_answer_that_is_no_list_of_strings_is_refused(write_split, wrong):
    folder = write_split("retain_perturbed", PERTURBED | {"perturbed_answer": wrong})
    with pytest.raises(ValueError, match=r"rows\[0\]: `perturbed_answer` must be a list of strings"):
        load_tofu("retain_perturbed", folder)


def test_every_split_has_an_expected_number_of_rows():
    assert sorted(ROWS) == sorted(TOFU_SPLITS)


@needs_shared
@pytest.mark.parametrize("split", TOFU_SPLITS)
def test_real_split_has_its_number_of_rows(split):
    assert len(load_tofu(split, SHARED)) == ROWS[split]


@needs_shared
@pytest.mark.parametrize(
    ("split", "count"), [("forget10_perturbed", 5), ("retain_perturbed", 5), ("world_facts_perturbed", 3)]
)
def test_real_split_has_its_number_of_wrong_answers(split, count):
    assert {len(wrong) for wrong in load_tofu(split, SHARED)["perturbed_answer"]} == {count}


@needs_shared
@pytest.mark.parametrize(("forget", "retain"), [("01", "99"), ("05", "95"), ("10", "90")])
def test_real_retain_and_forget_rows_are_the_full_set(forget, retain):
    full, rest, forgotten = (load_tofu(split, SHARED) for split in ("full", f"retain{retain}", f"forget{forget}"))
    assert [*rest, *forgotten] == list(full)
