"""Lockstep gives what target and assistants give one after the other, in one pass over the layers that they share."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from all_families import ALL_FAMILIES, DECODER, HEAD_DIM, LOCAL_EXPERTS, MOE, TOKENS, any_config, any_model
from families import FAMILIES, randomize, tiny_config, tiny_model, train_like
from peft import LoraConfig
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3Config,
    MptConfig,
    OPTConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    StaticCache,
    modeling_flash_attention_utils,
)

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cache_name import CACHE
from uld_hf.lockstep import FAMILIES as IN_LOCKSTEP
from uld_hf.lockstep import ROOM, Lockstep, _Buffer
from uld_hf.subtraction import logit_difference


MIXED_EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v3")  # PEFT's LoRA is on their experts' or routers' parameters
PROMPTS = torch.randint(4, 64, (3, 12), generator=torch.Generator().manual_seed(4))
MASK = (torch.arange(12) >= torch.tensor([[7], [0], [3]])).long()
PROMPTS = PROMPTS.masked_fill(MASK == 0, 0)


def test_threads_do_not_take_each_others_rows():
    model = compose("llama", (2,))
    prompts = [torch.randint(4, 64, (1, 6), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    with torch.no_grad():
        expected = [model(prompt, use_cache=False).logits for prompt in prompts]

    def ask(index: int) -> torch.Tensor:
        with torch.no_grad():
            return model(prompts[index % 4], use_cache=False).logits

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(ask, range(100)))
    finally:
        sys.setswitchinterval(interval)
    for index, logits in enumerate(found):
        torch.testing.assert_close(logits, expected[index % 4])


@pytest.mark.parametrize("lengths", [False, True], ids=["by positions", "by lengths"])
def test_texts_behind_each_other_in_one_row_take_two_passes(monkeypatch, lengths):
    """Flash attention tells them apart in a batch of one only, and lockstep makes it two."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        heads = [each.transpose(0, 1)[None] for each in (query, key, value)]
        return scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.stack([attend(*row) for row in zip(query, key, value, strict=True)])

    def by_lengths(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens_q: torch.Tensor, **_: object
    ) -> torch.Tensor:
        parts = cu_seqlens_q.diff().tolist()
        texts = zip(*(each.split(parts) for each in (query, key, value)), strict=True)
        return torch.cat([attend(*text) for text in texts])

    model = compose("llama", (2,))
    text, number = PROMPTS[1:2, :10], torch.arange(5)
    with torch.no_grad():
        expected = torch.cat([model(part, use_cache=False).logits for part in text.split(5, dim=1)], dim=1)
    kernels = (dense, by_lengths, None, None, None), (lambda **_: {}, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda _: kernels)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation_internal = "flash_attention_2"
    more = {}
    if lengths:
        ends = torch.tensor([0, 5, 10], dtype=torch.int32)
        more = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 5, "max_length_k": 5}
    with torch.no_grad():
        found = model(text, position_ids=torch.cat([number, number])[None], use_cache=False, **more).logits
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_images_beside_the_text_take_two_passes():
    """A text may have several: what has a row for each image has none for each text."""
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8
    )
    tokens = {"image_token_index": 60, "image_token_id": 60, "boi_token_index": 61, "eoi_token_index": 62}
    config = Gemma3Config(vision_config=vision, text_config=tiny_config("gemma3"), mm_tokens_per_image=4, **tokens)
    target = randomize(AutoModelForCausalLM.from_config(config))
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=r".*language_model.*(q|v|up)_proj")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2, lora)))
    assert model.execution == "lockstep"
    text = torch.tensor([[5, 60, 60, 60, 60, 7, 60, 60, 60, 60, 8]])
    inputs = {"pixel_values": torch.rand(2, 3, 16, 16), "token_type_ids": (text == 60).long()}
    found = model(text, **inputs).logits
    model.execution = "two passes"
    assert torch.equal(found, model(text, **inputs).logits)
    torch.testing.assert_close(model(text[:, :1]).logits, found[:, :1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["target", "assistant"])
def test_a_part_in_training_mode_does_not_leave_its_dropout_behind(part):
    model = ULDForCausalLM(target=(target := any_model("gpt2")), assistant=train_like(build_assistant(target, 2)))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    with torch.no_grad():
        expected = model(PROMPTS).logits
        model._lockstep = None  # built anew while a part is in training mode
        (model.target if part == "target" else model.assistant).train()
        torch.testing.assert_close(model(PROMPTS).logits, expected)
    assert not any(module.training for module in model.modules())


def test_a_lockstep_of_assistants_that_were_exchanged_is_not_used():
    model = compose("llama", (2,))
    stale = Lockstep(model.target, list(model.assistants.values()))
    model.add_assistant(train_like(build_assistant(model.target, 2), seed=7), name="other")
    model.remove_assistant("to-2")
    model._lockstep = stale  # as another thread leaves it that was building one
    with torch.no_grad():
        found = model(PROMPTS).logits
        model.execution = "two passes"
        torch.testing.assert_close(found, model(PROMPTS).logits)


def test_a_target_whose_vocabulary_was_resized_is_refused():
    model = compose("llama", (2,))
    model(PROMPTS)
    model.target.resize_token_embeddings(80)
    with pytest.raises(RuntimeError, match="vocabulary was resized from 64 to 80"):
        model(PROMPTS)


def test_a_configuration_that_does_not_say_whether_to_cache_caches(monkeypatch):
    model = compose("llama", (2,))
    monkeypatch.delattr(type(model.target.config), "use_cache")  # as Inkling's
    vars(model.target.config).pop("use_cache", None)
    assert model(PROMPTS)[CACHE] is not None


def test_new_tensors_are_taken():
    model, other = compose("llama", (2,)), compose("llama", (2,))
    with torch.no_grad():
        for parameter in other.target.model.norm.parameters():
            parameter.mul_(3.0)
        before, expected = model(PROMPTS).logits, other(PROMPTS).logits
        model.load_state_dict(other.state_dict(), assign=True)
        torch.testing.assert_close(model(PROMPTS).logits, expected)
    assert not torch.allclose(before, expected)


def test_lora_outside_of_the_layers_takes_two_passes():
    # As OPT 350M, whose embeddings are narrower than its layers.
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 32, "num_attention_heads": 2, "vocab_size": 64}
    target = randomize(AutoModelForCausalLM.from_config(OPTConfig(num_hidden_layers=4, **sizes)))
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), relative_top=0)
    assert model.execution == "two passes"
    with torch.no_grad():
        parts = [part(PROMPTS, attention_mask=MASK).logits for part in (target, model.assistant)]
        expected = logit_difference(parts[0], parts[1:], [1.25], relative_top=0)
        torch.testing.assert_close(model(PROMPTS, attention_mask=MASK).logits, expected)


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


# What families call the sizes that make a model tiny; each takes those it knows.
SIZES = TOKENS | DECODER | HEAD_DIM | MOE | LOCAL_EXPERTS | {
    "num_hidden_layers": 4, "sliding_window": 8, "n_inner": 64, "ffn_dim": 64, "shared_expert_intermediate_size": 32,
    "moe_num_experts": 4, "n_routed_experts": 4,
}  # fmt: skip
OTHERS = sorted(IN_LOCKSTEP - {any_config(family).get_text_config(decoder=True).model_type for family in ALL_FAMILIES})


@pytest.mark.parametrize("family", OTHERS)
@torch.no_grad()
def test_other_families_that_are_said_to_run_in_lockstep_do(family):
    if family not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    config_class = CONFIG_MAPPING[family]
    known = {*config_class().to_dict(), *config_class.attribute_map}
    torch.manual_seed(0)
    config = config_class(**{name: size for name, size in SIZES.items() if name in known})
    target = randomize(AutoModelForCausalLM.from_config(config))
    assistant = train_like(build_assistant(target, 2))
    model = ULDForCausalLM(target=target, assistant=assistant, alpha=0.5, relative_top=0)
    assert model.execution == "lockstep"
    options = {"attention_mask": MASK, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    generated = model.generate(PROMPTS, **options)
    logits = model(PROMPTS, attention_mask=MASK, use_cache=False).logits
    model.execution = "two passes"
    expected = model.generate(PROMPTS, **options)
    assert torch.equal(generated.sequences, expected.sequences)
    torch.testing.assert_close(generated.logits, expected.logits, rtol=1e-4, atol=1e-4)
    read = MASK.bool()
    expected = model(PROMPTS, attention_mask=MASK, use_cache=False).logits
    torch.testing.assert_close(logits[read], expected[read], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[read], target(PROMPTS, attention_mask=MASK).logits[read], atol=0.1)


@pytest.mark.parametrize("family", MIXED_EXPERTS)
@torch.no_grad()
def test_mixtures_of_experts_with_lora_on_attention_only_run_in_lockstep(family):
    target = any_model(family)
    lora = LoraConfig(target_modules=r".*self_attn\.\w*proj\w*", r=8)
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2, lora)), relative_top=0)
    assert model.execution == "lockstep"
    actual = model(PROMPTS, attention_mask=MASK).logits
    model.execution = "two passes"
    expected = model(PROMPTS, attention_mask=MASK).logits
    torch.testing.assert_close(actual[MASK.bool()], expected[MASK.bool()], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_layers_that_share_keys_and_values_take_two_passes():
    sizes = {"num_hidden_layers": 6, "num_kv_shared_layers": 2, "num_key_value_heads": 1, "head_dim": 16}
    sizes |= {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64, "pad_token_id": 0}
    config = CONFIG_MAPPING["gemma4_unified_text"](**sizes, layer_types=["sliding_attention", "full_attention"] * 3)
    target = randomize(AutoModelForCausalLM.from_config(config))
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 5)))
    assert model.execution == "two passes"
    ids = PROMPTS[1:2]
    text = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, attention_mask=MASK[1:2])
    for _ in range(5):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(text, ids)


def test_a_family_that_nobody_has_tried_takes_two_passes():
    sizes = {"d_model": 32, "n_heads": 4, "vocab_size": 64, "max_seq_len": 128}
    target = randomize(AutoModelForCausalLM.from_config(MptConfig(n_layers=4, **sizes)))
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), relative_top=0)
    assert model.execution == "two passes"
    with pytest.raises(ValueError, match="nobody has shown that 'mpt' runs so"):
        model.execution = "lockstep"
    with torch.no_grad():
        parts = [part(PROMPTS, attention_mask=MASK).logits for part in (target, model.assistant)]
        expected = logit_difference(parts[0], parts[1:], [1.25], relative_top=0)
        torch.testing.assert_close(model(PROMPTS, attention_mask=MASK).logits, expected)


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


def test_a_cache_that_grows_is_copied_once_in_many_steps():
    model = compose("llama", depths=(2, 3))
    options = {"do_sample": False, "return_dict_in_generate": True, "eos_token_id": None}
    cache = model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=4, **options)[CACHE]
    target_cache, *assistant_caches = model.split_cache(cache)
    target_keys = target_cache.layers[0].keys
    own = [each.layers[0].keys.untyped_storage().data_ptr() for each in (target_cache, *assistant_caches)]
    assert len(set(own)) == 1  # side by side
    model(PROMPTS[:, :1], past_key_values=cache)
    assert target_cache.layers[0].keys.data_ptr() == target_keys.data_ptr()
    assert target_cache.layers[0].keys.shape[-2] == target_keys.shape[-2] + 1


def test_text_longer_than_the_room():
    model = compose("llama", depths=(2, 3))
    options = {"attention_mask": MASK, "max_new_tokens": ROOM + 10, "do_sample": False, "eos_token_id": None}
    text = model.generate(PROMPTS, **options)
    model.execution = "two passes"
    assert torch.equal(model.generate(PROMPTS, **options), text)


CHANGES = {
    "crop": lambda parts: [part[:, :, :-2] for part in parts],
    "reorder": lambda parts: [part[[1, 0]] for part in parts],
    "swap": lambda parts: parts[::-1],
    "copy": lambda parts: [part.clone() for part in parts],
    "other rows": lambda parts: [part.repeat_interleave(2, dim=0) for part in parts],
    "none": lambda parts: parts,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_buffer_holds_what_the_layers_say(change):
    def states(rows: int, tokens: int) -> torch.Tensor:
        return torch.randn(rows, 2, tokens, 3)

    buffer = _Buffer()
    first = buffer.append([torch.tensor([])] * 3, states(6, 4))
    parts = list(buffer.append(first.chunk(3), states(6, 1)).chunk(3))
    before = [part.clone() for part in parts]
    changed = CHANGES[change](parts)
    new = states(3 * len(changed[0]), 2)
    expected = torch.cat([torch.cat([part, fresh], dim=-2) for part, fresh in zip(changed, new.chunk(3), strict=True)])
    assert torch.equal(buffer.append(changed, new), expected)
    # Whoever kept the earlier views finds in them what was there, and may go on from them another way.
    assert all(torch.equal(part, kept) for part, kept in zip(parts, before, strict=True))
    other = states(6, 1)
    again = torch.cat([torch.cat([part, fresh], dim=-2) for part, fresh in zip(before, other.chunk(3), strict=True)])
    assert torch.equal(buffer.append(parts, other), again)


@torch.no_grad()
def test_a_cache_filled_in_inference_mode_goes_on_outside():
    model = compose("llama", depths=(2,))
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(PROMPTS[:, :9], past_key_values=cache)
    expected = model(PROMPTS[:, :10], use_cache=False).logits[:, -1]
    logits = model(PROMPTS[:, 9:10], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_embeddings_through_a_cache():
    model = compose("llama", depths=(2,))
    embeddings = model.get_input_embeddings()(PROMPTS).detach().requires_grad_()
    cache = DynamicCache(config=model.config)
    for begin, end in ((0, 9), (9, 10), (10, 11)):
        logits = model(inputs_embeds=embeddings[:, begin:end], past_key_values=cache).logits
    logits.sum().backward()
    assert embeddings.grad[:, :9].abs().sum() > 0


@torch.no_grad()
def test_copied_caches_go_different_ways():
    model = compose("llama", depths=(2, 3))
    cache = DynamicCache(config=model.config)
    model(PROMPTS[:, :9], past_key_values=cache)
    other = copy.deepcopy(cache)
    for each, tokens in ((cache, PROMPTS[:, 9:10]), (other, PROMPTS[:, 10:11])):
        model(tokens, past_key_values=each)
    for each, column in ((cache, 9), (other, 10)):
        text = torch.cat([PROMPTS[:, :9], PROMPTS[:, [column, 11]]], dim=1)
        expected = model(text, use_cache=False).logits[:, -1]
        logits = model(PROMPTS[:, 11:12], past_key_values=each).logits[:, -1]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


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
