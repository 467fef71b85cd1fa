"""The same training in other number formats: on a 4-bit base, in bfloat16, and what of it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils
from datasets import Dataset
from families import make_tokenizer, tiny_model
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from test_trainer import DESCENT, FORGET, PLAIN, assert_same_weights, logged, lora_weights, make_trainer
from test_trainer import descend as descend_fast
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available
from trl import pack_dataset

from uld_hf import ULDForCausalLM, ULDTrainer
from uld_hf.assistant import load_truncated_model


needs_bitsandbytes = pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs uld_hf[quant]")
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_quant_type": "nf4"}
SMALL_STEPS = {"learning_rate": 0.01}  # so small that rounding does not send it elsewhere


def descend(*args: Any, **settings: Any) -> ULDTrainer:
    """Plain gradient descent in small steps."""
    return descend_fast(*args, **settings, **SMALL_STEPS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama of 6 layers in many shards, and its tokenizer."""
    path = tmp_path_factory.mktemp("target")
    # bitsandbytes wants multiples of 64
    tiny_model("llama", num_layers=6, hidden_size=64, head_dim=16, num_key_value_heads=4).save_pretrained(
        path, max_shard_size="20KB"
    )
    make_tokenizer().save_pretrained(path)
    return path


# What is read


class CountedSlice:
    """A tensor in a safetensors file that notes how many bytes of it are read."""

    def __init__(self, tensor: Any, read: list[int]):
        self.tensor, self.read = tensor, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    def __getitem__(self, key: Any) -> torch.Tensor:
        part = self.tensor[key]
        self.read.append(part.numel() * part.element_size())
        return part


class CountedFile:
    """A safetensors file of [`CountedSlice`]s."""

    def __init__(self, file: Any, read: list[int]):
        self.file, self.read = file, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "CountedFile":
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def get_slice(self, name: str) -> CountedSlice:
        return CountedSlice(self.file.get_slice(name), self.read)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of tensors that transformers reads from safetensors files."""
    counts: list[int] = []
    monkeypatch.setattr(
        transformers.modeling_utils,
        "safe_open",
        lambda *args, **kwargs: CountedFile(safe_open(*args, **kwargs), counts),
    )
    return counts


def stored_bytes(folder: Path, layers: int) -> int:
    """Bytes of a sharded checkpoint's first layers, and of all that is in no layer."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    wanted = [name for name in index if "layers." not in name or int(name.split("layers.")[1].split(".")[0]) < layers]
    tensors = {shard: load_file(folder / shard) for shard in set(index.values())}
    return sum(tensors[index[name]][name].nbytes for name in wanted)


def test_the_checkpoint_has_many_shards(folder: Path):
    assert len(list(folder.glob("model-*.safetensors"))) > 10


def test_bytes_of_the_first_layers_are_read_and_no_others(folder: Path, read: list[int]):
    load_truncated_model(str(folder), 2)
    assert sum(read) == stored_bytes(folder, 2)


def test_the_trainer_reads_the_first_layers_only(folder: Path, tmp_path: Path, read: list[int]):
    make_trainer(tmp_path, str(folder))
    assert sum(read) == stored_bytes(folder, 2) < 0.5 * stored_bytes(folder, 6)


def test_a_whole_target_is_read_whole(folder: Path, read: list[int]):
    AutoModelForCausalLM.from_pretrained(folder)
    assert sum(read) == stored_bytes(folder, 6)


def test_weights_of_other_layers_need_not_be_there(folder: Path, tmp_path: Path):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    upper = {f"layers.{layer}." for layer in range(2, 6)}
    kept = {shard for name, shard in index["weight_map"].items() if not any(part in name for part in upper)}
    for path in folder.iterdir():
        if path.suffix != ".safetensors" or path.name in kept:
            (tmp_path / path.name).write_bytes(path.read_bytes())
        else:  # a header that says where tensors are, and nothing there
            header = path.read_bytes()[: 8 + int.from_bytes(path.read_bytes()[:8], "little")]
            with (tmp_path / path.name).open("wb") as file:
                file.write(header)
                file.truncate(path.stat().st_size)
    input_ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        actual = load_truncated_model(str(tmp_path), 2)(input_ids).logits
        assert torch.equal(actual, load_truncated_model(str(folder), 2)(input_ids).logits)


# QLoRA


def dequantized(folder: Path) -> PreTrainedModel:
    """A plain model whose weights are those that the 4-bit model stands for."""
    from bitsandbytes.functional import dequantize_4bit

    quantized = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**FOUR_BITS))
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = dict(model.named_modules())
    with torch.no_grad():
        for name, module in quantized.named_modules():
            if isinstance(module, nn.Linear) and "lm_head" not in name:
                layers[name].weight.copy_(dequantize_4bit(module.weight.data, module.weight.quant_state))
    return model


@pytest.fixture(scope="module")
def qlora(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ULDTrainer:
    """An assistant trained on a 4-bit base, saved."""
    if not is_bitsandbytes_available():
        pytest.skip("needs uld_hf[quant]")
    quantization = {"quantization_config": BitsAndBytesConfig(**FOUR_BITS)}
    trainer = descend(tmp_path_factory.mktemp("out"), str(folder), model_init_kwargs=quantization)
    trainer.save_model()
    return trainer


def test_qlora_trains_on_a_4_bit_base(qlora: ULDTrainer):
    from bitsandbytes.nn import Linear4bit

    layer = qlora.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert isinstance(layer, Linear4bit)
    assert layer.weight.dtype == torch.uint8


def test_qlora_has_the_losses_of_the_weights_that_it_stands_for(qlora: ULDTrainer, folder: Path, tmp_path: Path):
    plain = descend(tmp_path, dequantized(folder))
    for name in ("loss", "forget_loss", "retain_kl"):
        assert logged(qlora, name) == pytest.approx(logged(plain, name), rel=2e-2, abs=2e-2)


def assert_near(trainer: ULDTrainer, plain: ULDTrainer) -> None:
    """The LoRA of a 4-bit base, which trl holds in bfloat16, is that of the weights that it stands for."""
    expected = lora_weights(plain)
    for name, weight in lora_weights(trainer).items():
        assert (weight.float() - expected[name]).norm() < 0.05 * expected[name].norm()


def test_qlora_ends_near_the_lora_of_the_weights_that_it_stands_for(qlora: ULDTrainer, folder: Path, tmp_path: Path):
    assert_near(qlora, descend(tmp_path, dequantized(folder)))


def test_assistant_of_a_4_bit_base_fits_the_4_bit_target(qlora: ULDTrainer, folder: Path):
    quantization = BitsAndBytesConfig(**FOUR_BITS)
    target = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization)
    model = ULDForCausalLM.from_pretrained(qlora.args.output_dir, target=target)
    input_ids = torch.arange(4, 14)[None]
    with torch.no_grad():
        assert not torch.allclose(model(input_ids).logits, target(input_ids).logits, atol=1e-2)


def test_an_evaluation_pass_before_training_changes_nothing(qlora: ULDTrainer, folder: Path, tmp_path: Path):
    # bitsandbytes would pack the weights of an evaluation pass in a form without gradients, on some CPUs.
    quantization = {"quantization_config": BitsAndBytesConfig(**FOUR_BITS)}
    trainer = make_trainer(tmp_path, str(folder), model_init_kwargs=quantization, **DESCENT, **SMALL_STEPS)
    before = trainer.evaluate(FORGET)["eval_loss"]
    trainer.train()
    assert before == pytest.approx(logged(qlora, "loss")[0], rel=0.1)
    assert_same_weights(lora_weights(trainer), lora_weights(qlora))
    assert_near(trainer, descend(tmp_path, dequantized(folder)))


@needs_bitsandbytes
def test_a_4_bit_target_that_has_answered_is_refused_where_it_was_packed(folder: Path, tmp_path: Path):
    quantization = BitsAndBytesConfig(**FOUR_BITS)
    target = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization)
    with torch.no_grad():
        target(input_ids=torch.arange(4, 14)[None])
    layer = target.model.layers[0].self_attn.q_proj
    if not vars(layer.weight.quant_state).get("packing_format_for_cpu", False):
        pytest.skip("bitsandbytes packs weights on CPUs with AVX512-BF16 only")
    with pytest.raises(ValueError, match="The target has answered already, and bitsandbytes then packed"):
        make_trainer(tmp_path, target)


# Packing


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_a_packed_set_is_refused_with_the_reason(tmp_path: Path, name: str):
    rows = Dataset.from_dict({"input_ids": [[4, 5, 6], [7, 8], [9, 10, 11]]})
    packed = pack_dataset(rows, seq_length=8, strategy="bfd")
    assert packed["seq_lengths"][0] == [3, 3, 2]
    with pytest.raises(ValueError, match=f"{name}_dataset is packed .*a ratio that rows of many rows would not keep"):
        make_trainer(tmp_path, **{name: packed})


# bfloat16


@pytest.fixture(scope="module")
def float32(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ULDTrainer:
    """A training in float32."""
    return descend(tmp_path_factory.mktemp("out"), str(folder))


@pytest.mark.parametrize("weights", [None, torch.bfloat16], ids=["float32-weights", "bfloat16-weights"])
def test_losses_in_bfloat16_are_those_of_float32(float32: ULDTrainer, folder: Path, tmp_path: Path, weights: Any):
    settings = {} if weights is None else {"model_init_kwargs": {"dtype": weights}}
    trainer = descend(tmp_path, str(folder), bf16=True, **settings)
    assert trainer.model.get_input_embeddings().weight.dtype == (weights or torch.float32)
    assert {weight.dtype for weight in lora_weights(trainer).values()} == {torch.float32}
    for name in ("loss", "forget_loss", "retain_kl"):
        assert logged(trainer, name) == pytest.approx(logged(float32, name), rel=2e-2, abs=2e-2)


def test_weights_trained_in_bfloat16_are_near_those_of_float32(float32: ULDTrainer, folder: Path, tmp_path: Path):
    expected = lora_weights(float32)
    for name, weight in lora_weights(descend(tmp_path, str(folder), bf16=True)).items():
        assert (weight - expected[name]).norm() < 0.15 * expected[name].norm()


def test_accumulation_and_checkpointing_in_bfloat16_leave_the_losses_alone(
    float32: ULDTrainer, folder: Path, tmp_path: Path
):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "activation_checkpointing": True}
    trainer = descend(tmp_path, str(folder), bf16=True, **settings)
    assert logged(trainer, "loss") == pytest.approx(logged(float32, "loss"), rel=2e-2)


# Dropout aside, what is left out of the graph


def test_nothing_below_the_first_lora_is_kept_for_the_backward_pass(folder: Path, tmp_path: Path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=r".*layers\.1\..*proj")
    trainer = make_trainer(tmp_path, str(folder), peft_config=lora)
    states = []
    layers = trainer.model.get_base_model().model.layers
    for layer in layers[:2]:
        layer.register_forward_hook(lambda module, args, output: states.append(output))
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert [state.requires_grad for state in states] == [False, True]


def test_plain_batches_give_the_same_assistant_from_a_folder(float32: ULDTrainer, folder: Path, tmp_path: Path):
    trainer = descend(tmp_path, str(folder), **PLAIN)
    assert_same_weights(lora_weights(trainer), lora_weights(float32), rtol=1e-3, atol=1e-5)
