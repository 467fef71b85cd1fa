"""The model card: made from the configuration, valid for the Hub, silent about the texts."""

from pathlib import Path

import pytest
from families import tiny_config
from hub_server import mistakes_in
from huggingface_hub import ModelCard, ModelCardData

from uld_hf.configuration_uld import ULDModelConfig
from uld_hf.model_card import find_license, model_card


TRAINING = {
    "forget_rows": 1200,
    "retain_rows": 34567,
    "license": {"license": "apache-2.0"},
    "settings": {"steps": 40, "learning_rate": 0.001},
    "metrics": {"forget_loss": 0.0123456},
    "versions": {"uld_hf": "0.1.0"},
}


def config(**changes: object) -> ULDModelConfig:
    settings = {"target_name_or_path": "org/finetuned", "target_revision": "abc123", "num_assistant_layers": 2}
    return ULDModelConfig(tiny_config("llama"), **(settings | {"training": {"assistant": TRAINING}} | changes))


def test_metadata_is_read_back_by_the_hubs_own_parser():
    data = ModelCard(str(model_card(config()))).data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "org/finetuned", "uld_hf")
    assert data.pipeline_tag == "text-generation"
    assert {"unlearning", "uld"} <= set(data.tags)


def test_the_text_has_target_revision_sizes_settings_and_metrics():
    card = str(model_card(config(alpha=1.25, relative_top=0.0)))
    assert "`org/finetuned` at revision `abc123`" in card
    assert "| `assistant/` | 2 | 1.25 | 1,200 | 34,567 |" in card
    assert "`relative_top=0.0`" in card
    for row in ("| steps | 40 |", "| learning_rate | 0.001 |", "| forget_loss | 0.01235 |", "| uld_hf | 0.1.0 |"):
        assert row in card


def test_results_of_an_evaluation_are_shown_where_there_are_some():
    training = {"assistant": TRAINING | {"evaluation": {"forget quality p": 0.16}}}
    assert "| forget quality p | 0.16 |" in str(model_card(config(training=training)))


def test_an_assistant_of_which_nothing_is_known_has_a_card_too():
    card = str(model_card(config(training=None)))
    assert "| `assistant/` | 2 | 1.25 | ? | ? |" in card
    assert "## Training" not in card
    assert ModelCard(card).data.license is None


def test_every_assistant_has_its_row():
    assistants = {name: {"num_layers": 2, "alpha": 0.5} for name in ("alice", "bob")}
    card = str(model_card(config(assistants=assistants, training={"bob": TRAINING})))
    assert "| `alice/` | 2 | 0.5 | ? | ? |" in card
    assert "| `bob/` | 2 | 0.5 | 1,200 | 34,567 |" in card
    assert card.count("## Training of") == 1


def test_a_local_target_is_not_named(tmp_path: Path):
    card = str(model_card(config(target_name_or_path=str(tmp_path))))
    assert str(tmp_path) not in card
    assert ModelCard(card).data.base_model is None
    assert "target=target" in card


@pytest.mark.parametrize(
    ("private", "sentence"),
    [
        (True, "pushed as a private one"),
        (False, "**This repository was pushed as a public one.**"),
        (None, "Keep this folder as confidential as the forget set."),
    ],
)
def test_it_says_what_being_public_means(private: bool | None, sentence: str):
    text = " ".join(str(model_card(config(), repo_id="me/forget", private=private)).split())
    assert sentence in text
    assert "An assistant is a concentrated copy of what was to be forgotten" in text


def write_card(folder: Path, text: str) -> str:
    (folder / "README.md").write_text(text)
    return str(folder)


def test_the_licence_is_the_targets(tmp_path: Path):
    card = "---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\nlanguage: en\n---\nA model."
    expected = {"license": "other", "license_name": "llama3", "license_link": "LICENSE"}
    assert find_license(write_card(tmp_path, card)) == expected


@pytest.mark.parametrize(
    "text", ["", "A model.", "---\n[broken\n---\n", "---\nlicense: [mit, apache]\n---\n", "---\n3\n---\n"]
)
def test_a_target_without_a_readable_licence_has_none(tmp_path: Path, text: str):
    assert find_license(write_card(tmp_path, text)) == {}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("MIT License", {"license": "other", "license_name": "MIT-License"}),
        ("other", {"license": "other", "license_name": "unknown"}),
        ("apache-2.0", {"license": "apache-2.0"}),
    ],
)
def test_a_licence_that_the_hub_would_refuse_becomes_one_of_its_own(tmp_path: Path, written: str, expected: dict):
    licence = find_license(write_card(tmp_path, f"---\nlicense: {written}\n---\nA model."))
    assert licence == expected
    card = model_card(config(training={"assistant": TRAINING | {"license": licence}}))
    assert mistakes_in(card.data.to_dict()) == []


def test_what_the_hub_refuses_is_refused_by_ours():
    wrong = {"license": "MIT License", "base_model": "/home/me/model", "base_model_relation": "child", "tags": "uld"}
    assert len(mistakes_in(wrong)) == 4
    assert mistakes_in(None) == ["there is no metadata"]


def test_a_folder_without_a_card_has_no_licence(tmp_path: Path):
    assert find_license(str(tmp_path)) == {}


def test_a_target_that_cannot_be_asked_for_has_no_licence():
    assert find_license("nobody/nothing") == {}
