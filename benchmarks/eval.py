"""Scoring TOFU's seven answers to each question: row by row, in batches, in batches with prompts run once, and a sweep
beside one evaluation. How many rows a second, how many tokens go through layers and head for it, and how much memory.
And whole evaluations, which score the seven and give an answer of their own to every question (for ROUGE).

    python benchmarks/eval.py --tofu ../shared/data/tofu      # CPU, minutes: 16 layers of width 512
    python benchmarks/eval.py --tofu ../shared/data/tofu --rows 400 --hidden_size 2048 --heads 32 --vocab_size 128256 \\
        --dtype bfloat16 --device cuda --max_batch_tokens 4096 16384 --output benchmarks/results/eval_gpu.json

Texts are TOFU's, weights are random; the smaller shape has the 1B's ratio of head to layers. Modes take turns; figures
are medians over the turns. Random weights end no answer: those that are given are as long as TOFU's own, row by row;
in batches all are as long as the longest. CPU time of the process is given too: it does not count what else the machine
does. Memory is what a pass takes besides the model: on a GPU what torch allocated, on a CPU how much the process grew.
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
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, Cache, LlamaConfig, PreTrainedTokenizerBase

from uld_hf import ULDForCausalLM, __version__, build_assistant, load_tofu
from uld_hf.cli.demo import train_tokenizer
from uld_hf.data.formatting import PROMPT_TEMPLATE
from uld_hf.evaluation import answer_logits
from uld_hf.evaluation.encoding import encode
from uld_hf.evaluation.scoring import Subtraction, score_completions, score_subtractions
from uld_hf.evaluation.tofu import generate_completions


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


def without_sharing(score: Callable[[], object]) -> None:
    """Score as if the model could not go on from the cache of a prompt."""
    can_share = answer_logits.can_share_prompts
    answer_logits.can_share_prompts = lambda model: False
    try:
        score()
    finally:
        answer_logits.can_share_prompts = can_share


class Work:
    """Counts the tokens that go through layers and head of a model."""

    def __init__(self, model: ULDForCausalLM):
        self._run = model._run
        model._run = self._count
        self.layers = self.head = 0

    def _count(
        self, cache: Cache | None, inputs: dict[str, Any], *args: Any
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        rows, length = inputs["input_ids"].shape
        self.layers += rows * length
        self.head += rows * (inputs["logits_to_keep"] or length)
        return self._run(cache, inputs, *args)


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


def rows_to_score(questions: Dataset) -> tuple[list[str], list[str]]:
    """Prompts and completions of the seven answers to each question."""
    pairs = [
        (PROMPT_TEMPLATE.format(question=row["question"]), f" {answer}")
        for row in questions
        for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"])
    ]
    return [prompt for prompt, _ in pairs], [completion for _, completion in pairs]


def whole_evaluation(
    model: ULDForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: Dataset, max_batch_tokens: int | None
) -> None:
    """Seven answers of every question scored and one given, in batches of so many tokens, or row by row."""
    prompts, completions = rows_to_score(questions)
    asked = [PROMPT_TEMPLATE.format(question=question) for question in questions["question"]]
    lengths = [len(tokenizer(f" {answer}")["input_ids"]) for answer in questions["answer"]]
    if max_batch_tokens is not None:
        score_completions(model, tokenizer, prompts, completions, max_batch_tokens)
        generate_completions(model, tokenizer, asked, max_new_tokens=max(lengths))
        return
    row_by_row(model, tokenizer, prompts, completions)
    for prompt, length in zip(asked, lengths, strict=True):
        generate_completions(model, tokenizer, [prompt], max_new_tokens=length)


def main() -> None:
    """Measure, print, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tofu", help="folder of TOFU's JSONL files; from the Hub if left out")
    parser.add_argument("--rows", type=int, default=4, help="questions, each with seven answers")
    parser.add_argument("--questions", type=int, default=32, help="questions of whole evaluations")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocab_size", type=int, default=32000, help="of the head; the tokenizer knows 4000")
    parser.add_argument("--max_batch_tokens", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/eval_cpu.json"))
    args = parser.parse_args()

    every = load_tofu("forget10_perturbed", args.tofu)
    rows = every.select(range(args.rows))
    tokenizer = train_tokenizer([text for row in every for text in (row["question"], row["answer"])], vocab_size=4000)
    prompts, completions = rows_to_score(rows)
    questions = every.select(range(args.questions))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        tie_word_embeddings=True,
        eos_token_id=None,  # by chance it would end an answer
    )
    target = AutoModelForCausalLM.from_config(config, dtype=args.dtype).to(args.device).eval()
    assistant = build_assistant(target, args.layers // 4)
    model = ULDForCausalLM(target=target, assistant=assistant, alpha=0.75)
    settings = [Subtraction(0.1 * (1 + index)) for index in range(NUM_SETTINGS)]

    def batches(size: int) -> Callable[[], object]:
        return lambda: score_completions(model, tokenizer, prompts, completions, size)

    largest = args.max_batch_tokens[-1]
    sweep = f"sweep of {NUM_SETTINGS} settings"
    modes: dict[str, Callable[[], object]] = {
        "row by row": lambda: row_by_row(model, tokenizer, prompts, completions),
        "prompts for every answer": lambda: without_sharing(batches(largest)),
        **{f"batches of {size} tokens": batches(size) for size in args.max_batch_tokens},
        sweep: lambda: score_subtractions(model, tokenizer, prompts, completions, settings, largest),
        "evaluation, row by row": lambda: whole_evaluation(model, tokenizer, questions, None),
        "evaluation": lambda: whole_evaluation(model, tokenizer, questions, largest),
    }
    baselines = {"evaluation": "evaluation, row by row", "evaluation, row by row": "evaluation, row by row"}
    score_completions(model, tokenizer, prompts[:2], completions[:2])  # warms up
    work = Work(model)
    # Multiplications for each token, of target and assistant together.
    layer = sum(weight.numel() for weight in target.model.layers[0].parameters())
    of_layers, of_head = layer * (args.layers + args.layers // 4), 2 * args.hidden_size * args.vocab_size
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in modes}
    for _ in range(args.turns):
        for name, run in modes.items():
            work.layers = work.head = 0
            with Memory(args.device) as memory:
                start, cpu_start = time.perf_counter(), time.process_time()
                run()
                seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            measured[name].append(
                {
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds,
                    "tokens_through_the_layers": work.layers,
                    "tokens_through_the_head": work.head,
                    "multiplications": work.layers * of_layers + work.head * of_head,
                    "peak_MiB_besides_the_model": memory.bytes / 2**20,
                }
            )
            print(f"{name}: {seconds:.1f} s, {cpu_seconds:.1f} s of CPU time", flush=True)
    medians = {
        name: {what: statistics.median(turn[what] for turn in turns) for what in turns[0]}
        for name, turns in measured.items()
    }
    results = {}
    for name, median in medians.items():
        alone = medians[baselines.get(name, "row by row")]
        num_rows = len(prompts) if name not in baselines else 8 * args.questions
        results[name] = {
            **{what: round(value, 2) for what, value in median.items()},
            "spread_seconds": [round(pick(turn["seconds"] for turn in measured[name]), 2) for pick in (min, max)],
            "rows_per_second": round(num_rows / median["seconds"], 2),
            "times_row_by_row": round(alone["seconds"] / median["seconds"], 2),
            "times_row_by_row_in_cpu_time": round(alone["cpu_seconds"] / median["cpu_seconds"], 2),
            "times_row_by_row_in_multiplications": round(alone["multiplications"] / median["multiplications"], 2),
        }
    for name, row in results.items():
        print(
            f"{name:<26}{row['rows_per_second']:>8} rows/s{row['times_row_by_row']:>7} times row by row "
            f"({row['times_row_by_row_in_cpu_time']} in CPU time, {row['times_row_by_row_in_multiplications']} in "
            f"multiplications){row['peak_MiB_besides_the_model']:>9} MiB"
        )
    one = medians[f"batches of {largest} tokens"]
    ratios = {what: round(medians[sweep][what] / one[what], 2) for what in ("seconds", "cpu_seconds")}
    print(f"a {sweep} takes {ratios['seconds']} times one evaluation of as many rows")
    report = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"uld_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: str(value) for name, value in vars(args).items()},
        "rows": len(prompts),
        "questions_of_whole_evaluations": args.questions,
        "multiplications_per_token": {"layers": of_layers, "head": of_head},
        "results": results,
        "sweep_times_one_evaluation": ratios,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
