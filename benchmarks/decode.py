"""Decoding an unlearned model, beside its target alone and beside what the released code does, in one run.

    python benchmarks/decode.py                                         # two CPU cores: 16 layers of width 512
    python benchmarks/decode.py --shape 1b --dtype bfloat16             # a GPU
    python benchmarks/decode.py --shape 8b --dtype bfloat16 --compile   # a GPU, static caches and compiled steps

Weights are random. What a text has to do with the forget set is set by `alpha`: next to nothing ("unrelated": target
and unlearned model choose the same tokens) or so much that they hardly ever do ("forgotten"). Modes take turns, so that
what else the machine does falls on all of them; figures are medians over the turns, with quartiles.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    Cache,
    CompileConfig,
    DynamicCache,
    LlamaConfig,
    PreTrainedModel,
    StaticCache,
    StoppingCriteria,
)

from uld_hf import ULDForCausalLM, ULDLogitsProcessor, __version__, build_assistant, logit_difference
from uld_hf.cache_name import CACHE


ALPHAS = {"unrelated": 1e-4, "forgotten": 8.0}


def shape(
    layers: int, width: int, inner: int, heads: int, key_value_heads: int, vocab_size: int, tied: bool = True
) -> dict[str, object]:
    """Options of a LlamaConfig."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
    }


SHAPES = {
    "tiny": shape(4, 64, 256, 4, 4, 1000),  # to try this script
    "small": shape(16, 512, 2048, 8, 8, 32000),
    "1b": shape(16, 2048, 8192, 32, 8, 128256),  # Llama 3.2 1B
    "8b": shape(32, 4096, 14336, 32, 8, 128256, tied=False),  # Llama 3.1 8B
}


def build(args: argparse.Namespace) -> tuple[PreTrainedModel, ULDForCausalLM, PreTrainedModel]:
    """Target, unlearned model (K/N = 1/4), and a merged copy of the assistant with tensors of its own."""
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        **SHAPES[args.shape],
        max_position_embeddings=4096,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device(args.device):
        target = AutoModelForCausalLM.from_config(config, dtype=args.dtype).eval()
    assistant = build_assistant(target, config.num_hidden_layers // 4)
    for name, parameter in assistant.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.02)
    model = ULDForCausalLM(target=target, assistant=assistant, relative_top=0.0)
    merged: PeftModel = copy.deepcopy(assistant)  # deepcopy without a memo: tensors of its own
    return target, model, merged.merge_and_unload()


def released_way(
    target: PreTrainedModel, merged: PreTrainedModel, alpha: float, compiled: bool
) -> Callable[..., torch.Tensor]:
    """Greedy decoding with a second model and a second cache, by hand: nothing of `generate()`'s own cost."""
    pair = (target, merged)
    steps = [torch.compile(model.__call__, mode="reduce-overhead") if compiled else model for model in pair]

    @torch.no_grad()
    def generate(input_ids: torch.Tensor, max_new_tokens: int, clock: "Clock") -> torch.Tensor:
        length = input_ids.shape[1]
        caches = [
            StaticCache(config=model.config, max_cache_len=length + max_new_tokens)
            if compiled
            else DynamicCache(config=model.config)
            for model in pair
        ]
        fed, run = input_ids, pair
        for position in range(max_new_tokens):
            begin = 0 if position == 0 else length + position - 1
            positions = torch.arange(begin, length + position, device=input_ids.device)[None]
            first, second = (
                step(input_ids=fed, position_ids=positions, use_cache=True, logits_to_keep=1, **{CACHE: cache})
                .logits[:, -1]
                .clone()  # a compiled step writes over its last result
                for step, cache in zip(run, caches, strict=True)
            )
            fed, run = logit_difference(first, [second], [alpha], relative_top=0.0).argmax(-1, keepdim=True), steps
            input_ids = torch.cat([input_ids, fed], dim=-1)
            clock(input_ids, None)
        return input_ids

    return generate


def modes(
    target: PreTrainedModel, model: ULDForCausalLM, merged: PreTrainedModel, alpha: float, compiled: bool
) -> dict[str, Callable[..., torch.Tensor]]:
    """Every way to decode: from prompts and a number of tokens to the text."""
    static: dict[str, object] = {}
    if compiled:
        compile_config = CompileConfig()
        compile_config._compile_all_devices = True  # on a CPU too, to try it
        static = {"cache_implementation": "static", "compile_config": compile_config}

    def stock(decoder: PreTrainedModel, execution: str | None = None, **options: object) -> Callable[..., torch.Tensor]:
        def generate(input_ids: torch.Tensor, max_new_tokens: int, clock: Clock) -> torch.Tensor:
            if execution is not None:
                model.execution, model.config.alpha = execution, alpha
            return decoder.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[clock],
                **static,
                **options,
            )

        return generate

    def processor(input_ids: torch.Tensor, max_new_tokens: int, clock: Clock) -> torch.Tensor:
        subtract = ULDLogitsProcessor(
            model.assistant, alpha, relative_top=0.0, attention_mask=torch.ones_like(input_ids)
        )
        return stock(target, logits_processor=[subtract])(input_ids, max_new_tokens, clock)

    generators = {
        "target": stock(target),
        "separate copy": released_way(target, merged, alpha, compiled),
        "two passes": stock(model, "two passes"),
        "lockstep": stock(model, "lockstep"),
        "blocks": stock(model, "blocks"),
        "processor": processor,
    }
    if compiled:
        del generators["blocks"]  # needs a growing cache: with a static one it is lockstep
    return generators


class Clock(StoppingCriteria):
    """Notes when a generation began, had its first token, and was over; between these a GPU is not waited for."""

    def __init__(self, cuda: bool):
        self.cuda = cuda
        self.start = self.now()
        self.first = 0.0

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs: object) -> torch.Tensor:
        self.first = self.first or self.now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def measure(
    generators: dict[str, Callable[..., torch.Tensor]], input_ids: torch.Tensor, new_tokens: int, turns: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of prefill (with the first token) and per further token, beside the target's of the same turn."""
    prefill: dict[str, list[float]] = {name: [] for name in generators}
    decode: dict[str, list[float]] = {name: [] for name in generators}
    for turn in range(-1, turns):  # the first is for warming up and compiling
        for name, generate in generators.items():
            clock = Clock(input_ids.is_cuda)
            generate(input_ids, 1 + new_tokens, clock)
            end = clock.now()
            if turn >= 0:
                prefill[name].append(1000 * (clock.first - clock.start))
                decode[name].append(1000 * (end - clock.first) / new_tokens)
    results = {}
    for name in generators:
        ratios = [ours / target for ours, target in zip(decode[name], decode["target"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        results[name] = {
            "prefill_ms": round(statistics.median(prefill[name]), 2),
            "decode_ms_per_token": round(statistics.median(decode[name]), 3),
            "decode_ratio_to_target": round(statistics.median(ratios), 3),
            "decode_ratio_quartiles": [round(low, 3), round(high, 3)],
            "prefill_ratio_to_target": round(
                statistics.median(prefill[name]) / statistics.median(prefill["target"]), 3
            ),
        }
    return results


def tensor_bytes(model: torch.nn.Module) -> dict[int, int]:
    """Bytes of every tensor that a model holds, by where it lies."""
    return {
        tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())
    }


def cache_bytes(cache: Cache) -> int:
    """Bytes of a cache's keys and values."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


@torch.no_grad()
def memory(target: PreTrainedModel, model: ULDForCausalLM, merged: PreTrainedModel, input_ids: torch.Tensor) -> dict:
    """Bytes held above the target's own: parameters, and caches of these prompts."""
    own = tensor_bytes(target)

    def above(module: torch.nn.Module) -> int:
        return sum(size for at, size in tensor_bytes(module).items() if at not in own)

    caches = {
        name: cache_bytes(module(input_ids, use_cache=True, logits_to_keep=1)[CACHE])
        for name, module in (("target", target), ("uld", model), ("merged", merged))
    }
    lora = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)
    return {
        "target_parameters": sum(own.values()),
        "lora_parameters": lora,
        "uld_parameters_above_target": above(model),
        "separate_copy_parameters_above_target": above(merged),
        "target_cache": caches["target"],
        "uld_cache_above_target": caches["uld"] - caches["target"],
        "separate_copy_cache_above_target": caches["merged"],
    }


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt_lengths", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--texts", choices=ALPHAS, nargs="+", default=list(ALPHAS))
    parser.add_argument("--new_tokens", type=int, default=48)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="static caches and compiled steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/decode.json"))
    args = parser.parse_args()
    if args.turns < 2:
        parser.error(f"--turns {args.turns}: quartiles need 2 or more")

    target, model, merged = build(args)
    runs = []
    for batch_size in args.batch_sizes:
        for length in args.prompt_lengths:
            input_ids = torch.randint(1, target.config.vocab_size, (batch_size, length), device=args.device)
            held = memory(target, model, merged, input_ids)
            for text, alpha in ((name, ALPHAS[name]) for name in args.texts):
                # Every batch size, length, alpha and execution is a graph: together they exceed what dynamo keeps.
                torch.compiler.reset()
                for compiled in (target, model):
                    vars(compiled).pop("_compiled_call", None)
                results = measure(
                    modes(target, model, merged, alpha, args.compile), input_ids, args.new_tokens, args.turns
                )
                runs.append(
                    {"batch_size": batch_size, "prompt_length": length, "text": text, "modes": results, "bytes": held}
                )
                print(f"\nbatch {batch_size}, prompt {length}, {text} text: ms per token, ratio to target [quartiles]")
                for name, row in results.items():
                    low, high = row["decode_ratio_quartiles"]
                    print(
                        f"  {name:<14} {row['decode_ms_per_token']:>8.2f}  {row['decode_ratio_to_target']:.2f} "
                        f"[{low:.2f}, {high:.2f}]   prefill {row['prefill_ms']:.0f} ms"
                    )
    report = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.cuda.get_device_name() if args.device == 'cuda' else 'no GPU'}",
        "threads": torch.get_num_threads(),
        "versions": {"uld_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: str(value) for name, value in vars(args).items()},
        "runs": runs,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nWritten to {args.output}")


if __name__ == "__main__":
    main()
