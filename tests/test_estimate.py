"""What `uld estimate` says, against what a training keeps, against arithmetic by hand, and against the benchmark."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from all_families import ALL_FAMILIES, any_config
from families import tiny_config
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, LlamaConfig, PreTrainedConfig

from uld_hf import ULDConfig
from uld_hf.assistant import add_lora, build_assistant, truncate_config
from uld_hf.cli.estimate import EstimateArguments
from uld_hf.cli.main import main as uld
from uld_hf.cli.train import TrainArguments
from uld_hf.training.estimate import (
    TrainingEstimate,
    build_without_memory,
    estimate_training,
    flat_inputs,
    recompute_layers,
    trace_layers,
    weight_bytes,
)
from uld_hf.training.padding_free import attention_by_row


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_traced_bytes_are_those_of_a_real_forward_pass(family: str, dtype: torch.dtype, checkpointing: bool):
    config = tiny_config(family)
    assistant = build_assistant(AutoModelForCausalLM.from_config(config, dtype=dtype), 2).train()
    traced = add_lora(build_without_memory(truncate_config(config, 2), dtype)).train()
    if checkpointing:
        recompute_layers(assistant)
        recompute_layers(traced)
    own = {weight.untyped_storage().data_ptr() for weight in (*assistant.parameters(), *assistant.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    base = assistant.get_base_model()
    with (
        attention_by_row(base),
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32),
    ):
        hidden = base.base_model(**flat_inputs(3, 12), use_cache=False).last_hidden_state
    expected = sum(storage.nbytes() for storage in kept.values())
    assert hidden.requires_grad
    assert trace_layers(traced, 3, 12, dtype)[0] == expected


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_operations_are_those_of_arithmetic_by_hand(checkpointing: bool):
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, vocab_size=500
    )
    rows, tokens, answers, rank = 4, 16, 10, 32
    layer = 4 * 128 * 128 + 3 * 128 * 256
    lora = rank * (4 * 2 * 128 + 3 * (128 + 256))
    # Forward, and the gradient of the input; LoRA's own gradients besides. Of the first layer's three projections of
    # the input nothing flows on.
    of_input = 3 * (128 * 128 + rank * 128)
    linear = 2 * rows * tokens * (2 * 2 * layer + 3 * 2 * lora - of_input)
    product = 2 * 2 * rows * 128 * tokens * tokens  # of all heads, in both layers
    attention = (2 + 5) * product  # two products, and five backward
    head = 4 * rows * answers * 500 * 128
    if checkpointing:
        # The forward pass again, but for each layer's last product, whose result nothing needs; and trl has gradients
        # flow to the embeddings.
        linear += 2 * rows * tokens * (2 * layer + 2 * (lora - rank * 128) + of_input)
        attention += 2 * product
    actual = estimate_training(
        config, 2, tokens, answers, rows_per_batch=rows, dtype=torch.float32, activation_checkpointing=checkpointing
    ).flops
    assert actual == pytest.approx(linear + attention + head, rel=0.01)


def test_recomputed_layers_are_kept_one_at_a_time():
    few, many = (
        estimate_training(LlamaConfig(**LLAMA_2_7B), layers, 64, activation_checkpointing=True) for layers in (4, 8)
    )
    assert many.recomputed_bytes == pytest.approx(few.recomputed_bytes, rel=0.02)
    kept = estimate_training(LlamaConfig(**LLAMA_2_7B), 8, 64)
    assert kept.recomputed_bytes == 0
    assert many.activation_bytes + 8 * many.recomputed_bytes == pytest.approx(kept.activation_bytes, rel=1e-6)
    # The states between layers, and what the final norm keeps.
    assert many.activation_bytes < 0.1 * kept.activation_bytes


def test_kept_products_are_counted():
    everything, products, nothing = (
        estimate_training(LlamaConfig(**LLAMA_2_7B), 8, 64, dtype=torch.float32, **checkpointing)
        for checkpointing in (
            {},
            {"activation_checkpointing": True, "keep_products": True},
            {"activation_checkpointing": True},
        )
    )
    # Numbers a token: queries, keys, values, attention and its output, gate, up, and the layer's output; LoRA's first
    # factors of seven projections; and the logarithms of attention's sums.
    numbers = 32 * 64 * (6 * 4096 + 2 * 11008 + 7 * 32 + 32)
    between_layers = nothing.activation_bytes
    assert products.activation_bytes - between_layers == pytest.approx(8 * 4 * numbers, rel=0.01)
    assert everything.flops < products.flops < 1.05 * everything.flops < nothing.flops
    assert products.bytes_above_weights < everything.bytes_above_weights


def test_products_of_layers_that_are_not_computed_again_are_refused():
    with pytest.raises(ValueError, match="keep_products=True has no effect"):
        estimate_training(LlamaConfig(**LLAMA_2_7B), 8, 64, keep_products=True)


def test_loaded_weights_are_those_of_the_first_layers():
    estimate = estimate_training(LlamaConfig(**LLAMA_2_7B), 8, 64)
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert estimate.weight_bytes == 2 * (8 * layer + 2 * 32000 * 4096 + 4096)
    assert estimate.target_bytes == 2 * (32 * layer + 2 * 32000 * 4096 + 4096)
    assert estimate.lora_bytes == 4 * 8 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))


def test_nothing_but_the_target_depends_on_its_number_of_layers():
    few, many = (
        estimate_training(LlamaConfig(**(LLAMA_2_7B | {"num_hidden_layers": layers})), 8, 64) for layers in (16, 80)
    )
    assert few.target_bytes < many.target_bytes
    assert (few.total_bytes, few.flops) == (many.total_bytes, many.flops)


def test_a_4_bit_target_is_held_in_a_third_of_the_memory():
    model = build_without_memory(truncate_config(LlamaConfig(**LLAMA_2_7B), 8), torch.bfloat16)
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    expected = 8 * layer * (0.5 + 4 / 64) + 2 * (8 * 2 * 4096 + 4096 + 2 * 32000 * 4096)
    assert weight_bytes(model, "4bit") == expected


@pytest.mark.parametrize(("quantization", "scales"), [("4bit", 4 / 64), ("8bit", 0)])
def test_products_of_gpt2_are_quantized_too(quantization: str, scales: float):
    model = build_without_memory(GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=96), torch.bfloat16)
    weights, outputs = 12 * 64**2, 64 * (3 + 1 + 4 + 1)
    bytes_per_weight, of_outputs = (0.5 + scales, 0) if quantization == "4bit" else (1, 4 * outputs)
    saved = weights * (2 - bytes_per_weight) - of_outputs
    assert weight_bytes(model, None) - weight_bytes(model, quantization) == saved


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("is_loaded", [False, True], ids=["from a file", "of a model"])
def test_the_form_in_which_a_target_was_saved_is_estimated(quantization: str, is_loaded: bool):
    expected = estimate_training(tiny_config("llama"), 2, 16, quantization=quantization)
    saved = BitsAndBytesConfig(**{f"load_in_{quantization}": True})
    config = tiny_config("llama")
    config.quantization_config = saved if is_loaded else saved.to_dict()
    assert estimate_training(config, 2, 16) == expected
    assert estimate_training(config, 2, 16, quantization=quantization) == expected
    assert expected.weight_bytes < estimate_training(tiny_config("llama"), 2, 16).weight_bytes


def test_another_form_than_the_saved_one_is_refused():
    config = tiny_config("llama")
    config.quantization_config = BitsAndBytesConfig(load_in_4bit=True).to_dict()
    with pytest.raises(ValueError, match="quantization='8bit' is not that of the target's weights, '4bit'"):
        estimate_training(config, 2, 16, quantization="8bit")


def test_weights_that_another_library_quantized_are_refused():
    config = tiny_config("llama")
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(NotImplementedError, match=r"quantized with 'gptq'.*Take quantization_config out"):
        estimate_training(config, 2, 16)


@pytest.mark.parametrize("family", [family for family in ALL_FAMILIES if family not in EXPERTS])
def test_every_dense_family_can_be_estimated(family: str):
    # Of hybrids the first layer is no attention.
    depths = (2, 3) if family == "qwen3_5_text" else (1, 2)
    one, two = (estimate_training(any_config(family), layers, 16, rows_per_batch=4) for layers in depths)
    assert 0 < one.activation_bytes < two.activation_bytes
    assert 0 < one.flops < two.flops


@pytest.mark.parametrize("family", EXPERTS)
def test_a_mixture_of_experts_is_refused(family: str):
    with pytest.raises(NotImplementedError, match=r"is a mixture of experts.*the weights of all experts are held"):
        estimate_training(any_config(family), 2, 16)


@pytest.mark.parametrize(("num_epochs", "num_steps"), [(0.5, 7), (1.5, 20), (2.5, 33), (10, 130)])
def test_steps_of_part_of_an_epoch_are_those_of_trainer(num_epochs: float, num_steps: int):
    config = tiny_config("llama")
    estimate = estimate_training(config, 2, 16, rows_per_batch=32, num_rows=400, num_epochs=num_epochs)
    assert estimate.num_steps == num_steps


def test_time_is_that_of_all_steps():
    config = tiny_config("llama")
    estimate = estimate_training(config, 2, 16, rows_per_batch=8, num_rows=20, num_epochs=3)
    assert estimate.num_steps == 9
    assert estimate.seconds(2.0) == 9 * estimate.flops / 2e12


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tokens_per_row": 0}, "tokens_per_row=0 must be at least 1"),
        ({"answer_tokens_per_row": 17}, "answer_tokens_per_row=17 is more than tokens_per_row=16"),
        ({"rows_per_batch": 0}, "rows_per_batch=0 must be at least 1"),
        ({"quantization": "2bit"}, "quantization='2bit' must be"),
        ({"num_layers": 5}, "cannot have 5 layers"),
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_refused(changes: dict, match: str):
    with pytest.raises(ValueError, match=match):
        estimate_training(**({"config": tiny_config("llama"), "num_layers": 2, "tokens_per_row": 16} | changes))


# The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing but the configuration of Llama 2 7B."""
    LlamaConfig(**LLAMA_2_7B).save_pretrained(tmp_path)
    return tmp_path


def test_command_prints_the_estimate(folder: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--forget_rows", "100", "--tokens_per_row", "64", "--tflops", "100", "--answer_tokens_per_row", "40"]
    assert uld(["estimate", "--model", str(folder), *arguments]) == 0
    expected = estimate_training(LlamaConfig(**LLAMA_2_7B), 8, 64, 40, num_rows=200, num_epochs=10)
    printed = capsys.readouterr().out
    assert "computed again" not in printed
    assert f"{expected.total_bytes / 1e9:.2f} GB" in printed
    assert f"{expected.num_steps}\n" in printed
    assert f"{expected.seconds(100) / 60:.1f} min" in printed


@pytest.mark.parametrize("keep_products", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_command_prints_what_recomputing_saves(folder: Path, capsys: pytest.CaptureFixture[str], keep_products: bool):
    arguments = ["--tokens_per_row", "64", "--activation_checkpointing", *["--keep_products"] * keep_products]
    assert uld(["estimate", "--model", str(folder), *arguments]) == 0
    settings = {"activation_checkpointing": True, "keep_products": keep_products}
    expected = estimate_training(LlamaConfig(**LLAMA_2_7B), 8, 64, num_rows=400, **settings)
    printed = capsys.readouterr().out
    assert f"{expected.total_bytes / 1e9:.2f} GB" in printed
    assert f"{expected.recomputed_bytes / 1e9:.2f} GB" in printed


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--num_assistant_layers", "40"], "cannot have 40 layers: the target has 32"),
        (["--tflops", "0"], "tflops=0.0 must be above 0 and finite"),
        (["--tflops", "nan"], "tflops=nan must be above 0 and finite"),
        (["--num_train_epochs", "inf"], "num_train_epochs=inf must be above 0 and finite"),
        (["--forget_rows", "0"], "forget_rows=0 must be above 0"),
        (["--quantization", "3bit"], "quantization='3bit'"),
    ],
    ids=str,
)
def test_command_refuses_what_makes_no_sense(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], match: str
):
    assert uld(["estimate", "--model", str(folder), "--tokens_per_row", "64", *arguments]) == 2
    assert match in capsys.readouterr().err


def test_defaults_are_those_of_training():
    training = {each.name: each.default for config in (ULDConfig, TrainArguments) for each in fields(config)}
    ours = {each.name: each.default for each in fields(EstimateArguments)}
    # `None` is off in training.
    shared = ours.keys() & training.keys() - {"activation_checkpointing"}
    assert {name: ours[name] for name in shared} == {name: training[name] for name in shared}


# The benchmark


def benchmark(name: str, **checkpointing: bool) -> tuple[dict, TrainingEstimate]:
    """A committed result, and the estimate for the same training."""
    report = json.loads((RESULTS / name).read_text())
    config: PreTrainedConfig = LlamaConfig(**report["shape"])
    estimate = estimate_training(
        config,
        report["assistant_layers"],
        round(report["rows"]["mean_length"]),
        round(report["rows"]["mean_answer"]),
        rows_per_batch=2 * int(report["settings"]["batch_size"]),
        dtype=getattr(torch, report["settings"]["dtype"]),
        **checkpointing,
    )
    return report, estimate


CHECKPOINTING = {
    "ULD": {},
    "ULD, products kept": {"activation_checkpointing": True, "keep_products": True},
    "ULD, activation checkpointing": {"activation_checkpointing": True},
}


@pytest.mark.parametrize("method", CHECKPOINTING)
@pytest.mark.parametrize("shape", ["small_1b", "small_7b"])
def test_estimated_memory_is_that_of_the_benchmark(shape: str, method: str):
    report, estimate = benchmark(f"train_memory_{shape}_cpu.json", **CHECKPOINTING[method])
    measured = report["results"][method]["peak_bytes_above_weights"]
    # LoRA was loaded before the measurement began.
    assert estimate.bytes_above_weights - estimate.lora_bytes == pytest.approx(measured, rel=0.25)


def test_estimated_time_of_one_shape_tells_that_of_another():
    # The speed that two cores reach in one shape, used for the other.
    found = {}
    for shape in ("small_1b", "small_7b"):
        report, estimate = benchmark(f"train_step_{shape}_cpu.json")
        rows_per_step = 2 * int(report["settings"]["batch_size"])
        found[shape] = estimate.flops * report["results"]["ULD"]["rows_per_second"] / rows_per_step
    assert found["small_1b"] == pytest.approx(found["small_7b"], rel=0.25)


# The table in docs/training.md

MODELS = {  # layers, width, width of the MLP, heads, key-value heads, vocabulary, tied head
    "Llama 3.2 1B": (16, 2048, 8192, 32, 8, 128256, True),
    "Llama 3.2 3B": (28, 3072, 8192, 24, 8, 128256, True),
    "Llama 2 7B": (32, 4096, 11008, 32, 32, 32000, False),
    "Llama 3.1 8B": (32, 4096, 14336, 32, 8, 128256, False),
    "Llama 2 13B": (40, 5120, 13824, 40, 40, 32000, False),
    "Llama 3.1 70B": (80, 8192, 28672, 64, 8, 128256, False),
}


def docs_row(name: str) -> str:
    """A row of the table: 200 documents of 300 tokens and as many to keep, a quarter of the layers."""
    layers, width, mlp, heads, key_value_heads, vocab_size, tied = MODELS[name]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
    )
    plain, quantized, checkpointed = (
        estimate_training(
            config,
            layers // 4,
            300,
            rows_per_batch=8,
            gradient_accumulation_steps=4,
            num_rows=400,
            num_epochs=10,
            **more,
        )
        for more in ({}, {"quantization": "4bit"}, {"activation_checkpointing": True})
    )
    return (
        f"| {name} | {layers // 4} of {layers} | {plain.target_bytes / 1e9:.1f} | {plain.weight_bytes / 1e9:.1f} "
        f"| {plain.bytes_above_weights / 1e9:.1f} | {checkpointed.bytes_above_weights / 1e9:.1f} "
        f"| {plain.total_bytes / 1e9:.1f} "
        f"| {quantized.total_bytes / 1e9:.1f} | {plain.seconds(100) / 60:.0f} |"
    )


# Tracing takes the longer the more layers there are.
DEEP = ("Llama 3.2 3B", "Llama 2 7B", "Llama 2 13B", "Llama 3.1 8B", "Llama 3.1 70B")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in DEEP else []) for name in MODELS]
)
def test_table_in_the_docs_is_what_the_estimate_says(name: str):
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    table = page.split("<!-- estimates: begin -->")[1].split("<!-- estimates: end -->")[0]
    assert docs_row(name) in table.splitlines()
