"""The study of docs/study.md: targets, ULD, rivals, ablations and books, in units that are done once.

    python benchmarks/study/run.py --preset slice --tofu ../shared/data/tofu --books ../shared/data/books

Does what is not done yet, for --minutes at most, and writes tables and plots of what there is. Run it again, until it
says that all is done: a training that was cut off goes on from its checkpoint. Results are JSON files in --output, one
for each unit; delete one to do it again. Models are kept in --work, but in `full` those of methods that change weights
are removed when they have been measured. With --processes 2 two cores share the work.
"""

import argparse
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

import peft
import torch
import transformers
import trl
from books import run_books
from ledger import Deadline, Ledger, OutOfTimeError
from methods import METHODS, OURS
from presets import PRESETS
from rephrased import run_rephrased
from robustness import run_robustness
from study import Study
from tables import write_report

import uld_hf


PARTS = ("methods", "rephrased", "robustness", "ablations", "books")


def describe_cpu() -> str:
    """The processor and the vector instructions that torch uses of it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    values = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    name, capability = values.get("model name", platform.machine()), torch.backends.cpu.get_cpu_capability()
    return f"{name}, model {values.get('model')}, {capability}"


def describe_machine() -> dict[str, object]:
    """Where and with what the results were made."""
    return {
        "platform": platform.platform(),
        # Trainings end elsewhere on another kind.
        "cpu": describe_cpu(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "peft": peft.__version__,
        "uld_hf": uld_hf.__version__,
        "command": " ".join(sys.argv),
    }


def note_machine(ledger: Ledger) -> None:
    """Keep where results are made, once for every kind of machine."""
    here = describe_machine()
    known = [result for name, result in ledger.results().items() if name.startswith("machine")]
    if all(here | {"command": each["command"]} != each for each in known):
        ledger.unit(f"machine.{len(known)}" if known else "machine", lambda: here)


def run_methods(study: Study, methods: list[str], seeds: list[int]) -> None:
    """References, trials and final runs; the first seed of everything comes first."""
    for seed in seeds:
        for split in study.preset.splits:
            study.reference_results(split, seed)
        for key in methods:
            for split in study.preset.splits:
                study.final(key, split, seed)
        if "uld_clamped" in methods:
            for split in study.preset.splits:
                study.alphas(split, seed)
        if "uld_gated" in methods:
            for split in study.preset.splits:
                study.gates(split, seed)


def run_parts(study: Study, args: argparse.Namespace) -> None:
    """Everything that is asked for, in order."""
    if "methods" in args.parts:
        run_methods(study, args.methods, args.seeds)
    if "rephrased" in args.parts:
        run_rephrased(study, args.seeds)
    if "ablations" in args.parts:
        study.ablations()
    if "robustness" in args.parts:
        run_robustness(study, args.methods, args.seeds)
    if "books" in args.parts and args.books is not None:
        run_books(study.preset, args.books, study.work, study.ledger)


def run_beside_rivals(study: Study, args: argparse.Namespace) -> bool:
    """
    Everything that is asked for in two processes: rivals in a second one.

    Args:
        study ([`Study`]):
            The study.
        args (`argparse.Namespace`):
            The command line's.

    Returns:
        `bool`: Whether all of it is done.
    """
    rivals = [key for key in args.methods if METHODS[key].recipe not in OURS]
    ours = [key for key in args.methods if METHODS[key].recipe in OURS]
    if not rivals or "methods" not in args.parts:
        run_parts(study, args)
        return True
    places = ["--tofu", args.tofu, "--work", study.work, "--output", study.ledger.folder]
    second = subprocess.Popen(
        [
            *(sys.executable, __file__, "--preset", args.preset, *map(str, places)),
            *("--minutes", str(study.ledger.deadline.minutes_left()), "--methods", *rivals),
            *("--parts", "methods", "--seeds", *map(str, args.seeds)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    finished = True
    try:
        parts = [part for part in args.parts if part != "robustness"]
        run_parts(study, argparse.Namespace(**{**vars(args), "methods": ours, "parts": parts}))
    except OutOfTimeError as error:
        finished = out_of_time(error)
    except BaseException:
        second.terminate()
        raise
    code = second.wait()
    if code not in (0, 3):
        raise RuntimeError(f"The process of rivals ended with {code}; its error is above.")
    if finished and code == 0 and "robustness" in args.parts:
        run_robustness(study, args.methods, args.seeds)  # of rivals' models too
    return finished and code == 0


def out_of_time(error: OutOfTimeError) -> bool:
    """Say so."""
    print(f"Time is over, in {error}. Run the same command again to go on.", flush=True)
    return False


def main() -> int:
    """Do what is to be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), required=True, help="size of the study")
    parser.add_argument("--tofu", type=Path, required=True, help="folder of TOFU's JSONL files, with uld_aug/")
    parser.add_argument("--books", type=Path, help="folder of the two books; without it there is no book scenario")
    parser.add_argument("--output", type=Path, help="folder for the results (default: benchmarks/results/study/PRESET)")
    parser.add_argument("--work", type=Path, help="folder for models (default: out/study/PRESET)")
    parser.add_argument("--minutes", type=float, default=9.0, help="time after which nothing more is begun")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1, help="with 2, rivals beside all else")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), help="only these (default: the preset's)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--seeds", nargs="*", type=int, help="only these (default: the preset's)")
    args = parser.parse_args()
    if args.processes == 2:
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))

    preset = PRESETS[args.preset]
    able = [key for key, method in METHODS.items() if method.can_be_run(preset)]
    if args.methods is None:
        args.methods = list(preset.methods or able)
    unable = set(args.methods) - set(able)
    if unable:
        parser.error(
            f"--methods: {', '.join(sorted(unable))} go by the model that the target was finetuned from, and that of "
            f"{preset.name!r} begins with random weights. Leave them out, or take 'finetuned' or 'whole'."
        )
    if preset.mixed_precision and not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2":
        parser.error(
            f"{preset.name!r} trains in bfloat16, which this CPU only emulates ({describe_cpu()}): a step took some 25 "
            "times as long as with AVX-512. Run it on another machine, or take 'finetuned'."
        )
    args.seeds = list(preset.seeds) if args.seeds is None else args.seeds
    output = args.output or Path(__file__).parents[1] / "results" / "study" / preset.name
    work = args.work or Path("out/study") / preset.name
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    ledger = Ledger(output, Deadline(args.minutes))
    finished = True
    try:
        note_machine(ledger)
        study = Study(preset, args.tofu, work, ledger)
        if args.processes == 2:
            finished = run_beside_rivals(study, args)
        else:
            run_parts(study, args)
    except OutOfTimeError as error:
        finished = out_of_time(error)
    results = ledger.results()
    print(f"{len(results)} results in {output}; tables: {write_report(preset, results, output)}")
    if finished:
        print("All is done.")
    return 0 if finished else 3


if __name__ == "__main__":
    raise SystemExit(main())
