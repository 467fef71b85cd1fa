"""The shared scoring pass: against float64, over batch sizes, over settings of the subtraction."""

import gc

import numpy as np
import pytest
import torch
from all_families import any_model
from families import make_tokenizer, tiny_model, train_like

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.evaluation import scoring
from uld_hf.evaluation.scoring import Subtraction, score_completions, score_subtractions


PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w10 w11"]
COMPLETIONS = [" w20 w21", " w22 w23 w24 w25", " w26", " w27 w28 w29"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def unlearned(request: pytest.FixtureRequest) -> ULDForCausalLM:
    target = tiny_model(request.param)
    assistant = {"a": train_like(build_assistant(target, 2)), "b": train_like(build_assistant(target, 1), seed=3)}
    return ULDForCausalLM(target=target, assistant=assistant, alpha={"a": 0.5, "b": 1.0}, relative_top=0)


@torch.no_grad()
def plain(model: torch.nn.Module, prompt: str, completion: str) -> dict[str, np.ndarray]:
    """One row by itself, in float64."""
    tokenizer = make_tokenizer()
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([*prompt_ids, *tokenizer(completion)["input_ids"], tokenizer.eos_token_id])
    log_probs = model(ids[None]).logits[0].double().log_softmax(-1)[len(prompt_ids) - 1 : -1]
    tokens = ids[len(prompt_ids) :]
    means = (log_probs.exp() * log_probs).sum(-1)
    return {
        "log_probs": log_probs.gather(-1, tokens[:, None])[:, 0].numpy(),
        "means": means.numpy(),
        "deviations": (log_probs.exp() * (log_probs - means[:, None]).square()).sum(-1).sqrt().numpy(),
        "most_probable": (log_probs.argmax(-1) == tokens).numpy(),
    }


def test_scores_are_those_of_a_row_by_itself(unlearned):
    for prompt, completion, scores in zip(
        PROMPTS, COMPLETIONS, score_completions(unlearned, make_tokenizer(), PROMPTS, COMPLETIONS), strict=True
    ):
        for name, expected in plain(unlearned, prompt, completion).items():
            np.testing.assert_allclose(vars(scores)[name], expected, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("max_batch_tokens", [1, 9, 16])
def test_scores_do_not_depend_on_the_batches(unlearned, max_batch_tokens):
    tokenizer = make_tokenizer()
    together = score_completions(unlearned, tokenizer, PROMPTS, COMPLETIONS)
    apart = score_completions(unlearned, tokenizer, PROMPTS, COMPLETIONS, max_batch_tokens)
    for first, second in zip(together, apart, strict=True):
        np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-5)
        np.testing.assert_allclose(first.deviations, second.deviations, atol=1e-4)


def test_no_batch_holds_more_tokens_than_allowed(unlearned, monkeypatch):
    sizes = []
    hook = unlearned.target.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: sizes.append(args[0].numel())
    )
    monkeypatch.setattr(
        unlearned, "_execution", "two passes"
    )  # then target and assistants look their tokens up by turns
    score_completions(unlearned, make_tokenizer(), PROMPTS, COMPLETIONS, max_batch_tokens=16)
    hook.remove()
    assert len(sizes) > 1
    assert max(sizes) <= 16


def test_the_head_is_not_run_on_prompts_alone(unlearned):
    widths = []
    hook = unlearned.target.get_output_embeddings().register_forward_hook(
        lambda module, args, output: widths.append(args[0].shape[-2])
    )
    score_completions(unlearned.target, make_tokenizer(), ["w1 " * 30, "w5 " * 30], [" w2 w3", " w4"])
    hook.remove()
    assert widths == [3]  # what predicts w2, w3 and the end


def test_a_model_whose_adapter_is_disabled_is_not_scored(unlearned):
    with unlearned.assistants["a"].disable_adapter(), pytest.raises(RuntimeError, match="disabled"):
        score_completions(unlearned, make_tokenizer(), PROMPTS, COMPLETIONS)
    with unlearned.assistants["a"].disable_adapter(), pytest.raises(RuntimeError, match="disabled"):
        score_subtractions(unlearned, make_tokenizer(), PROMPTS, COMPLETIONS, SETTINGS[:1])


def test_the_end_of_a_passage_is_not_scored(unlearned):
    tokenizer = make_tokenizer()
    with_end, without = (
        score_completions(unlearned, tokenizer, PROMPTS, COMPLETIONS, ends=ends)
        for ends in (None, [None] * len(PROMPTS))
    )
    for long, short in zip(with_end, without, strict=True):
        np.testing.assert_allclose(short.log_probs, long.log_probs[:-1], atol=1e-5)


def test_loss_and_probability_of_an_answer(unlearned):
    scores = score_completions(unlearned, make_tokenizer(), PROMPTS[:1], COMPLETIONS[:1])[0]
    assert scores.loss == pytest.approx(-scores.log_probs.mean())
    assert scores.probability == pytest.approx(np.exp(scores.log_probs).prod() ** (1 / len(scores.log_probs)), rel=1e-5)


def test_a_token_that_cannot_be_drawn_gives_no_nan():
    target = tiny_model("llama")
    target.lm_head.register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, torch.tensor([40]), -torch.inf)
    )
    scores = score_completions(target, make_tokenizer(), PROMPTS, COMPLETIONS)
    assert all(np.isfinite(row.means).all() and np.isfinite(row.deviations).all() for row in scores)


SETTINGS = [
    Subtraction(0.3, relative_top=0),
    Subtraction(1.5, relative_top=0, clamp=True),
    Subtraction(0.8),
    Subtraction(0.8, outside="mask"),
    Subtraction(1.6, outside="mask"),
    Subtraction(1.0, relative_top=0, remove_top_k=4),
    Subtraction(0.8, center=False),
    Subtraction(0.8, relative_top=0, gate=0.25),
    Subtraction(1.6, relative_top=0, gate=0.05, clamp=True, by_certainty=True),
]


def test_every_setting_is_scored_as_by_a_model_that_has_it(unlearned):
    tokenizer = make_tokenizer()
    target_log_probs, by_setting = score_subtractions(unlearned, tokenizer, PROMPTS, COMPLETIONS, SETTINGS)
    alone = score_completions(unlearned.target, tokenizer, PROMPTS, COMPLETIONS)
    for first, second in zip(target_log_probs, alone, strict=True):
        np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-5)
        np.testing.assert_array_equal(first.most_probable, second.most_probable)
    for setting, swept in zip(SETTINGS, by_setting, strict=True):
        model = ULDForCausalLM(
            target=unlearned.target,
            assistant=dict(unlearned.assistants.items()),
            alpha={"a": setting.alpha, "b": 2 * setting.alpha},
            **setting.options,
        )
        for first, second in zip(swept, score_completions(model, tokenizer, PROMPTS, COMPLETIONS), strict=True):
            np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-5)
            np.testing.assert_array_equal(first.most_probable, second.most_probable)


@pytest.mark.parametrize("by_certainty", [False, True])
def test_replacements_are_scored_as_by_a_model_that_has_them(unlearned, by_certainty):
    parts = dict(unlearned.assistants.items())
    settings = {"relative_top": 0.0, "clamp": True, "gate": 0.05, "by_certainty": by_certainty, "replace": True}

    def compose(alpha):
        return ULDForCausalLM(
            target=unlearned.target, assistant=parts, alpha={"a": alpha, "b": -1.5 * alpha}, **settings
        )

    swept = [Subtraction(alpha, **settings) for alpha in (0.5, 1.25)]
    _, by_setting = score_subtractions(compose(1.0), make_tokenizer(), PROMPTS, COMPLETIONS, swept)
    for setting, rows in zip(swept, by_setting, strict=True):
        expected = score_completions(compose(setting.alpha), make_tokenizer(), PROMPTS, COMPLETIONS)
        for first, second in zip(rows, expected, strict=True):
            np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-5)


def test_settings_cost_no_further_pass(unlearned, monkeypatch):
    passes = []
    run = unlearned._run
    monkeypatch.setattr(unlearned, "_run", lambda *args: passes.append(1) or run(*args))
    score_subtractions(unlearned, make_tokenizer(), PROMPTS, COMPLETIONS, SETTINGS[:1])
    of_one = len(passes)
    score_subtractions(unlearned, make_tokenizer(), PROMPTS, COMPLETIONS, SETTINGS)
    assert len(passes) == 2 * of_one


@pytest.mark.parametrize("replacing", [False, True])
def test_a_grid_holds_no_more_than_one_of_its_settings(unlearned, monkeypatch, replacing):
    held = []
    compute = scoring.logit_difference

    def counted(target, *args, **options):
        like = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.shape == target.shape]
        held.append(len(like))
        return compute(target, *args, **options)

    monkeypatch.setattr(scoring, "logit_difference", counted)
    alpha = {"a": 0.5, "b": -1.0 if replacing else 1.0}
    model = ULDForCausalLM(target=unlearned.target, assistant=dict(unlearned.assistants.items()), alpha=alpha)
    # Alphas of one filter are not beside one another, as the command puts them.
    settings = [
        Subtraction(alpha, relative_top=0, gate=gate, replace=replacing)
        for alpha in (0.5, 1.5)
        for gate in (0.1, 0.2, 0.3, 0.4)
    ]
    score_subtractions(model, make_tokenizer(), PROMPTS[:1], COMPLETIONS[:1], settings)
    assert len(held) == 4
    assert len(set(held)) == 1


def test_rows_longer_than_the_context_are_refused(unlearned):
    with pytest.raises(ValueError, match=r"1 of 2 rows are longer .* context of 128 tokens \(rows\[1\] has 20"):
        score_completions(unlearned, make_tokenizer(), ["w1", "w1"], [" w2", " w2" * 200])


def test_a_model_without_a_limit_of_positions_takes_any_row():
    (scores,) = score_completions(any_model("bloom"), make_tokenizer(), ["w1 w2"], [" w3" * 200])
    assert len(scores.log_probs) == 201


@pytest.mark.parametrize("alpha", [0.0, float("nan")])
def test_a_setting_that_subtracts_nothing_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        Subtraction(alpha)
