"""Deletion requests that arrive one by one and may be revoked: several assistants on one target."""

from pathlib import Path

import pytest
import torch
from families import tiny_model, train_like
from peft import PeftModel
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig

from uld_hf import ULDForCausalLM, ULDModelConfig, build_assistant, logit_difference
from uld_hf.assistant import remember_settings
from uld_hf.cache_name import CACHE


PROMPTS = torch.randint(4, 64, (3, 12), generator=torch.Generator().manual_seed(4))
ALPHAS = {"assistant": 0.75, "bob": 0.5}


def make_assistant(target: PreTrainedModel, num_layers: int, seed: int) -> PeftModel:
    return train_like(build_assistant(target, num_layers), seed)


@pytest.fixture
def target(family: str) -> PreTrainedModel:
    return tiny_model(family)


@pytest.fixture
def model(target: PreTrainedModel) -> ULDForCausalLM:
    """Two assistants, of two and three layers."""
    model = ULDForCausalLM(target=target, assistant=make_assistant(target, 2, seed=1), alpha=0.75)
    model.add_assistant(make_assistant(target, 3, seed=2), name="bob", alpha=0.5)
    return model


def save_two(folder: Path, **settings: float) -> PreTrainedModel:
    """Folders `target`, `alice` and `bob`: two requests, trained one by one on one target."""
    target = tiny_model("llama")
    target.save_pretrained(folder / "target")
    target = type(target).from_pretrained(folder / "target")
    for name, num_layers, seed in (("alice", 2, 1), ("bob", 3, 2)):
        assistant = make_assistant(target, num_layers, seed)
        ULDForCausalLM(target=target, assistant=assistant, **settings).save_pretrained(folder / name)
    return target


@torch.no_grad()
def plain_logits(model: ULDForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    return logit_difference(
        model.target(input_ids=ids, use_cache=False).logits,
        [model.assistants[name](input_ids=ids, use_cache=False).logits for name in ALPHAS],
        list(ALPHAS.values()),
        relative_top=0.01,
    )


def test_logits_are_the_formula_of_both(model: ULDForCausalLM):
    torch.testing.assert_close(model(PROMPTS).logits, plain_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_cached_generation_is_the_uncached_one(model: ULDForCausalLM, options: dict):
    options = {"max_new_tokens": 8, "do_sample": False, **options}
    uncached = {name: value for name, value in options.items() if name != "cache_implementation"}
    expected = model.generate(PROMPTS, use_cache=False, **uncached)
    assert torch.equal(model.generate(PROMPTS, **options), expected)


def test_both_change_the_output(model: ULDForCausalLM, target: PreTrainedModel):
    alone = ULDForCausalLM(target=target, assistant=model.assistants["assistant"], relative_top=0.01)
    assert not torch.allclose(model(PROMPTS).logits, alone(PROMPTS).logits, atol=1e-2)


def test_removing_one_gives_back_exactly_the_earlier_logits(target: PreTrainedModel):
    model = ULDForCausalLM(target=target, assistant=make_assistant(target, 2, seed=1))
    before = model(PROMPTS).logits
    model.add_assistant(make_assistant(target, 3, seed=2), name="bob")
    assert not torch.equal(model(PROMPTS).logits, before)
    model.remove_assistant("bob")
    assert torch.equal(model(PROMPTS).logits, before)
    assert model.config.alpha == 1.25  # one again


@pytest.mark.parametrize("execution", ["lockstep", "two passes"])
@pytest.mark.parametrize("revoked", ["alice", "bob", "carol"])
def test_what_is_left_is_as_if_the_revoked_one_had_never_been(revoked: str, execution: str):
    target = tiny_model("llama")
    assistants = {
        name: make_assistant(target, depth, seed)
        for seed, (name, depth) in enumerate({"alice": 2, "bob": 3, "carol": 1}.items())
    }
    model = ULDForCausalLM(target=target, assistant=assistants)
    model.execution = execution
    model.generate(PROMPTS, max_new_tokens=2)  # whatever it keeps of all three
    model.remove_assistant(revoked)
    del assistants[revoked]
    expected = ULDForCausalLM(target=target, assistant=assistants)
    expected.execution = execution
    assert torch.equal(model(PROMPTS).logits, expected(PROMPTS).logits)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(PROMPTS, **options), expected.generate(PROMPTS, **options))


def test_the_order_does_not_matter(target: PreTrainedModel):
    first, second = make_assistant(target, 2, seed=1), make_assistant(target, 3, seed=2)
    one_way = ULDForCausalLM(target=target, assistant={"alice": first, "bob": second}, alpha={"alice": 1.0, "bob": 0.5})
    other_way = ULDForCausalLM(target=target, assistant={"bob": second}, alpha=0.5)
    other_way.add_assistant(first, name="alice", alpha=1.0)
    torch.testing.assert_close(one_way(PROMPTS).logits, other_way(PROMPTS).logits, rtol=1e-5, atol=1e-5)


def test_alpha_of_one_changes_that_one(model: ULDForCausalLM, target: PreTrainedModel):
    model.set_alpha("bob", 1.5)
    assert model.config.assistants == {
        "assistant": {"num_layers": 2, "alpha": 0.75},
        "bob": {"num_layers": 3, "alpha": 1.5},
    }
    expected = logit_difference(
        target(PROMPTS).logits,
        [assistant(input_ids=PROMPTS).logits for assistant in model.assistants.values()],
        [0.75, 1.5],
    )
    torch.testing.assert_close(model(PROMPTS).logits, expected, rtol=1e-4, atol=1e-4)


def test_added_from_folders_and_saved_together(tmp_path: Path):
    save_two(tmp_path)
    model = ULDForCausalLM.from_pretrained(tmp_path / "alice")
    assert model.add_assistant(tmp_path / "bob", alpha=0.5) == "bob"
    model.save_pretrained(tmp_path / "both")
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "both")
    assert loaded.config.assistants == model.config.assistants
    assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)
    loaded.remove_assistant("bob")
    alice = ULDForCausalLM.from_pretrained(tmp_path / "alice")
    assert torch.equal(loaded(PROMPTS).logits, alice(PROMPTS).logits)


def test_added_shares_the_targets_tensors(tmp_path: Path):
    save_two(tmp_path)
    model = ULDForCausalLM.from_pretrained(tmp_path / "alice")
    before = {id(parameter) for parameter in model.parameters()}
    model.add_assistant(tmp_path / "bob")
    added = [name for name, parameter in model.named_parameters() if id(parameter) not in before]
    assert added
    assert all("lora_" in name for name in added)
    assert not any(parameter.requires_grad for parameter in model.assistants["bob"].parameters())


def test_auto_model_takes_an_alpha_for_all(tmp_path: Path):
    save_two(tmp_path)
    model = ULDForCausalLM.from_pretrained(tmp_path / "alice")
    model.add_assistant(tmp_path / "bob", alpha=0.5)
    model.save_pretrained(tmp_path / "both")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "both", alpha=0.3)
    assert loaded.config.alphas == ULDForCausalLM.from_pretrained(tmp_path / "both", alpha=0.3).config.alphas


def test_each_is_saved_in_a_folder_of_its_name(tmp_path: Path):
    save_two(tmp_path)
    model = ULDForCausalLM.from_pretrained(tmp_path / "alice")
    model.add_assistant(tmp_path / "bob", name="forget-bob")
    model.save_pretrained(tmp_path / "both")
    files = {str(path.relative_to(tmp_path / "both")) for path in (tmp_path / "both").rglob("adapter_*")}
    assert files == {
        f"{name}/adapter_{file}"
        for name in ("assistant", "forget-bob")
        for file in ("config.json", "model.safetensors")
    }
    assert "| `forget-bob/` | 3 | 1.25 |" in (tmp_path / "both" / "README.md").read_text()


def test_saved_alpha_comes_along(tmp_path: Path):
    save_two(tmp_path, alpha=1.25)
    model = ULDForCausalLM.from_pretrained(tmp_path / "alice", alpha=0.5)
    model.add_assistant(tmp_path / "bob")
    assert {name: entry["alpha"] for name, entry in model.config.assistants.items()} == {"assistant": 0.5, "bob": 1.25}


def test_one_alpha_at_loading_is_for_all(tmp_path: Path):
    save_two(tmp_path)
    model = ULDForCausalLM.from_pretrained(tmp_path / "alice")
    model.add_assistant(tmp_path / "bob")
    model.save_pretrained(tmp_path / "both")
    for alpha, expected in ((0.4, [0.4, 0.4]), ({"bob": 0.4}, [1.25, 0.4])):
        loaded = ULDForCausalLM.from_pretrained(tmp_path / "both", alpha=alpha)
        assert [entry["alpha"] for entry in loaded.config.assistants.values()] == expected


def test_assistants_that_were_trained_for_different_settings_want_one_of_them_said():
    target = tiny_model("llama")
    assistants = {
        name: remember_settings(train_like(build_assistant(target, 2), seed), {"alpha": 1.0, "gate": gate})
        for seed, (name, gate) in enumerate({"a": 0.0, "b": 0.5}.items(), start=1)
    }
    with pytest.raises(ValueError, match=r"gate=\{'a': 0.0, 'b': 0.5\}, and share one here: give gate="):
        ULDForCausalLM(target=target, assistant=assistants)
    assert ULDForCausalLM(target=target, assistant=assistants, gate=0.2).config.gate == 0.2


def test_other_settings_than_trained_for_are_warned_of(caplog):
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant={"a": train_like(build_assistant(target, 2))}, gate=0.5)
    assistant = remember_settings(train_like(build_assistant(target, 2), 2), {"alpha": 1.0, "gate": 0.0})
    model.add_assistant(assistant, name="b")
    assert "b was saved or trained with gate=0.0, this model subtracts with gate=0.5" in caplog.text


def test_other_settings_than_saved_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, transformers_log):
    save_two(tmp_path, relative_top=0.2)
    model = ULDForCausalLM.from_pretrained(tmp_path / "alice", relative_top=0.0)
    model.add_assistant(tmp_path / "bob")
    assert "bob was saved or trained with relative_top=0.2, this model subtracts with relative_top=0.0" in caplog.text


# What is refused


@pytest.fixture
def two() -> ULDForCausalLM:
    target = tiny_model("llama")
    assistants = {"assistant": make_assistant(target, 2, seed=1), "bob": make_assistant(target, 3, seed=2)}
    return ULDForCausalLM(target=target, assistant=assistants)


def test_the_last_one_cannot_be_removed(two: ULDForCausalLM):
    two.remove_assistant("bob")
    with pytest.raises(ValueError, match=r"'assistant' is the only assistant: without it .* the target's own"):
        two.remove_assistant("assistant")


@pytest.mark.parametrize("method", ["remove_assistant", "set_alpha"])
def test_an_unknown_name_is_refused(two: ULDForCausalLM, method: str):
    arguments = {"remove_assistant": ["carol"], "set_alpha": ["carol", 0.5]}[method]
    with pytest.raises(ValueError, match=r"no assistant 'carol', only \['assistant', 'bob'\]"):
        getattr(two, method)(*arguments)


def test_a_name_in_use_is_refused(two: ULDForCausalLM):
    with pytest.raises(ValueError, match="There is an assistant 'bob' already"):
        two.add_assistant(make_assistant(two.target, 2, seed=3), name="bob")


@pytest.mark.parametrize("name", ["forget bob", "a/b", "../up", "a.b", "", "keys", "training"])
def test_a_name_that_cannot_be_a_folder_or_module_is_refused(two: ULDForCausalLM, name: str):
    with pytest.raises(ValueError, match="must consist of letters"):
        two.add_assistant(make_assistant(two.target, 2, seed=3), name=name)


def test_a_model_without_a_name_is_refused(two: ULDForCausalLM):
    with pytest.raises(ValueError, match="needs a name="):
        two.add_assistant(make_assistant(two.target, 2, seed=3))


@pytest.mark.parametrize("alpha", [0.0, float("nan"), float("inf")])
def test_an_alpha_that_subtracts_nothing_is_refused(two: ULDForCausalLM, alpha: float):
    with pytest.raises(ValueError, match="alpha="):
        two.set_alpha("bob", alpha)
    with pytest.raises(ValueError, match="alpha="):
        two.add_assistant(make_assistant(two.target, 2, seed=3), name="carol", alpha=alpha)
    assert list(two.assistants) == list(two.config.assistants) == ["assistant", "bob"]


def test_an_assistant_of_another_target_is_refused(two: ULDForCausalLM):
    other = make_assistant(tiny_model("llama", seed=9), 2, seed=3)
    with pytest.raises(ValueError, match="trained on another target"):
        two.add_assistant(other, name="carol")


def test_a_saved_assistant_of_another_target_is_refused(two: ULDForCausalLM, tmp_path: Path):
    other = tiny_model("llama", seed=9)
    ULDForCausalLM(target=other, assistant=make_assistant(other, 2, seed=3)).save_pretrained(tmp_path / "carol")
    with pytest.raises(ValueError, match="trained on another target"):
        two.add_assistant(tmp_path / "carol")
    assert list(two.assistants) == ["assistant", "bob"]


def test_a_model_of_several_is_not_added_as_one(two: ULDForCausalLM, tmp_path: Path):
    two.save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match="holds 2 assistants"):
        two.add_assistant(tmp_path / "both")


def test_a_cache_from_before_is_refused(two: ULDForCausalLM):
    cache = DynamicCache(config=two.config)
    two(PROMPTS, past_key_values=cache)
    two.add_assistant(make_assistant(two.target, 2, seed=3), name="carol")
    with pytest.raises(ValueError, match=rf"{CACHE} has 9 layers, but the unlearned model has 4 \+ 2 \+ 3 \+ 2"):
        two(PROMPTS[:, :1], past_key_values=cache)


def test_pages_that_are_kept_are_not_those_of_an_assistant_before(two: ULDForCausalLM):
    def in_pages() -> list[int]:
        settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
        pages = ContinuousBatchingConfig(num_blocks=16, page_size=4, max_batch_tokens=64)
        options = {"generation_config": settings, "continuous_batching_config": pages, "persistent_manager": True}
        (result,) = two.generate_batch([PROMPTS[0].tolist()], **options).values()
        return result.generated_tokens

    in_pages()
    two.add_assistant(make_assistant(two.target, 3, seed=5), name="carol", alpha=2.0)
    two.remove_assistant("bob")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = two.generate(PROMPTS[:1], attention_mask=torch.ones_like(PROMPTS[:1]), **options)
    assert in_pages() == expected[0, PROMPTS.shape[1] :].tolist()
    two.destroy_cached_continuous_batching_manager()


@pytest.mark.parametrize("read", ["assistant", "alpha", "num_assistant_layers"])
def test_what_only_one_assistant_has_is_refused_for_two(two: ULDForCausalLM, read: str):
    with pytest.raises(ValueError, match="There are 2 assistants"):
        getattr(two if read == "assistant" else two.config, read)


def test_a_table_edited_behind_the_models_back_is_refused(two: ULDForCausalLM):
    del two.config.assistants["bob"]
    with pytest.raises(ValueError, match=r"config\.assistants names \['assistant'\], the model has"):
        two(PROMPTS)


@pytest.mark.parametrize(
    "assistants",
    [{}, {"a": {"num_layers": 2}}, {"a": {"num_layers": 2, "alpha": 0.0}}, {"a": 3}, [], {"a b": {}}, None],
    ids=str,
)
def test_a_saved_table_that_is_damaged_is_refused(assistants: object):
    if assistants is None:
        assert ULDModelConfig(assistants=None).assistants == {"assistant": {"num_layers": 8, "alpha": 1.25}}
        return
    with pytest.raises(ValueError, match=r"assistant|alpha"):
        ULDModelConfig(assistants=assistants)
