"""Saved files that are damaged: a clear error, or exactly what was saved. Never anything in between.

The oracle is the same for thousands of random damages: loading raises ValueError or OSError with a message that names
the file or the setting, or the loaded model gives the logits of the undamaged one, to the bit. `make test` tries some
hundreds, `make test-all` at least ten thousand. What is signed anew after the damage gets past the hashes, to the
checks behind.
"""

import json
import math
import random
import re
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from families import tiny_model, train_like
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.saved_files import ADAPTER_FILES, DamagedFileError, describe_file, sign_config


IDS = torch.tensor([[1, 9, 12, 5, 33, 21, 8]])
FILES = ("config.json", "assistant/adapter_config.json", "assistant/adapter_model.safetensors")
# What a message must name for a reader to know where to look.
NAMES = re.compile(
    r"config\.json|adapter_config|adapter_model|safetensors|unlearned|assistant|alpha|relative_top|outside|center|clamp"
)
GIGABYTE = 2**30


class Saved(NamedTuple):
    """A saved model, its target, and its logits."""

    folder: Path
    target: PreTrainedModel
    logits: torch.Tensor

    @property
    def target_logits(self) -> torch.Tensor:
        with torch.no_grad():
            return self.target(IDS).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("saved")
    target = tiny_model("llama", num_layers=2)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 1, lora)))
    model.save_pretrained(folder)
    with torch.no_grad():
        return Saved(folder, target, model(IDS).logits)


@pytest.fixture
def copied(saved: Saved, tmp_path: Path) -> Saved:
    shutil.copytree(saved.folder, tmp_path / "copy")
    return saved._replace(folder=tmp_path / "copy")


def load(saved: Saved) -> torch.Tensor:
    with torch.no_grad():
        return ULDForCausalLM.from_pretrained(saved.folder, target=saved.target)(IDS).logits


def try_to_load(saved: Saved) -> tuple[torch.Tensor | None, Exception | None]:
    try:
        return load(saved), None
    except (ValueError, OSError) as error:
        return None, error


def check(saved: Saved) -> bool:
    """The oracle. Whether the damage was refused."""
    logits, error = try_to_load(saved)
    assert logits is None or torch.equal(logits, saved.logits), "something else than what was saved was loaded"
    assert error is None or NAMES.search(str(error)), f"the message says nothing: {error!r}"
    return error is not None


def edit_json(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "assistant" / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def sign(folder: Path) -> None:
    """As if the damaged files were what had been saved."""
    files = {f"assistant/{name}": describe_file(folder / "assistant" / name) for name in ADAPTER_FILES}
    edit_json(folder / "config.json", lambda content: content.update(files=files))
    sign_config(folder)


# Random damage


def damage(content: bytes, chance: random.Random) -> bytes:
    """What disks, networks and editors do to a file."""
    kind = chance.randrange(8)
    at = chance.randrange(len(content))
    if kind == 0:  # cut off
        return content[:at]
    if kind == 1:  # a bit flipped
        return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
    if kind == 2:  # several bytes wrong
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 20)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        return bytes(damaged)
    if kind == 3:  # a page of zeros
        return content[:at] + bytes(min(4096, len(content) - at)) + content[at + 4096 :]
    if kind == 4:  # a piece missing
        return content[:at] + content[at + chance.randrange(1, 200) :]
    if kind == 5:  # a piece twice
        return content[:at] + content[max(0, at - 100) :]
    if kind == 6:  # another end
        return content + chance.randbytes(chance.randrange(1, 64))
    return chance.randbytes(chance.randrange(0, 4096))  # another file altogether


def try_damages(saved: Saved, folder: Path, seeds: range) -> dict[str, int]:
    counts = {"refused": 0, "as saved": 0}
    for seed in seeds:
        chance = random.Random(seed)
        name = FILES[seed % len(FILES)]
        original = (saved.folder / name).read_bytes()
        (folder / name).write_bytes(damage(original, chance))
        counts["refused" if check(saved._replace(folder=folder)) else "as saved"] += 1
        (folder / name).write_bytes(original)
    return counts


def test_random_damage_is_an_error_or_nothing(copied: Saved, saved: Saved):
    counts = try_damages(saved, copied.folder, range(300))
    assert counts["refused"] > 270, counts  # a space more in a JSON file is no damage


@pytest.mark.slow
def test_ten_thousand_random_damages(copied: Saved, saved: Saved, record_property: Callable[[str, Any], None]):
    counts = try_damages(saved, copied.folder, range(1000, 11200))
    record_property("damaged inputs", sum(counts.values()))
    print(f"\n{sum(counts.values())} damaged inputs: {counts}")
    assert sum(counts.values()) >= 10_000
    assert counts["refused"] > 9_000, counts


# JSON of any shape, signed: the checks behind the hashes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def workplace(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("workplace") / "copy"
    shutil.copytree(saved.folder, folder)
    return saved._replace(folder=folder)


def restore(saved: Saved, workplace: Saved) -> None:
    for name in FILES:
        shutil.copy(saved.folder / name, workplace.folder / name)


CONFIG_KEYS = (
    *("assistants", "relative_top", "outside", "center", "clamp", "target_fingerprint", "target_config", "files"),
    *("model_type", "training", "target_name_or_path", "target_revision"),
)
ADAPTER_KEYS = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern", "peft_type", "task_type"),
    *("layers_to_transform", "layer_replication", "modules_to_save", "bias", "megatron_config", "init_lora_weights"),
    *("exclude_modules", "use_dora", "use_rslora", "trainable_token_indices", "target_parameters", "auto_mapping"),
)


def check_signed(saved: Saved) -> None:
    """An error that says something, or a model that still subtracts what the file asks for: finite, not the target."""
    logits, error = try_to_load(saved)
    assert error is None or NAMES.search(str(error)), f"the message says nothing: {error!r}"
    if logits is not None:
        assert torch.isfinite(logits).all()
        assert not torch.allclose(logits, saved.target_logits, atol=1e-6)


def any_value_in_config(saved: Saved, workplace: Saved, key: str, value: Any) -> None:
    restore(saved, workplace)
    edit_json(workplace.folder / "config.json", lambda content: content.update({key: value}))
    sign_config(workplace.folder)
    check_signed(workplace)


def any_value_in_adapter_config(saved: Saved, workplace: Saved, key: str, value: Any) -> None:
    restore(saved, workplace)
    edit_json(workplace.folder / "assistant" / "adapter_config.json", lambda content: content.update({key: value}))
    sign(workplace.folder)
    check_signed(workplace)


FIXTURES_ARE_FINE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=60, suppress_health_check=FIXTURES_ARE_FINE)
@given(key=st.sampled_from(CONFIG_KEYS), value=JSON)
def test_any_json_in_the_configuration(saved: Saved, workplace: Saved, key: str, value: Any):
    any_value_in_config(saved, workplace, key, value)


@settings(max_examples=60, suppress_health_check=FIXTURES_ARE_FINE)
@given(key=st.sampled_from(ADAPTER_KEYS), value=JSON)
def test_any_json_in_the_adapters_configuration(saved: Saved, workplace: Saved, key: str, value: Any):
    any_value_in_adapter_config(saved, workplace, key, value)


@pytest.mark.slow
@settings(max_examples=1500, suppress_health_check=FIXTURES_ARE_FINE)
@given(key=st.sampled_from(CONFIG_KEYS), value=JSON)
def test_much_json_in_the_configuration(saved: Saved, workplace: Saved, key: str, value: Any):
    any_value_in_config(saved, workplace, key, value)


@pytest.mark.slow
@settings(max_examples=1500, suppress_health_check=FIXTURES_ARE_FINE)
@given(key=st.sampled_from(ADAPTER_KEYS), value=JSON)
def test_much_json_in_the_adapters_configuration(saved: Saved, workplace: Saved, key: str, value: Any):
    any_value_in_adapter_config(saved, workplace, key, value)


# Damage with a name


def refuse(saved: Saved, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        load(saved)


def alpha(value: Any) -> Callable[[dict], object]:
    return lambda content: content["assistants"]["assistant"].update(alpha=value)


def num_layers(value: Any) -> Callable[[dict], object]:
    return lambda content: content["assistants"]["assistant"].update(num_layers=value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (alpha(0), "alpha=0 would give the target's own output"),
        (alpha(0.0), "alpha=0.0 would give"),
        (alpha(math.nan), "alpha=nan"),
        (alpha(math.inf), "alpha=inf"),
        (alpha("0.75"), "alpha='0.75': an integer and a number are needed"),
        (alpha(None), "alpha=None"),
        (alpha(True), "alpha=True"),
        (alpha([0.75]), "alpha="),
        (num_layers(0), "cannot have 0 layers"),
        (num_layers(-1), "cannot have -1 layers"),
        (num_layers(10**9), "cannot have 1000000000 layers"),
        (num_layers(1.0), r"num_layers=1\.0"),
        (num_layers("1"), "num_layers='1'"),
        (num_layers(2), "their weights of the first layers differ"),
        (lambda content: content.update(assistants={}), "names no assistant"),
        (lambda content: content.update(assistants=[]), "names no assistant"),
        (lambda content: content["assistants"].update({"../up": {"num_layers": 1, "alpha": 1}}), "must consist of"),
        (lambda content: content["assistants"].update({"/etc": {"num_layers": 1, "alpha": 1}}), "must consist of"),
        (
            lambda content: content["assistants"].update({"bob": {"num_layers": 1, "alpha": 1}}),
            r"bob/adapter|file named",
        ),
        (lambda content: content.update(relative_top=1.5), "relative_top=1.5 must lie between"),
        (lambda content: content.update(relative_top=-0.1), "relative_top=-0.1 must lie between"),
        (lambda content: content.update(relative_top=math.nan), "relative_top=nan must lie between"),
        (lambda content: content.update(relative_top="0.01"), "relative_top='0.01' must be a number"),
        (lambda content: content.update(outside="keep "), "outside='keep ' must be"),
        (lambda content: content.update(outside="mask", relative_top=1), "nothing would be forgotten"),
        (lambda content: content.update(center="false"), "must be True or False"),
        (lambda content: content.update(clamp=1), "must be True or False"),
        (lambda content: content.update(center=False, clamp=True), "clamp=True needs center=True"),
        (lambda content: content.update(target_fingerprint={}), "has no target_fingerprint"),
        (lambda content: content.update(target_config=3), "config.json|target_config"),
        (lambda content: content.update(model_type="llama"), "is not an unlearned model"),
        (lambda content: content.pop("model_type"), "is not an unlearned model"),
        (lambda content: content.update(files={}), "does not say what .*adapter_config.json must be"),
        (lambda content: content.update(files=3), "config.json"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(copied: Saved, change: Callable, message: str):
    edit_json(copied.folder / "config.json", change)
    sign_config(copied.folder)
    refuse(copied, message)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"3", b'"config"', b"{", b"\xff\xfe", b"[" * 100_000, b"{}"])
@pytest.mark.parametrize("name", ["config.json", "assistant/adapter_config.json"])
def test_a_file_that_is_no_json_object_is_refused(copied: Saved, name: str, content: bytes):
    (copied.folder / name).write_bytes(content)
    if name != "config.json":
        sign(copied.folder)
    refuse(copied, "config.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_saving_over_a_damaged_configuration_is_refused_and_told_what_to_do(copied: Saved, content: bytes):
    model = ULDForCausalLM.from_pretrained(copied.folder, target=copied.target)
    (copied.folder / "config.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged.* Save to another folder; or, .* delete "):
        model.save_pretrained(copied.folder)


def test_a_configuration_edited_by_hand_is_refused_and_told_what_to_do(copied: Saved):
    edit_json(copied.folder / "config.json", alpha(0.1))
    refuse(copied, r"config\.json is damaged or was edited.*To change a setting, give it to from_pretrained")


def test_a_configuration_without_a_checksum_is_refused(copied: Saved):
    edit_json(copied.folder / "config.json", lambda content: content.pop("checksum"))
    refuse(copied, r"config\.json is damaged or was edited")


def test_auto_model_refuses_a_damaged_configuration_too(copied: Saved):
    edit_json(copied.folder / "config.json", alpha(0.1))
    with pytest.raises(ValueError, match=r"config\.json is damaged or was edited"):
        AutoModelForCausalLM.from_pretrained(copied.folder, target=copied.target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 10**9}, "asks for rank 1000000000"),
        ({"r": 0}, "ranks"),
        ({"r": -2}, "ranks"),
        ({"r": 2.0}, "ranks"),
        ({"r": "2"}, "adapter_config.json"),
        ({"r": 1}, "do not fit 1 layers"),
        ({"rank_pattern": {"q_proj": 10**9}}, "asks for rank"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": math.nan}, "lora_alpha"),
        ({"lora_alpha": math.inf}, "lora_alpha"),
        ({"alpha_pattern": {"q_proj": 0}}, "lora_alpha"),
        ({"target_modules": ["q_proj"]}, "do not fit"),
        ({"target_modules": []}, "adapter_config.json|do not fit"),
        ({"target_modules": ["embed_tokens"]}, "do not fit|embeddings"),
        ({"layers_to_transform": [1]}, "do not fit|does not fit"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"peft_type": "IA3"}, "adapter_config.json"),
        ({"peft_type": "os.system"}, "adapter_config.json"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    ],
    ids=str,
)
def test_an_adapter_configuration_that_cannot_be_is_refused(copied: Saved, changes: dict, message: str):
    edit_json(copied.folder / "assistant" / "adapter_config.json", lambda content: content.update(changes))
    sign(copied.folder)
    refuse(copied, message)


def first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update({name: tensors[name].long() for name in tensors}), "of type .*int64"),
        (lambda tensors: tensors.update({name: tensors[name].cfloat() for name in tensors}), "of type .*complex64"),
        (
            lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn) for name in tensors}),
            "of type .*float8",
        ),
        (lambda tensors: tensors.update({first(tensors): torch.zeros(0)}), "do not fit|rank"),
        (lambda tensors: tensors.update({first(tensors): torch.tensor(1.0)}), "do not fit|rank"),
        (lambda tensors: tensors.update({first(tensors): torch.zeros(64, 32)}), "do not fit"),
        (lambda tensors: tensors.clear() or tensors.update(x=torch.zeros(1)), "rank|do not fit"),
        (lambda tensors: tensors[first(tensors)].fill_(math.nan), "NaN or infinite"),
        (lambda tensors: tensors[first(tensors)][0].fill_(-math.inf), "NaN or infinite"),
    ],
)
def test_weights_that_cannot_be_are_refused(copied: Saved, change: Callable, message: str):
    edit_weights(copied.folder, change)
    sign(copied.folder)
    refuse(copied, message)


@pytest.mark.parametrize("shape", [[2**40, 2**20], [2**31, 2], [-1, 32], [2**63], [10**30]], ids=str)
def test_huge_dimensions_are_refused_without_allocating_them(copied: Saved, shape: list[int]):
    file = copied.folder / "assistant" / "adapter_model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header[sorted(header)[-1]]["shape"] = shape
    damaged = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(damaged)) + damaged + content[8 + length :])
    sign(copied.folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse(copied, "adapter_model.safetensors is damaged")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIGABYTE / 8


def test_a_header_longer_than_the_file_is_refused(copied: Saved):
    file = copied.folder / "assistant" / "adapter_model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + file.read_bytes()[8:])
    sign(copied.folder)
    refuse(copied, "adapter_model.safetensors is damaged")


def test_a_file_larger_than_saved_is_not_read(copied: Saved):
    with (copied.folder / "assistant" / "adapter_model.safetensors").open("ab") as stream:
        stream.truncate(64 * GIGABYTE)  # sparse
    refuse(copied, "adapter_model.safetensors is damaged: it has 68719476736 bytes")


# No pickle


def test_a_pickle_in_place_of_the_weights_is_never_opened(copied: Saved, monkeypatch: pytest.MonkeyPatch):
    assistant = copied.folder / "assistant"
    torch.save(load_file(assistant / "adapter_model.safetensors"), assistant / "adapter_model.bin")
    (assistant / "adapter_model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    refuse(copied, "assistant/adapter_model.safetensors is not there: the assistant was deleted, or not copied")


def test_a_target_that_is_a_pickle_is_never_opened(copied: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copied.target.config.save_pretrained(tmp_path / "target")
    torch.save(copied.target.state_dict(), tmp_path / "target" / "pytorch_model.bin")
    edit_json(
        copied.folder / "config.json", lambda content: content.update(target_name_or_path=str(tmp_path / "target"))
    )
    sign_config(copied.folder)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(OSError, match="cannot be loaded"):
        ULDForCausalLM.from_pretrained(copied.folder)


def test_code_in_a_repository_is_never_run(copied: Saved, tmp_path: Path):
    (copied.folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: ...\n")
    auto_map = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling_evil.Evil")
    edit_json(copied.folder / "config.json", lambda content: content.update(auto_map=auto_map))
    sign_config(copied.folder)
    assert torch.equal(load(copied), copied.logits)
    model = AutoModelForCausalLM.from_pretrained(copied.folder, target=copied.target)
    assert torch.equal(model(IDS).logits, copied.logits)
    assert not (tmp_path / "ran").exists()


def give_code(copied: Saved, target: Path, ran: Path) -> None:
    """A target whose repository has code that notes that it ran, named by the saved model."""
    target.mkdir()
    (target / "modeling_evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: ...\n")
    auto_map = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling_evil.Evil")
    (target / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    edit_json(copied.folder / "config.json", lambda content: content.update(target_name_or_path=str(target)))
    sign_config(copied.folder)


@pytest.mark.parametrize("said", [{}, {"trust_remote_code": False}], ids=["nothing said", "False"])
def test_code_of_the_target_is_refused_without_asking(
    copied: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, bool]
):
    give_code(copied, tmp_path / "target", tmp_path / "ran")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked on stdin"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        ULDForCausalLM.from_pretrained(copied.folder, **said)
    assert not (tmp_path / "ran").exists()


# Paths


@pytest.mark.parametrize("name", ["../target", "./target", "a/b/c", "..", "~/target", "file:///etc", 3, "a b", ""])
def test_a_target_outside_of_the_hub_is_refused_unless_it_is_a_whole_path(copied: Saved, name: Any):
    edit_json(copied.folder / "config.json", lambda content: content.update(target_name_or_path=name))
    sign_config(copied.folder)
    with pytest.raises(ValueError, match=r"names .* as its target, which is no hub id"):
        ULDForCausalLM.from_pretrained(copied.folder)


def test_a_model_that_is_its_own_target_is_refused(copied: Saved):
    own = str(copied.folder)
    edit_json(copied.folder / "config.json", lambda content: content.update(target_name_or_path=own))
    sign_config(copied.folder)
    with pytest.raises(ValueError, match="is an unlearned model itself"):
        ULDForCausalLM.from_pretrained(copied.folder)
