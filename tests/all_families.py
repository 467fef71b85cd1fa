"""Tiny random models of every family that the generation matrix covers."""

from typing import Any

import torch
from families import BOS, EOS, PAD, VOCAB_SIZE, randomize, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


SLIDING_WINDOW = 8  # smaller than the prompts, or nothing would slide
TOKENS = {"vocab_size": VOCAB_SIZE, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
HEADS = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 128}  # as many keys as queries
HEAD_DIM = {"head_dim": 8}
GPT = {"n_embd": 32, "n_head": 4, "n_positions": 128}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

# What each family's configuration needs besides TOKENS and the number of layers, in the family's own names.
ALL_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": DECODER | HEAD_DIM | {"sliding_window": SLIDING_WINDOW},
    "qwen2": DECODER,
    "qwen3": {},
    "gemma2": DECODER | HEAD_DIM | {"sliding_window": SLIDING_WINDOW, "query_pre_attn_scalar": 8},
    "gemma3": {},
    "phi3": DECODER,
    "gpt2": {},
    "gpt_neox": HEADS | {"intermediate_size": 64},
    "opt": HEADS | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "falcon": HEADS,
    "bloom": {"hidden_size": 32, "n_head": 4},
    "mixtral": DECODER | HEAD_DIM | LOCAL_EXPERTS,
    "qwen3_moe": DECODER | HEAD_DIM | MOE,
    "olmo2": DECODER,
    "cohere": DECODER,
    "granite": DECODER,
    "stablelm": DECODER,
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_oss": DECODER | HEAD_DIM | LOCAL_EXPERTS | {"sliding_window": SLIDING_WINDOW},
    "smollm3": DECODER,
    "qwen3_5_text": DECODER
    | HEAD_DIM
    | {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "full_attention_interval": 2,
    },
    "deepseek_v3": DECODER
    | MLA
    | {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}


def any_config(family: str, num_layers: int = 4) -> PreTrainedConfig:
    """Configuration of a tiny model of any family in [`ALL_FAMILIES`]."""
    if not ALL_FAMILIES[family]:
        return tiny_config(family, num_layers)
    layers = "n_layer" if family in ("bloom", "gptj") else "num_hidden_layers"
    return AutoConfig.for_model(family, **(TOKENS | ALL_FAMILIES[family] | {layers: num_layers}))


def any_model(family: str, num_layers: int = 4, seed: int = 0) -> PreTrainedModel:
    """A model with random weights of any family in [`ALL_FAMILIES`]: see [`families.randomize`]."""
    seed += (
        family == "qwen3_5_text"
    )  # with 0 the subtraction happens to change none of the few tokens that tests look at
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # gpt_oss draws its attention sinks when it is built
        model = AutoModelForCausalLM.from_config(any_config(family, num_layers))
    return randomize(model, seed)
