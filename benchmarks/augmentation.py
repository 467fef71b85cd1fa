"""Augmentation by rules beside the one that the paper's authors released, on TOFU's forget sets.

    python benchmarks/augmentation.py --tofu ../shared/data/tofu --output benchmarks/results/augmentation.json

Both are counted the same way: how many texts a row has, how many of them repeat one another, and how many pass the
checks that ours had to pass (`uld_hf.data.augmentation.Checks`).
"""

import argparse
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset

import uld_hf
from uld_hf import load_tofu
from uld_hf.data.augmentation import Checks, read_rows
from uld_hf.data.augmentation_entities import normalize
from uld_hf.data.augmentation_rules import augment_by_rules
from uld_hf.data.formatting import read_json_lines


SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}


def released(folder: Path, split: str, number: int) -> dict[str, list[list[str]]]:
    """The released texts of each row; of the wrong answers' file only the last rows are this split's."""
    paraphrased = read_json_lines(str(folder / f"{split}_paraphrase.jsonl"))
    perturbed = read_json_lines(str(folder / f"{split}_perturb.jsonl"))[-number:]
    return {
        "question": [row["paraphrased_questions"] for row in paraphrased],
        "answer": [row["paraphrased_answers"] for row in paraphrased],
        "wrong answer": [row["perturbed_answers"] for row in perturbed],
    }


def by_rules(forget: Dataset, retain: Dataset, wanted: int) -> dict[str, list[list[str]]]:
    """Our texts of each row."""
    variants = augment_by_rules(forget, retain, wanted, wanted).variants
    return {
        "question": [made.questions for made in variants],
        "answer": [made.answers for made in variants],
        "wrong answer": [made.wrong_answers for made in variants],
    }


def count(texts: Sequence[Sequence[str]], check: Callable[[int, str], str | None]) -> dict[str, object]:
    """What there is, what is left without repetitions, and why texts fail."""
    different = [list({normalize(text): text for text in of_row}.values()) for of_row in texts]
    reasons = [check(index, text) for index, of_row in enumerate(different) for text in of_row]
    passing = [sum(check(index, text) is None for text in of_row) for index, of_row in enumerate(different)]
    return {
        "texts per row": sum(map(len, texts)) / len(texts),
        "different texts per row": sum(map(len, different)) / len(texts),
        "share that passes": sum(reason is None for reason in reasons) / len(reasons),
        "rows with two that pass": sum(number >= 2 for number in passing) / len(passing),
        "reasons": dict(Counter(reason for reason in reasons if reason is not None).most_common()),
    }


def compare(folder: Path, split: str, wanted: int) -> dict[str, dict[str, object]]:
    """Both augmentations of a split."""
    forget, retain = load_tofu(split, folder), load_tofu(SPLITS[split], folder)
    checks: Checks = read_rows(forget, retain).checks
    kinds = {"question": checks.question, "answer": checks.answer, "wrong answer": checks.wrong_answer}
    return {
        name: {kind: count(texts[kind], check) for kind, check in kinds.items()}
        for name, texts in (
            ("released", released(folder / "uld_aug", split, len(forget))),
            ("rules", by_rules(forget, retain, wanted)),
        )
    }


def main() -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tofu", type=Path, required=True, help="folder with TOFU and uld_aug/ as JSONL files")
    parser.add_argument("--wanted", type=int, default=2, help="texts of each kind that the rules make for a row")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    report: dict[str, object] = {split: compare(args.tofu, split, args.wanted) for split in SPLITS}
    for split in SPLITS:
        for name, kinds in report[split].items():
            for kind, figures in kinds.items():
                print(split, name, kind, figures)
    report["machine"] = {
        "python": platform.python_version(),
        "uld_hf": uld_hf.__version__,
        "command": " ".join(sys.argv),
    }
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
