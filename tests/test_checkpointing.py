"""Layers whose products are kept compute the same as those that keep everything, and nothing dear twice."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from all_families import ALL_FAMILIES, any_model
from test_padding_free import PADDED, flat_inputs
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from uld_hf import ULDConfig, build_assistant
from uld_hf.training.checkpointing import is_kept, keep_products
from uld_hf.training.padding_free import attention_by_row
from uld_hf.training.uld_config import check_keep_products


def checkpoint_nothing(model: PreTrainedModel) -> None:
    """As by default."""


def checkpoint_all(model: PreTrainedModel) -> None:
    """transformers' own activation checkpointing."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def checkpoint_cheap(model: PreTrainedModel) -> None:
    """Ours."""
    keep_products(model)
    checkpoint_all(model)


def descend(
    family: str, prepare: Callable[[PreTrainedModel], None]
) -> tuple[float, dict[str, torch.Tensor], tuple[int, int]]:
    """Loss, gradients, and operations of the forward and of the backward pass of a step."""
    torch.manual_seed(0)
    assistant = build_assistant(any_model(family, num_layers=4), 2).train()
    base = assistant.get_base_model()
    for name, weight in assistant.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)  # at 0 LoRA's first factor has no gradients
    prepare(base)
    padded = {"input_ids": torch.arange(24).view(2, 12) + 3}
    inputs, attention = (
        (padded, nullcontext()) if family in PADDED else (flat_inputs((13, 4, 20)), attention_by_row(base))
    )
    with attention:
        with FlopCounterMode(display=False) as forward:
            states = base.base_model(**inputs, use_cache=False).last_hidden_state
        loss = states.float().square().mean()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    gradients = {name: weight.grad for name, weight in assistant.named_parameters() if weight.grad is not None}
    return loss.item(), gradients, (forward.get_total_flops(), backward.get_total_flops())


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_loss_and_gradients_are_those_without_to_the_last_bit(family: str):
    loss, gradients, _ = descend(family, checkpoint_cheap)
    expected_loss, expected, _ = descend(family, checkpoint_nothing)
    assert loss == expected_loss
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(gradients[name], gradient), name


def test_nothing_dear_is_computed_again():
    operations = {make: descend("llama", make)[2] for make in (checkpoint_nothing, checkpoint_cheap, checkpoint_all)}
    forward, backward = operations[checkpoint_nothing]
    # The gradient of the embeddings, which transformers asks for, is a part of each.
    assert operations[checkpoint_all][1] > backward + 0.8 * forward
    assert operations[checkpoint_cheap][1] < backward + 0.3 * forward
    assert operations[checkpoint_cheap][0] == forward


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("op", "args", "expected"),
    [
        (torch.ops.aten.mm.default, (meta(9, 512), meta(512, 2048)), True),  # a layer's own
        (torch.ops.aten.addmm.default, (meta(2048), meta(9, 512), meta(512, 2048)), True),  # with a bias
        (torch.ops.aten.mm.default, (meta(9, 512), meta(512, 32)), True),  # LoRA's first factor
        (torch.ops.aten.mm.default, (meta(9, 32), meta(32, 512)), False),  # and its second one
        (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default, (), True),
        (torch.ops.aten.silu.default, (meta(9, 2048),), False),
    ],
    ids=["product", "product and bias", "first factor", "second factor", "attention", "activation function"],
)
def test_what_is_kept(op: torch._ops.OpOverload, args: tuple, expected: bool):
    assert is_kept(op, args) is expected


# What is refused


def test_products_of_layers_that_are_not_computed_again_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="keep_products=True has no effect without activation_checkpointing=True"):
        ULDConfig(str(tmp_path), keep_products=True)


@pytest.mark.parametrize("name", ["use_reentrant", "selective"])
def test_other_kinds_of_checkpointing_are_refused(tmp_path: Path, name: str):
    settings = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {name: True}}
    with pytest.raises(ValueError, match=rf"does not go with \['{name}'\]"):
        ULDConfig(str(tmp_path), keep_products=True, **settings)


def test_zero_3_is_refused(tmp_path: Path):
    config = ULDConfig(str(tmp_path), keep_products=True, activation_checkpointing=True)
    config.deepspeed_plugin = SimpleNamespace(zero_stage=3)
    with pytest.raises(ValueError, match="ZeRO-3"):
        check_keep_products(config)
