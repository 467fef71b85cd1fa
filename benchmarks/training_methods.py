"""The methods that train_step.py and train_memory.py compare, on the same target and rows.

`ULD` is this package's trainer step. `released recipe` is what ULD's released code does, re-expressed: two forward
passes, rows padded to 256 tokens, the uniform term over every position through a full softmax, copied layers.
Activation checkpointing is transformers' own, of all K layers or of every second one, or keeps products (ours).
`NPO` (with a retain term) and `GA + KL` train all layers, or LoRA on all of them, beside a frozen reference model.
Every method gets the same rows in every step, as many to forget as to retain. The released code, with which the
paper's rivals are trained too, pads all rows to 256 tokens (TOFU's own to 500): lines that say so do the same. In the
others the rivals' rows are padded to the longest of their batch, which is kinder. Their cross-entropy is the fastest
that torch has. All use torch's fused AdamW, the trainer's default.

Weights are random. Rows are TOFU's questions and answers.
"""

import argparse
import copy
import os
import platform
import random
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from uld_hf import __version__, build_assistant, load_tofu
from uld_hf.cli.demo import train_tokenizer
from uld_hf.data.formatting import PROMPT_TEMPLATE
from uld_hf.evaluation.encoding import encode
from uld_hf.training.checkpointing import keep_products
from uld_hf.training.collator import DataCollatorForULD
from uld_hf.training.last_layer import find_answer_parts, on_answers_alone
from uld_hf.training.losses import add_uld_loss
from uld_hf.training.padding_free import attention_by_row


# Those for two CPU cores have the ratio of head to layers of the two that they are named after.
SHAPES = {
    "small-1b": {
        **{"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8},
        **{"num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": True},
    },
    "small-7b": {
        **{"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 32, "num_attention_heads": 8},
        **{"num_key_value_heads": 8, "vocab_size": 4000, "tie_word_embeddings": False},
    },
    "llama-3.2-1b": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    },
    "llama-2-7b": {
        **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False},
    },
}
METHODS = (
    "ULD",
    "ULD, activation checkpointing",
    "ULD, products kept",
    "ULD, every 2nd layer's",
    "ULD, rows padded to 256",
    "released recipe",
    "NPO, full",
    "NPO, LoRA",
    "GA + KL, full",
    "GA + KL, LoRA",
    "NPO, full, rows padded to 256",
    "NPO, LoRA, rows padded to 256",
)
PADDED = ", rows padded to 256"
CHECKPOINTED = {"ULD, activation checkpointing": 1, "ULD, products kept": 1, "ULD, every 2nd layer's": 2}
Batch = dict[str, torch.Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of both scripts."""
    parser.add_argument("--tofu", help="folder of TOFU's JSONL files; from the Hub if left out")
    parser.add_argument("--shape", choices=SHAPES, default="small-1b")
    parser.add_argument("--layers", type=int, help="layers of the target (default: the shape's)")
    parser.add_argument("--assistant_layers", type=int, help="layers of the assistant (default: a quarter)")
    parser.add_argument("--rows", type=int, default=16, help="forget rows, and as many retain rows")
    parser.add_argument("--batch_size", type=int, default=8, help="forget rows of a step, and as many retain rows")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--output", type=Path, help="report (default: in out/; those kept are in benchmarks/results)")


def output_file(args: argparse.Namespace, name: str) -> Path:
    """Where a report goes: not among the committed ones, unless `--output` says so."""
    return args.output or Path(f"out/{name}_{args.device}.json")


def make_rows(args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Tokenized forget and retain rows, as the trainer's data preparation makes them, in random order."""
    rows = load_tofu("forget10", args.tofu)
    texts = [(PROMPT_TEMPLATE.format(question=row["question"]), f" {row['answer']}") for row in rows]
    tokenizer = train_tokenizer([text for pair in texts for text in pair], vocab_size=4000)
    made = []
    for index, pair in enumerate(random.Random(args.seed).sample(texts, 2 * args.rows)):
        ids, start = encode(tokenizer, *pair, tokenizer.eos_token_id)
        made.append({"input_ids": ids, "labels": [-100] * start + ids[start:], "is_retain": index % 2 == 1})
    return made[0::2], made[1::2]


def make_target(args: argparse.Namespace) -> PreTrainedModel:
    """A model with random weights."""
    torch.manual_seed(args.seed)
    config = LlamaConfig(**SHAPES[args.shape])
    config.num_hidden_layers = args.layers or config.num_hidden_layers
    with torch.device(args.device):
        return AutoModelForCausalLM.from_config(config, dtype=args.dtype)


def assistant_layers(args: argparse.Namespace) -> int:
    """K: as asked for, or a quarter of the shape's layers."""
    return args.assistant_layers or SHAPES[args.shape]["num_hidden_layers"] // 4


def collate(rows: list[dict], device: str, length: int | None = None, padding_free: bool = False) -> Batch:
    """A batch, padded to its longest row or to a given length, or without padding."""
    batch = DataCollatorForULD(pad_token_id=0, pad_to_multiple_of=length, padding_free=padding_free)(rows)
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def answer_log_probs(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Log-probability of every row's answer."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)  # shifted, so that the logits need not be copied
    losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=-100)
    return -losses.view_as(labels).sum(dim=1)


def make_step(method: str, args: argparse.Namespace) -> Callable[[list[dict], list[dict]], None]:
    """A function that does one step of a method: forward, backward, optimizer."""
    target = make_target(args)
    if method.startswith(("ULD", "released")):
        if method == "released recipe":
            target = copy.deepcopy(target)  # the assistant's layers are a copy of the weights there
        model = build_assistant(target, assistant_layers(args))
        reference = None
    else:
        reference = copy.deepcopy(target).eval().requires_grad_(False)
        model = target
        if "LoRA" in method:
            lora = LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=32, target_modules="all-linear")
            model = get_peft_model(target, lora)
    if method in CHECKPOINTED:
        model.enable_input_require_grads()  # as trl does
        if method == "ULD, products kept":
            keep_products(model.get_base_model())
        model.get_base_model().activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}, every_n_layers=CHECKPOINTED[method]
        )
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    fixed = 256 if method == "released recipe" or method.endswith(PADDED) else None
    padding_free = method.startswith("ULD") and fixed is None
    base = model.get_base_model() if method.startswith("ULD") else model
    parts = find_answer_parts(base) if method.startswith("ULD") else []
    if method.startswith("ULD"):
        add_uld_loss(base, retain_weight=6.5)

    def uld(batch: Batch) -> torch.Tensor:
        counted = batch["labels"][:, 1:] != -100
        retained = batch["retain_mask"][:, 1:]
        num_items = torch.stack([(counted & ~retained).sum(), (counted & retained).sum()])
        return model(**batch, num_items=num_items).loss

    def released(forget: Batch, retain: Batch) -> torch.Tensor:
        forgotten = -answer_log_probs(model, forget).sum() / (forget["labels"] != -100).sum()
        logits = model(input_ids=retain["input_ids"], attention_mask=retain["attention_mask"]).logits
        return forgotten - 6.5 * logits.float().softmax(dim=-1).log().mean()

    def npo(forget: Batch, retain: Batch) -> torch.Tensor:
        with torch.no_grad():
            before = answer_log_probs(reference, forget)
        ratios = answer_log_probs(model, forget) - before
        kept = -answer_log_probs(model, retain).sum() / (retain["labels"] != -100).sum()
        return -2 / 0.1 * F.logsigmoid(-0.1 * ratios).mean() + kept

    def ga_kl(forget: Batch, retain: Batch) -> torch.Tensor:
        ascent = answer_log_probs(model, forget).sum() / (forget["labels"] != -100).sum()
        inputs = {name: retain[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            before = reference(**inputs, use_cache=False).logits.float().log_softmax(dim=-1)
        after = model(**inputs, use_cache=False).logits.float().log_softmax(dim=-1)
        return ascent + F.kl_div(after, before, log_target=True, reduction="none").sum(dim=-1).mean()

    kinds = {"ULD": uld, "rel": released, "NPO": npo, "GA ": ga_kl}
    loss_of = kinds[method[:3]]

    def step(forget: list[dict], retain: list[dict]) -> None:
        together = [[*forget, *retain]] if method.startswith("ULD") else [forget, retain]
        batches = [collate(rows, args.device, fixed, padding_free) for rows in together]
        # As the trainer surrounds forward and backward pass.
        attention = attention_by_row(base) if padding_free else nullcontext()
        with attention, on_answers_alone(parts, batches[0]["labels"]):
            # As transformers' bf16=True does it.
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
                loss = loss_of(*batches)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def batches_of(rows: tuple[list[dict], list[dict]], size: int) -> list[tuple[list[dict], list[dict]]]:
    """Steps of as many forget as retain rows."""
    forget, retain = rows
    return [(forget[start : start + size], retain[start : start + size]) for start in range(0, len(forget), size)]


def describe(args: argparse.Namespace, command: list[str]) -> dict:
    """What a report says besides its figures."""
    lengths = [len(row["input_ids"]) for part in make_rows(args) for row in part]
    answers = [sum(label != -100 for label in row["labels"]) for part in make_rows(args) for row in part]
    return {
        "command": f"python {shlex.join(command)}",
        "machine": torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"uld_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: str(value) for name, value in vars(args).items()},
        "shape": SHAPES[args.shape] | ({"num_hidden_layers": args.layers} if args.layers else {}),
        "assistant_layers": assistant_layers(args),
        "rows": {
            "mean_length": round(sum(lengths) / len(lengths), 1),
            "max_length": max(lengths),
            "mean_answer": round(sum(answers) / len(answers), 1),
        },
    }
