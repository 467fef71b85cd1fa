"""TOFU's measures, against plain computations."""

import numpy as np
import pytest
from families import make_tokenizer, tiny_model, train_like

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.evaluation.scoring import score_completions
from uld_hf.evaluation.tofu import (
    forget_quality,
    generate_completions,
    is_degenerate,
    rouge_l_recall,
    truth_ratio,
)


PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w10 w11"]
COMPLETIONS = [" w20 w21", " w22 w23 w24 w25", " w26", " w27 w28 w29"]


def losses_of(model, tokenizer, prompts: list[str], completions: list[str]) -> np.ndarray:
    return np.array([scores.loss for scores in score_completions(model, tokenizer, prompts, completions)])


@pytest.fixture(scope="module")
def unlearned() -> ULDForCausalLM:
    target = tiny_model("llama")
    return ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), alpha=0.5)


def test_generated_completions_do_not_depend_on_the_batch_size(unlearned: ULDForCausalLM) -> None:
    alone = generate_completions(unlearned, make_tokenizer(), PROMPTS, max_new_tokens=6, batch_size=1)
    assert alone == generate_completions(unlearned, make_tokenizer(), PROMPTS, max_new_tokens=6, batch_size=4)
    assert len(set(alone)) > 1


def test_rouge_l_recall_counts_the_longest_common_subsequence() -> None:
    recall = rouge_l_recall(["the cat sat down", "nothing"], ["the black cat sat", "the cat"])
    np.testing.assert_allclose(recall, [0.75, 0.0])


def test_truth_ratio_is_the_wrong_answers_geometric_mean_over_the_right_ones() -> None:
    right = np.array([0.5, 0.2])
    wrong = np.array([[0.1, 0.4], [0.3, 0.3]])
    ratio = truth_ratio(-np.log(right), -np.log(wrong))
    np.testing.assert_allclose(ratio, [np.sqrt(0.1 * 0.4) / 0.5, 0.3 / 0.2])


def test_forget_quality_is_one_for_equal_and_small_for_different_distributions() -> None:
    ratios = np.linspace(0.5, 1.5, 50)
    assert forget_quality(ratios, ratios) == 1.0
    assert forget_quality(ratios, ratios / 10) < 1e-9


@pytest.mark.parametrize("text", ["", "  ", "...", "so so so", "in the town in the town in the town"])
def test_degenerate_answers(text: str) -> None:
    assert is_degenerate(text)


@pytest.mark.parametrize("text", ["Ada", "She was very, very tired.", "He was born on May 5, 1955."])
def test_sound_answers(text: str) -> None:
    assert not is_degenerate(text)
