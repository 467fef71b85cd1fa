"""Unlearned models travel over a hub: a real client, in processes of its own, and a small server (hub_server.py)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Hub
from huggingface_hub import ModelCard


TESTS = Path(__file__).parent
LAYOUT = {
    "README.md",
    "assistant/adapter_config.json",
    "assistant/adapter_model.safetensors",
    "config.json",
    "generation_config.json",
}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


@dataclass
class Exchange:
    """A hub, and what its clients noted."""

    hub: Hub
    folder: Path

    def start(self, name: str) -> subprocess.Popen:
        paths = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, **self.hub.environment(str(self.folder / f"cache-{name}")), "PYTHONPATH": paths}
        command = [sys.executable, str(TESTS / "hub_client.py"), name, str(self.folder)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *names: str) -> None:
        for name, client in [(name, self.start(name)) for name in names]:
            _, errors = client.communicate()
            assert client.returncode == 0, f"{name}: {errors[-3000:]}"

    def note(self, client: str, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{client}.json").read_text())[name]

    def value(self, client: str, name: str) -> Any:
        note = self.note(client, name)
        assert "value" in note, note
        return note["value"]

    def files(self, repo_id: str) -> dict[str, bytes]:
        return self.hub.repositories[repo_id].files


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with Hub() as hub:
        exchange = Exchange(hub, tmp_path_factory.mktemp("hub"))
        exchange.run("publish")
        exchange.run("load", "foreign")
        yield exchange


@pytest.fixture(scope="module")
def trained(exchange: Exchange) -> Exchange:
    exchange.run("train")
    return exchange


# What is pushed


@pytest.mark.parametrize("name", ["by-model", "by-saving", "public", "by-command", "of-local", "no-revision"])
def test_a_pushed_model_is_the_layout(exchange: Exchange, name: str):
    assert set(exchange.files(f"me/{name}")) == LAYOUT


def test_a_removed_assistant_is_deleted_by_the_next_push_and_nothing_else_is(exchange: Exchange):
    first, *_ = exchange.hub.repositories["me/revoked"].commits[1:]
    assert "bob/adapter_model.safetensors" in first.files
    assert set(exchange.files("me/revoked")) - {".gitattributes"} == LAYOUT | {"notes.txt"}


@pytest.mark.parametrize("name", ["by-trainer", "every-save"])
def test_a_trainer_pushes_the_layout_and_the_tokenizer(exchange: Exchange, name: str):
    assert set(exchange.files(f"me/{name}")) == LAYOUT | TOKENIZER


def test_every_save_is_pushed_whole(exchange: Exchange):
    commits = exchange.hub.repositories["me/every-save"].commits[1:]
    assert [commit.title for commit in commits] == [f"Training in progress, step {step}" for step in (1, 2, 3)]
    assert all(set(commit.files) == LAYOUT | TOKENIZER for commit in commits)
    weights = [commit.files["assistant/adapter_model.safetensors"] for commit in commits]
    assert len(set(weights)) == 3


def test_no_commit_of_any_repository_has_an_adapter_at_its_root(exchange: Exchange):
    of_ours = [repository for name, repository in exchange.hub.repositories.items() if name != "me/adapter"]
    paths = {path for repository in of_ours for commit in repository.commits for path in commit.files}
    assert not {path for path in paths if "adapter" in path and path.count("/") == 0}


def test_nothing_pushed_is_a_pickle_or_holds_a_text_of_the_forget_set(exchange: Exchange):
    for repository in exchange.hub.repositories.values():
        for commit in repository.commits:
            assert not [path for path in commit.files if path.endswith((".bin", ".pt", ".pth", ".pkl"))]
            assert not [path for path, content in commit.files.items() if b"secretword" in content]


def test_a_baked_model_takes_the_place_of_the_unlearned_one_and_nothing_else_of_its_folder_is_pushed(
    exchange: Exchange,
):
    exchange.value("publish", "baked")
    *_, before, after = exchange.hub.repositories["me/baked"].commits
    assert "assistant/adapter_model.safetensors" in before.files
    plain = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert set(after.files) - {".gitattributes"} == plain | TOKENIZER
    assert exchange.hub.repositories["me/baked"].private


@pytest.mark.parametrize("attempt", ["beside an adapter", "baked, beside an adapter"])
def test_a_repository_with_an_adapter_at_its_root_is_refused(exchange: Exchange, attempt: str):
    note = exchange.note("publish", attempt)
    assert (note["error"], "adapter_config.json at its root" in note["message"]) == ("ValueError", True)
    assert set(exchange.files("me/adapter")) == {"adapter_config.json"}


def test_a_target_that_is_a_local_folder_is_not_named(exchange: Exchange):
    for content in exchange.files("me/of-local").values():
        assert str(exchange.folder).encode() not in content


def test_another_model_is_not_overwritten(exchange: Exchange):
    note = exchange.note("publish", "over the target")
    assert (note["error"], "me/target holds a model of type 'llama'" in note["message"]) == ("ValueError", True)


def test_a_private_repository_stays_private_and_the_card_says_so_by_its_whole_name(exchange: Exchange):
    assert exchange.value("publish", "public, kept private") == 0
    assert exchange.hub.repositories["me/kept-private"].private
    card = exchange.files("me/kept-private")["README.md"].decode()
    assert "This repository was pushed as a private one." in card
    assert 'from_pretrained("me/kept-private")' in card


def test_a_folder_without_an_unlearned_model_is_not_pushed(exchange: Exchange):
    assert exchange.value("publish", "uld push of a target") == 2
    assert "me/nothing" not in exchange.hub.repositories


# Private and public


def test_repositories_are_private_unless_asked_otherwise_in_words(exchange: Exchange):
    public = {name for name, repository in exchange.hub.repositories.items() if not repository.private}
    assert public - {"me/said"} == {"me/public", "me/by-command-public"}


@pytest.mark.parametrize("attempt", ["private to public", "trainer to public"])
def test_a_private_push_to_a_public_repository_is_refused(exchange: Exchange, attempt: str):
    note = exchange.note("publish", attempt)
    assert note["error"] == "ValueError"
    assert "me/public exists and is public" in note["message"]
    assert len(exchange.hub.repositories["me/public"].commits) == 2


@pytest.mark.parametrize("name", ["by-model", "by-trainer", "by-command"])
def test_nobody_without_a_token_loads_a_private_one(exchange: Exchange, name: str):
    assert exchange.note("load", f"anonymous {name}")["error"] == "OSError"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("public", "**This repository was pushed as a public one.**"),
        ("by-command-public", "Publishing it publishes the forget set."),
        ("by-command", "This repository was pushed as a private one."),
        ("by-trainer", "Give access to nobody who may not read the forget set."),
    ],
)
def test_the_card_says_who_may_have_it(exchange: Exchange, name: str, sentence: str):
    assert sentence in exchange.files(f"me/{name}")["README.md"].decode()


# The card


def test_the_hub_was_asked_whether_each_card_is_valid(exchange: Exchange):
    pushed = {repository.files["README.md"].decode() for name, repository in exchange.hub.repositories.items()
              if "config.json" in repository.files and name not in ("me/target", "me/other")}  # fmt: skip
    assert pushed <= set(exchange.hub.validated_cards)


def test_the_metadata_of_a_card_names_target_licence_and_tags(exchange: Exchange):
    data = ModelCard(exchange.files("me/by-trainer")["README.md"].decode()).data.to_dict()
    assert data == {
        "base_model": "me/target",
        "base_model_relation": "adapter",
        "library_name": "uld_hf",
        "license": "other",
        "license_name": "tiny",
        "license_link": "https://example.org/tiny",
        "pipeline_tag": "text-generation",
        "tags": ["unlearning", "uld", "arxiv:2406.08607"],
    }


def test_a_card_tells_of_the_run(exchange: Exchange):
    card = exchange.files("me/by-trainer")["README.md"].decode()
    assert f"`me/target` at revision `{exchange.value('publish', 'target revision')}`" in card
    assert "| `assistant/` | 2 | 1.25 | 3 | 3 |" in card
    assert 'from_pretrained("me/by-trainer")' in card
    assert "| steps | 2 |" in card
    assert "| retain_weight | 6.5 |" in card
    assert "| forget_loss | " in card


def test_the_metadata_of_every_card_is_yaml(exchange: Exchange):
    for repository in exchange.hub.repositories.values():
        if "README.md" in repository.files:
            assert isinstance(yaml.safe_load(repository.files["README.md"].decode().split("---")[1]), dict)


# What is loaded


@pytest.mark.parametrize("name", ["by-command", "by-saving", "old revision", "auto", "auto revision"])
def test_what_was_pushed_gives_the_same_logits_to_the_bit(exchange: Exchange, name: str):
    assert exchange.value("load", name) == exchange.value("publish", "logits")


@pytest.mark.parametrize("name", ["by-model", "branch"])
def test_the_newest_revision_is_loaded_unless_another_is_named(exchange: Exchange, name: str):
    assert exchange.value("load", name) == exchange.value("publish", "new logits")


def test_what_a_trainer_pushed_is_loaded(exchange: Exchange):
    loaded = [exchange.value("load", name) for name in ("by-trainer", "every-save")]
    assert exchange.value("publish", "target logits") not in loaded


def test_auto_model_gives_the_unlearned_model(exchange: Exchange):
    assert exchange.value("load", "class") == "ULDForCausalLM"


def test_the_pipeline_finds_model_and_tokenizer(exchange: Exchange):
    expected = exchange.value("load", "directly")
    assert exchange.value("load", "pipeline") == exchange.value("load", "pipeline revision") == expected


def test_the_tokenizer_comes_along(exchange: Exchange):
    assert exchange.value("load", "tokenizer") == exchange.value("load", "plain tokenizer")


def test_plain_peft_loads_the_subfolder_onto_the_first_layers(exchange: Exchange):
    assert exchange.value("load", "plain peft") is True


def test_an_assistant_is_added_from_the_hub(exchange: Exchange):
    assert exchange.value("load", "add_assistant") == "second"


def test_a_revision_that_is_not_there_is_an_error(exchange: Exchange):
    assert exchange.note("load", "revision that is not there")["error"] == "OSError"


# What is refused


def test_another_target_is_refused_with_both_names(exchange: Exchange):
    note = exchange.note("load", "other target")
    assert note["error"] == "ValueError"
    made_for = f"made for me/target at revision {exchange.value('publish', 'target revision')}"
    assert f"{made_for}) was trained on another target than me/other: their weights" in note["message"]


@pytest.mark.parametrize("name", ["newer revision", "no revision"])
def test_another_revision_of_the_target_is_refused(exchange: Exchange, name: str):
    note = exchange.note("load", name)
    assert note["error"] == "ValueError"
    assert "was trained on another target than me/target as it is here" in note["message"]


def test_only_in_words_is_another_target_allowed(exchange: Exchange):
    assert exchange.value("load", "allowed") is True


def test_a_local_target_must_be_passed(exchange: Exchange):
    note = exchange.note("load", "local target")
    assert (note["error"], "target=target" in note["message"]) == ("ValueError", True)
    assert exchange.value("load", "local target passed") == exchange.value("publish", "logits")


def test_without_uld_hf_nothing_is_loaded_in_any_way(exchange: Exchange):
    notes = json.loads((exchange.folder / "foreign.json").read_text())
    assert len(notes) == 29
    assert {name: note["value"] for name, note in notes.items() if "value" in note} == {}
    # The reason is ours, not a mistake of the test.
    reasons = ("model type `uld`", "uld_hf.ULDForCausalLM", "Can't find 'adapter_config.json'", "Unrecognized model in")
    assert [note for note in notes.values() if not any(reason in note["message"] for reason in reasons)] == []


# More trainings


@pytest.mark.slow
def test_a_trainer_told_nothing_pushes_privately(trained: Exchange):
    trained.value("train", "not said")
    assert trained.hub.repositories["me/not-said"].private


@pytest.mark.slow
def test_a_trainer_told_so_in_words_pushes_publicly(trained: Exchange):
    trained.value("train", "said")
    assert not trained.hub.repositories["me/said"].private
    assert "pushed as a public one" in trained.files("me/said")["README.md"].decode()


@pytest.mark.slow
def test_checkpoints_for_resuming_have_no_adapter_at_the_root_either(trained: Exchange):
    trained.value("train", "all_checkpoints")
    files = trained.files("me/all-checkpoints")
    assert {path for path in files if path.count("/") == 0} == {
        path for path in LAYOUT | TOKENIZER if path.count("/") == 0
    }
    assert {f"checkpoint-{step}/optimizer.pt" for step in (1, 2, 3)} <= set(files)
    assert not [path for path in files if "adapter" in path and "/assistant/" not in f"/{path}"]
    assert not [path for path in files if path.endswith("training_args.bin") or "/." in path]
    # They would name the target's folder.
    assert not [path for path in files if path.endswith(("/config.json", "/README.md"))]


@pytest.mark.slow
def test_uld_train_pushes(trained: Exchange):
    assert trained.value("train", "uld train --push_to_hub") == 0
    assert set(trained.files("me/by-train")) == LAYOUT | TOKENIZER
    assert trained.hub.repositories["me/by-train"].private


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all-checkpoints", "by-train"])
def test_what_more_trainings_pushed_is_loaded(trained: Exchange, name: str):
    assert len(trained.value("train", f"load {name}")) == 64
