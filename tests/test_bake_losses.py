"""The divergence of student and teacher, against slow plain computations in float64."""

import copy
import math
import types

import pytest
import torch
from families import tiny_model, train_like
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trl.experimental.gkd import GKDTrainer

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.bake.losses import DIVERGENCES, ComposedTargets, TopKTargets, bake_loss, split_top, token_divergence
from uld_hf.bake.teacher import composed_targets
from uld_hf.training.losses import make_head


BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "js": 0.5}  # in trl


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain_kl(p: list[float], q: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


def plain_divergence(student: list[float], teacher: list[float], kind: str) -> float:
    """By the definition, from probabilities."""
    if kind == "forward_kl":
        return plain_kl(teacher, student)
    if kind == "reverse_kl":
        return plain_kl(student, teacher)
    mixture = [(x + y) / 2 for x, y in zip(student, teacher, strict=True)]
    return (plain_kl(teacher, mixture) + plain_kl(student, mixture)) / 2


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_is_its_definition(kind: str) -> None:
    student, teacher = (random_logits(6, 9, seed=seed).log_softmax(dim=-1) for seed in (0, 1))
    expected = [
        plain_divergence(*(row.exp().tolist() for row in rows), kind) for rows in zip(student, teacher, strict=True)
    ]
    assert token_divergence(student, teacher, kind).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_is_that_of_trl(kind: str) -> None:
    student, teacher = random_logits(1, 7, 11, seed=0), random_logits(1, 7, 11, seed=1)
    expected = GKDTrainer.generalized_jsd_loss(student, teacher, beta=BETA[kind], temperature=2.0, reduction="sum")
    of_tokens = token_divergence((student[0] / 2).log_softmax(-1), (teacher[0] / 2).log_softmax(-1), kind)
    assert of_tokens.sum().item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_of_a_distribution_from_itself_is_zero(kind: str) -> None:
    log_probs = random_logits(5, 8).log_softmax(dim=-1)
    torch.testing.assert_close(token_divergence(log_probs, log_probs, kind), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_tokens_that_both_rule_out_change_nothing(kind: str) -> None:
    student, teacher = (random_logits(4, 6, seed=seed) for seed in (0, 1))
    padded = [
        torch.cat([logits, torch.full((4, 2), -torch.inf, dtype=torch.float64)], dim=-1)
        for logits in (student, teacher)
    ]
    padded[0].requires_grad_(True)
    expected = token_divergence(student.log_softmax(-1), teacher.log_softmax(-1), kind)
    actual = token_divergence(padded[0].log_softmax(-1), padded[1].log_softmax(-1), kind)
    torch.testing.assert_close(actual, expected)
    (gradient,) = torch.autograd.grad(actual.sum(), padded[0])
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 6:] == 0).all()


@pytest.mark.parametrize("kind", ["forward_kl", "js"])
def test_tokens_that_the_teacher_rules_out_have_finite_gradients(kind: str) -> None:
    student, teacher = random_logits(4, 6, seed=0).requires_grad_(True), random_logits(4, 6, seed=1)
    teacher[:, 3:] = -torch.inf
    actual = token_divergence(student.log_softmax(-1), teacher.log_softmax(-1), kind)
    expected = [
        plain_divergence(*(row.softmax(-1).tolist() for row in rows), kind)
        for rows in zip(student.detach(), teacher, strict=True)
    ]
    assert actual.tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.isfinite(torch.autograd.grad(actual.sum(), student)[0]).all()


def test_an_unknown_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match="divergence='kl' must be one of"):
        token_divergence(torch.zeros(1, 2), torch.zeros(1, 2), "kl")


# --- the most probable tokens ---


def top_k(log_probs: torch.Tensor, k: int) -> TopKTargets:
    tokens = log_probs.topk(k, dim=-1).indices
    parts = split_top(log_probs, tokens)
    return TopKTargets(tokens, parts[:, :-1], parts[:, -1], log_probs[:, NEXT])


NEXT = 1  # the token that comes next, at every place


def test_the_rest_is_summed_over_the_others() -> None:
    log_probs = random_logits(5, 12).log_softmax(dim=-1)
    tokens = log_probs.topk(3, dim=-1).indices
    for row, of_row, parts in zip(log_probs, tokens.tolist(), split_top(log_probs, tokens), strict=True):
        others = sum(value for index, value in enumerate(row.exp().tolist()) if index not in of_row)
        assert parts[:-1].tolist() == [row[token].item() for token in of_row]
        assert parts[-1].item() == pytest.approx(math.log(others), rel=1e-10)


def test_a_rest_below_rounding_is_not_lost() -> None:
    log_probs = torch.tensor([[40.0, 0.0, 0.0]]).log_softmax(dim=-1)  # 1 - p is 0 in float32
    parts = split_top(log_probs, torch.tensor([[0]]))
    assert parts[0, 1].item() == pytest.approx(math.log(2) - 40, rel=1e-6)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_all_tokens_but_one_are_the_whole_distribution(kind: str) -> None:
    student, teacher = random_logits(6, 10, seed=0), random_logits(6, 10, seed=1).log_softmax(dim=-1)
    found = top_k(teacher, 9).outcomes(student.log_softmax(-1), torch.tensor([NEXT] * 6), slice(0, 6), 1.0)
    expected = token_divergence(student.log_softmax(-1), teacher, kind)
    torch.testing.assert_close(token_divergence(found.student, found.teacher, kind), expected)
    assert found.first_choices.tolist() == teacher.argmax(-1).tolist()
    assert found.likelihoods.tolist() == teacher[:, NEXT].tolist()


@given(seed=st.integers(0, 50), k=st.integers(1, 9), kind=st.sampled_from(DIVERGENCES))
def test_divergence_of_the_top_is_at_most_that_of_all(seed: int, k: int, kind: str) -> None:
    student, teacher = random_logits(4, 10, seed=seed), random_logits(4, 10, seed=seed + 100).log_softmax(dim=-1)
    found = top_k(teacher, k).outcomes(student.log_softmax(-1), torch.tensor([NEXT] * 4), slice(0, 4), 1.0)
    coarse = token_divergence(found.student, found.teacher, kind)
    assert (coarse >= -1e-12).all()
    assert (coarse <= token_divergence(student.log_softmax(-1), teacher, kind) + 1e-12).all()


# --- the loss of a batch ---


def make_teacher(family: str = "llama", **settings: object) -> ULDForCausalLM:
    target = tiny_model(family)
    return ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), **settings)


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(4, 64, (4, 10), generator=generator)
    labels = input_ids.masked_fill(torch.rand(4, 10, generator=generator) < 0.4, -100)
    mask = torch.ones_like(input_ids)
    mask[1, 7:], labels[1, 7:] = 0, -100
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


@pytest.mark.parametrize(
    "settings", [{"alpha": 1.5}, {"alpha": 0.7, "relative_top": 0.0, "clamp": True}, {"outside": "mask"}]
)
def test_targets_are_the_composed_distribution(family: str, settings: dict[str, object]) -> None:
    teacher, batch = make_teacher(family, **settings), make_batch()
    targets = composed_targets(teacher, batch)
    counted = batch["labels"][:, 1:] != -100
    logits = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][counted]
    actual = torch.cat([targets.log_probs(slice(start, start + 5), 2.0) for start in range(0, len(logits), 5)])
    torch.testing.assert_close(actual, (logits / 2).log_softmax(dim=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate", [0.0, 0.3])
def test_targets_of_several_assistants_are_the_composed_distribution(gate: float) -> None:
    teacher, batch = make_teacher(gate=gate), make_batch()
    teacher.add_assistant(train_like(build_assistant(teacher.target, 3), seed=2), name="wording", alpha=-0.8)
    counted = batch["labels"][:, 1:] != -100
    logits = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][counted]
    actual = composed_targets(teacher, batch).log_probs(slice(0, len(logits)), 1.0)
    torch.testing.assert_close(actual, logits.log_softmax(dim=-1), rtol=1e-4, atol=1e-4)
    alone = teacher.component_logits(batch["input_ids"], batch["attention_mask"])[0][:, :-1][counted]
    unchanged = (actual - alone.log_softmax(dim=-1)).abs().amax(dim=-1) < 1e-4
    assert unchanged.any() == (gate > 0)  # the gate is shut at some tokens
    assert not unchanged.all()


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("trains", ["all", "body", "head"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("likelihood_weight", [0.0, 0.3])
def test_loss_and_gradients_are_those_of_whole_logits(
    kind: str, trains: str, tied: bool, likelihood_weight: float
) -> None:
    teacher, batch = make_teacher(), make_batch()
    student = tiny_model("llama", seed=3, tie_word_embeddings=tied)
    student.requires_grad_(trains == "all")
    student.model.layers.requires_grad_(trains in ("all", "body"))
    student.get_output_embeddings().requires_grad_(trains in ("all", "head"))
    retain = torch.zeros(4, 10, dtype=torch.bool)
    retain[2:] = True
    counted = batch["labels"][:, 1:] != -100
    num_items = torch.tensor([(counted & ~retain[:, 1:]).sum(), (counted & retain[:, 1:]).sum()])

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = student.model(**inputs).last_hidden_state
    output = bake_loss(
        student, hidden, batch["labels"], retain, num_items, composed_targets(teacher, batch),
        retain_weight=2.5, kind=kind, temperature=1.5, likelihood_weight=likelihood_weight, chunk_size=3,
    )  # fmt: skip
    output.loss.backward()
    actual = {name: parameter.grad.clone() for name, parameter in student.named_parameters() if parameter.requires_grad}

    plain = copy.deepcopy(student).double()
    plain.zero_grad()
    with torch.no_grad():
        of_teacher = teacher(**inputs).logits.double()[:, :-1]
    of_student = plain(**inputs).logits[:, :-1]
    log_probs, expected = ((logits / 1.5).log_softmax(dim=-1) for logits in (of_student, of_teacher))
    per_token = torch.stack([token_divergence(*rows, kind) for rows in zip(log_probs, expected, strict=True)])
    tokens = batch["labels"][:, 1:].clamp(min=0)[..., None]
    apart = (of_student.log_softmax(-1) - of_teacher.log_softmax(-1)).gather(-1, tokens)[..., 0].abs()
    gaps = torch.where(apart < 1, apart.square() / 2, apart - 0.5)
    parts = (~retain[:, 1:], retain[:, 1:])
    forget, kept = (per_token[counted & mask].mean() for mask in parts)
    forget_gap, kept_gap = (gaps[counted & mask].mean() for mask in parts)
    loss = forget + 2.5 * kept + likelihood_weight * (forget_gap + 2.5 * kept_gap)
    loss.backward()

    assert (apart[counted] < 1).any()
    assert (apart[counted] > 1).any()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    assert output.forget_divergence.item() == pytest.approx(forget.item() * num_items[0].item(), rel=1e-4)
    assert output.retain_divergence.item() == pytest.approx(kept.item() * num_items[1].item(), rel=1e-4)
    assert actual
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(actual[name].double(), parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_batch_without_answers_has_a_loss_of_zero() -> None:
    student, teacher, batch = tiny_model("llama", seed=3), make_teacher(), make_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    hidden = student.model(input_ids=batch["input_ids"]).last_hidden_state
    retain = torch.zeros(4, 10, dtype=torch.bool)
    output = bake_loss(
        student, hidden, batch["labels"], retain, torch.tensor([0, 0]), composed_targets(teacher, batch),
        retain_weight=1.0, kind="js", temperature=1.0,
    )  # fmt: skip
    output.loss.backward()
    assert output.loss.item() == 0


def test_no_tensor_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, batch = tiny_model("llama", seed=3), make_teacher(), make_batch()
    hidden = student.model(input_ids=batch["input_ids"]).last_hidden_state
    rows: list[int] = []

    def count(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(hidden.numel() // hidden.shape[-1])
        return type(head).forward(head, hidden)

    for model in (student, teacher.target):
        model.lm_head.forward = types.MethodType(count, model.lm_head)
    targets = composed_targets(teacher, batch)
    retain = torch.zeros(4, 10, dtype=torch.bool)
    settings = {"retain_weight": 1.0, "kind": "js", "temperature": 1.0, "chunk_size": 4}
    bake_loss(student, hidden, batch["labels"], retain, torch.tensor([9, 9]), targets, **settings).loss.backward()
    assert max(rows) == 4
    assert isinstance(targets, ComposedTargets)


def test_a_teacher_with_half_precision_is_compared_in_float32() -> None:
    target = tiny_model("llama").to(torch.bfloat16)
    teacher = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    log_probs = composed_targets(teacher, make_batch()).log_probs(slice(0, 3), 1.0)
    assert log_probs.dtype == torch.float32
    assert make_head(target)(torch.zeros(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
