"""The rivals' losses against their formulas, written out number by number, and their gradients."""

import math
from collections.abc import Callable

import pytest
import torch

from uld_hf.baselines.losses import (
    dpo_loss,
    gradient_ascent_loss,
    kl_loss,
    nll_loss,
    npo_loss,
    simnpo_loss,
    steering_loss,
    undial_loss,
)


def drawn(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


LOG_PROBS, REFERENCE = -drawn(5, seed=1).abs(), -drawn(5, seed=2).abs()
REFUSAL, REFERENCE_REFUSAL = -drawn(5, seed=3).abs(), -drawn(5, seed=4).abs()
NUM_TOKENS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
LOGITS, REFERENCE_LOGITS = drawn(5, 7, seed=5), drawn(5, 7, seed=6)
LABELS = torch.tensor([0, 3, 6, 3, 1])


def assert_equal(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_gradient_ascent_is_the_log_likelihood():
    assert gradient_ascent_loss(LOG_PROBS).tolist() == LOG_PROBS.tolist()


def test_gradient_descent_is_its_opposite():
    assert nll_loss(LOG_PROBS).tolist() == (-LOG_PROBS).tolist()


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_npo_is_its_formula(beta: float):
    expected = [
        -2 / beta * math.log(sigmoid(-beta * (p - q)))
        for p, q in zip(LOG_PROBS.tolist(), REFERENCE.tolist(), strict=True)
    ]
    assert_equal(npo_loss(LOG_PROBS, REFERENCE, beta), expected)


@pytest.mark.parametrize(("beta", "margin"), [(4.5, 0.0), (2.5, 0.0), (0.7, 1.3)])
def test_simnpo_is_its_formula(beta: float, margin: float):
    expected = [
        -2 / beta * math.log(sigmoid(-beta / n * p - margin))
        for p, n in zip(LOG_PROBS.tolist(), NUM_TOKENS.tolist(), strict=True)
    ]
    assert_equal(simnpo_loss(LOG_PROBS, NUM_TOKENS, beta, margin), expected)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_is_its_formula(beta: float):
    rows = zip(*(x.tolist() for x in (REFUSAL, LOG_PROBS, REFERENCE_REFUSAL, REFERENCE)), strict=True)
    expected = [-1 / beta * math.log(sigmoid(beta * ((r - qr) - (p - q)))) for r, p, qr, q in rows]
    assert_equal(dpo_loss(REFUSAL, LOG_PROBS, REFERENCE_REFUSAL, REFERENCE, beta), expected)


def test_kl_is_its_formula():
    expected = [
        sum(q * math.log(q / p) for p, q in zip(softmax(row), softmax(reference), strict=True))
        for row, reference in zip(LOGITS.tolist(), REFERENCE_LOGITS.tolist(), strict=True)
    ]
    assert_equal(kl_loss(LOGITS, REFERENCE_LOGITS), expected)


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_undial_is_its_formula(beta: float):
    expected = []
    for row, reference, label in zip(LOGITS.tolist(), REFERENCE_LOGITS.tolist(), LABELS.tolist(), strict=True):
        lowered = [value - beta * (token == label) for token, value in enumerate(reference)]
        expected.append(-sum(q * math.log(p) for p, q in zip(softmax(row), softmax(lowered), strict=True)))
    assert_equal(undial_loss(LOGITS, REFERENCE_LOGITS, LABELS, beta), expected)


@pytest.mark.parametrize("shape", [(7,), (5, 7)], ids=["one direction", "one for each token"])
def test_steering_is_a_squared_distance(shape: tuple[int, ...]):
    towards = drawn(*shape, seed=7)
    expected = [
        sum((h - c) ** 2 for h, c in zip(row, aim, strict=True))
        for row, aim in zip(LOGITS.tolist(), towards.expand(5, 7).tolist(), strict=True)
    ]
    assert_equal(steering_loss(LOGITS, towards), expected)


@pytest.mark.parametrize(
    ("loss", "inputs"),
    {
        "ga": (gradient_ascent_loss, [LOG_PROBS]),
        "nll": (nll_loss, [LOG_PROBS]),
        "npo": (lambda p: npo_loss(p, REFERENCE, 0.5), [LOG_PROBS]),
        "simnpo": (lambda p: simnpo_loss(p, NUM_TOKENS, 2.5, 0.2), [LOG_PROBS]),
        "dpo": (lambda r, p: dpo_loss(r, p, REFERENCE_REFUSAL, REFERENCE, 0.5), [REFUSAL, LOG_PROBS]),
        "kl": (lambda z: kl_loss(z, REFERENCE_LOGITS), [LOGITS]),
        "undial": (lambda z: undial_loss(z, REFERENCE_LOGITS, LABELS, 3.0), [LOGITS]),
        "steering": (lambda h: steering_loss(h, REFERENCE_LOGITS), [LOGITS]),
    }.values(),
    ids=["ga", "nll", "npo", "simnpo", "dpo", "kl", "undial", "steering"],
)
def test_gradients_are_those_of_finite_differences(loss: Callable[..., torch.Tensor], inputs: list[torch.Tensor]):
    assert torch.autograd.gradcheck(loss, [tensor.clone().requires_grad_() for tensor in inputs])


def test_npo_becomes_gradient_ascent_for_a_small_beta():
    log_probs = LOG_PROBS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(npo_loss(log_probs, REFERENCE, 1e-9).sum(), log_probs)
    torch.testing.assert_close(gradient, torch.ones_like(gradient))


def test_npo_stops_where_an_answer_is_forgotten():
    log_probs = torch.tensor([-1000.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(npo_loss(log_probs, REFERENCE[:1], 0.1).sum(), log_probs)
    assert gradient.item() < 1e-30


@pytest.mark.parametrize(("largest", "beta"), [(-5000.0, 0.1), (0.0, 4.5)])
def test_extreme_likelihoods_give_no_nan(largest: float, beta: float):
    log_probs = torch.tensor([largest])
    for loss in (npo_loss(log_probs, torch.tensor([-3.0]), beta), simnpo_loss(log_probs, torch.tensor([4.0]), beta)):
        assert torch.isfinite(loss).all()


def test_the_target_itself_has_no_divergence():
    assert kl_loss(LOGITS, LOGITS + 2.0).abs().max() < 1e-12


def test_undial_is_least_for_the_lowered_distribution():
    lowered = REFERENCE_LOGITS.clone()
    lowered[torch.arange(5), LABELS] -= 10.0
    best = undial_loss(lowered, REFERENCE_LOGITS, LABELS, 10.0)
    assert (best < undial_loss(REFERENCE_LOGITS, REFERENCE_LOGITS, LABELS, 10.0)).all()
    entropy = -(lowered.softmax(-1) * lowered.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(best, entropy)
