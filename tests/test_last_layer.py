"""The last layer on answer tokens alone gives the loss and the gradients that it gives on all tokens."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from all_families import ALL_FAMILIES, any_model
from families import tiny_model
from peft import PeftModel
from test_padding_free import PADDED
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from uld_hf import build_assistant
from uld_hf.training.collator import DataCollatorForULD
from uld_hf.training.last_layer import find_answer_parts, on_answers_alone, predicts_answer
from uld_hf.training.losses import ULDLossOutput, add_uld_loss
from uld_hf.training.padding_free import attention_by_row


# Of most families; of the others, whose projections are fused, whose MLP is in parts or tells how it chose experts:
PARTS = {"self_attn.q_proj", "self_attn.o_proj", "mlp"}
OTHER_PARTS = {
    "phi3": {"self_attn.o_proj", "mlp"},
    "gpt2": {"attn.c_proj", "mlp"},
    "gpt_neox": {"attention.dense", "mlp"},
    "opt": {"self_attn.q_proj", "self_attn.out_proj"},
    "falcon": {"self_attention.dense", "mlp"},
    "bloom": {"self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "gptj": {"attn.q_proj", "attn.out_proj", "mlp"},
    "gpt_oss": {"self_attn.q_proj", "self_attn.o_proj"},
    "deepseek_v3": {"self_attn.q_a_proj", "self_attn.q_b_proj", "self_attn.o_proj", "mlp"},
}


# In float64 tokens cannot be grouped by experts, and Gemma 2's mask overflows.
FLOAT32 = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "gemma2")


def make_assistant(family: str, num_layers: int = 2) -> PeftModel:
    """An untrained assistant that computes in float64, where the order of a sum hardly counts."""
    target = any_model(family, num_layers=4)
    assistant = build_assistant(target if family in FLOAT32 else target.double(), num_layers).eval()
    add_uld_loss(assistant.get_base_model(), retain_weight=2.0)
    return assistant


def train_a_little(assistant: PeftModel) -> PeftModel:
    """LoRA's second factors are zero at first: the first ones would have no gradients."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in assistant.named_parameters():
        if "lora_" in name:
            weight.data.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return assistant


def make_batch(padding_free: bool) -> dict[str, torch.Tensor]:
    """Rows with prompts, one without an answer, and one without a prompt."""
    rows = [
        {"input_ids": [(7 * i + 3 * j) % 60 + 3 for j in range(n)], "is_retain": i % 2 == 1}
        for i, n in enumerate((13, 4, 9, 20))
    ]
    for row, prompt in zip(rows, (5, 4, 0, 17), strict=True):
        row["labels"] = [-100] * prompt + row["input_ids"][prompt:]
    return DataCollatorForULD(pad_token_id=0, padding_free=padding_free)(rows)


def descend(
    assistant: PeftModel, parts: list[nn.Module], batch: dict[str, torch.Tensor]
) -> tuple[ULDLossOutput, dict[str, torch.Tensor]]:
    """Loss and gradients of a step."""
    by_row = attention_by_row(assistant.get_base_model()) if "cu_seq_lens_q" in batch else nullcontext()
    with by_row, on_answers_alone(parts, batch["labels"]):
        output = assistant(**batch, num_items=torch.tensor([20, 10]))
        output.loss.backward()
    gradients = {name: weight.grad for name, weight in assistant.named_parameters() if weight.requires_grad}
    assistant.zero_grad()
    return output, gradients


def last_layer(assistant: PeftModel) -> nn.Module:
    """Its last layer, for families that are built like Llama."""
    return assistant.get_base_model().model.layers[-1]


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("padding_free", [False, True], ids=["padded", "padding-free"])
def test_loss_and_gradients_are_those_of_all_tokens(family: str, padding_free: bool):
    assistant = make_assistant(family)
    parts = find_answer_parts(assistant.get_base_model())  # as at the beginning of a training
    train_a_little(assistant)
    batch = make_batch(padding_free and family not in PADDED)
    expected, expected_gradients = descend(assistant, [], batch)
    actual, gradients = descend(assistant, parts, batch)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if family in FLOAT32 else {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(tuple(actual.values()), tuple(expected.values()), **tolerance)
    torch.testing.assert_close(gradients, expected_gradients, **tolerance)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_layers_that_are_computed_again_give_the_same_gradients(use_reentrant: bool):
    assistant = train_a_little(make_assistant("llama")).train()
    parts, batch = find_answer_parts(assistant.get_base_model()), make_batch(padding_free=True)
    expected = descend(assistant, [], batch)[1]
    assistant.enable_input_require_grads()
    assistant.get_base_model().activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": use_reentrant}
    )
    torch.testing.assert_close(descend(assistant, parts, batch)[1], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_part_that_prompts_need_not_go_through_is_found(family: str):
    base = make_assistant(family).get_base_model()
    found = find_answer_parts(base)
    names = {name for name, module in base.named_modules() if any(module is part for part in found)}
    assert {name.split(".1.", maxsplit=1)[1] for name in names} == OTHER_PARTS.get(family, PARTS)


def test_one_layer_is_enough():
    assert len(find_answer_parts(make_assistant("llama", num_layers=1).get_base_model())) == 3


def test_bfloat16_finds_the_same():
    base = build_assistant(any_model("qwen3").to(torch.bfloat16), 2).get_base_model()
    assert len(find_answer_parts(base)) == 3


@pytest.mark.parametrize("names", [("k_proj",), ("v_proj",), ("q_proj", "k_proj", "v_proj"), ("o_proj",)], ids=str)
def test_what_has_no_effect_yet_is_not_taken_for_needless(names: tuple[str, ...]):
    assistant = make_assistant("llama")
    for name in names:
        last_layer(assistant).self_attn.get_submodule(name).base_layer.weight.data.zero_()
    found = find_answer_parts(assistant.get_base_model())
    assert not any(part is last_layer(assistant).self_attn.k_proj for part in found)
    assert not any(part is last_layer(assistant).self_attn.v_proj for part in found)
    assert len(found) == 3


class MLPFirst(LlamaDecoderLayer):
    """A layer whose attention looks at what the MLP has made."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        return hidden_states + attended


def test_an_mlp_that_attention_looks_at_is_left_alone():
    base = make_assistant("llama").get_base_model()
    base.model.layers[-1].__class__ = MLPFirst
    attention = base.model.layers[-1].self_attn
    found = find_answer_parts(base)
    assert {id(part) for part in found} == {id(attention.q_proj), id(attention.o_proj)}


class MixingMLP(LlamaMLP):
    """An MLP that looks at the token before, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.5 * F.pad(x[:, :-1], (0, 0, 1, 0)))


def test_an_mlp_that_mixes_tokens_is_taken_apart():
    assistant = make_assistant("llama")
    mlp = last_layer(assistant).mlp
    mlp.__class__ = MixingMLP
    found = find_answer_parts(assistant.get_base_model())
    assert not any(part is mlp for part in found)
    train_a_little(assistant)
    batch = make_batch(padding_free=False)
    expected, actual = (descend(assistant, parts, batch)[1] for parts in ([], found))
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)


def seen_by(part: nn.Module, model: PreTrainedModel, batch: dict[str, torch.Tensor], parts: list[nn.Module]) -> int:
    """Number of tokens that a part is given."""
    shapes: list[torch.Size] = []
    with on_answers_alone(parts, batch["labels"]):
        hook = part.register_forward_pre_hook(lambda part, args: shapes.append(args[0].shape))
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        hook.remove()
    return sum(shape[0] * shape[1] for shape in shapes)


def test_only_tokens_that_predict_answers_are_computed():
    assistant, batch = make_assistant("llama"), make_batch(padding_free=False)
    parts = find_answer_parts(assistant.get_base_model())
    answers = int((batch["labels"][:, 1:] != -100).sum())
    assert answers < batch["labels"].numel()
    assert [seen_by(part, assistant, batch, parts) for part in parts] == [answers] * 3


def test_a_batch_without_answers_is_computed_whole():
    assistant, batch = make_assistant("llama"), make_batch(padding_free=False)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    parts = find_answer_parts(assistant.get_base_model())
    assert seen_by(parts[0], assistant, batch, parts) == batch["labels"].numel()
    assert descend(assistant, parts, batch)[0].loss == 0


def test_afterwards_all_tokens_are_computed_again():
    assistant, batch = make_assistant("llama"), make_batch(padding_free=False)
    parts = find_answer_parts(assistant.get_base_model())
    with pytest.raises(RuntimeError, match="interrupted"), on_answers_alone(parts, batch["labels"]):
        raise RuntimeError("interrupted")
    assert seen_by(parts[0], assistant, batch, []) == batch["labels"].numel()


def test_looking_for_parts_leaves_the_model_as_it_was():
    model = tiny_model("llama").train()
    attention, random_state = model.config._attn_implementation, torch.get_rng_state()
    find_answer_parts(model)
    assert model.training
    assert model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_token_before_an_answer_predicts_it():
    labels = torch.tensor([[-100, -100, 5, 6, -100], [1, -100, -100, -100, 2]])
    expected = [[False, True, True, False, False], [False, False, False, True, False]]
    assert predicts_answer(labels).tolist() == expected
