"""The processor gives what the unlearned model gives, token for token, on every family and mode."""

import pytest
import torch
from all_families import any_model
from families import BOS, EOS, PAD, VOCAB_SIZE, tiny_model, train_like
from torch import nn
from transformers import ContinuousBatchingConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from uld_hf.assistant import build_assistant, remember_settings
from uld_hf.configuration_uld import ULDModelConfig
from uld_hf.logits_process import ULDLogitsProcessor, longest_common_prefix
from uld_hf.modeling_uld import ULDForCausalLM
from uld_hf.subtraction import logit_difference


NEW_TOKENS = 8  # with the prompt, past the sliding window of 8
PROMPT = torch.randint(4, VOCAB_SIZE, (1, 9), generator=torch.Generator().manual_seed(3))
PROMPTS = torch.randint(4, VOCAB_SIZE, (3, 12), generator=torch.Generator().manual_seed(4))
MASK = (torch.arange(12) >= 12 - torch.tensor([[5], [12], [9]])).long()
PADDED = PROMPTS.masked_fill(MASK == 0, PAD)
SETTINGS = {"alpha": 0.9, "relative_top": 0.05, "outside": "mask", "center": False}
MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "several sequences": {"do_sample": True, "num_return_sequences": 2},
    "several beams": {"num_beams": 4, "num_return_sequences": 3},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


@pytest.fixture
def model(family) -> ULDForCausalLM:
    """The unlearned model; its `target` and `assistant` are what the processor works on."""
    target = tiny_model(family)
    return ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **SETTINGS)


def test_a_call_that_failed_half_way_leaves_nothing_behind():
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **SETTINGS)
    tried, untried = processor(model), processor(model)
    scores = target(PROMPT).logits[:, -1]
    head = model.assistant.get_base_model().lm_head

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    for prompt in (PROMPT[:, :-2], PROMPT[:, :-1]):  # nothing cached yet; something cached
        hook = head.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            tried(prompt, scores)
        hook.remove()
        torch.testing.assert_close(tried(prompt, scores), untried(prompt, scores))
    torch.testing.assert_close(tried(PROMPT, scores), untried(PROMPT, scores))


@pytest.mark.parametrize("step", ["reorder_cache", "crop"])
def test_a_call_that_failed_while_the_cache_was_brought_in_line_leaves_nothing_behind(step, monkeypatch):
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **SETTINGS)
    tried = processor(model)
    scores = target(PROMPTS).logits[:, -1]
    tried(PROMPTS, scores)
    # Other beams, and a candidate dropped: both are done to the cache, layer by layer.
    tokens = PROMPTS[[1, 0, 2], :-2]
    original = getattr(DynamicLayer, step)
    calls = []

    def fail_at_the_second_layer(layer: DynamicLayer, *args: object) -> None:
        calls.append(layer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(layer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DynamicLayer, step, fail_at_the_second_layer)
        with pytest.raises(KeyboardInterrupt):
            tried(tokens, scores)
    torch.testing.assert_close(tried(tokens, scores), processor(model)(tokens, scores))


def test_rows_that_go_on_are_not_compared_with_each_other(monkeypatch):
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **SETTINGS)
    tried = processor(model)
    scores = target(PROMPTS).logits[:, -1]
    tried(PROMPTS[:, :-1], scores)
    monkeypatch.setattr("uld_hf.logits_process.longest_common_prefix", lambda *_: pytest.fail("compared"))
    torch.testing.assert_close(tried(PROMPTS, scores), processor(model)(PROMPTS, scores))


def test_one_processor_serves_several_prompts_of_a_hybrid():
    target = any_model("qwen3_5_text")  # its states cannot be taken back by a few tokens
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **SETTINGS)
    used = processor(model)
    for prompt in (PROMPT, PROMPT, PROMPT[:, :-2]):
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
        actual = target.generate(prompt, logits_processor=[used], **options)
        assert torch.equal(actual, model.generate(prompt, **options))


def processor(model: ULDForCausalLM, **kwargs) -> ULDLogitsProcessor:
    return ULDLogitsProcessor(model.assistant, **SETTINGS, **kwargs)


def generate(model: PreTrainedModel, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    torch.manual_seed(5)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    options["attention_mask"] = torch.ones_like(ids)  # or transformers takes every pad token for padding
    return model.generate(ids, **(options | kwargs))


def with_processor(model: ULDForCausalLM, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    return generate(model.target, ids, logits_processor=[processor(model)], **kwargs)


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_one_prompt(model, options):
    assert torch.equal(with_processor(model, PROMPT, **options), generate(model, PROMPT, **options))


def test_by_certainty():
    target, settings = tiny_model("llama"), {"alpha": 3.0, "relative_top": 0.0, "by_certainty": True}
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **settings)
    with_processor = generate(target, PROMPT, logits_processor=[ULDLogitsProcessor(model.assistant, **settings)])
    assert torch.equal(with_processor, generate(model, PROMPT))
    model.config.by_certainty = False
    assert not torch.equal(with_processor, generate(model, PROMPT))


@pytest.mark.parametrize("mode", ["greedy", "sampling", "several beams", "static cache"])
def test_left_padded_prompts(model, mode):
    options = {"attention_mask": MASK, **MODES[mode]}
    assert torch.equal(with_processor(model, PADDED, **options), generate(model, PADDED, **options))


def test_it_changes_what_the_target_generates(model):
    assert not torch.equal(with_processor(model, PROMPT), generate(model.target, PROMPT))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_rows_that_end_early(model, num_beams):
    ends = list(range(44, VOCAB_SIZE))
    options = {"attention_mask": MASK, "eos_token_id": ends, "num_beams": num_beams}
    if num_beams > 1:
        options["length_penalty"] = 0.0  # so that short beams are worth having
    actual = with_processor(model, PADDED, **options)
    assert torch.equal(actual, generate(model, PADDED, **options))
    assert any(token in ends for row in actual[:, 12 : 12 + NEW_TOKENS - 1].tolist() for token in row)


def test_prompt_lookup(model):
    # The second half of the prompt is what is generated after the first: candidates come up, and are cropped again.
    prompt = torch.cat([generate(model, PROMPT)] * 2, dim=1)
    assert torch.equal(with_processor(model, prompt, prompt_lookup_num_tokens=5), generate(model, prompt))


def test_a_draft_model(model):
    draft = tiny_model("llama", num_layers=1, seed=8)
    assert torch.equal(with_processor(model, PROMPT, assistant_model=draft), generate(model, PROMPT))


def test_one_processor_for_many_calls(model):
    shared = processor(model)
    calls = [
        (PROMPT, {}),
        (PROMPT, {}),  # the same again
        (PADDED, {"attention_mask": MASK}),  # more rows
        (PROMPTS[:2], {"num_beams": 3}),  # fewer rows, then more
        (PROMPT[:, :4], {}),  # the beginning of an earlier prompt
        (torch.cat([PROMPT, PROMPTS[:1]], dim=1), {"num_beams": 2}),  # a continued one
    ]
    for ids, options in calls:
        actual = generate(model.target, ids, logits_processor=[shared], **options)
        assert torch.equal(actual, generate(model, ids, **options))


def test_the_assistant_reads_every_token_once(model):
    # Where a sliding window has dropped tokens too, as long as none has to be brought back.
    lengths = []
    embeddings = model.assistant.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    with_processor(model, PROMPT, num_beams=3)
    hook.remove()
    assert lengths == [PROMPT.shape[1]] + [1] * (NEW_TOKENS - 1)


def test_a_prompt_that_begins_with_the_pad_token_needs_its_mask(model):
    prompt = torch.cat([torch.full((1, 3), PAD), PROMPT], dim=1)
    expected = generate(model, prompt)
    with_mask = processor(model, attention_mask=torch.ones_like(prompt))
    assert torch.equal(generate(model.target, prompt, logits_processor=[with_mask]), expected)
    assert not torch.equal(with_processor(model, prompt), expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_a_mask_is_repeated_for_every_sequence_of_a_prompt(model, options):
    # Padded with a word: only the mask can tell.
    ids = PROMPTS.masked_fill(MASK == 0, 7)
    options = {"attention_mask": MASK, **options}
    actual = generate(model.target, ids, logits_processor=[processor(model, attention_mask=MASK)], **options)
    assert torch.equal(actual, generate(model, ids, **options))


def test_a_pad_token_in_the_middle_is_not_masked(model):
    prompt = PROMPT.clone()
    prompt[0, 4] = PAD
    assert torch.equal(with_processor(model, prompt), generate(model, prompt))


def test_a_model_without_a_pad_token_masks_nothing():
    target = tiny_model("llama", pad_token_id=None)
    assistant = build_assistant(target, 2)
    model = ULDForCausalLM(target=target, assistant=train_like(assistant), **SETTINGS)
    prompt = torch.cat([torch.tensor([[PAD, BOS, EOS]]), PROMPT], dim=1)
    assert torch.equal(with_processor(model, prompt), generate(model, prompt))


def test_padding_by_the_end_token_of_a_model_without_a_pad_token():
    # As everyone does with Llama: tokenizer.pad_token = tokenizer.eos_token, and generate() does the same by itself.
    target = tiny_model("llama", pad_token_id=None)
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **SETTINGS)
    ids = PROMPTS.masked_fill(MASK == 0, EOS)
    options = {"attention_mask": MASK, "pad_token_id": EOS}
    assert torch.equal(with_processor(model, ids, **options), generate(model, ids, **options))


@torch.no_grad()
def test_a_call_is_the_formula_in_log_probabilities(model):
    target = model.target(PROMPTS).logits[:, -1]
    assistant = model.assistant(input_ids=PROMPTS).logits[:, -1]
    expected = logit_difference(
        target, [assistant], [SETTINGS["alpha"]], relative_top=0.05, outside="mask", center=False
    )
    actual = processor(model)(PROMPTS, target)
    torch.testing.assert_close(actual, expected.log_softmax(-1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_clamped_call_is_the_clamped_formula(model):
    target = model.target(PROMPTS).logits[:, -1]
    assistant = model.assistant(input_ids=PROMPTS).logits[:, -1]
    expected = logit_difference(target, [assistant], [2.0], relative_top=0, clamp=True)
    actual = ULDLogitsProcessor(model.assistant, alpha=2.0, relative_top=0, clamp=True)(PROMPTS, target)
    torch.testing.assert_close(actual, expected.log_softmax(-1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_log_probabilities_of_the_target_give_the_same_as_its_logits(model):
    logits = model.target(PROMPTS).logits[:, -1]
    from_logits = processor(model)(PROMPTS, logits)
    torch.testing.assert_close(processor(model)(PROMPTS, logits.log_softmax(-1)), from_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_normalized_in_float32(model, dtype):
    actual = processor(model)(PROMPTS, torch.zeros(3, VOCAB_SIZE, dtype=dtype))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.logsumexp(-1), torch.zeros(3), rtol=0, atol=1e-5)


def test_the_result_carries_no_gradient(model):
    assert not processor(model)(PROMPTS, torch.zeros(3, VOCAB_SIZE)).requires_grad


def test_defaults_are_the_models():
    target = tiny_model("llama")
    assistant = train_like(build_assistant(target, 2))
    actual = generate(target, PROMPT, logits_processor=[ULDLogitsProcessor(assistant)])
    assert torch.equal(actual, generate(ULDForCausalLM(target=target, assistant=assistant), PROMPT))


def test_the_assistant_is_put_in_evaluation_mode():
    target = tiny_model("llama")
    assistant = build_assistant(target, 2).train()
    ULDLogitsProcessor(assistant)(PROMPT, target(PROMPT).logits[:, -1])
    assert not any(module.training for module in assistant.modules())


def test_settings_are_those_that_the_assistant_was_trained_for():
    settings = {"alpha": 1.3, "relative_top": 0.0, "outside": "keep", "center": True, "clamp": True}
    assistant = remember_settings(build_assistant(tiny_model("llama"), 2), settings)
    processor = ULDLogitsProcessor(assistant)
    assert {name: vars(processor)[name] for name in settings} == settings
    assert ULDLogitsProcessor(assistant, alpha=0.5).alpha == 0.5


def test_settings_of_an_assistant_that_was_only_built_are_the_models():
    processor = ULDLogitsProcessor(build_assistant(tiny_model("llama"), 2))
    config = ULDModelConfig()
    assert (processor.alpha, processor.relative_top, processor.clamp) == (config.alpha, config.relative_top, True)


def test_raw_logits_are_not_clamped():
    assistant = remember_settings(build_assistant(tiny_model("llama"), 2), {"center": True, "clamp": True})
    assert ULDLogitsProcessor(assistant, center=False).clamp is False
    with pytest.raises(ValueError, match="Use clamp=False too"):
        ULDLogitsProcessor(assistant, center=False, clamp=True)


def test_continuous_batching_does_not_know_it(model):
    # Pinned, because the docstring warns of it: transformers hands no processor to this mode.
    pages = ContinuousBatchingConfig(num_blocks=16, page_size=16, max_batch_tokens=64)  # or all of the memory is taken
    options = {"cache_implementation": "paged", "continuous_batching_config": pages, "max_new_tokens": 4}
    text = model.target.generate(PROMPT, logits_processor=[processor(model)], do_sample=False, **options)
    alone = model.target.generate(PROMPT, do_sample=False, **options)
    assert torch.equal(text, alone)


def test_prompts_as_embeddings_are_refused(model):
    embeddings = model.get_input_embeddings()(PROMPT)
    with pytest.raises(ValueError, match="got no tokens: prompts given as inputs_embeds are not visible"):
        model.target.generate(inputs_embeds=embeddings, logits_processor=[processor(model)], max_new_tokens=2)


def test_an_assistant_of_another_vocabulary_is_refused():
    assistant = build_assistant(tiny_model("llama", vocab_size=72), 2)
    with pytest.raises(ValueError, match="must share one vocabulary"):
        generate(tiny_model("llama"), PROMPT, logits_processor=[ULDLogitsProcessor(assistant)])


@pytest.mark.parametrize("make", [lambda: tiny_model("llama"), lambda: nn.Linear(2, 2), lambda: None])
def test_an_assistant_that_is_no_peft_model_is_refused(make):
    with pytest.raises(TypeError, match="must be a PeftModel with an adapter named 'assistant'"):
        ULDLogitsProcessor(make())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0 would give"),
        ({"alpha": float("nan")}, "alpha=nan would give"),
        ({"relative_top": 2.0}, "relative_top=2.0 must lie between 0"),
        ({"outside": "x"}, "outside='x' must be 'keep' or 'mask'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    assistant = build_assistant(tiny_model("llama"), 2)
    with pytest.raises(ValueError, match=message):
        ULDLogitsProcessor(assistant, **settings)


@pytest.mark.parametrize("shape", [(2, 12), (3, 13)], ids=["other number of prompts", "longer than the tokens"])
def test_a_mask_of_other_prompts_is_refused(shape):
    assistant = build_assistant(tiny_model("llama"), 2)
    with pytest.raises(ValueError, match=r"attention_mask has shape .* Make a new ULDLogitsProcessor"):
        ULDLogitsProcessor(assistant, attention_mask=torch.ones(shape).long())(PROMPTS, torch.zeros(3, VOCAB_SIZE))


def test_longest_common_prefix_of_every_pair_of_rows():
    previous = torch.tensor([[1, 2, 3], [1, 9, 3]])
    current = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 3], [5, 2, 3, 4]])
    assert longest_common_prefix(previous, current).tolist() == [[3, 1], [2, 1], [0, 0]]
