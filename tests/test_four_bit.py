"""Training on a 4-bit base: its gradients are those of the same weights in float32, on every CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from uld_hf import ULDConfig, ULDTrainer
from uld_hf.assistant import lora_weights


bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs uld_hf[quant]")

FOUR_BITS = {
    "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    "dtype": torch.float32,
}
ROWS = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{i + 9} w{i + 11}"} for i in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved target whose matrices are whole blocks of 64 values."""
    tiny_model("llama", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path / "target")
    make_tokenizer().save_pretrained(tmp_path / "target")
    return tmp_path


def make_trainer(folder: Path, model: Any, **more: Any) -> ULDTrainer:
    settings = {
        "num_assistant_layers": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "warmup_steps": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return ULDTrainer(
        model,
        ULDConfig(str(folder / "out"), **{**settings, **more}),
        forget_dataset=Dataset.from_list(ROWS[:4]),
        retain_dataset=Dataset.from_list(ROWS[4:]),
        processing_class=make_tokenizer(),
    )


def unquantized(folder: Path) -> torch.nn.Module:
    """The same target with ordinary layers, their weights rounded to what the 4-bit ones stand for."""
    quantized = AutoModelForCausalLM.from_pretrained(folder / "target", **FOUR_BITS)
    plain = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32)
    for name, module in quantized.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight.float()
    return plain


def test_training_is_that_of_the_same_weights_in_float32(folder: Path):
    trainers = [
        make_trainer(folder, str(folder / "target"), model_init_kwargs=FOUR_BITS),
        make_trainer(folder, unquantized(folder)),
    ]
    for trainer in trainers:
        trainer.train()
    weights, expected = (lora_weights(trainer.model) for trainer in trainers)
    moved = [name for name, value in expected.items() if "lora_B" in name and value.abs().max() > 1e-5]
    assert len(moved) == 14  # seven matrices of each of two layers
    for name, value in expected.items():
        # trl keeps the LoRA of a quantized base in bfloat16.
        assert (weights[name].float() - value).norm() < 0.02 * value.norm(), name


def test_a_target_whose_weights_were_packed_is_refused(folder: Path):
    target = AutoModelForCausalLM.from_pretrained(folder / "target", **FOUR_BITS)
    # What the first answer does where the CPU has AVX512-BF16.
    target.model.layers[0].self_attn.q_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="load it anew and train before it generates"):
        make_trainer(folder, target)
