"""Choose alpha, measure what was forgotten and kept, and write a page about it.

python examples/choose_alpha.py
python examples/choose_alpha.py --model forget-alice --questions_dir questions    # what ULDTrainer or uld train saved
"""

import argparse
import json
from pathlib import Path

import tiny_model
from transformers import AutoTokenizer

from uld_hf import ULDForCausalLM
from uld_hf.cli.main import main as uld


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="folder or hub id of a saved unlearned model (default: a tiny one)")
parser.add_argument("--questions_dir", type=Path, help="with {forget,retain,unseen}_questions.jsonl")
parser.add_argument("--output_dir", type=Path, default="out/choose-alpha")
args = parser.parse_args()
if args.model is not None and args.questions_dir is None:
    parser.error("a --model of your own needs --questions_dir")
saved = args.model or tiny_model.make_unlearned()


def run(*command: object) -> None:
    """Run a command of `uld`: in a shell, one would type the same."""
    if uld([str(part) for part in command]) != 0:
        raise SystemExit(1)


# Three sets of questions: about what to forget, what to keep, and like things that no model was ever told. With the
# third a sweep knows how little probability is little enough, and an evaluation can attack by membership.
questions = []
for name, file in (("forget", "forget"), ("retain", "retain"), ("holdout", "unseen")):
    questions += [f"--{name}_dataset", (args.questions_dir or tiny_model.FOLDER) / f"{file}_questions.jsonl"]

# 1. All alphas from one pass of target and assistant: the subtraction needs no training. The tiny model pays more for
# forgetting than a large one: it may lose 5 % of the probability of what must be kept, where 2 % is the default.
args.output_dir.mkdir(parents=True, exist_ok=True)
run("sweep", "--model", saved, *questions, "--alphas", 0.25, 0.5, 0.75, 1, 1.1, 1.2, 1.3, 1.5, 2,
    "--utility_budget", 0.05, "--output", args.output_dir / "sweep.json")  # fmt: skip
sweep = json.loads((args.output_dir / "sweep.json").read_text())
if sweep["chosen"] is None:
    raise SystemExit("No alpha does: train longer, or on more layers.")
alpha = sweep["settings"][sweep["chosen"]]["alpha"]

# 2. Keep the choice with the model; a config.json edited by hand would be refused.
chosen = args.output_dir / "chosen"
ULDForCausalLM.from_pretrained(saved, alpha=alpha).save_pretrained(chosen)
AutoTokenizer.from_pretrained(saved).save_pretrained(chosen)

# 3. Measure target and unlearned model, and write what came out for people to read.
run("eval", "--model", chosen, *questions, "--output_dir", args.output_dir / "evaluation")
run("report", "--results", args.output_dir / "evaluation", "--sweep", args.output_dir / "sweep.json",
    "--title", "Forget one person", "--output", args.output_dir / "report.html")  # fmt: skip
