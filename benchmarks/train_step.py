"""Rows per second of a training step: ULD, its released recipe, NPO, GA + KL. What they are: training_methods.py.

    python benchmarks/train_step.py --tofu ../shared/data/tofu                      # two CPU cores, head as in a 1B
    python benchmarks/train_step.py --tofu ../shared/data/tofu --shape small-7b     # the same, head as in a 7B
    python benchmarks/train_step.py --tofu ../shared/data/tofu --scaling            # time by tokens, by K, by N
    python benchmarks/train_step.py --tofu ... --shape llama-3.2-1b --dtype bfloat16 --batch_size 16 --rows 64
    python benchmarks/train_step.py --tofu ... --shape llama-2-7b --dtype bfloat16 --batch_size 16 --rows 64 \\
        --methods ULD "ULD, rows padded to 256" "released recipe" "NPO, LoRA"       # the others do not fit into 80 GB

Methods take turns; figures, and ratios to ULD in the same turn, are medians over the turns, of steps after a first one
that makes the optimizer's state. On a CPU with OMP_NUM_THREADS=1 the clock is the processor's, so that other programs
on the machine do not count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Hashable
from functools import partial

import torch
from training_methods import (
    add_arguments,
    assistant_layers,
    batches_of,
    describe,
    make_rows,
    make_step,
    output_file,
)


def time_steps(method: str, args: argparse.Namespace) -> float:
    """Seconds for all steps of a method, after one that does not count."""
    step = make_step(method, args)
    batches = batches_of(make_rows(args), args.batch_size)
    step(*batches[0])
    alone = args.device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if args.device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for batch in batches:
        step(*batch)
    if args.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def take_turns(runs: dict[Hashable, Callable[[], float]], turns: int) -> dict[Hashable, list[float]]:
    """Seconds of every run, one a turn: what the machine does besides changes with time."""
    seconds: dict[Hashable, list[float]] = {key: [] for key in runs}
    for _ in range(turns):
        for key, run in runs.items():
            seconds[key].append(run())
    return seconds


def compare(args: argparse.Namespace) -> dict:
    """Rows per second of every method."""
    seconds = take_turns({method: partial(time_steps, method, args) for method in args.methods}, args.turns)
    medians = {method: statistics.median(times) for method, times in seconds.items()}
    print(f"{'':<32}{'rows/s':>10}{'ULD faster by':>15}")
    results = {}
    for method, median in medians.items():
        results[method] = {
            "rows_per_second": round(2 * args.rows / median, 2),
            # Within a turn.
            "uld_is_faster_by": round(
                statistics.median(theirs / ours for theirs, ours in zip(seconds[method], seconds["ULD"], strict=True)),
                2,
            ),
            "seconds_by_turn": [round(value, 3) for value in seconds[method]],
        }
        print(f"{method:<32}{results[method]['rows_per_second']:>10}{results[method]['uld_is_faster_by']:>15}")
    return {"results": results}


def scale(args: argparse.Namespace) -> dict:
    """Seconds of a ULD step by tokens, by K and by N, each with the others as they are. Cases take turns, too."""
    layers, rows = assistant_layers(args), args.batch_size
    series = {
        "rows to forget and to retain": [{"batch_size": rows * factor} for factor in (1, 2, 4)],
        "K": [{"assistant_layers": layers * factor} for factor in (1, 2, 3, 4)],
        "N": [{"layers": layers * factor} for factor in (1, 2, 4, 8)],
    }
    cases = {}
    for name, changes in series.items():
        for change in changes:
            case = argparse.Namespace(**(vars(args) | {"layers": 4 * layers} | change))
            case.rows = 2 * case.batch_size
            cases[name, next(iter(change.values()))] = partial(time_steps, "ULD", case)
    found: dict[str, dict[int, float]] = {name: {} for name in series}
    for (name, value), times in take_turns(cases, args.turns).items():
        found[name][value] = round(statistics.median(times) / 2, 3)
    for name, times in found.items():
        print(f"seconds of a step by {name}: {times}")
    return {"seconds_of_a_step_by": found}


def main() -> None:
    """Measure, print, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--scaling", action="store_true", help="measure ULD alone, by tokens, by K and by N")
    args = parser.parse_args()
    # KL to a reference that a LoRA has not left yet is a sum of numbers too small for a CPU to add quickly.
    torch.set_flush_denormal(True)
    kind = "scaling" if args.scaling else args.shape.replace("-", "_").replace(".", "_")
    output = output_file(args, f"train_step_{kind}")
    report = {**describe(args, sys.argv), **(scale(args) if args.scaling else compare(args))}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
