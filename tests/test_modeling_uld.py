"""The unlearned model: what it generates is what the formula says, token for token, on every family and mode."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from families import BOS, VOCAB_SIZE, make_tokenizer, tiny_config, tiny_model, train_like
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    StaticCache,
    TextStreamer,
    pipeline,
)
from transformers.utils.logging import warning_once

from uld_hf.assistant import (
    add_lora,
    build_assistant,
    load_truncated_model,
    shares_tensors,
    truncate_model,
)
from uld_hf.cache_name import CACHE
from uld_hf.configuration_uld import ULDModelConfig
from uld_hf.hub import fingerprint_target
from uld_hf.lockstep import lora_layers
from uld_hf.logits_process import ULDLogitsProcessor
from uld_hf.modeling_uld import ULDForCausalLM
from uld_hf.saved_files import describe_file, sign_config
from uld_hf.subtraction import logit_difference


NEW_TOKENS = 8  # with the prompt, well past the sliding window of 8
BEAM_TOKENS = 6
PROMPT = torch.randint(4, VOCAB_SIZE, (1, 9), generator=torch.Generator().manual_seed(3))
PROMPTS = torch.randint(4, VOCAB_SIZE, (3, 12), generator=torch.Generator().manual_seed(4))
LENGTHS = (5, 12, 9)
SETTINGS = {
    "defaults": {},
    "the paper's": {"alpha": 0.75, "center": False},
    "not clamped": {"relative_top": 0.0, "alpha": 1.5, "clamp": False},
    "mask": {"relative_top": 0.2, "outside": "mask", "center": False},
    "clamped": {"relative_top": 0.0, "alpha": 1.5, "clamp": True},
    "rank": {"relative_top": 0.0, "remove_top_k": 5},
    "gated": {"relative_top": 0.0, "alpha": 1.5, "gate": 0.28},
    "by certainty": {"relative_top": 0.0, "alpha": 3.0, "clamp": True, "by_certainty": True},
}


def compose(family: str, **settings) -> ULDForCausalLM:
    target = tiny_model(family)
    return ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **settings)


@pytest.fixture
def model(family) -> ULDForCausalLM:
    return compose(family, relative_top=0.05)


@torch.no_grad()
def plain_logits(model: ULDForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits by definition: both models over the whole text, no cache, no padding, no composite."""
    config = model.config
    return logit_difference(
        model.target(input_ids=ids, use_cache=False).logits,
        [model.assistant(input_ids=ids, use_cache=False).logits],
        [config.alpha],
        relative_top=config.relative_top,
        outside=config.outside,
        center=config.center,
        clamp=config.clamp,
        remove_top_k=config.remove_top_k,
        gate=config.gate,
        by_certainty=config.by_certainty,
    )


def plain_greedy(model: ULDForCausalLM, ids: torch.Tensor, steps: int = NEW_TOKENS) -> torch.Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, plain_logits(model, ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


def plain_sampling(model: ULDForCausalLM, ids: torch.Tensor, steps: int = NEW_TOKENS) -> torch.Tensor:
    for _ in range(steps):
        probabilities = plain_logits(model, ids)[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)
    return ids


def plain_beam_search(
    model: ULDForCausalLM, ids: torch.Tensor, num_beams: int, steps: int = BEAM_TOKENS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Beam search without an end token: all beams, best first, and their scores per generated token."""
    scores = torch.zeros(1)
    for _ in range(steps):
        candidates = scores[:, None] + plain_logits(model, ids)[:, -1].log_softmax(-1)
        scores, chosen = candidates.flatten().topk(num_beams)
        ids = torch.cat([ids[chosen // VOCAB_SIZE], chosen[:, None] % VOCAB_SIZE], dim=1)
    return ids, scores / steps


def left_padded(rows: torch.Tensor, lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor]:
    """The last tokens of every row behind pad tokens, and the attention mask."""
    mask = torch.stack([(torch.arange(rows.shape[1]) >= rows.shape[1] - length).long() for length in lengths])
    return rows.masked_fill(mask == 0, 0), mask


def generate(model: PreTrainedModel, ids: torch.Tensor, **kwargs):
    """`generate()` to the full length, greedily and without an end token unless told otherwise."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(ids)  # or transformers takes every token 0 for padding
    return model.generate(ids, **(options | kwargs))


def generate_beams(model: PreTrainedModel, ids: torch.Tensor, num_beams: int = 3, **kwargs):
    return generate(model, ids, num_beams=num_beams, max_new_tokens=BEAM_TOKENS, **kwargs)


# --- generation equals the definition ---


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_greedy(family, settings):
    model = compose(family, **settings)
    assert torch.equal(generate(model, PROMPT), plain_greedy(model, PROMPT))


def test_what_is_generated_is_neither_the_targets_nor_the_assistants(model):
    unlearned = generate(model, PROMPT)
    assert not torch.equal(unlearned, generate(model.target, PROMPT))
    assert not torch.equal(unlearned, generate(model.assistant, PROMPT))


def test_sampling(model):
    torch.manual_seed(5)
    expected = plain_sampling(model, PROMPT)
    torch.manual_seed(5)
    assert torch.equal(generate(model, PROMPT, do_sample=True, top_k=0), expected)


def test_sampling_several_sequences_for_every_prompt(model):
    prompts = PROMPTS[:2]
    torch.manual_seed(5)
    expected = plain_sampling(model, prompts.repeat_interleave(2, dim=0))
    torch.manual_seed(5)
    actual = generate(model, prompts, do_sample=True, top_k=0, num_return_sequences=2)
    assert torch.equal(actual, expected)


def test_beam_search(model):
    actual = generate_beams(model, PROMPT, return_dict_in_generate=True, output_scores=True)
    sequences, scores = plain_beam_search(model, PROMPT, num_beams=3)
    assert torch.equal(actual.sequences, sequences[:1])
    torch.testing.assert_close(actual.sequences_scores, scores[:1], rtol=1e-4, atol=1e-5)


def test_beam_search_returns_several_beams(model):
    actual = generate_beams(model, PROMPT, num_beams=4, num_return_sequences=3)
    assert torch.equal(actual, plain_beam_search(model, PROMPT, num_beams=4)[0][:3])


def test_beams_that_end_early_have_the_scores_of_the_definition(model):
    prompt_length, ends = PROMPT.shape[1], list(range(50, VOCAB_SIZE))
    actual = generate(
        model,
        PROMPT,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.0,  # the score is the plain sum, so short ends are worth having
        eos_token_id=ends,
        return_dict_in_generate=True,
        output_scores=True,
    )
    num_short = 0
    for sequence, score in zip(actual.sequences, actual.sequences_scores, strict=True):
        new = sequence[prompt_length:].tolist()
        length = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
        num_short += length < NEW_TOKENS
        log_probs = plain_logits(model, sequence[None, : prompt_length + length]).log_softmax(-1)[
            0, prompt_length - 1 :
        ]
        expected = log_probs[range(length), new[:length]].sum()
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4)
    assert num_short > 0


def test_beam_sampling_does_not_depend_on_the_cache(model):
    torch.manual_seed(6)
    cached = generate(model, PROMPT, num_beams=3, do_sample=True)
    torch.manual_seed(6)
    assert torch.equal(generate(model, PROMPT, num_beams=3, do_sample=True, use_cache=False), cached)


def test_left_padded_rows_generate_what_each_generates_alone(model):
    ids, mask = left_padded(PROMPTS)
    actual = generate(model, ids, attention_mask=mask)[:, PROMPTS.shape[1] :]
    alone = [plain_greedy(model, row[None, -length:])[0, length:] for row, length in zip(ids, LENGTHS, strict=True)]
    assert torch.equal(actual, torch.stack(alone))


def test_left_padded_beams_are_what_each_prompt_gives_alone(model):
    ids, mask = left_padded(PROMPTS)
    actual = generate_beams(model, ids, attention_mask=mask)[:, PROMPTS.shape[1] :]
    alone = [
        plain_beam_search(model, row[None, -length:], num_beams=3)[0][0, length:]
        for row, length in zip(ids, LENGTHS, strict=True)
    ]
    assert torch.equal(actual, torch.stack(alone))


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 4},
    ],
    ids=lambda options: next(iter(options)),
)
def test_greedy_does_not_depend_on_how_it_is_executed(model, options):
    assert torch.equal(generate(model, PROMPT, **options), plain_greedy(model, PROMPT))


def test_prompt_lookup_in_a_text_that_repeats_itself(model):
    # Here the candidates come from the prompt at every step; some are accepted, others cropped from the cache.
    prompt = torch.cat([plain_greedy(model, PROMPT)] * 2, dim=1)
    actual = generate(model, prompt, prompt_lookup_num_tokens=5)
    assert torch.equal(actual, plain_greedy(model, prompt))


def test_assisted_decoding_with_the_target_as_draft(model):
    assert torch.equal(generate(model, PROMPT, assistant_model=model.target), plain_greedy(model, PROMPT))


def test_static_cache_with_beams(model):
    expected = plain_beam_search(model, PROMPT, num_beams=3)[0][:1]
    assert torch.equal(generate_beams(model, PROMPT, cache_implementation="static"), expected)


def test_generation_from_embeddings(model):
    embeddings = model.get_input_embeddings()(PROMPT)
    actual = model.generate(inputs_embeds=embeddings, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(actual, plain_greedy(model, PROMPT, 6)[:, PROMPT.shape[1] :])


def test_generation_takes_what_the_target_takes():
    model, kinds = compose("gpt2"), {"token_type_ids": torch.zeros_like(PROMPTS)}
    text = generate(model, PROMPTS, **kinds)
    with torch.no_grad():
        expected = model(PROMPTS, **kinds).logits[:, -1].argmax(-1)
    assert torch.equal(text[:, PROMPTS.shape[1]], expected)
    with pytest.raises(ValueError, match="'nonsense'"):
        generate(model, PROMPTS, nonsense=1)


def test_generation_goes_on_from_a_cache(model):
    first = generate(model, PROMPT, max_new_tokens=5, return_dict_in_generate=True)
    question = torch.cat([first.sequences, PROMPTS[:1, :4]], dim=1)
    actual = generate(model, question, **{CACHE: first[CACHE]})
    assert torch.equal(actual, plain_greedy(model, question))


def test_streaming(family, capsys):
    model, tokenizer = compose(family), make_tokenizer()
    out = generate(model, PROMPT, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.split() == tokenizer.decode(out[0, PROMPT.shape[1] :]).split()


def test_the_targets_generation_defaults_are_inherited_as_a_copy():
    target = tiny_model("llama")
    target.generation_config.max_length = 77
    model = ULDForCausalLM(target=target, assistant=build_assistant(target, 2))
    model.generation_config.temperature = 0.3
    assert model.generation_config.max_length == 77
    assert target.generation_config.temperature != 0.3


# --- forward ---


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_forward_is_the_formula(family, settings):
    model = compose(family, **settings)
    torch.testing.assert_close(model(PROMPTS).logits, plain_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("alpha", 0.75), ("relative_top", 0.5), ("outside", "mask"), ("center", False), ("clamp", False)],
)
def test_settings_may_be_changed_on_a_loaded_model(model, name, value):
    if name == "center":
        model.config.clamp = False
    before = model(PROMPTS).logits
    setattr(model.config, name, value)
    after = model(PROMPTS).logits
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, plain_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


def test_settings_set_on_the_model_are_the_configurations(model):
    for name, value in (("alpha", 0.75), ("relative_top", 0.5), ("gate", 0.2)):
        setattr(model, name, value)
        assert getattr(model.config, name) == getattr(model, name) == value


def test_the_alpha_of_several_assistants_is_asked_for_by_name():
    target = tiny_model("llama")
    assistants = {name: train_like(build_assistant(target, 1)) for name in ("alice", "bob")}
    model = ULDForCausalLM(target=target, assistant=assistants)
    with pytest.raises(ValueError, match="There are 2 assistants, each with its own alpha"):
        model.alpha  # noqa: B018
    assert model.gate == 0.0


@pytest.mark.parametrize(
    ("name", "meant"), [("gaet", "gate"), ("alhpa", "alpha"), ("Alpha", "alpha"), ("claimp", "clamp")]
)
def test_a_misspelt_setting_is_refused_where_it_would_change_nothing(model, name, meant):
    message = f"There is no setting '{name}', and nothing would change: did you mean '{meant}'"
    with pytest.raises(AttributeError, match=message):
        setattr(model.config, name, 0.5)
    with pytest.raises(AttributeError, match=message):
        ULDModelConfig(model.config.target_config, num_assistant_layers=1, **{name: 0.5})
    model.config.something_else = 1  # as transformers' configurations take it


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha", 0.0, "alpha=0.0 would give the target's own output"),
        ("alpha", float("nan"), "alpha=nan would give"),
        ("relative_top", 1.5, "relative_top=1.5 must lie between 0"),
        ("outside", "drop", "outside='drop' must be 'keep' or 'mask'"),
    ],
)
def test_settings_out_of_range_are_refused_at_every_forward(name, value, message):
    model = compose("llama")
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=message):
        model(PROMPT)


@pytest.mark.parametrize(
    "settings", [{"alpha": 0}, {"alpha": float("inf")}, {"relative_top": -0.1}, {"outside": "drop"}], ids=str
)
def test_settings_out_of_range_are_refused_at_construction(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.*"):
        compose("llama", **settings)


def test_a_token_does_not_see_those_after_it(model):
    changed = PROMPTS.clone()
    changed[:, 7:] = 4
    torch.testing.assert_close(model(changed).logits[:, :7], model(PROMPTS).logits[:, :7], rtol=1e-4, atol=1e-4)


def test_padding_does_not_change_the_logits_of_tokens(model):
    ids, mask = left_padded(PROMPTS)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    actual = model(ids, attention_mask=mask, position_ids=positions).logits
    for row, length, logits in zip(ids, LENGTHS, actual, strict=True):
        expected = plain_logits(model, row[None, -length:])[0]
        torch.testing.assert_close(logits[-length:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 5, 11])], ids=["last", "last three", "by index"])
def test_logits_to_keep(model, keep):
    every = model(PROMPTS).logits
    expected = every[:, keep] if torch.is_tensor(keep) else every[:, -keep:]
    torch.testing.assert_close(model(PROMPTS, logits_to_keep=keep).logits, expected, rtol=1e-4, atol=1e-4)


def test_loss_is_the_cross_entropy_of_the_next_token(model):
    labels = PROMPTS.clone()
    labels[0, :6] = -100
    expected = F.cross_entropy(
        plain_logits(model, PROMPTS)[:, :-1].reshape(-1, VOCAB_SIZE), labels[:, 1:].reshape(-1), ignore_index=-100
    )
    torch.testing.assert_close(model(PROMPTS, labels=labels).loss, expected, rtol=1e-4, atol=1e-4)


def test_loss_may_be_divided_by_another_number_of_tokens():
    model = compose("llama")
    mean, tokens = model(PROMPTS, labels=PROMPTS).loss, PROMPTS[:, 1:].numel()
    torch.testing.assert_close(model(PROMPTS, labels=PROMPTS, num_items_in_batch=100).loss, mean * tokens / 100)


def test_labels_that_are_shifted_already_are_not_shifted_again():
    model, shifted = compose("llama"), F.pad(PROMPTS[:, 1:], (0, 1), value=-100)
    again = model(PROMPTS, labels=shifted, shift_labels=shifted).loss
    torch.testing.assert_close(again, model(PROMPTS, labels=PROMPTS).loss)


def test_there_is_no_loss_without_labels(model):
    assert model(PROMPTS).loss is None


def test_embeddings_may_be_given_in_place_of_tokens(model):
    actual = model(inputs_embeds=model.get_input_embeddings()(PROMPTS)).logits
    torch.testing.assert_close(actual, model(PROMPTS).logits, rtol=1e-4, atol=1e-4)


def test_a_tuple_may_be_asked_for(model):
    assert torch.equal(model(PROMPTS, return_dict=False, use_cache=False)[0], model(PROMPTS, use_cache=False).logits)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_the_targets_insides_are_not_handed_out(model, name):
    with pytest.raises(ValueError, match=rf"{name} is not supported.*Call model\.target"):
        model(PROMPTS, **{name: True})


def test_logits_are_float32_for_a_bfloat16_target(family):
    target = tiny_model(family).bfloat16()
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    assert model(PROMPTS).logits.dtype == torch.float32
    assert model(PROMPTS).logits.isfinite().all()


# --- cache ---


def test_forward_in_two_parts_through_the_cache(model):
    first = model(PROMPTS[:, :7])
    second = model(PROMPTS[:, 7:], **{CACHE: first[CACHE]})
    actual = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(actual, plain_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


def test_no_cache_is_made_unless_asked_for(model):
    assert model(PROMPTS, use_cache=False).get(CACHE) is None


def test_one_cache_holds_the_targets_layers_and_then_the_assistants(model):
    cache = model(PROMPTS)[CACHE]
    target = model.target(PROMPTS, use_cache=True)[CACHE]
    assistant = model.assistant(input_ids=PROMPTS, use_cache=True)[CACHE]
    for layer, expected in zip(cache.layers, [*target.layers, *assistant.layers], strict=True):
        assert torch.equal(layer.keys, expected.keys)
        assert torch.equal(layer.values, expected.values)


def test_a_cache_made_without_a_config_grows_to_all_layers(model):
    cache = DynamicCache()
    first = model(PROMPTS[:, :7], past_key_values=cache)
    second = model(PROMPTS[:, 7:], past_key_values=cache)
    assert first[CACHE] is cache
    assert len(cache.layers) == 6
    actual = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(actual, plain_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


def test_generation_into_a_cache_made_without_a_config(model):
    assert torch.equal(generate(model, PROMPT, **{CACHE: DynamicCache()}), plain_greedy(model, PROMPT))


def test_generation_into_a_static_cache_of_the_models_config(model):
    cache = StaticCache(config=model.config, max_cache_len=PROMPT.shape[1] + NEW_TOKENS)
    assert torch.equal(generate(model, PROMPT, **{CACHE: cache}), plain_greedy(model, PROMPT))


def test_a_cache_of_the_targets_config_is_refused(model):
    with pytest.raises(ValueError, match=r"has 4 layers, but the unlearned model has 4 \+ 2"):
        model(PROMPTS, past_key_values=DynamicCache(config=model.target.config))


def test_a_cache_under_two_names_is_refused(model):
    cache = DynamicCache()
    with pytest.raises(ValueError, match="not both"):
        model(PROMPTS, past_key_values=cache, cache=cache)


def test_what_is_no_cache_is_refused():
    with pytest.raises(ValueError, match=f"{CACHE} of type tuple"):
        compose("llama")(PROMPTS, past_key_values=((PROMPTS, PROMPTS),))


# --- construction ---


def test_building_does_not_change_the_targets_config(family):
    target = tiny_model(family)
    before = copy.deepcopy(target.config.to_dict())
    model = ULDForCausalLM(target=target, assistant=build_assistant(target, 2))
    model.config.target_config.vocab_size = 3
    assert target.config.to_dict() == before


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_targets_attention_is_kept(family, attention):
    target = tiny_model(family, attn_implementation=attention)
    model = ULDForCausalLM(target=target, assistant=build_assistant(target, 2))
    configs = [model.config, target.config, model.assistant.config]
    assert [config._attn_implementation for config in configs] == [attention] * 3


def test_building_does_not_change_the_targets_output(family):
    target = tiny_model(family)
    before = target(PROMPTS).logits
    compose_on_it = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    compose_on_it(PROMPTS)
    assert torch.equal(target(PROMPTS).logits, before)


def test_the_attention_may_be_changed_later(model):
    before = model(PROMPTS).logits
    model.set_attn_implementation("eager")
    configs = [model.config, model.target.config, model.assistant.config]
    assert [config._attn_implementation for config in configs] == ["eager"] * 3
    torch.testing.assert_close(model(PROMPTS).logits, before, rtol=1e-4, atol=1e-4)


def test_settings_come_from_the_arguments_then_the_config_then_the_defaults():
    target = tiny_model("llama")
    config = ULDModelConfig(alpha=0.3, relative_top=0.2)
    model = ULDForCausalLM(config, target=target, assistant=build_assistant(target, 2), alpha=0.9)
    assert (model.config.alpha, model.config.relative_top) == (0.9, 0.2)
    assert (model.config.outside, model.config.center) == ("keep", True)
    assert config.alpha == 0.3


def test_the_models_config_counts_the_layers_of_both(model, family):
    text_config = model.config.get_text_config()
    assert text_config.num_hidden_layers == 6
    if family == "gemma3":
        sliding, full = "sliding_attention", "full_attention"
        assert text_config.layer_types == [sliding, sliding, full, sliding, sliding, sliding]


def test_the_model_is_in_evaluation_mode():
    target = tiny_model("llama").train()
    model = ULDForCausalLM(target=target, assistant=build_assistant(target, 2).train())
    assert not any(module.training for module in model.modules())


def test_the_models_parameters_are_the_targets_and_the_lora(model):
    lora = sum(parameter.numel() for name, parameter in model.assistant.named_parameters() if "lora_" in name)
    assert model.num_parameters() == model.target.num_parameters() + lora


def test_tensors_stay_shared_when_the_model_is_cast(model):
    model.to(torch.float64)
    assert shares_tensors(model.assistant, model.target)
    assert model(PROMPTS).logits.dtype == torch.float64


def test_a_config_alone_builds_random_weights(family):
    config = ULDModelConfig(tiny_config(family), num_assistant_layers=3)
    for model in (ULDForCausalLM(config), AutoModelForCausalLM.from_config(config)):
        assert isinstance(model, ULDForCausalLM)
        assert shares_tensors(model.assistant, model.target)
        assert model(PROMPTS).logits.shape == (*PROMPTS.shape, VOCAB_SIZE)


def test_a_deep_copy_gives_equal_logits_and_shares_its_own_tensors(model):
    copied = copy.deepcopy(model)
    assert torch.equal(copied(PROMPTS).logits, model(PROMPTS).logits)
    assert shares_tensors(copied.assistant, copied.target)
    assert not shares_tensors(copied.assistant, model.target)


def test_resizing_the_embeddings_is_refused(model):
    with pytest.raises(NotImplementedError, match="Resize the target's embeddings first"):
        model.resize_token_embeddings(VOCAB_SIZE + 8)


def test_there_is_no_single_head(model):
    assert model.get_output_embeddings() is None
    assert model.get_input_embeddings() is model.target.get_input_embeddings()


def test_an_assistant_on_a_copy_of_the_target_is_put_on_the_target(family):
    target = tiny_model(family)
    elsewhere = train_like(build_assistant(copy.deepcopy(target), 2))
    model = ULDForCausalLM(target=target, assistant=elsewhere)
    assert shares_tensors(model.assistant, target)
    assert torch.equal(model(PROMPTS).logits, compose(family)(PROMPTS).logits)


def test_an_assistant_on_a_load_of_the_first_layers_is_put_on_the_target(family, tmp_path):
    target = tiny_model(family)
    target.save_pretrained(tmp_path)
    elsewhere = train_like(add_lora(load_truncated_model(tmp_path, 2)))
    model = ULDForCausalLM(target=target, assistant=elsewhere)
    assert shares_tensors(model.assistant, target)
    assert torch.equal(model(PROMPTS).logits, compose(family)(PROMPTS).logits)


def test_an_assistant_of_other_weights_is_refused(family):
    with pytest.raises(ValueError, match=r"was trained on another target than .*: their weights of the first layers"):
        ULDForCausalLM(target=tiny_model(family), assistant=build_assistant(tiny_model(family, seed=9), 2))


def test_an_assistant_of_another_vocabulary_is_refused(family):
    other = tiny_model(family, vocab_size=72)
    with pytest.raises(ValueError, match=r"was trained on another target than .*: their .* differ"):
        ULDForCausalLM(target=tiny_model(family), assistant=build_assistant(other, 2))


def test_an_assistant_of_another_family_is_refused():
    with pytest.raises(ValueError, match=r"was trained on another target than .*: their .* differ"):
        ULDForCausalLM(target=tiny_model("llama"), assistant=build_assistant(tiny_model("qwen3"), 2))


@pytest.mark.parametrize("given", ["target", "assistant"])
def test_target_and_assistant_belong_together(given):
    target = tiny_model("llama")
    models = {"target": target, "assistant": build_assistant(target, 2)}
    missing = ({"target", "assistant"} - {given}).pop()
    with pytest.raises(ValueError, match=f"{missing}= is missing"):
        ULDForCausalLM(**{given: models[given]})


@pytest.mark.parametrize("config", [None, ULDModelConfig()], ids=["no config", "a config without a target"])
def test_nothing_cannot_be_built(config):
    with pytest.raises(ValueError, match="or a config with a target_config"):
        ULDForCausalLM(config)


def test_an_assistant_without_lora_is_refused():
    target = tiny_model("llama")
    with pytest.raises(TypeError, match=r"must be a PeftModel .*got LlamaForCausalLM"):
        ULDForCausalLM(target=target, assistant=truncate_model(target, 2))


# PEFT up to 0.21 asks transformers by an old name; in the package the warning is silenced, here it would be an error.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_of_another_name_is_refused():
    target = tiny_model("llama")
    assistant = get_peft_model(truncate_model(target, 2), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"must have one adapter named 'assistant', got \['default'\]"):
        ULDForCausalLM(target=target, assistant=assistant)


def test_an_unlearned_model_as_target_is_refused():
    model = compose("llama")
    with pytest.raises(ValueError, match="already an unlearned model"):
        ULDForCausalLM(target=model, assistant=model.assistant)


# --- configuration ---


def test_the_config_survives_saving(family, tmp_path):
    config = ULDModelConfig(tiny_config(family), num_assistant_layers=3, alpha=0.4, outside="mask", center=False)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, ULDModelConfig)
    assert type(loaded.target_config) is type(config.target_config)
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}


def test_a_config_with_more_assistant_layers_than_the_target_has_is_refused():
    with pytest.raises(ValueError, match="cannot have 5 layers: the target has 4"):
        ULDModelConfig(tiny_config("llama"), num_assistant_layers=5)


def test_a_config_with_a_setting_out_of_range_is_refused():
    with pytest.raises(ValueError, match="alpha=0 would give the target's own output"):
        ULDModelConfig(tiny_config("llama"), num_assistant_layers=2, alpha=0)


# --- pipeline ---


def ask_pipeline(model, tokenizer, text, caplog) -> tuple[str, list[str]]:
    """What a pipeline answers, and what it warns of."""
    warning_once.cache_clear()
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
        answer = generator(text, max_new_tokens=NEW_TOKENS, do_sample=False, return_full_text=False)
    logged = [record.getMessage() for record in caplog.records if record.levelname != "INFO"]
    return answer[0]["generated_text"], [*logged, *(str(warning.message) for warning in caught)]


def test_the_pipeline_gives_the_generated_text_without_a_warning(family, caplog, transformers_log):
    model, tokenizer = compose(family), make_tokenizer()
    text = "w5 w17 w40 w8"
    _, warnings_of_target = ask_pipeline(model.target, tokenizer, text, caplog)  # older transformers warn of their own
    actual, warnings_of_model = ask_pipeline(model, tokenizer, text, caplog)
    ids = tokenizer(text, return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids.shape[1] :]
    assert actual.split() == tokenizer.decode(expected, skip_special_tokens=True).split()
    assert warnings_of_model == warnings_of_target


# --- saving and loading ---


def save(family: str, folder: Path, **settings) -> ULDForCausalLM:
    """Save a target to `folder/target` and an unlearned model of it to `folder/unlearned`; returns the model."""
    tiny_model(family).save_pretrained(folder / "target")
    target = AutoModelForCausalLM.from_pretrained(folder / "target")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **settings)
    model.save_pretrained(folder / "unlearned")
    return model


def edit_json(file: Path, **changes) -> None:
    """Change entries of a JSON file; `None` deletes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    sign_config(file.parent)  # what the checks behind the checksum say


def test_what_is_saved_gives_the_same_logits_to_the_bit(family, tmp_path):
    model = save(family, tmp_path, alpha=0.6, relative_top=0.1, outside="mask", center=False)
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "unlearned")
    assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)
    assert shares_tensors(loaded.assistant, loaded.target)
    assert torch.equal(generate(loaded, PROMPT), generate(model, PROMPT))


def test_generation_defaults_survive_saving(tmp_path):
    model = save("llama", tmp_path)
    model.generation_config.update(repetition_penalty=1.3, max_new_tokens=3)
    model.save_pretrained(tmp_path / "unlearned")
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "unlearned")
    assert (loaded.generation_config.repetition_penalty, loaded.generation_config.max_new_tokens) == (1.3, 3)


def test_a_cache_filled_by_the_target_alone_is_refused(model):
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        model.target(PROMPT, **{CACHE: cache})
        with pytest.raises(ValueError, match=rf"{CACHE} (holds \[9, 0\] tokens|has 4 layers)"):
            model(PROMPT[:, -1:], past_key_values=cache)


def test_a_loaded_assistant_gives_its_settings_to_the_processor(tmp_path):
    save("llama", tmp_path, alpha=1.3, relative_top=0.0, clamp=True)
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "unlearned")
    processor = ULDLogitsProcessor(loaded.assistant)
    assert (processor.alpha, processor.relative_top, processor.clamp) == (1.3, 0.0, True)


def test_all_settings_survive_saving(tmp_path):
    settings = {"alpha": 0.6, "relative_top": 0.1, "outside": "mask", "center": True, "clamp": True}
    save("llama", tmp_path, **settings)
    config = ULDForCausalLM.from_pretrained(tmp_path / "unlearned").config
    assert {name: getattr(config, name) for name in settings} == settings


def test_the_saved_files_are_the_layout(family, tmp_path):
    save(family, tmp_path)
    folder = tmp_path / "unlearned"
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("[!.]*") if file.is_file()) == [
        "README.md",
        "assistant/adapter_config.json",
        "assistant/adapter_model.safetensors",
        "config.json",
        "generation_config.json",
    ]


def test_only_lora_is_saved(family, tmp_path):
    save(family, tmp_path)
    names = load_file(tmp_path / "unlearned" / "assistant" / "adapter_model.safetensors").keys()
    assert names
    assert all("lora_A.weight" in name or "lora_B.weight" in name for name in names)


def test_the_saved_config_names_the_target_and_the_class(tmp_path):
    save("llama", tmp_path)
    saved = json.loads((tmp_path / "unlearned" / "config.json").read_text())
    assert saved["model_type"] == "uld"
    assert saved["architectures"] == ["ULDForCausalLM"]
    assert saved["target_name_or_path"] == str(tmp_path / "target")
    assert saved["assistants"] == {"assistant": {"num_layers": 2, "alpha": 1.25}}
    assert set(saved["target_fingerprint"]) == {"config", "layers", "above", "rest"}


def test_the_card_does_not_give_away_local_folders(tmp_path):
    save("llama", tmp_path)
    assert str(tmp_path) not in (tmp_path / "unlearned" / "README.md").read_text()


def test_saving_again_over_the_same_folder(tmp_path):
    model = save("llama", tmp_path)
    model.config.alpha = 0.2
    model.save_pretrained(tmp_path / "unlearned")
    assert ULDForCausalLM.from_pretrained(tmp_path / "unlearned").config.alpha == 0.2


def test_saving_does_not_change_the_model(tmp_path):
    model = compose("llama")
    before, config = model(PROMPTS).logits, copy.deepcopy(model.config.to_dict())
    model.save_pretrained(tmp_path)
    assert torch.equal(model(PROMPTS).logits, before)
    assert model.config.to_dict() == config


def test_settings_may_be_given_to_from_pretrained(tmp_path):
    save("llama", tmp_path)
    settings = {
        "alpha": 0.3,
        "relative_top": 0.0,
        "outside": "keep",
        "center": True,
        "clamp": True,
        "remove_top_k": 3,
        "gate": 0.2,
    }
    config = ULDForCausalLM.from_pretrained(tmp_path / "unlearned", **settings).config
    assert {name: getattr(config, name) for name in settings} == settings


def test_by_certainty_may_be_given_to_from_pretrained_and_is_saved(tmp_path):
    save("llama", tmp_path)
    model = ULDForCausalLM.from_pretrained(tmp_path / "unlearned", relative_top=0.0, by_certainty=True)
    model.save_pretrained(tmp_path / "again", target_name_or_path=tmp_path / "target")
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "again")
    assert loaded.config.by_certainty
    assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)
    plain = ULDForCausalLM.from_pretrained(tmp_path / "unlearned", relative_top=0.0)
    assert not torch.equal(plain(PROMPTS).logits, model(PROMPTS).logits)


def test_a_setting_out_of_range_given_to_from_pretrained_is_refused(tmp_path):
    save("llama", tmp_path)
    with pytest.raises(ValueError, match=r"alpha=0\.0 would give the target's own output"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", alpha=0.0)


def test_a_misspelt_setting_given_to_from_pretrained_is_refused(tmp_path):
    save("llama", tmp_path)
    with pytest.raises(TypeError, match="no argument 'gaet': did you mean 'gate'"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", gaet=0.1)


def test_a_target_that_is_not_loaded_is_refused(tmp_path):
    save("llama", tmp_path)
    with pytest.raises(TypeError, match=r"target='elsewhere' must be a loaded model: .*from_pretrained"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target="elsewhere")


def test_auto_model_loads_it(family, tmp_path):
    model = save(family, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "unlearned")
    assert isinstance(loaded, ULDForCausalLM)
    assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)


def test_auto_model_takes_the_settings_too(tmp_path):
    save("llama", tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "unlearned", alpha=0.3).config.alpha == 0.3


def test_options_go_to_the_target(tmp_path):
    save("llama", tmp_path)
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "unlearned", dtype=torch.bfloat16, attn_implementation="eager")
    assert loaded.target.dtype == torch.bfloat16
    assert loaded.target.config._attn_implementation == "eager"


def test_auto_model_hands_the_attention_on_to_the_target(tmp_path):
    save("llama", tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "unlearned", attn_implementation="eager")
    assert loaded.target.config._attn_implementation == "eager"


def test_generation_defaults_may_be_given_to_from_pretrained(tmp_path):
    save("llama", tmp_path)
    given = GenerationConfig(max_new_tokens=5)
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "unlearned", generation_config=given)
    assert loaded.generation_config.max_new_tokens == 5


def test_a_loaded_target_may_be_passed(family, tmp_path):
    model = save(family, tmp_path)
    target = tiny_model(family)
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=target)
    assert loaded.target is target
    assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)


def test_options_for_a_target_that_is_already_loaded_are_refused(tmp_path):
    model = save("llama", tmp_path)
    with pytest.raises(ValueError, match=r"\['dtype'\] say how to load the target, but target= is already loaded"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=model.target, dtype=torch.bfloat16)


def test_a_target_without_a_name_must_be_passed(tmp_path):
    model = compose("llama")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"names no target.*target=target"):
        ULDForCausalLM.from_pretrained(tmp_path)
    loaded = ULDForCausalLM.from_pretrained(tmp_path, target=tiny_model("llama"))
    assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)


def test_a_target_that_moved_away_is_an_error_that_says_what_to_do(tmp_path):
    model = save("llama", tmp_path)
    shutil.move(tmp_path / "target", tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"is not there\. If it has moved, load it from where it is and save"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere")
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=target)
    assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)
    loaded.save_pretrained(tmp_path / "anew")  # which names the place where it was found
    assert torch.equal(ULDForCausalLM.from_pretrained(tmp_path / "anew")(PROMPTS).logits, model(PROMPTS).logits)


def test_a_copy_of_a_target_that_is_still_there_is_not_named_in_its_place(tmp_path):
    save("llama", tmp_path)
    shutil.copytree(tmp_path / "target", tmp_path / "copy")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=target)
    assert loaded.config.target_name_or_path == str(tmp_path / "target")


@pytest.mark.parametrize("name", ["assistant", "bob"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda assistant: assistant.merge_adapter(), "is merged"),
        (lambda assistant: assistant.base_model.disable_adapter_layers(), "disabled, rescaled"),
        (lambda assistant: [layer.scale_layer(0.0) for layer in lora_layers(assistant).values()], "disabled, rescaled"),
    ],
    ids=["merged", "disabled", "rescaled"],
)
def test_an_assistant_that_was_changed_before_is_refused(name, change, message):
    target = tiny_model("llama")
    assistant = train_like(build_assistant(target, 2))
    change(assistant)
    with pytest.raises(RuntimeError, match=message):
        ULDForCausalLM(target=target, assistant={name: assistant})
    model = ULDForCausalLM(target=tiny_model("llama"), assistant=train_like(build_assistant(tiny_model("llama"), 2)))
    with pytest.raises(RuntimeError, match=message):
        model.add_assistant(assistant, name="another", allow_target_mismatch=True)


def test_a_configuration_of_other_assistants_is_refused():
    target = tiny_model("llama")
    config = ULDModelConfig(assistants={"bob": {"num_layers": 2, "alpha": 4.0}})
    with pytest.raises(ValueError, match=r"settings for \['bob'\], and none for \['assistant'\]"):
        ULDForCausalLM(config, target=target, assistant=train_like(build_assistant(target, 2)))


def test_another_target_is_refused(family, tmp_path):
    save(family, tmp_path)
    with pytest.raises(ValueError, match=r"was trained on another target than .*: their weights of the first layers"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=tiny_model(family, seed=9))


def test_a_target_with_more_layers_is_refused(family, tmp_path):
    save(family, tmp_path)
    with pytest.raises(ValueError, match=r"was trained on another target than .*: their architecture differ"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=tiny_model(family, num_layers=5))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "weights of the first layers"),
        ("model.layers.1.mlp.down_proj.weight", "weights of the first layers"),
        ("model.layers.1.input_layernorm.weight", "embeddings, norms or head"),
        ("model.embed_tokens.weight", "embeddings, norms or head"),
        ("model.norm.weight", "embeddings, norms or head"),
        ("lm_head.weight", "embeddings, norms or head"),
    ],
)
def test_a_target_that_was_finetuned_further_is_refused(tmp_path, name, what):
    save("llama", tmp_path)
    target = tiny_model("llama")
    target.get_parameter(name).data[1:].mul_(1.02)  # not all of it: a tensor is more than its first values
    with pytest.raises(ValueError, match=f"was trained on another target than .*: their {what} differ"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=target)


def finetuned_above() -> PreTrainedModel:
    target = tiny_model("llama")
    target.get_parameter("model.layers.2.mlp.down_proj.weight").data.mul_(1.5)
    return target


def test_a_target_that_was_finetuned_above_the_assistant_only_is_refused(tmp_path):
    save("llama", tmp_path)
    with pytest.raises(ValueError, match=r"their weights of the layers above the assistant's differ"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=finetuned_above())


def test_a_target_that_was_finetuned_above_an_assistant_trained_without_these_layers_is_not_noticed(tmp_path):
    # A limit, not a promise: training from a name never reads them.
    save("llama", tmp_path)
    file = tmp_path / "unlearned" / "config.json"
    fingerprint = json.loads(file.read_text())["target_fingerprint"]
    edit_json(file, target_fingerprint=fingerprint | {"above": None})
    target = finetuned_above()
    assert ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=target).target is target


@pytest.mark.parametrize(
    ("saved", "built", "loaded"),
    [
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float32),
    ],
)
def test_the_fingerprint_does_not_depend_on_the_precision_of_the_load(tmp_path, saved, built, loaded):
    tiny_model("llama").to(saved).save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype=built)
    ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2))).save_pretrained(
        tmp_path / "unlearned"
    )
    model = ULDForCausalLM.from_pretrained(tmp_path / "unlearned", dtype=loaded)
    assert model.target.dtype == loaded
    assert fingerprint_target(model.target, 2) == fingerprint_target(target, 2)


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float32])
def test_a_target_in_float16_is_refused_rather_than_mistaken(tmp_path, saved):
    target = tiny_model("llama").to(saved)
    target.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1.23e-6  # of real weights, the smallest lose bits in float16
    target.save_pretrained(tmp_path / "target")
    ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2))).save_pretrained(
        tmp_path / "unlearned"
    )
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype=torch.float16)
    with pytest.raises(ValueError, match="trained on another target"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=half)


def test_the_fingerprint_of_the_first_layers_alone_is_that_of_the_whole(family, tmp_path):
    target = tiny_model(family)
    target.save_pretrained(tmp_path)
    first_layers = add_lora(load_truncated_model(tmp_path, 2)).get_base_model()
    expected = fingerprint_target(target, 2) | {"above": None}
    assert fingerprint_target(first_layers, 2, target_config=target.config) == expected


def test_the_fingerprint_does_not_count_training(family):
    target = tiny_model(family)
    before = fingerprint_target(target, 2)
    assistant = train_like(build_assistant(target, 2))
    assert fingerprint_target(target, 2) == before
    of_assistant = fingerprint_target(assistant.get_base_model(), 2, target_config=target.config)
    assert of_assistant == before | {"above": None}


def test_saving_beside_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds an adapter_config\.json.*Save to another folder"):
        compose("llama").save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter_config.json"]


def test_weights_cut_off_by_a_download_are_refused(tmp_path):
    model = save("llama", tmp_path)
    file = tmp_path / "unlearned" / "assistant" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors|damaged"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=model.target)


def edit_weights(folder: Path, change) -> None:
    """Apply `change(tensors, name)` to the dictionary of the saved assistant's weights and its first name."""
    file = folder / "unlearned" / "assistant" / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors, sorted(tensors)[0])
    save_file(tensors, file, metadata={"format": "pt"})
    config = folder / "unlearned" / "config.json"
    files = json.loads(config.read_text())["files"]
    edit_json(config, files=files | {"assistant/adapter_model.safetensors": describe_file(file)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors.pop(name), "1 of the assistant's weights are missing or do not fit 2 layers"),
        (lambda tensors, name: tensors.update({name: tensors[name][:, :-1].contiguous()}), "1 of the assistant's"),
        (lambda tensors, name: tensors.update({f"{name}.more": tensors[name].clone()}), "1 of the assistant's weights"),
        (lambda tensors, name: tensors[name].fill_(float("nan")), "hold NaN or infinite values"),
        (lambda tensors, name: tensors[name][0].fill_(float("inf")), "hold NaN or infinite values"),
    ],
    ids=["missing", "other shape", "unexpected", "nan", "infinite"],
)
def test_damaged_weights_are_refused(tmp_path, change, message):
    model = save("llama", tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=model.target)


def test_a_saved_config_without_a_fingerprint_is_refused(tmp_path):
    save("llama", tmp_path)
    edit_json(tmp_path / "unlearned" / "config.json", target_fingerprint=None)
    with pytest.raises(ValueError, match=r"has no target_fingerprint in its config\.json"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned")


def test_a_saved_config_with_half_a_fingerprint_is_refused(tmp_path):
    save("llama", tmp_path)
    edit_json(tmp_path / "unlearned" / "config.json", target_fingerprint={"config": "1", "rest": "2"})
    with pytest.raises(ValueError, match=r"differ|fingerprint lacks"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned")


def test_a_saved_config_with_another_number_of_layers_is_refused(tmp_path):
    model = save("llama", tmp_path)
    edit_json(tmp_path / "unlearned" / "config.json", assistants={"assistant": {"num_layers": 3, "alpha": 0.75}})
    with pytest.raises(ValueError, match="their weights of the first layers differ"):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=model.target)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_missing_assistant_is_an_error(tmp_path, name):
    model = save("llama", tmp_path)
    (tmp_path / "unlearned" / "assistant" / name).unlink()
    with pytest.raises(OSError, match=name):
        ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=model.target)


@pytest.mark.parametrize("what", ["nothing", "the target"])
def test_a_folder_without_an_unlearned_model_is_refused(tmp_path, what):
    if what == "the target":
        tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        ULDForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("moved", [False, True], ids=["as saved", "the target has moved"])
def test_loading_warns_of_nothing(tmp_path, caplog, transformers_log, moved):
    save("llama", tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if moved:
            shutil.move(tmp_path / "target", tmp_path / "elsewhere")
            target = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere")
            ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=target)
        else:
            ULDForCausalLM.from_pretrained(tmp_path / "unlearned")
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []
    assert [str(warning.message) for warning in caught] == []


def test_plain_peft_loads_the_assistant_onto_the_first_layers(family, tmp_path):
    model = save(family, tmp_path)
    base = load_truncated_model(tmp_path / "target", 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        loaded = PeftModel.from_pretrained(base, tmp_path / "unlearned", subfolder="assistant").eval()
    assert torch.equal(loaded(input_ids=PROMPTS).logits, model.assistant(input_ids=PROMPTS).logits)


def test_another_lora_config_survives_saving(tmp_path):
    target = tiny_model("llama")
    peft_config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "up_proj"], use_rslora=True, use_dora=True)
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2, peft_config)))
    model.save_pretrained(tmp_path)
    loaded = ULDForCausalLM.from_pretrained(tmp_path, target=tiny_model("llama"))
    assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)


def test_the_pipeline_finds_a_saved_model(tmp_path):
    model = save("llama", tmp_path)
    make_tokenizer().save_pretrained(tmp_path / "unlearned")
    generator = pipeline("text-generation", model=str(tmp_path / "unlearned"))
    assert isinstance(generator.model, ULDForCausalLM)
    ids = generator.tokenizer("<s> w9", return_tensors="pt").input_ids
    assert ids[0, 0] == BOS
    actual = generator("<s> w9", max_new_tokens=5, do_sample=False, return_full_text=False)[0]["generated_text"]
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)[0, 2:]
    assert actual.split() == make_tokenizer().decode(expected, skip_special_tokens=True).split()
