"""A training step of every method on the same target and rows: rows per second, and peak memory above the weights.

    python benchmarks/train_step.py --tofu ../shared/data/tofu            # two CPU cores: 16 layers of width 512, K 4
    python benchmarks/train_step.py --tofu ../shared/data/tofu --layers 16 --hidden_size 2048 --heads 32 \
        --vocab_size 128256 --dtype bfloat16 --device cuda                   # the shape of Llama-3.2-1B

Weights are random, rows are TOFU's questions and answers: as many to forget as to retain in every step. `ULD` is this
package's trainer step. `released recipe` is what the released code does, re-expressed: two forward passes, rows padded
to 256 tokens, the uniform term over every position through a full softmax. `NPO` (with a retain term) and `GA + KL`
train all layers beside a frozen reference model. Methods take turns; figures are medians over the turns.

On a GPU, memory is what torch allocates. On a CPU it is the highest resident set of a process of its own for every
method, above that of the loaded models; it counts gradients and the optimizer's state, as it should.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from uld_hf import __version__, build_assistant, load_tofu
from uld_hf.cli.demo import train_tokenizer
from uld_hf.data.formatting import PROMPT_TEMPLATE
from uld_hf.evaluation.scoring import encode
from uld_hf.training.collator import DataCollatorForULD
from uld_hf.training.losses import add_uld_loss


METHODS = (
    "ULD",
    "ULD, rows padded to 256",
    "released recipe",
    "NPO, full",
    "NPO, LoRA",
    "GA + KL, full",
    "GA + KL, LoRA",
)
Batch = dict[str, torch.Tensor]


def make_rows(args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Tokenized forget and retain rows, as the trainer's data preparation makes them."""
    rows = load_tofu("forget10", args.tofu).select(range(2 * args.rows))
    texts = [(PROMPT_TEMPLATE.format(question=row["question"]), f" {row['answer']}") for row in rows]
    tokenizer = train_tokenizer([text for pair in texts for text in pair], vocab_size=4000)
    made = []
    for index, pair in enumerate(texts):
        ids, start = encode(tokenizer, *pair)
        made.append({"input_ids": ids, "labels": [-100] * start + ids[start:], "is_retain": index % 2 == 1})
    return made[0::2], made[1::2]


def make_target(args: argparse.Namespace) -> PreTrainedModel:
    """A model with random weights."""
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, dtype=args.dtype).to(args.device)


def collate(rows: list[dict], device: str, length: int | None = None) -> Batch:
    """A batch, padded to its longest row or to a given length."""
    batch = DataCollatorForULD(pad_token_id=0, pad_to_multiple_of=length)(rows)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def answer_log_probs(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Log-probability of every row's answer."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return -losses.sum(dim=1)


def make_step(method: str, args: argparse.Namespace) -> Callable[[list[dict], list[dict]], None]:
    """A function that does one step of a method: forward, backward, optimizer."""
    target = make_target(args)
    if method.startswith(("ULD", "released")):
        if method == "released recipe":
            target = copy.deepcopy(target)  # the assistant's layers are a copy of the weights there
        model = build_assistant(target, args.assistant_layers)
        reference = None
    else:
        reference = copy.deepcopy(target).eval().requires_grad_(False)
        model = target
        if method.endswith("LoRA"):
            lora = LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=32, target_modules="all-linear")
            model = get_peft_model(target, lora)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, foreach=False)
    fixed = 256 if method in ("ULD, rows padded to 256", "released recipe") else None
    if method.startswith("ULD"):
        add_uld_loss(model.get_base_model(), retain_weight=6.5)

    def uld(forget: list[dict], retain: list[dict]) -> torch.Tensor:
        batch = collate([*forget, *retain], args.device, fixed)
        counted = batch["labels"][:, 1:] != -100
        retained = batch["retain_mask"][:, 1:]
        num_items = torch.stack([(counted & ~retained).sum(), (counted & retained).sum()])
        return model(**batch, num_items=num_items).loss

    def released(forget: list[dict], retain: list[dict]) -> torch.Tensor:
        batches = [collate(rows, args.device, fixed) for rows in (forget, retain)]
        forgotten = -answer_log_probs(model, batches[0]).sum() / (batches[0]["labels"] != -100).sum()
        logits = model(input_ids=batches[1]["input_ids"], attention_mask=batches[1]["attention_mask"]).logits
        return forgotten - 6.5 * logits.float().softmax(dim=-1).log().mean()

    def npo(forget: list[dict], retain: list[dict]) -> torch.Tensor:
        batches = [collate(rows, args.device) for rows in (forget, retain)]
        with torch.no_grad():
            before = answer_log_probs(reference, batches[0])
        ratios = answer_log_probs(model, batches[0]) - before
        kept = -answer_log_probs(model, batches[1]).sum() / (batches[1]["labels"] != -100).sum()
        return -2 / 0.1 * F.logsigmoid(-0.1 * ratios).mean() + kept

    def ga_kl(forget: list[dict], retain: list[dict]) -> torch.Tensor:
        batches = [collate(rows, args.device) for rows in (forget, retain)]
        ascent = answer_log_probs(model, batches[0]).sum() / (batches[0]["labels"] != -100).sum()
        inputs = {name: batches[1][name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            before = reference(**inputs, use_cache=False).logits.float().log_softmax(dim=-1)
        after = model(**inputs, use_cache=False).logits.float().log_softmax(dim=-1)
        return ascent + F.kl_div(after, before, log_target=True, reduction="none").sum(dim=-1).mean()

    kinds = {"ULD": uld, "rel": released, "NPO": npo, "GA ": ga_kl}
    loss_of = kinds[method[:3]]

    def step(forget: list[dict], retain: list[dict]) -> None:
        loss_of(forget, retain).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def batches_of(rows: tuple[list[dict], list[dict]], size: int) -> list[tuple[list[dict], list[dict]]]:
    """Steps of as many forget as retain rows."""
    forget, retain = rows
    return [(forget[start : start + size], retain[start : start + size]) for start in range(0, len(forget), size)]


def resident() -> int:
    """Highest resident set of this process so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def measure_memory(method: str, args: argparse.Namespace) -> int:
    """Peak memory of two steps above the loaded models, in bytes."""
    step = make_step(method, args)
    batches = batches_of(make_rows(args), args.batch_size)[:2]
    cuda = args.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else resident()
    for batch in batches:
        step(*batch)
    return (torch.cuda.max_memory_allocated() if cuda else resident()) - before


def main() -> None:
    """Measure, print, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tofu", help="folder of TOFU's JSONL files; from the Hub if left out")
    parser.add_argument("--rows", type=int, default=16, help="forget rows, and as many retain rows")
    parser.add_argument("--batch_size", type=int, default=8, help="forget rows of a step, and as many retain rows")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--assistant_layers", type=int, default=4)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocab_size", type=int, default=32000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory_of", choices=METHODS, help="print the peak memory of one method, and nothing else")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/train_step.json"))
    args = parser.parse_args()
    if args.memory_of is not None:
        print(measure_memory(args.memory_of, args))
        return

    memory = {}
    for method in METHODS:  # each in a process of its own: a peak is never given back
        command = [sys.executable, *sys.argv, "--memory_of", method]
        memory[method] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    rows = make_rows(args)
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(args.turns):
        for method in METHODS:  # one method's models at a time
            step = make_step(method, args)
            step(*batches_of(rows, args.batch_size)[0])  # the first step makes the optimizer's state
            start = time.perf_counter()
            for batch in batches_of(rows, args.batch_size):
                step(*batch)
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds[method].append(time.perf_counter() - start)
            del step
    num_rows = 2 * args.rows
    medians = {method: statistics.median(times) for method, times in seconds.items()}
    results = {
        method: {
            "rows_per_second": round(num_rows / median, 2),
            "uld_is_faster_by": round(median / medians["ULD"], 2),
            "spread_seconds": [round(min(seconds[method]), 2), round(max(seconds[method]), 2)],
            "peak_bytes_above_weights": memory[method],
            "uld_needs_of_that": round(memory["ULD"] / memory[method], 3),
        }
        for method, median in medians.items()
    }
    print(f"{'':<24}{'rows/s':>10}{'ULD faster by':>15}{'peak MB above weights':>23}")
    for method, row in results.items():
        print(
            f"{method:<24}{row['rows_per_second']:>10}{row['uld_is_faster_by']:>15}"
            f"{row['peak_bytes_above_weights'] / 1e6:>23.0f}"
        )
    lengths = [len(row["input_ids"]) for part in rows for row in part]
    report = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"uld_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: str(value) for name, value in vars(args).items()},
        "row_lengths": {"mean": round(statistics.mean(lengths), 1), "max": max(lengths)},
        "results": results,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
