"""The reversed objective against the plain formula, and the patch that puts it into a model's forward."""

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from families import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    GPTJConfig,
    GraniteConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from uld_hf.training import losses
from uld_hf.training.losses import (
    ULDLossOutput,
    add_uld_loss,
    check_head,
    make_head,
    tile_tokens,
    token_losses,
    uld_loss,
)


IGNORED = -100
RETAIN_WEIGHT = 6.5
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass
class Batch:
    """Inputs of the loss."""

    hidden: torch.Tensor
    labels: torch.Tensor
    retain_mask: torch.Tensor
    num_items: torch.Tensor


def count(labels: torch.Tensor, retain_mask: torch.Tensor) -> torch.Tensor:
    """Counted forget and retain tokens."""
    counted, retain = labels[:, 1:] != IGNORED, retain_mask[:, 1:]
    return torch.stack([(counted & ~retain).sum(), (counted & retain).sum()])


def make_batch(vocab_size: int = 64, hidden_size: int = 32, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """Two forget and two retain rows with prompts, padding, and labels at the first position."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(4, 9, hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(vocab_size, (4, 9), generator=generator)
    labels[0, :3] = IGNORED  # a prompt
    labels[1, 6:] = IGNORED  # padding
    labels[2, :2] = IGNORED  # both
    labels[2, 7:] = IGNORED
    retain_mask = torch.tensor([[False], [False], [True], [True]]).expand(4, 9).clone()
    return Batch(hidden.requires_grad_(), labels, retain_mask, count(labels, retain_mask))


def plain_loss(
    logits: torch.Tensor, labels: torch.Tensor, retain_mask: torch.Tensor, num_items: torch.Tensor, weight: float
) -> ULDLossOutput:
    """The formula, token by token, from the full logits."""
    log_probs = logits.double().log_softmax(dim=-1)
    forget_loss = retain_loss = log_probs.sum() * 0.0
    correct = 0
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            label = int(labels[row, position])
            if label == IGNORED:
                continue
            prediction = log_probs[row, position - 1]
            if retain_mask[row, position]:
                retain_loss = retain_loss - prediction.mean()
            else:
                forget_loss = forget_loss - prediction[label]
                correct += int(prediction.argmax() == label)
    num_forget, num_retain = (max(1, int(number)) for number in num_items)
    return ULDLossOutput(
        loss=forget_loss / num_forget + weight * retain_loss / num_retain,
        forget_loss=forget_loss,
        forget_correct=torch.tensor(correct),
        retain_loss=retain_loss,
    )


def run(batch: Batch, head: Callable[[torch.Tensor], torch.Tensor], chunk_size: int = 256) -> ULDLossOutput:
    """The loss under test."""
    return uld_loss(
        batch.hidden, batch.labels, batch.retain_mask, batch.num_items, RETAIN_WEIGHT, head, chunk_size=chunk_size
    )


def run_plain(batch: Batch, head: Callable[[torch.Tensor], torch.Tensor]) -> ULDLossOutput:
    """The formula on the same batch."""
    return plain_loss(head(batch.hidden), batch.labels, batch.retain_mask, batch.num_items, RETAIN_WEIGHT)


def gradient(loss: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Gradient of a loss with respect to the hidden states."""
    return torch.autograd.grad(loss, hidden, retain_graph=True)[0]


def assert_like_formula(batch: Batch, head: Callable[[torch.Tensor], torch.Tensor], chunk_size: int = 256) -> None:
    """Loss, parts and gradient equal the formula's."""
    actual, expected = run(batch, head, chunk_size), run_plain(batch, head)
    torch.testing.assert_close(actual.loss.double(), expected.loss.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.forget_loss.double(), expected.forget_loss.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.retain_loss.double(), expected.retain_loss.double(), rtol=1e-5, atol=1e-5)
    assert actual.forget_correct == expected.forget_correct
    torch.testing.assert_close(
        gradient(actual.loss, batch.hidden), gradient(expected.loss, batch.hidden), rtol=1e-4, atol=1e-6
    )


def linear(vocab_size: int = 64, hidden_size: int = 32, bias: bool = False, dtype: torch.dtype = torch.float32):
    """A frozen head."""
    generator = torch.Generator().manual_seed(7)
    head = nn.Linear(hidden_size, vocab_size, bias=bias).requires_grad_(False)
    for parameter in head.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    return head.to(dtype)


def from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights, frozen."""
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    return model


# What families do to the output of the head.
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "plain": lambda: tiny_model("llama", num_layers=2),
    "tied": lambda: tiny_model("llama", num_layers=2, tie_word_embeddings=True),
    "softcap": lambda: tiny_model("gemma3", num_layers=2, final_logit_softcapping=5.0),
    "bias": lambda: from_config(
        GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4, eos_token_id=2)
    ),
    "logit_scale": lambda: from_config(CohereConfig(**SHAPE, logit_scale=0.25)),
    "logits_scaling": lambda: from_config(GraniteConfig(**SHAPE, logits_scaling=4.0)),
    "lm_head_multiplier": lambda: from_config(
        FalconH1Config(
            **SHAPE, lm_head_multiplier=0.25, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
        )
    ),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model of each kind of head."""
    return MODELS[request.param]()


def inputs_of(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as keyword arguments of a patched forward."""
    return {
        "input_ids": batch.labels.clamp(min=3),
        "labels": batch.labels,
        "retain_mask": batch.retain_mask,
        "num_items": batch.num_items,
    }


# token_losses


def losses_of(logits: torch.Tensor, labels: torch.Tensor, retain_mask: torch.Tensor) -> torch.Tensor:
    """Losses of tokens of weight 1."""
    return token_losses(logits.clone(), labels, retain_mask, torch.ones(len(labels)))


def test_forget_token_has_the_cross_entropy_to_its_label():
    logits, labels = torch.randn(5, 7), torch.tensor([0, 6, 3, 3, 1])
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses_of(logits, labels, torch.zeros(5, dtype=torch.bool)), expected)


def test_retain_token_has_the_cross_entropy_to_the_uniform_distribution():
    logits = torch.randn(5, 7)
    expected = nn.functional.cross_entropy(logits, torch.full((5, 7), 1 / 7), reduction="none")
    actual = losses_of(logits, torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("level", [-50.0, 0.0, 3.0])
def test_retain_loss_of_equal_logits_is_log_of_the_vocabulary(level: float):
    loss = losses_of(torch.full((1, 11), level), torch.tensor([4]), torch.tensor([True]))
    assert loss.item() == pytest.approx(math.log(11), rel=1e-5)


@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12))
@settings(deadline=None, max_examples=50)
def test_retain_loss_of_unequal_logits_is_larger(logits: list[float]):
    logits[0] = max(logits[1:]) + 0.5
    loss = losses_of(torch.tensor([logits]), torch.tensor([0]), torch.tensor([True]))
    assert loss.item() > math.log(len(logits)) + 1e-4


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_logits_are_overwritten_with_the_gradient(scale: float):
    logits = (scale * torch.randn(6, 9, generator=torch.Generator().manual_seed(0))).requires_grad_()
    labels, weights = torch.tensor([0, 8, 3, 3, 1, 5]), torch.tensor([1.0, 0.25, 2.0, 1.0, 0.5, 0.0])
    retain = torch.tensor([False, True, False, True, True, False])
    targets = torch.where(retain[:, None], torch.full((6, 9), 1 / 9), nn.functional.one_hot(labels, 9))
    loss = (nn.functional.cross_entropy(logits.double(), targets.double(), reduction="none") * weights).sum()
    overwritten = logits.detach().clone()
    token_losses(overwritten, labels, retain, weights)
    torch.testing.assert_close(overwritten, torch.autograd.grad(loss, logits)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("vocab_size", "tokens"), [(500, 256), (128_256, 256), (262_144, 128), (10**9, 1)])
def test_tiles_of_logits_are_bounded(vocab_size: int, tokens: int):
    assert tile_tokens(vocab_size) == tokens


# uld_loss


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_the_formula_for_any_chunk_size(chunk_size: int, dtype: torch.dtype):
    assert_like_formula(make_batch(dtype=dtype), linear(dtype=dtype), chunk_size)


def test_loss_is_the_formula_with_a_bias():
    assert_like_formula(make_batch(), linear(bias=True), chunk_size=5)


def test_loss_is_the_formula_on_the_head_of_a_model(model: PreTrainedModel):
    assert_like_formula(make_batch(), make_head(model), chunk_size=5)


@pytest.mark.parametrize("retain", [False, True])
def test_loss_is_the_formula_where_one_set_is_absent(retain: bool):
    batch = make_batch()
    batch.retain_mask[:] = retain
    batch.num_items = count(batch.labels, batch.retain_mask)
    assert_like_formula(batch, linear(), chunk_size=5)


def test_loss_is_the_formula_where_a_row_holds_both_sets():
    batch = make_batch()
    batch.retain_mask[:, ::2] = ~batch.retain_mask[:, ::2]
    batch.num_items = count(batch.labels, batch.retain_mask)
    assert_like_formula(batch, linear(), chunk_size=5)


def test_sums_are_divided_by_the_tokens_of_the_whole_step():
    batch = make_batch()
    batch.num_items = batch.num_items * torch.tensor([3, 5])
    assert_like_formula(batch, linear(), chunk_size=5)


def test_losses_of_micro_batches_add_up_to_the_loss_of_the_batch():
    batch, head = make_batch(), linear()
    parts = [
        Batch(batch.hidden[rows], batch.labels[rows], batch.retain_mask[rows], batch.num_items)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(run(part, head).loss for part in parts), run(batch, head).loss)


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_loss_is_the_formula_for_any_shape(data: st.DataObject):
    rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    vocab_size, hidden_size = data.draw(st.integers(2, 12)), data.draw(st.integers(1, 8))
    flags = st.lists(st.booleans(), min_size=rows * length, max_size=rows * length)
    hidden = torch.randn(
        rows, length, hidden_size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    )
    labels = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))
    labels[torch.tensor(data.draw(flags)).view(rows, length)] = IGNORED
    retain_mask = torch.tensor(data.draw(flags)).view(rows, length)
    num_items = count(labels, retain_mask) + torch.tensor(data.draw(st.tuples(st.integers(0, 5), st.integers(0, 5))))
    batch = Batch(hidden.requires_grad_(), labels, retain_mask, num_items)
    assert_like_formula(batch, linear(vocab_size, hidden_size), chunk_size=data.draw(st.integers(1, 20)))


def test_batch_without_counted_tokens_has_zero_loss():
    batch = make_batch()
    batch.labels[:, 1:] = IGNORED  # the first position is never predicted
    batch.num_items = count(batch.labels, batch.retain_mask)
    output = run(batch, linear())
    assert [output[name].item() for name in ("loss", "forget_loss", "forget_correct", "retain_loss")] == [0, 0, 0, 0]


def test_batch_without_counted_tokens_reaches_backward():
    batch = make_batch()
    batch.labels[:, 1:] = IGNORED
    run(batch, linear()).loss.backward()
    assert torch.equal(batch.hidden.grad, torch.zeros_like(batch.hidden))


def test_hidden_states_that_predict_no_counted_token_do_not_matter():
    batch, head = make_batch(), linear()
    unused = torch.ones(4, 9, dtype=torch.bool)
    unused[:, :-1] = batch.labels[:, 1:] == IGNORED
    changed = Batch(batch.hidden.detach().clone(), batch.labels, batch.retain_mask, batch.num_items)
    changed.hidden[unused] = torch.nan
    assert torch.equal(run(changed, head).loss, run(batch, head).loss)


def test_hidden_states_that_predict_no_counted_token_have_zero_gradient():
    batch = make_batch()
    used = torch.zeros(4, 9, dtype=torch.bool)
    used[:, :-1] = batch.labels[:, 1:] != IGNORED
    nonzero = gradient(run(batch, linear()).loss, batch.hidden).ne(0).any(dim=-1)
    assert torch.equal(nonzero, used)


def test_label_of_a_retain_token_does_not_matter():
    batch, head = make_batch(), linear()
    changed = Batch(batch.hidden, batch.labels.clone(), batch.retain_mask, batch.num_items)
    retain = batch.retain_mask & (batch.labels != IGNORED)
    changed.labels[retain] = (batch.labels[retain] + 1) % 64
    assert torch.equal(run(changed, head).loss, run(batch, head).loss)


def test_parts_add_up_to_the_loss():
    batch = make_batch()
    output = run(batch, linear())
    num_forget, num_retain = batch.num_items
    expected = output.forget_loss / num_forget + RETAIN_WEIGHT * output.retain_loss / num_retain
    torch.testing.assert_close(output.loss, expected)


def test_predicted_forget_tokens_are_counted():
    batch = make_batch()
    batch.hidden = nn.functional.one_hot(batch.labels.clamp(min=0), 64).roll(-1, dims=1).float()
    batch.hidden[1] = -batch.hidden[1]  # the second row predicts anything but its labels
    assert run(batch, nn.Identity()).forget_correct == (batch.labels[0, 1:] != IGNORED).sum()


def test_gradient_is_scaled_by_what_comes_after_the_loss():
    batch, head = make_batch(), linear()
    loss = run(batch, head).loss
    torch.testing.assert_close(gradient(3 * loss, batch.hidden), 3 * gradient(loss, batch.hidden))


def test_loss_is_the_same_without_gradients():
    batch, head = make_batch(), linear()
    with torch.no_grad():
        loss = run(batch, head, chunk_size=5).loss
    assert torch.equal(loss, run(batch, head, chunk_size=5).loss)


def test_head_never_sees_more_than_a_chunk_of_tokens():
    batch, head, rows = make_batch(), linear(), []

    def spy(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return head(hidden)

    run(batch, spy, chunk_size=5).loss.backward()
    assert max(rows) == 5


def test_head_sees_each_counted_token_once():
    batch, head, rows = make_batch(), linear(), []

    def spy(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return head(hidden)

    run(batch, spy, chunk_size=5).loss.backward()
    assert sum(rows) == batch.num_items.sum()


def test_softmax_of_bfloat16_logits_is_in_float32():
    batch, head = make_batch(dtype=torch.bfloat16), linear(dtype=torch.bfloat16)
    expected = run_plain(batch, head).loss  # float64 softmax of the same bfloat16 logits
    assert run(batch, head).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bfloat16_gradient_is_close_to_the_formula():
    batch, head = make_batch(dtype=torch.bfloat16), linear(dtype=torch.bfloat16)
    exact = Batch(batch.hidden.detach().float().requires_grad_(), batch.labels, batch.retain_mask, batch.num_items)
    expected = gradient(run_plain(exact, copy.deepcopy(head).float()).loss, exact.hidden)
    error = gradient(run(batch, head).loss, batch.hidden).float() - expected
    assert error.norm() < 0.02 * expected.norm()


def test_float16_gradient_survives_loss_scaling():
    batch, head = make_batch(dtype=torch.float16), linear(dtype=torch.float16)
    batch.num_items = batch.num_items * 10_000  # a step of many tokens: each one's gradient is below float16's range
    exact = Batch(batch.hidden.detach().float().requires_grad_(), batch.labels, batch.retain_mask, batch.num_items)
    expected = gradient(2.0**16 * run_plain(exact, copy.deepcopy(head).float()).loss, exact.hidden)
    error = gradient(2.0**16 * run(batch, head).loss, batch.hidden).float() - expected
    assert error.norm() < 0.02 * expected.norm()


# check_head


def test_known_heads_are_accepted(model: PreTrainedModel):
    check_head(model)
    batch = make_batch()
    logits = model(input_ids=batch.labels.clamp(min=3)).logits
    hidden = model.base_model(input_ids=batch.labels.clamp(min=3)).last_hidden_state
    torch.testing.assert_close(make_head(model)(hidden), logits)


def test_families_are_accepted(family: str):
    model = tiny_model(family)
    check_head(model)
    input_ids = torch.arange(10)[None]
    hidden = model.base_model(input_ids=input_ids).last_hidden_state
    torch.testing.assert_close(make_head(model)(hidden), model(input_ids=input_ids).logits)


class DoublingLlama(LlamaForCausalLM):
    """A family that does something unknown to its logits."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_unknown_head_is_refused():
    model = DoublingLlama(tiny_model("llama", num_layers=2).config)
    with pytest.raises(NotImplementedError, match="DoublingLlama changes the output of its head"):
        check_head(model)


@pytest.mark.parametrize("training", [False, True])
def test_check_leaves_the_training_mode_alone(training: bool):
    model = tiny_model("llama", num_layers=2).train(training)
    check_head(model)
    assert model.training is training


# add_uld_loss


def test_patched_model_computes_the_formula(model: PreTrainedModel):
    batch = make_batch()
    logits = model(input_ids=batch.labels.clamp(min=3)).logits
    expected = plain_loss(logits, batch.labels, batch.retain_mask, batch.num_items, RETAIN_WEIGHT)
    add_uld_loss(model, RETAIN_WEIGHT)
    assert model(**inputs_of(batch)).loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_head_is_called_once_for_all_tiles(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "CHUNK_SIZE", 3)
    model, tiles, calls = tiny_model("llama", num_layers=2), [], []
    head, forward = model.lm_head, model.lm_head.forward
    head.forward = lambda hidden: tiles.append(len(hidden)) or forward(hidden)
    head.register_forward_hook(lambda *_: calls.append(len(tiles)))
    add_uld_loss(model, RETAIN_WEIGHT)
    model(**inputs_of(make_batch())).loss.backward()
    assert max(tiles) == 3
    assert calls == [len(tiles)]  # what shards models prepares the head around its call, in all processes at once


def test_model_that_is_patched_again_computes_the_new_loss():
    model, batch = tiny_model("llama", num_layers=2), make_batch()
    logits = model(input_ids=batch.labels.clamp(min=3)).logits
    expected = plain_loss(logits, batch.labels, batch.retain_mask, batch.num_items, 0.5)
    for weight in (RETAIN_WEIGHT, 0.5):
        add_uld_loss(model, weight)
    assert model(**inputs_of(batch)).loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert torch.equal(model(input_ids=batch.labels.clamp(min=3)).logits, logits)


def test_patched_model_uses_the_retain_weight():
    model, batch = tiny_model("llama", num_layers=2), make_batch()
    logits = model(input_ids=batch.labels.clamp(min=3)).logits
    expected = plain_loss(logits, batch.labels, batch.retain_mask, batch.num_items, 0.5)
    add_uld_loss(model, 0.5)
    assert model(**inputs_of(batch)).loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_patched_model_without_retain_mask_is_unchanged(family: str):
    model = tiny_model(family)
    input_ids = torch.arange(3, 13).repeat(2, 1)
    expected = model(input_ids=input_ids, labels=input_ids)
    add_uld_loss(model, RETAIN_WEIGHT)
    actual = model(input_ids=input_ids, labels=input_ids)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.loss, expected.loss)


def test_patched_model_generates_as_before():
    model = tiny_model("llama")
    input_ids = torch.arange(3, 9)[None]
    expected = model.generate(input_ids, max_new_tokens=8, do_sample=False)
    add_uld_loss(model, RETAIN_WEIGHT)
    assert torch.equal(model.generate(input_ids, max_new_tokens=8, do_sample=False), expected)


def test_patched_forward_has_the_signature_of_its_class():
    model = tiny_model("llama")
    expected = list(inspect.signature(model.forward).parameters)
    add_uld_loss(model, RETAIN_WEIGHT)
    assert list(inspect.signature(model.forward).parameters) == expected


def test_copy_of_a_patched_model_runs_the_copy():
    model, batch = tiny_model("llama", num_layers=2), make_batch()
    add_uld_loss(model, RETAIN_WEIGHT)
    clone = copy.deepcopy(model)
    nn.init.zeros_(clone.get_output_embeddings().weight)  # all tokens equally probable
    expected = (1 + RETAIN_WEIGHT) * math.log(64)
    assert clone(**inputs_of(batch)).loss.item() == pytest.approx(expected, rel=1e-5)


def test_patched_model_does_not_run_its_copy():
    model, batch = tiny_model("llama", num_layers=2), make_batch()
    add_uld_loss(model, RETAIN_WEIGHT)
    expected = model(**inputs_of(batch)).loss
    nn.init.zeros_(copy.deepcopy(model).get_output_embeddings().weight)
    assert torch.equal(model(**inputs_of(batch)).loss, expected)


def test_copy_of_a_patched_model_without_retain_mask_runs_the_copy():
    model = tiny_model("llama", num_layers=2)
    add_uld_loss(model, RETAIN_WEIGHT)
    clone = copy.deepcopy(model)
    nn.init.zeros_(clone.get_output_embeddings().weight)
    assert clone(input_ids=torch.arange(5)[None]).logits.abs().max() == 0
