"""The fingerprint: an assistant goes with the target it was trained on, and with no other."""

import json
from pathlib import Path

import pytest
import torch
from all_families import any_model
from families import VOCAB_SIZE, make_tokenizer, tiny_model, train_like
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast

from uld_hf import ULDForCausalLM, build_assistant, hub
from uld_hf.hub import fingerprint_target, fingerprint_tokenizer
from uld_hf.saved_files import sign_config


IDS = torch.tensor([[1, 9, 12, 5, 33, 21, 8]])


def other_tokenizer(**changes: object) -> PreTrainedTokenizerFast:
    """The tokenizer of the families with two words exchanged, or with another way to split a text."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCAB_SIZE - 4))]
    if "swapped" in changes:
        words[10], words[11] = words[11], words[10]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = changes.get("pre_tokenizer", pre_tokenizers.WhitespaceSplit())
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Folders `target`, with a tokenizer, and `unlearned`, whose fingerprint knows that tokenizer."""
    tiny_model("llama").save_pretrained(tmp_path / "target")
    make_tokenizer().save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    tokenizer = {"tokenizer": fingerprint_tokenizer(make_tokenizer())}
    model.config.target_fingerprint = fingerprint_target(target, 2) | tokenizer
    model.save_pretrained(tmp_path / "unlearned")
    return tmp_path


def test_the_same_tokenizer_has_the_same_fingerprint_when_loaded_again(tmp_path: Path):
    make_tokenizer().save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert fingerprint_tokenizer(loaded) == fingerprint_tokenizer(make_tokenizer())


def test_a_padding_token_and_a_chat_template_do_not_count():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<another pad>"})
    tokenizer.chat_template = "{{ messages }}"
    assert fingerprint_tokenizer(tokenizer) == fingerprint_tokenizer(make_tokenizer())


@pytest.mark.parametrize("changes", [{"swapped": True}, {"pre_tokenizer": pre_tokenizers.Punctuation()}], ids=str)
def test_another_vocabulary_or_another_splitting_counts(changes: dict):
    assert fingerprint_tokenizer(other_tokenizer(**changes)) != fingerprint_tokenizer(make_tokenizer())


def test_the_target_with_its_tokenizer_is_loaded(saved: Path):
    assert isinstance(ULDForCausalLM.from_pretrained(saved / "unlearned"), ULDForCausalLM)


def test_a_target_whose_tokenizer_was_exchanged_is_refused(saved: Path):
    other_tokenizer(swapped=True).save_pretrained(saved / "target")
    with pytest.raises(ValueError, match=r"trained on another target than .*: their tokenizers differ"):
        ULDForCausalLM.from_pretrained(saved / "unlearned")


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "qwen3_5_text", "llama"])
def test_without_files_there_is_no_tokenizer(family: str, tmp_path: Path):
    any_model(family).save_pretrained(tmp_path)  # of which some families make one of a few special tokens
    assert hub.fingerprint_tokenizer_of(str(tmp_path)) is None


def test_a_target_without_a_tokenizer_beside_it_is_compared_by_its_weights(saved: Path):
    for file in (saved / "target").glob("tokenizer*"):
        file.unlink()
    assert isinstance(ULDForCausalLM.from_pretrained(saved / "unlearned"), ULDForCausalLM)


def test_a_tokenizer_that_was_not_compared_is_told_of(
    saved: Path, caplog: pytest.LogCaptureFixture, transformers_log: None
):
    for file in (saved / "target").glob("tokenizer*"):
        file.unlink()
    ULDForCausalLM.from_pretrained(saved / "unlearned")
    assert f"The tokenizer of {saved / 'target'} was not compared" in caplog.text


def test_the_tokenizer_of_a_private_target_is_asked_for_with_the_token(saved: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(
        hub.AutoTokenizer, "from_pretrained", lambda *_, **kwargs: asked.append(kwargs) or make_tokenizer()
    )
    target = AutoModelForCausalLM.from_pretrained(saved / "target")
    where = {"token": "hf_mine", "cache_dir": saved / "cache", "local_files_only": True}
    hub.check_saved_target(hub.load_config(saved / "unlearned"), target, "unlearned", **where)
    assert asked == [{"revision": "main", "trust_remote_code": False, **where}]


def test_the_message_names_both_targets_and_the_way_round(saved: Path):
    other = tiny_model("llama", seed=9)
    other.name_or_path = "org/other"
    with pytest.raises(
        ValueError, match=rf"made for {saved}/target\) was trained on another target than org/other: .*"
        r"load it in Python with allow_target_mismatch=True",
    ):  # fmt: skip
        ULDForCausalLM.from_pretrained(saved / "unlearned", target=other)


@torch.no_grad()
def test_another_target_is_allowed_in_words_and_warned_of(
    saved: Path, caplog: pytest.LogCaptureFixture, transformers_log: None
):
    other = tiny_model("llama", seed=9)
    model = ULDForCausalLM.from_pretrained(saved / "unlearned", target=other, allow_target_mismatch=True)
    assert "allow_target_mismatch=True: The assistant" in caplog.text
    assert not torch.allclose(model(IDS).logits, other(IDS).logits, atol=0.1)


def test_a_model_saved_in_spite_of_a_mismatch_is_refused_again(saved: Path):
    other = tiny_model("llama", seed=9)
    model = ULDForCausalLM.from_pretrained(saved / "unlearned", target=other, allow_target_mismatch=True)
    model.save_pretrained(saved / "again")
    with pytest.raises(ValueError, match="trained on another target"):
        ULDForCausalLM.from_pretrained(saved / "again", target=other)


def add(saved: Path, model: ULDForCausalLM, **options: bool) -> str:
    return model.add_assistant(saved / "unlearned", name="second", **options)


def test_add_assistant_has_the_same_way_round_and_no_other(saved: Path):
    other = tiny_model("llama", seed=9)
    model = ULDForCausalLM(target=other, assistant=train_like(build_assistant(other, 2)))
    with pytest.raises(ValueError, match="allow_target_mismatch=True"):
        add(saved, model)
    assert add(saved, model, allow_target_mismatch=True) == "second"


def test_the_constructor_has_the_same_way_round_and_no_other():
    assistant, other = build_assistant(tiny_model("llama"), 2), tiny_model("llama", seed=9)
    with pytest.raises(ValueError, match="allow_target_mismatch=True"):
        ULDForCausalLM(target=other, assistant=assistant)
    assert ULDForCausalLM(target=other, assistant=assistant, allow_target_mismatch=True).target is other


def test_another_number_of_layers_does_not_fit_however_it_is_asked_for(saved: Path):
    # No weight may be left out in silence: what does not fit is an error even where mismatches are allowed.
    wide = tiny_model("llama", hidden_size=64)
    with pytest.raises(ValueError, match="do not fit 2 layers of the target"):
        ULDForCausalLM.from_pretrained(saved / "unlearned", target=wide, allow_target_mismatch=True)


def test_the_fingerprint_of_a_deeper_assistant_reaches_deeper(saved: Path):
    target = AutoModelForCausalLM.from_pretrained(saved / "target")
    ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 3))).save_pretrained(saved / "deeper")
    model = ULDForCausalLM.from_pretrained(saved / "unlearned")
    model.add_assistant(saved / "deeper")
    model.save_pretrained(saved / "both")
    expected = json.loads((saved / "deeper" / "config.json").read_text())["target_fingerprint"]
    assert json.loads((saved / "both" / "config.json").read_text())["target_fingerprint"] == expected
    changed = tiny_model("llama")
    changed.model.layers[2].mlp.up_proj.weight.data.mul_(1.1)
    with pytest.raises(ValueError, match="weights of the first layers differ"):
        ULDForCausalLM.from_pretrained(saved / "both", target=changed)


def test_a_random_model_of_a_saved_configuration_is_not_taken_for_the_saved_one(saved: Path):
    config = ULDForCausalLM.from_pretrained(saved / "unlearned").config
    ULDForCausalLM(config).save_pretrained(saved / "random")
    with pytest.raises(ValueError, match="trained on another target"):
        ULDForCausalLM.from_pretrained(saved / "random", target=tiny_model("llama"))


def test_a_sharded_checkpoint_has_the_same_fingerprint(saved: Path):
    target = tiny_model("llama")
    target.save_pretrained(saved / "sharded", max_shard_size="20KB")
    assert len(list((saved / "sharded").glob("*.safetensors"))) > 3
    sharded = AutoModelForCausalLM.from_pretrained(saved / "sharded")
    assert fingerprint_target(sharded, 2) == fingerprint_target(target, 2)


def test_only_samples_of_a_tensor_are_read():
    target = tiny_model("llama")
    weight = target.model.layers[0].mlp.up_proj.weight  # 64 x 32 = 2048 values, every 8th is looked at
    before = fingerprint_target(target, 2)
    weight.data.view(-1)[1] += 1
    assert fingerprint_target(target, 2) == before  # a limit, not a promise
    weight.data.view(-1)[8] += 1
    assert fingerprint_target(target, 2) != before


def quantized(model: PreTrainedModel) -> PreTrainedModel:
    """As bitsandbytes leaves a model: the linear layers' weights are integers, the rest is as it was."""
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(module.weight.data.to(torch.uint8), requires_grad=False)
    return model


def test_of_a_quantized_target_the_rest_is_compared():
    plain = fingerprint_target(tiny_model("llama"), 2)
    actual = fingerprint_target(quantized(tiny_model("llama")), 2)
    assert actual == plain | {"layers": None, "above": None}
    assert fingerprint_target(quantized(tiny_model("llama", seed=9)), 2)["rest"] != plain["rest"]


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_load_of_the_target_is_accepted_and_another_is_not(saved: Path, bits: str):
    pytest.importorskip("bitsandbytes", reason="quantized loads need bitsandbytes")
    options = {
        "quantization_config": BitsAndBytesConfig(**{f"load_in_{bits}": True}),
        "dtype": torch.float32,
    }
    model = ULDForCausalLM.from_pretrained(saved / "unlearned", **options)
    assert fingerprint_target(model.target, 2)["layers"] is None
    tiny_model("llama", seed=9).save_pretrained(saved / "target")
    with pytest.raises(ValueError, match="their embeddings, norms or head differ"):
        ULDForCausalLM.from_pretrained(saved / "unlearned", **options)


def test_saving_again_keeps_the_fingerprint(saved: Path):
    # A quantized load could not say as much as the one that it was saved from.
    before = json.loads((saved / "unlearned" / "config.json").read_text())["target_fingerprint"]
    model = ULDForCausalLM.from_pretrained(saved / "unlearned")
    model.save_pretrained(saved / "again")
    assert json.loads((saved / "again" / "config.json").read_text())["target_fingerprint"] == before
    assert before["layers"] is not None
    assert before["tokenizer"] is not None


def test_a_fingerprint_without_a_tokenizer_is_one_of_an_older_save(saved: Path):
    file = saved / "unlearned" / "config.json"
    content = json.loads(file.read_text())
    del content["target_fingerprint"]["tokenizer"]
    file.write_text(json.dumps(content))
    sign_config(file.parent)
    other_tokenizer(swapped=True).save_pretrained(saved / "target")
    assert isinstance(ULDForCausalLM.from_pretrained(saved / "unlearned"), ULDForCausalLM)
