"""Bytes read and peak memory when the first K layers of a sharded checkpoint are loaded, and when all are.

    python benchmarks/load_layers.py

Writes a checkpoint with random weights, about twelve layers to a safetensors shard. Loads it in a process of its own
each time, with the files out of the system's cache. Bytes read are those that the process fetched from storage
(`read_bytes` of /proc/self/io; it counts what the system reads ahead), memory is the highest resident set above that of
the imports; it counts the pages of mapped files.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from train_memory import resident
from transformers import AutoModelForCausalLM, LlamaConfig

from uld_hf import __version__
from uld_hf.assistant import load_truncated_model


def bytes_read() -> int:
    """Bytes that this process has fetched from storage."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def measure(folder: Path, num_layers: int | None) -> dict[str, float]:
    """Load the first layers, or all, and say what it took."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    Path("/proc/self/clear_refs").write_text("5")
    memory, read, start = resident("VmRSS"), bytes_read(), time.perf_counter()
    if num_layers is None:
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        model = load_truncated_model(str(folder), num_layers)
    held = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    sum(weight.sum() for weight in model.parameters())  # mapped files are read when they are used
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "bytes_of_weights": held,
        "bytes_read": bytes_read() - read,
        "peak_bytes": resident("VmHWM") - memory,
    }


def main() -> None:
    """Write the checkpoint, load it twice, print, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--assistant_layers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="an existing checkpoint to load (default: one is made)")
    parser.add_argument("--load", choices=["first", "all"], help="measure in this process")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/load_layers.json"))
    args = parser.parse_args()
    if args.load is not None:
        print(json.dumps(measure(args.folder, args.assistant_layers if args.load == "first" else None)))
        return
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        folder = args.folder or Path(scratch)
        if args.folder is None:
            config = LlamaConfig(
                hidden_size=512, intermediate_size=2048, num_hidden_layers=args.layers, num_attention_heads=8,
                vocab_size=8000, tie_word_embeddings=True,
            )  # fmt: skip
            AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="200MB")
            os.sync()  # what is not on disk yet cannot leave the cache
        shards = sorted(folder.glob("*.safetensors"))
        results = {}
        for kind in ("first", "all"):
            command = [sys.executable, __file__, "--load", kind, "--folder", str(folder)]
            command += ["--assistant_layers", str(args.assistant_layers)]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[kind] = json.loads(run.stdout.splitlines()[-1])
            print(kind, results[kind])
        report = {
            "command": f"python {' '.join(sys.argv)}",
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "versions": {"uld_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
            "checkpoint": {"shards": len(shards), "bytes": sum(path.stat().st_size for path in shards)},
            "layers": {"assistant": args.assistant_layers, "target": args.layers},
            "results": results,
        }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
