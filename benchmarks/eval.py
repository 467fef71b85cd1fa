"""Scoring answers in batches of like length, beside scoring them row by row, and a sweep beside one evaluation: how
many rows a second, and how much memory at the most for each setting of `max_batch_tokens`.

    python benchmarks/eval.py --tofu ../shared/data/tofu      # two CPU cores: 16 layers of width 512
    python benchmarks/eval.py --tofu ../shared/data/tofu --layers 16 --hidden_size 2048 --heads 32 --device cuda

Texts are TOFU's, weights are random. Modes take turns; figures are medians over the turns. Memory is what a pass takes
besides the model: on a GPU what torch allocated, on a CPU how much the process grew, in a turn of its own.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase

from uld_hf import ULDForCausalLM, __version__, build_assistant, load_tofu
from uld_hf.cli.demo import train_tokenizer
from uld_hf.data.formatting import PROMPT_TEMPLATE
from uld_hf.evaluation.encoding import encode
from uld_hf.evaluation.scoring import Subtraction, score_completions, score_subtractions


NUM_SETTINGS = 20


@torch.no_grad()
def row_by_row(
    model: ULDForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str], completions: list[str]
) -> list[float]:
    """The loss of every row, each in a forward pass of its own."""
    losses = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids, start = encode(tokenizer, prompt, completion)
        tokens = torch.tensor([ids], device=model.device)
        log_probs = model(tokens, use_cache=False).logits[0, start - 1 : -1].float().log_softmax(-1)
        losses.append(-log_probs.gather(-1, tokens[0, start:, None]).mean().item())
    return losses


class Memory:
    """Most memory that was in use within a context, above what was in use before, in bytes."""

    def __init__(self, device: str):
        self._is_cuda = device.startswith("cuda")
        self._stop = threading.Event()
        self.bytes = 0

    def _resident(self) -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, self._resident() - self._before)

    def __enter__(self) -> "Memory":
        gc.collect()
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # or memory that is free already would not count
            self._before = self._resident()
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        else:
            self._stop.set()
            self._thread.join()


def main() -> None:
    """Measure, print, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tofu", help="folder of TOFU's JSONL files; from the Hub if left out")
    parser.add_argument("--rows", type=int, default=20, help="questions, each with seven answers")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocab_size", type=int, default=32000, help="of the head; the tokenizer knows 4000")
    parser.add_argument("--max_batch_tokens", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/eval.json"))
    args = parser.parse_args()

    rows = load_tofu("forget10_perturbed", args.tofu).select(range(args.rows))
    tokenizer = train_tokenizer([text for row in rows for text in (row["question"], row["answer"])], vocab_size=4000)
    pairs = [
        (PROMPT_TEMPLATE.format(question=row["question"]), f" {answer}")
        for row in rows
        for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"])
    ]
    prompts, completions = map(list, zip(*pairs, strict=True))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        tie_word_embeddings=True,
    )
    target = AutoModelForCausalLM.from_config(config, dtype=args.dtype).to(args.device).eval()
    assistant = build_assistant(target, args.layers // 4)
    model = ULDForCausalLM(target=target, assistant=assistant, alpha=0.75)
    settings = [Subtraction(0.1 * (1 + index)) for index in range(NUM_SETTINGS)]

    modes: dict[str, Callable[[], object]] = {"row by row": lambda: row_by_row(model, tokenizer, prompts, completions)}
    for size in args.max_batch_tokens:
        modes[f"batches of {size} tokens"] = lambda size=size: score_completions(
            model, tokenizer, prompts, completions, size
        )
    modes[f"sweep of {NUM_SETTINGS} settings"] = lambda: score_subtractions(
        model, tokenizer, prompts, completions, settings, args.max_batch_tokens[-1]
    )
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    peaks: dict[str, int] = {}
    for name, run in modes.items():  # the first turn warms up, and shows the memory
        with Memory(args.device) as memory:
            run()
        peaks[name] = memory.bytes
    for _ in range(args.turns):
        for name, run in modes.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    results = {
        name: {
            "seconds": round(median, 2),
            "rows_per_second": round(len(pairs) / median, 1),
            "times_row_by_row": round(medians["row by row"] / median, 2),
            "spread_seconds": [round(min(seconds[name]), 2), round(max(seconds[name]), 2)],
            "peak_MiB_besides_the_model": round(peaks[name] / 2**20),
        }
        for name, median in medians.items()
    }
    for name, row in results.items():
        print(
            f"{name:<24}{row['rows_per_second']:>10} rows/s{row['times_row_by_row']:>8} times row by row"
            f"{row['peak_MiB_besides_the_model']:>8} MiB"
        )
    one = medians[f"batches of {args.max_batch_tokens[-1]} tokens"]
    ratio = round(medians[f"sweep of {NUM_SETTINGS} settings"] / one, 2)
    print(f"a sweep of {NUM_SETTINGS} settings takes {ratio} times one evaluation of as many rows")
    report = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"uld_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: str(value) for name, value in vars(args).items()},
        "rows": len(pairs),
        "results": results,
        "sweep_times_one_evaluation": ratio,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
