"""The head is run on rows that stand one after another: torch multiplies others by a copy of the head for each."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, make_tokenizer, tiny_model, train_like
from torch import nn
from transformers import PreTrainedModel

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.evaluation.memorization import sample_completions
from uld_hf.evaluation.scoring import score_completions
from uld_hf.evaluation.tofu import generate_completions
from uld_hf.kept_positions import head_at_once, positions_to_keep


PROMPTS = ["w1 w2 w3", "w4 w5 w6 w7 w8", "w1 w2 w3"]
ANSWERS = [" w9 w10", " w11", " w12 w13 w14"]


def unlearned(target: PreTrainedModel) -> ULDForCausalLM:
    """An unlearned model of a target."""
    return ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), alpha=0.75).eval()


def score(model: PreTrainedModel) -> None:
    score_completions(model, make_tokenizer(), PROMPTS, ANSWERS)


def answer(model: PreTrainedModel) -> None:
    generate_completions(model, make_tokenizer(), PROMPTS, max_new_tokens=3)


def draw(model: PreTrainedModel) -> None:
    sample_completions(model, make_tokenizer(), PROMPTS, num_samples=2, max_new_tokens=3)


def generate(model: PreTrainedModel) -> None:
    model.generate(torch.arange(12).view(2, 6) + 4, max_new_tokens=3, do_sample=False)


def stand_together(run: Callable[[PreTrainedModel], None], model: PreTrainedModel, head: nn.Linear) -> list[bool]:
    """Whether the rows that the head is run on stand one after another, call by call; a copy shares its weight."""
    seen, linear = [], F.linear

    def spy(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight.data_ptr() == head.weight.data_ptr():
            seen.append(given.is_contiguous())
        return linear(given, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", spy)
        run(model)
    assert seen
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [lambda target: target, unlearned], ids=["target", "unlearned"])
@pytest.mark.parametrize("run", [score, answer, draw])
def test_evaluation_runs_the_head_at_once(family: str, make: Callable, run: Callable):
    target = tiny_model(family).bfloat16()  # lockstep has a way of its own with few rows of float32
    assert all(stand_together(run, make(target), target.get_output_embeddings()))


@pytest.mark.parametrize("execution", ["lockstep", "two passes", "blocks"])
def test_an_unlearned_model_does_so_by_itself(execution: str):
    target = tiny_model("llama").bfloat16()
    model = unlearned(target)
    model.execution = execution
    assert all(stand_together(generate, model, target.get_output_embeddings()))


def test_transformers_by_itself_does_not():
    target = tiny_model("llama")
    assert not all(stand_together(generate, target, target.get_output_embeddings()))


@pytest.mark.parametrize(
    ("keep", "expected"), [(0, 0), (6, 6), (9, 9), (1, [5]), (4, [2, 3, 4, 5]), (torch.tensor([1, 3]), [1, 3])], ids=str
)
def test_positions_are_those_that_a_slice_would_be(keep: int | torch.Tensor, expected: int | list[int]):
    kept = positions_to_keep(keep, torch.zeros(2, 6, dtype=torch.long))
    assert (kept.tolist() if isinstance(kept, torch.Tensor) else kept) == expected


def test_the_head_is_as_before_afterwards():
    model = tiny_model("llama")
    with pytest.raises(RuntimeError, match="interrupted"), head_at_once(model):
        raise RuntimeError("interrupted")
    assert not model.get_output_embeddings()._forward_pre_hooks
