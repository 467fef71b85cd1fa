"""Forget two TOFU authors with `uld train`, on a target trained from scratch.

    python benchmarks/tofu_from_scratch.py --tofu ../shared/data/tofu --output_dir out/tofu

No pretrained weights are needed: a small Llama learns some of TOFU's authors, the last two of which are forget01 (40
question-answer pairs); a second one is retrained without them. Leave out --tofu to take the data from the Hub.
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, AutoTokenizer

from uld_hf import ULDForCausalLM, load_tofu, question_answer_to_prompt_completion
from uld_hf.cli.demo import ask, learn, train_tokenizer
from uld_hf.cli.main import main as uld
from uld_hf.evaluation.tofu import forget_quality, is_degenerate


def augmentation(folder: Path) -> tuple[list[dict], list[dict]]:
    """The augmentation that the paper's authors released: paraphrases to forget, wrong answers to retain."""
    rows = [json.loads(line) for line in (folder / "forget01_paraphrase.jsonl").open(encoding="utf-8")]
    forget = [
        {"question": question, "answer": answer}
        for row in rows
        # Half of them repeat one another: keep two different ones.
        for question, answer in list(
            dict(zip(row["paraphrased_questions"], row["paraphrased_answers"], strict=False)).items()
        )[:2]
    ]
    rows = [json.loads(line) for line in (folder / "forget01_perturb.jsonl").open(encoding="utf-8")]
    retain = [
        {"question": row["question"], "answer": answer}
        for row in rows[-40:]  # the file holds forget10; only the last 40 rows are forget01's
        for answer in dict.fromkeys(row["perturbed_answers"])
        if answer != row["answer"]
    ]
    return forget, retain


def main() -> None:
    """Train, unlearn, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tofu", help="folder with TOFU as JSONL files (default: the Hub)")
    parser.add_argument("--output_dir", default="out/tofu", help="folder for everything that is made")
    parser.add_argument("--num_retain", type=int, default=200, help="rows of retain99 that the target learns")
    parser.add_argument("--hidden_size", type=int, default=160)
    parser.add_argument("--num_layers", type=int, default=6)
    parser.add_argument("--num_epochs", type=int, default=24)
    parser.add_argument("--alpha", type=float, default=1.3)
    parser.add_argument("uld_options", nargs="*", help="more options of `uld train`, after --")
    args = parser.parse_args()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    columns = ["question", "answer"]
    forget = load_tofu("forget01_perturbed", args.tofu)
    retain = load_tofu("retain99", args.tofu)
    retain = retain.select(range(len(retain) - args.num_retain, len(retain)))
    everything = concatenate_datasets([retain.select_columns(columns), forget.select_columns(columns)])
    tokenizer = train_tokenizer([text for row in everything for text in row.values()], vocab_size=2000)

    models, seconds = {}, {}
    for name, rows in (("target", everything), ("retrained", retain)):
        if (folder / name / "config.json").exists():  # a second run goes on from here
            models[name] = AutoModelForCausalLM.from_pretrained(folder / name)
            continue
        chat_rows = question_answer_to_prompt_completion(rows.select_columns(columns), conversational=True)
        models[name], seconds[name] = learn(
            chat_rows, tokenizer, folder / name, 0, args.hidden_size, args.num_layers, args.num_epochs, 2e-3
        )

    # From here on it is what one does with one's own model: two files and a command.
    paraphrases, wrong_answers = augmentation(Path(args.tofu) / "uld_aug") if args.tofu else ([], [])
    Dataset.from_list([*forget.select_columns(columns), *paraphrases]).to_json(folder / "forget.jsonl")
    Dataset.from_list([*retain.select_columns(columns), *wrong_answers]).to_json(folder / "retain.jsonl")
    # fmt: off
    status = uld([
        "train", "--model", str(folder / "target"), "--output_dir", str(folder / "unlearned"),
        "--forget_dataset", str(folder / "forget.jsonl"), "--retain_dataset", str(folder / "retain.jsonl"),
        "--alpha", str(args.alpha), "--relative_top", "0", "--num_assistant_layers", "4",
        "--learning_rate", "3e-3", "--num_train_epochs", "20", "--retain_weight", "3", "--retain_per_forget", "3",
        "--save_strategy", "no", "--lr_scheduler_type", "cosine", "--use_cpu", "--report_to", "none", *args.uld_options,
    ])
    # fmt: on
    if status != 0:
        raise SystemExit(status)

    models["unlearned (ULD)"] = ULDForCausalLM.from_pretrained(folder / "unlearned")
    tokenizer = AutoTokenizer.from_pretrained(folder / "unlearned")
    kept = retain.select(range(0, len(retain), 4))
    scores = {name: (ask(model, tokenizer, forget), ask(model, tokenizer, kept)) for name, model in models.items()}
    results = {
        name: {
            "forget probability": float(on_forget.probability.mean()),
            "forget ROUGE-L": float(on_forget.rouge_l_recall.mean()),
            "retain probability": float(on_retain.probability.mean()),
            "retain ROUGE-L": float(on_retain.rouge_l_recall.mean()),
            "forget quality p": forget_quality(on_forget.truth_ratio, scores["retrained"][0].truth_ratio),
            "broken answers": sum(map(is_degenerate, [*on_forget.completions, *on_retain.completions])),
        }
        for name, (on_forget, on_retain) in scores.items()
    }
    (folder / "results.json").write_text(json.dumps({"seconds": seconds, "results": results}, indent=2) + "\n")
    for name, row in results.items():
        print(f"{name:<16}", "  ".join(f"{key} {value:.3g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
