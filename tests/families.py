"""Tiny random models of several families, a tokenizer for them, and assistants as if trained."""

from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)


# Plain rotary; query and key norms; sliding windows, scaled embeddings and a tied head; learned positions and Conv1D.
FAMILIES = ("llama", "qwen3", "gemma3", "gpt2")
VOCAB_SIZE = 64
PAD, BOS, EOS, UNK = range(4)


def tiny_config(family: str, num_layers: int = 4, **overrides: Any) -> PreTrainedConfig:
    """Configuration of a tiny model; `overrides` are in the family's own names."""
    tokens = {"vocab_size": VOCAB_SIZE, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if family == "gpt2":
        gpt2 = {"n_embd": 32, "n_layer": num_layers, "n_head": 4, "n_positions": 128}
        return GPT2Config(**(tokens | gpt2 | overrides))
    common = tokens | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    if family == "llama":
        return LlamaConfig(**(common | overrides))
    if family == "qwen3":
        return Qwen3Config(**(common | overrides))
    if family == "gemma3":
        # The third of every four layers is global, so that two layers and four differ in kind as well as in number.
        layer_types = ["full_attention" if i % 4 == 2 else "sliding_attention" for i in range(num_layers)]
        return Gemma3TextConfig(**(common | {"sliding_window": 8, "layer_types": layer_types} | overrides))
    raise ValueError(f"Unknown family {family!r}: use one of {FAMILIES}.")


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Give a model random weights in place, in which every layer and position counts: its greedy output varies."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms and biases stay around what they begin with: a random norm would silence the layer behind it.
            start = parameter if parameter.dim() == 1 else torch.zeros_like(parameter)
            parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator))
        if model.config.model_type.startswith("gemma"):
            # Its embeddings are scaled by sqrt(32) and are the head too: it would say the same word over and over.
            model.get_input_embeddings().weight.div_(32**0.5)
            model.get_decoder().norm.weight.add_(5)
    return model.eval()


def tiny_model(family: str, num_layers: int = 4, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny model with the random weights of [`randomize`]."""
    return randomize(AutoModelForCausalLM.from_config(tiny_config(family, num_layers, **overrides)), seed)


def train_like(assistant: PeftModel, seed: int = 1) -> PeftModel:
    """Give LoRA random weights in place, as if the assistant had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in assistant.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return assistant


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: `<pad> <s> </s> <unk> w0 w1 ... w59`, ids in this order."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCAB_SIZE - 4))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
