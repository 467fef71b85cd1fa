"""Lockstep gives what target and assistants give one after the other, in one pass over the layers that they share."""

import copy

import pytest
import torch
from all_families import ALL_FAMILIES, any_model
from families import FAMILIES, tiny_model, train_like
from peft import LoraConfig
from transformers import DynamicCache, StaticCache

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.lockstep import Lockstep, _join_rows


MIXED_EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v3")  # PEFT's LoRA is on their experts' or routers' parameters
PROMPTS = torch.randint(4, 64, (3, 12), generator=torch.Generator().manual_seed(4))
MASK = (torch.arange(12) >= torch.tensor([[7], [0], [3]])).long()
PROMPTS = PROMPTS.masked_fill(MASK == 0, 0)


def compose(family: str, depths: tuple[int, ...] = (2, 3, 4)) -> ULDForCausalLM:
    target = any_model(family)
    assistants = {f"to-{depth}": train_like(build_assistant(target, depth), seed) for seed, depth in enumerate(depths)}
    return ULDForCausalLM(target=target, assistant=assistants, alpha=0.4, relative_top=0)


def run(model: ULDForCausalLM, execution: str, **inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.execution = execution
    inputs = {"input_ids": PROMPTS, "attention_mask": MASK, "inputs_embeds": None, "use_cache": False, **inputs}
    return model._run(None, inputs)


def passes(model: ULDForCausalLM) -> list[int]:
    """Rows of every pass in lockstep."""
    rows = []
    model._lockstep = Lockstep(model.target, list(model.assistants.values()))
    model._lockstep.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return rows


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in FAMILIES else [pytest.mark.slow])
        for family in ALL_FAMILIES
        if family not in MIXED_EXPERTS
    ],
)
@torch.no_grad()
def test_logits_of_target_and_assistants_of_any_depth(family):
    model = compose(family)
    rows = passes(model)
    target_logits, assistant_logits = run(model, "lockstep")
    expected_target, expected_assistants = run(model, "two passes")
    assert rows == [4 * len(PROMPTS)]
    read = MASK.bool()  # what stands at padding is never read
    torch.testing.assert_close(target_logits[read], expected_target[read])
    for actual, expected in zip(assistant_logits, expected_assistants, strict=True):
        torch.testing.assert_close(actual[read], expected[read])


@pytest.mark.parametrize("family", MIXED_EXPERTS)
def test_mixtures_of_experts_take_two_passes(family):
    model = compose(family, depths=(2,))
    assert model.execution == "two passes"
    with pytest.raises(ValueError, match=r"execution='lockstep' is not possible: .* \(ParamWrapper\)"):
        model.execution = "lockstep"


@pytest.mark.parametrize("depths", [(3, 1), (1, 3), (4,)], ids=str)
def test_order_and_depth_of_the_assistants_do_not_matter(depths):
    model = compose("llama", depths)
    assert model.execution == "lockstep"
    lockstep = model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=12, do_sample=False)
    model.execution = "two passes"
    assert torch.equal(model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=12, do_sample=False), lockstep)


def test_generation_runs_in_lockstep_by_default():
    model = compose("llama", depths=(2,))
    rows = passes(model)
    model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert rows == [2 * len(PROMPTS)] * 5


def test_it_holds_no_tensor_of_its_own():
    model = compose("gemma3")
    lockstep = Lockstep(model.target, list(model.assistants.values()))
    owned = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert {id(tensor) for tensor in (*lockstep.model.parameters(), *lockstep.model.buffers())} <= owned


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
@torch.no_grad()
def test_a_conversation_goes_on_in_the_other_execution(cache_class):
    model = compose("gemma3", depths=(2, 3))
    more = {"max_cache_len": 24} if cache_class is StaticCache else {}
    expected = model(PROMPTS, attention_mask=MASK, use_cache=False).logits[:, 9:]
    cache = cache_class(config=model.config, **more)
    for execution, begin, end in (("lockstep", 0, 9), ("two passes", 9, 10), ("lockstep", 10, 12)):
        model.execution = execution
        positions = (MASK.cumsum(-1) - 1).clamp(min=0)[:, begin:end]
        logits = model(
            PROMPTS[:, begin:end], attention_mask=MASK[:, :end], position_ids=positions, past_key_values=cache
        ).logits
        if begin >= 9:
            torch.testing.assert_close(logits, expected[:, begin - 9 : end - 9])


@pytest.mark.parametrize(
    "parts",
    [
        lambda rows: rows.chunk(3),
        lambda rows: [part[:, :, :-2] for part in rows.chunk(3)],  # as cropping leaves them
        lambda rows: [part.clone() for part in rows.chunk(3)],
        lambda rows: rows.chunk(3)[::-1],
        lambda rows: rows.chunk(3)[:2],
        lambda rows: rows.chunk(6)[::2],
        lambda rows: [rows.chunk(3)[0], rows.chunk(3)[0]],
        lambda rows: [rows.chunk(3)[0][:, :, 1:], rows.chunk(3)[1][:, :, :-1]],
    ],
)
def test_joined_rows_are_those_of_every_part(parts):
    rows = torch.arange(6 * 2 * 5 * 3).reshape(6, 2, 5, 3)
    assert torch.equal(_join_rows(parts(rows)), torch.cat(list(parts(rows))))


@pytest.mark.parametrize("family_name", ["llama", "gemma3"])  # growing without end, and sliding windows
def test_what_a_growing_cache_holds_is_not_copied_to_join_it(family_name):
    model = compose(family_name, depths=(2, 3))
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "eos_token_id": None}
    cache = model.generate(PROMPTS, attention_mask=MASK, **options).past_key_values
    target_cache, *assistant_caches = model.split_cache(cache)
    for index, active in enumerate((3, 3, 2, 1)):
        deepest_first = (target_cache, *assistant_caches[::-1])
        layers = [each.layers[index] for each in deepest_first[:active]]
        joined = _join_rows([layer.keys for layer in layers])
        assert joined.data_ptr() == layers[0].keys.data_ptr()
        assert len(joined) == active * len(PROMPTS)


def test_other_dtypes_rebuild_it():
    model = compose("llama", depths=(2,))
    model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=2)
    model.double()
    lockstep = run(model, "lockstep")[0]
    assert lockstep.dtype == torch.float64
    torch.testing.assert_close(lockstep[MASK.bool()], run(model, "two passes")[0][MASK.bool()])


def test_a_change_of_attention_reaches_it():
    model = compose("llama", depths=(2,))
    model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=2)
    model.set_attn_implementation("eager")
    assert model._lockstep.model.config._attn_implementation == "eager"


def test_a_new_assistant_is_subtracted():
    model = compose("llama", depths=(2,))
    model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=2)
    model.add_assistant(train_like(build_assistant(model.target, 3), seed=8), name="new", alpha=2.0)
    assert len(run(model, "lockstep")[1]) == 2


def test_copies_run_by_themselves():
    model = compose("llama", depths=(2,))
    expected = model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=8, do_sample=False)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied.generate(PROMPTS, attention_mask=MASK, max_new_tokens=8, do_sample=False), expected)


def test_a_disabled_adapter_is_an_error():
    model = compose("llama", depths=(2,))
    model.assistants["to-2"].base_model.disable_adapter_layers()
    with pytest.raises(RuntimeError, match="is disabled"):
        model(PROMPTS)


def test_lora_that_is_no_sum_takes_two_passes():
    target = tiny_model("llama")
    dora = build_assistant(target, 2, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=True))
    assert ULDForCausalLM(target=target, assistant=dora).execution == "two passes"
