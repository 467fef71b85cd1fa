"""Prompts that are run once for all of their answers: against each row by itself in float64, and where it cannot be."""

import copy
import weakref

import numpy as np
import pytest
import torch
from all_families import any_model
from families import make_tokenizer, tiny_model, train_like
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cache_name import CACHE
from uld_hf.evaluation.answer_logits import answer_logits, can_share_prompts
from uld_hf.evaluation.encoding import check_predictable
from uld_hf.evaluation.scoring import Subtraction, score_completions, score_subtractions


LONG = "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12"  # longer than the sliding windows
QUESTIONS = {
    LONG: [" w20 w21", " w22", " w23 w24 w25 w26 w27 w28 w29 w30 w31 w32", ""],
    "w13 w14 w15": [" w33", " w34 w35 w36 w37"],
    "w16": [" w38 w39", " w40"],  # nothing to share
    "w17 w18": [" w41 w42 w43"],  # nobody to share it with
}
PROMPTS, COMPLETIONS = zip(*[(prompt, answer) for prompt in QUESTIONS for answer in QUESTIONS[prompt]], strict=True)
FAMILIES = ("llama", "gemma3", "gpt2", "opt", "bloom")


def unlearned(target: PreTrainedModel, execution: str) -> ULDForCausalLM:
    assistants = {"one": train_like(build_assistant(target, 2)), "two": train_like(build_assistant(target, 1), seed=3)}
    alpha = {"one": 0.5, "two": 1.0}
    model = ULDForCausalLM(target=target, assistant=assistants, alpha=alpha, relative_top=0).double()
    model.execution = execution
    return model


@pytest.fixture(scope="module", params=["plain", "lockstep", "two passes"])
def execution(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, execution: str) -> PreTrainedModel:
    target = any_model(request.param)
    model = target.double() if execution == "plain" else unlearned(target, execution)
    # In float64 BLOOM's masked scores overflow to minus infinity, and a row of nothing but padding is NaN.
    return model.float() if request.param == "bloom" else model


@torch.no_grad()
def log_probs_of_row(model: PreTrainedModel, prompt: str, completion: str) -> np.ndarray:
    """One row by itself, without a cache."""
    tokenizer = make_tokenizer()
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([[*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]])
    log_probs = model(ids, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
    return log_probs.gather(-1, ids[0, start:, None])[:, 0].numpy()


def count_tokens(model: PreTrainedModel) -> list[int]:
    """Sizes of what is run from here on, in tokens."""
    sizes: list[int] = []
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda module, args: sizes.append(args[0].numel()))
    return sizes


def test_the_families_share(model):
    assert can_share_prompts(model)


@pytest.mark.parametrize("max_batch_tokens", [4096, 60, 1])
def test_scores_are_those_of_a_row_by_itself(model, max_batch_tokens):
    scores = score_completions(model, make_tokenizer(), PROMPTS, COMPLETIONS, max_batch_tokens)
    for prompt, completion, row in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        np.testing.assert_allclose(row.log_probs, log_probs_of_row(model, prompt, completion), atol=1e-5)


def test_swept_settings_are_those_of_a_row_by_itself(model):
    if not isinstance(model, ULDForCausalLM):
        pytest.skip("the target itself has no settings")
    setting = Subtraction(0.5, relative_top=0)  # the model's own
    target, (swept,) = score_subtractions(model, make_tokenizer(), PROMPTS, COMPLETIONS, [setting], 60)
    for place, pair in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        np.testing.assert_allclose(target[place].log_probs, log_probs_of_row(model.target, *pair), atol=1e-5)
        np.testing.assert_allclose(swept[place].log_probs, log_probs_of_row(model, *pair), atol=1e-5)


def test_a_prompt_is_run_once(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr("uld_hf.evaluation.answer_logits.can_share_prompts", lambda model: True)
    sizes = count_tokens(model)
    score_completions(model, make_tokenizer(), [LONG] * 3, [" w20 w21"] * 3)
    assert sizes == [11, 9]  # the prompt but for its last token; that and the answers, without the end


def test_the_head_is_run_on_no_more_of_a_prompt_than_its_end():
    model = tiny_model("llama")
    assert can_share_prompts(model)
    widths = []
    model.lm_head.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[-2]))
    score_completions(model, make_tokenizer(), [LONG] * 3, [" w20 w21"] * 3)
    assert widths[-2:] == [1, 3]


@pytest.mark.parametrize(("max_batch_tokens", "passes_of_prompts"), [(40, 2), (60, 2), (100, 1)])
def test_no_batch_holds_more_tokens_than_allowed(max_batch_tokens, passes_of_prompts, monkeypatch):
    model = unlearned(tiny_model("llama"), "lockstep")
    run = model.component_logits
    held, prompts = [], []

    def watched(input_ids: torch.Tensor, past_key_values: DynamicCache, **kwargs: torch.Tensor) -> tuple:
        behind = past_key_values.get_seq_length()
        if behind == 0:
            prompts.append(input_ids.numel())  # they stay beside what the batches have of them
        held.append(len(input_ids) * (behind + input_ids.shape[1]) + (prompts[-1] if behind else 0))
        return run(input_ids, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr("uld_hf.evaluation.answer_logits.can_share_prompts", lambda model: True)
    model.component_logits = watched
    rows = [([*range(10), 20 + number, *range(5)], 10) for number in range(20)]
    rows += [([*range(5, 13), 20 + number, *range(number % 5)], 8) for number in range(20)]
    with torch.no_grad():
        assert sorted(index for batch, _ in answer_logits(model, rows, max_batch_tokens) for index in batch) == [
            *range(40)
        ]
    assert max(held) <= max_batch_tokens
    assert len(prompts) == passes_of_prompts


def test_rows_of_unlike_length_are_not_padded_to_one():
    model = tiny_model("llama")
    sizes = count_tokens(model)
    score_completions(model, make_tokenizer(), ["w1 w2", "w3 w4 w5", "w6"], [" w7" * 40, " w8" * 38, " w9"])
    assert sizes == [2 * 42, 2]  # all but the last token of a row


def test_groups_go_by_tokens_not_by_text():
    # The same tokens, of which the second row counts more as its answer's: another prompt.
    model = tiny_model("gpt2").double()
    rows = [([5, 6, 7, 8, 9], 3), ([5, 6, 7, 8, 9], 2), ([5, 6, 7, 10], 3)]
    with torch.no_grad():
        found = {}
        for batch, (logits,) in answer_logits(model, rows, 4096):
            lengths = [len(rows[index][0]) - rows[index][1] for index in batch]
            found |= zip(batch, logits.split(lengths), strict=True)
        for index, (ids, start) in enumerate(rows):
            expected = model(torch.tensor([ids])).logits[0, start - 1 : -1]
            torch.testing.assert_close(found[index], expected)


def test_padding_does_not_exceed_the_context():
    # A long prompt with short answers beside a short prompt with long ones.
    model = tiny_model("gpt2").double()
    lengths = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["attention_mask"].shape[1]), with_kwargs=True
    )
    prompts, answers = ["w1 " * 100] * 2 + ["w2 w3"] * 2, [" w4", " w5", " w6" * 100, " w7"]
    scores = score_completions(model, make_tokenizer(), prompts, answers)
    hook.remove()
    assert 100 < max(lengths) <= 128
    for prompt, answer, row in zip(prompts, answers, scores, strict=True):
        np.testing.assert_allclose(row.log_probs, log_probs_of_row(model, prompt, answer), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_reason_to_run_prompts_again(dtype):
    assert can_share_prompts(tiny_model("llama").to(dtype))


def test_a_state_space_model_is_scored_without_sharing():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = MambaForCausalLM(config).eval()
    assert not can_share_prompts(model)
    scores = score_completions(model, make_tokenizer(), PROMPTS, COMPLETIONS)
    for prompt, completion, row in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        np.testing.assert_allclose(row.log_probs, log_probs_of_row(model, prompt, completion), atol=1e-5)


def test_a_model_that_goes_on_from_a_cache_wrongly_is_scored_without():
    model = tiny_model("llama").double()
    sound = copy.deepcopy(model)

    def shifts_positions(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if kwargs[CACHE] is not None:
            kwargs["position_ids"] = kwargs["position_ids"] + 3 * (kwargs[CACHE].get_seq_length() > 0)
        return args, kwargs

    model.model.register_forward_pre_hook(shifts_positions, with_kwargs=True)
    assert can_share_prompts(sound)
    assert not can_share_prompts(model)
    scores = score_completions(model, make_tokenizer(), PROMPTS, COMPLETIONS)
    for prompt, completion, row in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        np.testing.assert_allclose(row.log_probs, log_probs_of_row(sound, prompt, completion), atol=1e-5)


def test_rotary_frequencies_that_depend_on_the_length_are_not_shared():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = LlamaConfig(vocab_size=64, max_position_embeddings=128, rope_parameters=rope, **sizes)
    assert not can_share_prompts(LlamaForCausalLM(config).eval())


def test_attention_in_chunks_is_not_shared():
    model = tiny_model("llama")
    model.config.attention_chunk_size = 64
    assert not can_share_prompts(model)


@pytest.mark.parametrize(("row", "missing"), [(([5, 6], 0), "prompt"), (([5, 6], 2), "answer")])
def test_a_row_with_nothing_to_score_is_refused(row, missing):
    with pytest.raises(ValueError, match=rf"rows\[1\] has no token of its {missing}"):
        check_predictable([([5, 6], 1), row])


@pytest.mark.parametrize("execution", ["lockstep", "two passes"])
def test_component_logits_go_on_from_a_cache(execution):
    model = unlearned(tiny_model("gemma3"), execution)
    ids = torch.arange(20)[None] + 4
    with torch.no_grad():
        expected = model.component_logits(ids)
        cache = DynamicCache(config=model.config)
        begun = model.component_logits(ids[:, :12], past_key_values=cache)
        continued = model.component_logits(ids[:, 12:], past_key_values=cache)
    for whole, first, second in zip(
        (expected[0], *expected[1]), (begun[0], *begun[1]), (continued[0], *continued[1]), strict=True
    ):
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


def test_logits_of_the_parts_are_taken_out_one_at_a_time(monkeypatch):
    refs, held = [], []

    class Part(torch.Tensor):  # torch.Tensor itself is not patched: one whose class was once counts as a sequence
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor):
                held.append(sum(ref() is not None for ref in refs))
            return super().__torch_function__(function, types, args, kwargs)

    model = unlearned(tiny_model("llama"), "two passes")
    compute = model.component_logits

    def computed(**inputs):
        target, assistants = compute(**inputs)
        parts = [part.as_subclass(Part) for part in (target, *assistants)]
        refs.extend(map(weakref.ref, parts))
        return parts[0], parts[1:]

    monkeypatch.setattr(model, "component_logits", computed)
    list(answer_logits(model, [([5, 6, 7], 1)], 60))
    assert held == list(range(len(refs), 0, -1))


def test_component_logits_refuse_the_targets_cache():
    model = unlearned(tiny_model("llama"), "lockstep")
    with pytest.raises(ValueError, match=f"{CACHE} has 4 layers"):
        model.component_logits(torch.tensor([[5, 6]]), past_key_values=DynamicCache(config=model.target.config))
