"""Peak memory of a training step above the loaded models: ULD, its released recipe, NPO, GA + KL.

    python benchmarks/train_memory.py --tofu ../shared/data/tofu                      # CPU, head as in a 1B
    python benchmarks/train_memory.py --tofu ../shared/data/tofu --shape small-7b     # CPU, head as in a 7B
    python benchmarks/train_memory.py --tofu ... --shape llama-3.2-1b --dtype bfloat16 --batch_size 16
    python benchmarks/train_memory.py --tofu ... --shape llama-2-7b --dtype bfloat16 --batch_size 16 \\
        --methods ULD "ULD, rows padded to 256" "released recipe" "NPO, LoRA"

What the methods are: training_methods.py. Two steps of each in a process of its own: peaks are never given back. Memory
is what torch allocates: on a GPU by its own count, on a CPU by the profiler's, of a third step. There the resident set
is noted too; it holds what the C library does not give back and what the libraries need for themselves. Gradients and
the optimizer's state count; the models' weights do not.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from training_methods import METHODS, add_arguments, batches_of, describe, make_rows, make_step, output_file


def resident(field: str) -> int:
    """Resident set of this process in bytes: now (`VmRSS`) or at its highest (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def allocated(step: Callable[[], None]) -> int:
    """Highest sum of bytes that torch allocates on a CPU during a step, above what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


def measure(method: str, args: argparse.Namespace) -> dict[str, int]:
    """Peaks of two steps above what there was before, in bytes."""
    step = make_step(method, args)
    batches = batches_of(make_rows(args), args.batch_size)[:2]
    gc.collect()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for batch in batches:
            step(*batch)
        return {"peak_bytes_above_weights": torch.cuda.max_memory_allocated() - before}
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    before = resident("VmRSS")
    for batch in batches:
        step(*batch)
    peak = resident("VmHWM") - before
    # The optimizer's state was made in the first step, and is there when the third begins.
    state = sum(
        value.nbytes
        for optimizer in gc.get_objects()
        if isinstance(optimizer, torch.optim.Optimizer)
        for entry in optimizer.state.values()
        for value in entry.values()
    )
    return {
        "peak_bytes_above_weights": state + max(allocated(lambda batch=batch: step(*batch)) for batch in batches),
        "peak_resident_bytes_above_weights": peak,
    }


def main() -> None:
    """Measure, print, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--memory_of", choices=METHODS, help="measure one method in this process")
    args = parser.parse_args()
    if args.memory_of is not None:
        print(json.dumps(measure(args.memory_of, args)))
        return
    output = output_file(args, f"train_memory_{args.shape.replace('-', '_').replace('.', '_')}")
    found = {}
    for method in args.methods:
        command = [sys.executable, *sys.argv, "--memory_of", method]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[method] = json.loads(run.stdout.splitlines()[-1])
    print(f"{'':<32}{'peak MB above the weights':>27}{'of that ULD needs':>20}")
    results = {}
    for method, peaks in found.items():
        peak = peaks["peak_bytes_above_weights"]
        share = round(found["ULD"]["peak_bytes_above_weights"] / peak, 3)
        results[method] = {**peaks, "uld_needs_of_that": share}
        print(f"{method:<32}{peak / 1e6:>27.0f}{share:>20}")
    report = {**describe(args, sys.argv), "results": results}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
