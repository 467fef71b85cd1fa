"""Targets as people load them: in bfloat16, quantized, offloaded, tensor-parallel, with padded vocabularies."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from all_families import any_config, any_model
from families import VOCAB_SIZE, randomize, tiny_model, train_like
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from uld_hf import ULDForCausalLM, build_assistant, logit_difference
from uld_hf.assistant import shared_with


NEW_TOKENS = 8
PROMPT = torch.randint(4, VOCAB_SIZE, (1, 9), generator=torch.Generator().manual_seed(4))
OFFLOADED = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.layers.3": "cpu",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}
needs_bitsandbytes = pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs uld_hf[quant]")
FORMS = {
    "bfloat16": lambda folder: {"dtype": torch.bfloat16},
    "4-bit": lambda folder: {
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        "dtype": torch.float32,
    },
    "8-bit": lambda folder: {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "dtype": torch.float32},
    "offloaded": lambda folder: {"device_map": OFFLOADED, "offload_folder": folder / "offload"},
}


@pytest.fixture(
    params=[pytest.param(form, marks=[needs_bitsandbytes] if "bit" in form[1:] else []) for form in FORMS],
)
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], PreTrainedModel]:
    """A function that loads the same target in one of the forms."""
    tiny_model("llama", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path)
    return lambda: AutoModelForCausalLM.from_pretrained(tmp_path, **FORMS[request.param](tmp_path)).eval()


def generate(model: PreTrainedModel) -> torch.Tensor:
    return model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )


@torch.no_grad()
def plain(target: PreTrainedModel, assistant: PreTrainedModel) -> torch.Tensor:
    """Greedy text by the definition: no cache, a model each that has nothing to do with the other."""
    text = PROMPT
    for _ in range(NEW_TOKENS):
        parts = [model(text, use_cache=False).logits[:, -1] for model in (target, assistant)]
        token = logit_difference(parts[0], parts[1:], [1.0], relative_top=0.0, clamp=False).argmax(dim=-1, keepdim=True)
        text = torch.cat([text, token], dim=-1)
    return text


def compose(target: PreTrainedModel) -> ULDForCausalLM:
    assistant = train_like(build_assistant(target, 2))
    return ULDForCausalLM(target=target, assistant=assistant, alpha=1.0, relative_top=0.0, clamp=False)


def test_text_is_that_of_two_models_loaded_apart(load):
    expected = plain(load(), train_like(build_assistant(load(), 2)).eval())
    assert torch.equal(generate(compose(load())), expected)


def test_the_assistant_running_first_does_not_change_the_target(load):
    target, untouched = load(), load()
    assistant = build_assistant(target, 2).eval()
    with torch.no_grad():
        assistant(PROMPT)
        assert torch.equal(target(PROMPT).logits, untouched(PROMPT).logits)


def test_saved_and_loaded_onto_a_target_that_has_run(load, tmp_path):
    model = compose(load())
    expected = generate(model)
    model.save_pretrained(tmp_path / "unlearned")
    assert torch.equal(generate(ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=model.target)), expected)
    assert torch.equal(generate(ULDForCausalLM.from_pretrained(tmp_path / "unlearned", target=load())), expected)


@needs_bitsandbytes
def test_four_bit_weights_are_shared(tmp_path):
    tiny_model("llama", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path)
    target = AutoModelForCausalLM.from_pretrained(tmp_path, **FORMS["4-bit"](tmp_path))
    assistant = build_assistant(target, 2)
    own = {parameter.data_ptr() for parameter in target.parameters()}
    assert all(p.data_ptr() in own for name, p in assistant.named_parameters() if "lora_" not in name)


def test_what_is_offloaded_is_not_copied(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    target = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=OFFLOADED, offload_folder=tmp_path / "offload")
    offloaded = target.model.layers[1].mlp.up_proj._hf_hook.weights_map
    assert shared_with(target)[id(offloaded)] is offloaded
    assistant = build_assistant(target, 2).get_base_model()
    assert assistant.model.layers[1].mlp.up_proj.base_layer._hf_hook.weights_map is offloaded
    assert not any(parameter.is_meta for name, parameter in assistant.named_parameters() if "lora_" in name)


HEADS = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "soft-capped": ("gemma2", {"final_logit_softcapping": 2.0}),
    "scaled": ("cohere", {"logit_scale": 0.25}),
    "divided": ("granite", {"logits_scaling": 4.0}),
}


@pytest.mark.parametrize("execution", ["two passes", "lockstep", "blocks"])
@pytest.mark.parametrize("head", HEADS)
def test_heads_that_do_more_than_multiply(head: str, execution: str):
    family, settings = HEADS[head]

    def build() -> PreTrainedModel:
        config = any_config(family)
        config.update(settings)
        return randomize(AutoModelForCausalLM.from_config(config))

    target = build()
    tied = target.get_output_embeddings().weight is target.get_input_embeddings().weight
    assert tied == target.config.tie_word_embeddings
    with torch.no_grad():
        changed = target(PROMPT).logits
        assert not torch.equal(changed, randomize(any_model(family))(PROMPT).logits) or head == "untied"
    model = compose(target)
    model.execution = execution
    assert torch.equal(generate(model), plain(build(), train_like(build_assistant(build(), 2)).eval()))


@pytest.mark.parametrize("execution", ["two passes", "lockstep", "blocks"])
def test_a_vocabulary_padded_to_a_round_number(execution: str):
    def build() -> PreTrainedModel:
        target = tiny_model("llama")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            target.resize_token_embeddings(VOCAB_SIZE, pad_to_multiple_of=80)
        return target

    model = compose(build())
    model.execution = execution
    assert model(PROMPT).logits.shape[-1] == model.config.get_text_config().vocab_size == 80
    assert torch.equal(generate(model), plain(build(), train_like(build_assistant(build(), 2)).eval()))


def test_rows_that_pad_the_vocabulary_stay_impossible():
    target = tiny_model("llama")
    with torch.no_grad():
        target.lm_head.weight[-4:] = 0
    target.lm_head.register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, torch.arange(VOCAB_SIZE - 4, VOCAB_SIZE), -torch.inf)
    )
    logits = compose(target)(PROMPT).logits
    assert (logits[..., -4:] == -torch.inf).all()
    assert logits[..., :-4].isfinite().all()


@pytest.mark.slow
def test_two_tensor_parallel_processes_write_the_same_text(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    target = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = compose(target)
    model.add_assistant(train_like(build_assistant(target, 2), seed=5), name="other")
    model.save_pretrained(tmp_path / "unlearned")
    script = tmp_path / "generate.py"
    script.write_text(
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "from uld_hf import ULDForCausalLM\n"
        "torch.distributed.init_process_group('gloo')\n"
        "target = AutoModelForCausalLM.from_pretrained(sys.argv[1], tp_plan='auto')\n"
        "assert type(target.lm_head.weight).__name__ == 'DTensor'\n"
        "model = ULDForCausalLM.from_pretrained(sys.argv[1] + '/unlearned', target=target)\n"
        "prompt = torch.load(sys.argv[1] + '/prompt.pt')\n"
        "text = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False,\n"
        "                      eos_token_id=None)\n"
        "torch.save(text, f'{sys.argv[1]}/text{torch.distributed.get_rank()}.pt')\n"
    )
    torch.save(PROMPT, tmp_path / "prompt.pt")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*launch, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"text{rank}.pt"), generate(model))
