"""The assistant: the target's own first layers and nothing else, on every family."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from all_families import any_model
from families import FAMILIES, randomize, tiny_config, tiny_model, train_like
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Lfm2Config,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from uld_hf.assistant import (
    ADAPTER_NAME,
    add_lora,
    build_assistant,
    check_has_attention,
    find_decoder_layers,
    load_truncated_model,
    shares_tensors,
    truncate_config,
    truncate_model,
)
from uld_hf.modeling_uld import ULDForCausalLM
from uld_hf.subtraction import logit_difference


TOKENS = torch.randint(4, 64, (2, 20), generator=torch.Generator().manual_seed(7))
EMBEDDINGS = {"gpt2": "wte"}
FINAL_NORMS = {"gpt2": "ln_f"}
QUERIES = {"gpt2": "c_attn"}


@pytest.fixture
def target(family) -> PreTrainedModel:
    return tiny_model(family)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


@torch.no_grad()
def logits_after_layer(target: PreTrainedModel, num_layers: int, family: str) -> torch.Tensor:
    """The target's final norm and head on what its layer `num_layers` gives out, without any truncated model."""
    holder, name = find_decoder_layers(target)
    layer = holder.get_submodule(name)[num_layers - 1]
    hidden = []
    hook = layer.register_forward_hook(lambda module, args, out: hidden.append(out if torch.is_tensor(out) else out[0]))
    logits(target)
    hook.remove()
    norm = getattr(target.get_decoder(), FINAL_NORMS.get(family, "norm"))
    return target.get_output_embeddings()(norm(hidden[0]))


def owned(model: nn.Module) -> set[int]:
    """Identities of a model's parameters and buffers."""
    return {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}


def test_every_tensor_but_the_lora_is_the_targets_own(target):
    assistant = build_assistant(target, 2)
    foreign = [
        name
        for name, tensor in [*assistant.named_parameters(), *assistant.named_buffers()]
        if id(tensor) not in owned(target) and "lora_" not in name
    ]
    assert foreign == []
    assert shares_tensors(assistant, target)


def test_the_assistant_holds_the_first_layers_embeddings_norm_and_head(target):
    base = build_assistant(target, 3).get_base_model()
    holder, name = find_decoder_layers(target)
    above = {id(parameter) for layer in holder.get_submodule(name)[3:] for parameter in layer.parameters()}
    assert owned(base) >= {id(parameter) for parameter in target.parameters()} - above
    assert not owned(base) & above


def test_an_assistant_costs_the_bytes_of_its_lora(target):
    assistant = build_assistant(target, 2, LoraConfig(r=4, target_modules="all-linear"))
    tensors = [*assistant.parameters(), *assistant.buffers(), *target.parameters(), *target.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    before = {tensor.untyped_storage().data_ptr() for tensor in [*target.parameters(), *target.buffers()]}
    lora_bytes = sum(parameter.nbytes for name, parameter in assistant.named_parameters() if "lora_" in name)
    assert sum(size for pointer, size in storages.items() if pointer not in before) == lora_bytes


def test_lora_is_on_every_linear_layer_but_the_head(target):
    base = build_assistant(target, 2).get_base_model()
    holder, name = find_decoder_layers(base)
    plain = [
        module_name
        for module_name, module in holder.get_submodule(name).named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "lora_" not in module_name and "base_layer" not in module_name
    ]
    assert plain == []
    assert type(base.get_output_embeddings()) is nn.Linear


def test_the_default_lora_is_the_papers(target):
    peft_config = build_assistant(target, 2).peft_config[ADAPTER_NAME]
    assert (peft_config.r, peft_config.lora_alpha, peft_config.bias) == (32, 32, "none")


def test_only_lora_is_trainable(target):
    assistant = build_assistant(target, 2)
    trainable = [name for name, parameter in assistant.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_the_given_lora_config_is_not_changed(target):
    peft_config = LoraConfig(r=4, target_modules="all-linear")
    before = copy.deepcopy(peft_config.to_dict())
    build_assistant(target, 2, peft_config)
    assert peft_config.to_dict() == before


def test_building_warns_of_nothing(target, caplog, transformers_log):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_assistant(target, 2)
    assert [str(warning.message) for warning in caught] == []
    assert caplog.messages == []


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_truncated_forward_is_the_targets_first_layers_then_norm_and_head(target, family, num_layers):
    assert torch.equal(logits(truncate_model(target, num_layers)), logits_after_layer(target, num_layers, family))


def test_truncated_forward_equals_a_load_of_the_first_layers_from_disk(target, tmp_path):
    target.save_pretrained(tmp_path)
    assert torch.equal(logits(truncate_model(target, 2)), logits(load_truncated_model(tmp_path, 2)))


def test_an_untrained_assistant_is_the_truncated_target(target):
    assert torch.equal(logits(build_assistant(target, 2)), logits(truncate_model(target, 2)))


def test_all_layers_give_the_target(target):
    assert torch.equal(logits(truncate_model(target, 4)), logits(target))


def test_a_trained_assistant_differs_from_the_truncated_target(target):
    assistant = train_like(build_assistant(target, 2))
    assert not torch.allclose(logits(assistant), logits(truncate_model(target, 2)), atol=0.1)


def test_the_targets_own_forward_stays_the_same_to_the_bit(target):
    before = logits(target)
    train_like(build_assistant(target, 2))
    assert torch.equal(logits(target), before)


def test_training_the_assistant_changes_no_tensor_of_the_target(target):
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    assistant = build_assistant(target, 2).train()
    optimizer = torch.optim.SGD([parameter for parameter in assistant.parameters() if parameter.requires_grad], lr=1.0)
    assistant(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    assert target.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_the_targets_modules_and_config_stay_as_they_were(target):
    modules = dict(target.named_modules())
    config = copy.deepcopy(target.config.to_dict())
    train_like(build_assistant(target, 2))
    assert target.config.to_dict() == config
    assert target.config.num_hidden_layers == 4
    assert list(dict(target.named_modules())) == list(modules)
    assert all(module is modules[name] for name, module in target.named_modules())


def test_two_assistants_of_one_target_do_not_meet(target):
    first = train_like(build_assistant(target, 2), seed=1)
    before = logits(first)
    train_like(build_assistant(target, 3), seed=2)
    assert torch.equal(logits(first), before)


def test_the_assistants_config_describes_its_layers(target):
    config = build_assistant(target, 2).config
    assert config.num_hidden_layers == 2
    assert len(getattr(config, "layer_types", None) or [None, None]) == 2


def test_mixed_layer_types_are_trimmed_from_the_end():
    target = tiny_model("gemma3")
    assert target.config.layer_types[2] == "full_attention"
    assert truncate_config(target.config, 2).layer_types == ["sliding_attention"] * 2
    assert truncate_config(target.config, 3).layer_types == ["sliding_attention"] * 2 + ["full_attention"]
    assert len(target.config.layer_types) == 4


def test_the_truncated_config_saves_and_loads_again(target, tmp_path):
    truncated = truncate_model(target, 2)
    truncated.config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == truncated.config.to_dict() | {"_name_or_path": str(tmp_path)}


def test_a_truncated_model_saves_and_loads_as_any_other(target, tmp_path):
    truncated = truncate_model(target, 2)
    truncated.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(truncated))


@pytest.mark.parametrize("family", FAMILIES)
def test_end_of_text_ids_as_many_as_layers_are_not_taken_for_a_per_layer_list(family):
    config = tiny_config(family, num_layers=2, eos_token_id=[2, 5])
    assert truncate_config(config, 1).eos_token_id == [2, 5]


def test_the_layers_are_found_beside_a_list_of_experts_of_the_same_length():
    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    target = AutoModelForCausalLM.from_config(config).eval()
    assert find_decoder_layers(target) == (target.model, "layers")
    target.model.layers[0].mlp.experts_as_a_list = nn.ModuleList([nn.Identity() for _ in range(4)])
    assert find_decoder_layers(target) == (target.model, "layers")


def test_a_decoder_with_two_lists_of_layers_is_refused():
    target = tiny_model("llama")
    target.model.more_layers = nn.ModuleList([nn.Identity() for _ in range(4)])
    with pytest.raises(ValueError, match="Found 2 lists of 4 layers in the decoder of LlamaForCausalLM"):
        build_assistant(target, 2)


@pytest.mark.parametrize("num_layers", [0, -1, 5])
def test_a_number_of_layers_that_the_target_does_not_have_is_refused(target, num_layers):
    with pytest.raises(ValueError, match=f"cannot have {num_layers} layers: the target has 4"):
        build_assistant(target, num_layers)


@pytest.mark.parametrize("num_layers", [0, 5])
def test_loading_a_number_of_layers_that_the_target_does_not_have_is_refused(tmp_path, num_layers):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"cannot have {num_layers} layers: the target has 4"):
        load_truncated_model(tmp_path, num_layers)


# PEFT up to 0.21 asks transformers by an old name; in the package the warning is silenced, here it would be an error.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_peft_target_is_refused():
    target = get_peft_model(tiny_model("llama"), LoraConfig(target_modules="all-linear"))
    with pytest.raises(TypeError, match=r"The target is a PEFT model.*merge_and_unload"):
        build_assistant(target, 2)


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(TypeError, match="must be a transformers PreTrainedModel, got Linear"):
        build_assistant(nn.Linear(2, 2), 2)


def test_an_encoder_decoder_target_is_refused():
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        build_assistant(T5ForConditionalGeneration(config), 1)


def test_an_unlearned_model_as_target_is_refused():
    target = tiny_model("llama")
    unlearned = ULDForCausalLM(target=target, assistant=build_assistant(target, 2))
    with pytest.raises(ValueError, match="already an unlearned model"):
        build_assistant(unlearned, 2)


def test_an_adapter_that_is_not_lora_is_refused():
    peft_config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    with pytest.raises(ValueError, match=r"must be a peft\.LoraConfig, got IA3Config"):
        build_assistant(tiny_model("llama"), 2, peft_config)


@pytest.mark.parametrize(
    "extra",
    [
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 4]},
        {"bias": "all"},
        {"bias": "lora_only"},
    ],
)
def test_training_more_than_lora_is_refused(extra):
    peft_config = LoraConfig(target_modules=["q_proj"], **extra)
    with pytest.raises(ValueError, match="must leave modules_to_save and trainable_token_indices empty"):
        build_assistant(tiny_model("llama"), 2, peft_config)


# PEFT warns about tied embeddings before we refuse them.
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.", "ignore:fan_in_fan_out is set to True")
@pytest.mark.parametrize("shared", ["head", "embeddings"])
def test_lora_on_the_head_or_the_embeddings_is_refused(target, family, shared):
    name = "lm_head" if shared == "head" else EMBEDDINGS.get(family, "embed_tokens")
    peft_config = LoraConfig(target_modules=[QUERIES.get(family, "q_proj"), name])
    with pytest.raises(ValueError, match="puts LoRA on the embeddings or the head"):
        build_assistant(target, 2, peft_config)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_of_lora_that_rewrites_the_base_leaves_the_target_as_it_was(init):
    target = tiny_model("llama")
    before = logits(target)
    try:
        build_assistant(target, 2, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=init))
    except ValueError as error:
        assert "init_lora_weights" in str(error)  # noqa: PT017 - refusing is as good as not changing the target
    assert torch.equal(logits(target), before)


def test_other_kinds_of_lora_are_fine(target):
    before = logits(target)
    peft_config = LoraConfig(r=4, target_modules="all-linear", use_rslora=True, use_dora=True, lora_dropout=0.1)
    assistant = build_assistant(target, 2, peft_config).eval()
    assert shares_tensors(assistant, target)
    torch.testing.assert_close(logits(assistant), logits(truncate_model(target, 2)), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(target), before)


def remove_tensor(folder: Path, part: str) -> str:
    """Delete the first tensor whose name contains `part` from the folder's safetensors file; returns its name."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if part in name)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return name


def test_a_checkpoint_that_lacks_a_weight_of_the_first_layers_is_refused(target, tmp_path):
    target.save_pretrained(tmp_path)
    name = remove_tensor(tmp_path, ".1.")
    with pytest.raises(ValueError, match=rf"lacks the weights .*{name}.*not a whole checkpoint"):
        load_truncated_model(tmp_path, 2)


def test_a_checkpoint_that_lacks_a_weight_above_the_assistant_loads(target, tmp_path):
    target.save_pretrained(tmp_path)
    remove_tensor(tmp_path, ".3.")
    assert torch.equal(logits(load_truncated_model(tmp_path, 2)), logits(truncate_model(target, 2)))


def test_loading_truncated_says_nothing_about_the_layers_it_leaves_out(tmp_path, caplog, transformers_log):
    tiny_model("llama").save_pretrained(tmp_path)
    load_truncated_model(tmp_path, 2)
    assert caplog.messages == []


def test_loading_truncated_passes_its_options_on(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    model = load_truncated_model(tmp_path, 2, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_add_lora_to_a_truncated_load_gives_the_assistant_of_the_whole(target, tmp_path):
    target.save_pretrained(tmp_path)
    loaded = train_like(add_lora(load_truncated_model(tmp_path, 2)))
    assert isinstance(loaded, PeftModel)
    assert not shares_tensors(loaded, target)
    assert torch.equal(logits(loaded), logits(train_like(build_assistant(target, 2))))


def test_an_assistant_without_attention_is_refused():
    target = any_model("qwen3_5_text")  # every other layer is attention
    with pytest.raises(ValueError, match=r"would have no attention: .* Use at least 2\."):
        build_assistant(target, 1)
    build_assistant(target, 2)  # does not raise
    of_convolutions = Lfm2Config(num_hidden_layers=4, layer_types=["conv"] * 4)
    with pytest.raises(ValueError, match=r"would have no attention: .* is not supported as a target"):
        check_has_attention(2, of_convolutions)


GEMMA_SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
GEMMA_SIZES |= {"num_key_value_heads": 1, "num_hidden_layers": 6, "num_kv_shared_layers": 2}
GEMMA_SIZES |= {"layer_types": ["sliding_attention", "full_attention"] * 3, "pad_token_id": 0, "eos_token_id": 2}


@pytest.mark.parametrize("num_layers", [3, 5])
@torch.no_grad()
def test_layers_that_share_keys_and_values_are_those_of_the_target(tmp_path: Path, num_layers: int):
    target = randomize(AutoModelForCausalLM.from_config(CONFIG_MAPPING["gemma4_unified_text"](**GEMMA_SIZES)))
    target.save_pretrained(tmp_path)
    truncated, loaded = truncate_model(target, num_layers), load_truncated_model(tmp_path, num_layers)
    assert truncated.config.num_kv_shared_layers == loaded.config.num_kv_shared_layers == max(0, num_layers - 4)
    prompts = torch.randint(4, 64, (2, 7), generator=torch.Generator().manual_seed(4))
    expected = target(prompts, output_hidden_states=True).hidden_states[num_layers - 1]
    found, again = (model(prompts, output_hidden_states=True) for model in (truncated, loaded))
    assert torch.equal(found.hidden_states[num_layers - 1], expected)
    assert torch.equal(found.logits, again.logits)


def test_a_table_of_embeddings_for_every_layer_cannot_be_cut():
    config = CONFIG_MAPPING["gemma4_text"](**GEMMA_SIZES, hidden_size_per_layer_input=8, vocab_size_per_layer_input=64)
    target = randomize(AutoModelForCausalLM.from_config(config))
    with pytest.raises(ValueError, match=r"embeddings of all 6 of the target.s are in one table.* Use 6"):
        build_assistant(target, 2)
    build_assistant(target, 6)  # does not raise


@pytest.mark.parametrize("family", ["llama4_text", "phimoe"])
@torch.no_grad()
def test_routers_that_return_more_than_a_product_have_no_lora(family: str, tmp_path: Path):
    config_class = CONFIG_MAPPING[family]
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "intermediate_size_mlp": 64}
    sizes |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"num_local_experts": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    known = config_class().to_dict()
    target = randomize(AutoModelForCausalLM.from_config(config_class(**{k: v for k, v in sizes.items() if k in known})))
    target.save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assistant = train_like(build_assistant(target, 2))
    with_lora = {name.rpartition(".")[2] for name, module in assistant.named_modules() if isinstance(module, LoraLayer)}
    assert "q_proj" in with_lora
    assert "router" not in with_lora
    model = ULDForCausalLM(target=target, assistant=assistant, alpha=0.5, relative_top=0)
    parts = [part(TOKENS, use_cache=False).logits for part in (target, assistant)]
    expected = logit_difference(parts[0], parts[1:], [0.5], relative_top=0)
    torch.testing.assert_close(model(TOKENS).logits, expected)
    model.save_pretrained(tmp_path / "unlearned")
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "unlearned")
    torch.testing.assert_close(loaded(TOKENS).logits, expected)
