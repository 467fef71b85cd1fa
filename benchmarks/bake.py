"""What baking costs, what the baked models remember, and how soon they learn it again: on the models of `uld demo`.

    uld demo --seed 0 --output_dir demo0          # and more seeds
    python benchmarks/bake.py --demos demo0 demo1 demo2 --output benchmarks/results/bake.json

Every method unlearns the same target with the same rows: baking (all weights) from the demo's unlearned model,
NPO with a retain term (arXiv 2404.05868; all weights, LoRA) from the target. Each runs in a process of
its own, for the peak of its memory, and is measured with the evaluation's own functions beside target, composed and
retrained model. NPO stops at the first test, every 10 steps, at which its forget quality p is above 0.05, and its
learning rate is the best of four on the first demo; baking runs to its end with settings that the study chose on other
models and data (docs/bake.md), and the first such test is noted. What is there already is not made again: delete
`<demo>/bake` to do so.

Relearning: AdamW at 3e-4, 4 rows a step, until greedy answers give half of the facts away (or half of those that were
not taught): on all forget rows, on 5% of them, on rows that were kept.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from train_memory import resident
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from uld_hf import (
    ULDBakeConfig,
    ULDBakeTrainer,
    ULDForCausalLM,
    UnlearnConfig,
    UnlearnTrainer,
    __version__,
    question_answer_to_prompt_completion,
)
from uld_hf.cli.demo import forget_and_retain_rows, training_options
from uld_hf.data.fictitious import fictitious_dataset, invent_people, split_people
from uld_hf.evaluation.comparison import compare
from uld_hf.evaluation.evaluation import Evaluation, Question, evaluate
from uld_hf.evaluation.memorization import leak_at_k, sample_leaks
from uld_hf.evaluation.relearning import relearn
from uld_hf.evaluation.scoring import score_completions
from uld_hf.evaluation.tofu import forget_quality, generate_completions, truth_ratio


BAKE = {
    "num_train_epochs": 40,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "per_device_train_batch_size": 16,
    "teacher_answers": 2,
    "teacher_top_k": 64,
    "likelihood_weight": 0.2,
    "retain_weight": 3.0,
    "noise": 0.4,
    "temperature": 1.5,
    "max_new_tokens": 48,
}
NPO = {
    "loss_type": "npo",
    "retain_loss_type": "nll",
    "num_train_epochs": 20,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "constant",
}
METHODS: dict[str, dict[str, Any]] = {
    "bake": BAKE,
    "NPO, all weights": NPO,
    "NPO, LoRA": NPO,
}
# Tried on the first demo.
LEARNING_RATES = {
    "NPO, all weights": (3e-5, 1e-4, 3e-4, 1e-3),
    "NPO, LoRA": (3e-4, 1e-3, 3e-3, 1e-2),
}
REFERENCES = ("target", "composed", "retrained")
FORGOTTEN = 0.05  # p of the forget quality
TEST_EVERY = {"bake": 40, "NPO": 10}  # steps
DRAWS = (1, 10, 100)
RELEARNING = {
    "on all forget rows": (4, 200),
    "on 5% of them": (20, 200),
    "on kept rows": (20, 200),
}  # test every, at most


class Scenario:
    """The demo's models and data."""

    def __init__(self, folder: Path):
        self.folder = folder
        demo = json.loads((folder / "results.json").read_text())
        self.seed = demo["seed"]
        rows = fictitious_dataset(invent_people(demo["num_people"], self.seed), self.seed)
        split = split_people(rows, forget_fraction=0.1, seed=self.seed)
        self.forget, self.retain = split["forget"], split["retain"]
        known = set(rows["person"])
        strangers = [person for person in invent_people(10, self.seed + 1000) if person.name not in known][:4]
        self.holdout = fictitious_dataset(strangers, self.seed + 1000)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder / "target")

    def load(self, name: str) -> PreTrainedModel:
        """A reference, or what a method made."""
        if name == "composed":
            return ULDForCausalLM.from_pretrained(self.folder / "unlearned", target=self.load("target"))
        return AutoModelForCausalLM.from_pretrained(self.folder / name if name in REFERENCES else self.place(name))

    def place(self, method: str) -> Path:
        """Folder of what a method made."""
        return self.folder / "bake" / method.replace(", ", "-").replace(" ", "-")

    def prompts(self, questions: Sequence[str]) -> list[str]:
        """Questions in the chat template of training."""
        return [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text in questions
        ]

    def questions(self, rows: Dataset) -> list[Question]:
        """Rows for the evaluation."""
        return [
            Question(
                prompt=prompt,
                answer=f" {row['answer']}",
                paraphrased_answer=f" {row['paraphrased_answer']}",
                perturbed_answers=tuple(f" {wrong}" for wrong in row["perturbed_answer"]),
            )
            for prompt, row in zip(self.prompts(rows["question"]), rows, strict=True)
        ]

    def truth_ratios(self, model: PreTrainedModel) -> np.ndarray:
        """Of the forget set, and nothing else: for tests during a training."""
        prompts = self.prompts(self.forget["question"])
        right = [f" {answer}" for answer in self.forget["paraphrased_answer"]]
        wrong = [f" {answer}" for answers in self.forget["perturbed_answer"] for answer in answers]
        per_row = len(wrong) // len(right)
        every = prompts + [prompt for prompt in prompts for _ in range(per_row)]
        losses = np.array([row.loss for row in score_completions(model, self.tokenizer, every, right + wrong)])
        return truth_ratio(losses[: len(right)], losses[len(right) :].reshape(-1, per_row))

    def share_right(self, model: PreTrainedModel, questions: Sequence[str], values: Sequence[str]) -> float:
        """Share of facts in greedy answers."""
        answers = generate_completions(model, self.tokenizer, self.prompts(questions), max_new_tokens=40)
        return float(np.mean([value in answer for value, answer in zip(values, answers, strict=True)]))


class TestForgetting(TrainerCallback):
    """Tests the forget quality now and then, outside of the clock."""

    def __init__(self, scenario: Scenario, kind: str):
        self.scenario = scenario
        self.every = TEST_EVERY[kind]
        self.stop = kind == "NPO"
        self.reference = scenario.truth_ratios(scenario.load("retrained"))
        self.curve: list[dict[str, float]] = []
        self.testing = 0.0
        self.begin = 0.0
        self.peak = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self.begin = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Tests."""
        if state.global_step % self.every:
            return
        start = time.perf_counter()
        self.peak = max(self.peak, resident("VmHWM"))
        model.eval()
        quality = forget_quality(self.scenario.truth_ratios(model), self.reference)
        model.train()
        forget_highest_memory()
        self.curve.append({"step": state.global_step, "seconds": start - self.begin - self.testing, "p": quality})
        self.testing += time.perf_counter() - start
        control.should_training_stop = self.stop and quality > FORGOTTEN


def forget_highest_memory() -> None:
    """The highest resident set of this process is the present one from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def train(scenario: Scenario, method: str, change: dict[str, Any]) -> dict[str, Any]:
    """Unlearn by one method, with some settings of its own, save the model, and say what it took."""
    seed = scenario.seed
    forget, retain = forget_and_retain_rows(scenario.forget, scenario.retain, seed)
    lora = (
        LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=32, target_modules="all-linear")
        if "LoRA" in method
        else None
    )
    teacher = scenario.load("composed")
    kind = method.split(",")[0]
    test = TestForgetting(scenario, kind)
    data = {"forget_dataset": forget, "retain_dataset": retain, "processing_class": scenario.tokenizer}
    options = {**training_options(seed), **METHODS[method], "output_dir": str(scenario.place(method)), **change}
    forget_highest_memory()
    before = resident("VmRSS")
    start = time.perf_counter()
    if kind == "bake":
        trainer = ULDBakeTrainer(teacher, ULDBakeConfig(**options), peft_config=lora, callbacks=[test], **data)
        trainer.prepare_teacher()
    else:
        args = UnlearnConfig(**options, merge_adapter=lora is not None)
        trainer = UnlearnTrainer(teacher.target, args, peft_config=lora, callbacks=[test], **data)
    preparation = time.perf_counter() - start
    trainer.train()
    seconds = time.perf_counter() - start - test.testing
    peak = max(test.peak, resident("VmHWM")) - before
    trainer.save_model()
    crossed = next((entry for entry in test.curve if entry["p"] > FORGOTTEN), None)
    return {
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "seconds to forget quality": None if crossed is None else crossed["seconds"] + preparation,
        "seconds of preparation": preparation,
        "peak bytes above the loaded models": peak,
        "curve": test.curve,
    }


def tune(scenario: Scenario, method: str) -> dict[str, Any]:
    """
    Try the learning rates of a method.

    The best comes to its forget quality, and then keeps most; none of them is the best that does not come to it.
    """
    reference = scenario.truth_ratios(scenario.load("retrained"))
    tried = []
    for rate in LEARNING_RATES[method]:
        with tempfile.TemporaryDirectory() as folder:
            train(scenario, method, {"learning_rate": rate, "output_dir": folder})
            model = AutoModelForCausalLM.from_pretrained(folder)
        forgotten, kept = (
            scenario.share_right(model, rows["question"], rows["value"]) for rows in (scenario.forget, scenario.retain)
        )
        quality = forget_quality(scenario.truth_ratios(model), reference)
        tried.append({"learning_rate": rate, "p": quality, "right, forget": forgotten, "right, retain": kept})

    def order(trial: dict[str, float]) -> tuple[bool, float, float]:
        return trial["p"] > FORGOTTEN, trial["right, retain"], -trial["right, forget"]

    return {"tried": tried, "learning_rate": max(tried, key=order)["learning_rate"]}


def steps_until_relearned(scenario: Scenario, model: PreTrainedModel, attack: str) -> dict[str, Any]:
    """Finetune a copy until half of the facts are back."""
    facts, rows = scenario.forget, scenario.forget
    if attack == "on 5% of them":
        taught = max(1, round(0.05 * len(rows)))
        rows, facts = rows.select(range(taught)), rows.select(range(taught, len(rows)))
    elif attack == "on kept rows":
        rows = scenario.retain.select(range(len(scenario.forget)))
    every, most = RELEARNING[attack]

    def remembered(student: PreTrainedModel) -> float:
        return scenario.share_right(student, facts["question"], facts["value"])

    data = question_answer_to_prompt_completion(rows.select_columns(["question", "answer"]), conversational=True)
    options = {"test_every": every, "max_steps": most, "seed": scenario.seed}
    found = relearn(model, scenario.tokenizer, data, remembered, 0.5, **options)
    return {"steps": found.steps, "at most": most, "share": found.remembered}


def measure(scenario: Scenario, name: str) -> dict[str, Any]:
    """What one model remembers, how it holds, and how soon it learns again."""
    forget, retain = scenario.forget, scenario.retain
    model, tokenizer = scenario.load(name).eval(), scenario.tokenizer
    sets = {"forget": forget, "retain": retain, "holdout": scenario.holdout}
    results = {
        part: evaluate(model, tokenizer, scenario.questions(rows), max_new_tokens=40) for part, rows in sets.items()
    }
    Evaluation(name, results, {}).save(scenario.folder / "bake" / f"{name}.evaluation.json")

    def right(model: PreTrainedModel, rows: Dataset, column: str = "question") -> float:
        return scenario.share_right(model, rows[column], rows["value"])

    kept = retain.select(range(64))
    figures: dict[str, Any] = {"right": {"forget": right(model, forget), "retain": right(model, retain)}}
    figures["right, rephrased"] = {
        part: right(model, rows, "paraphrased_question") for part, rows in (("forget", forget), ("retain", kept))
    }
    values = forget["value"]
    drawn = sample_leaks(
        model, tokenizer, scenario.prompts(forget["question"]), lambda index, text: values[index] in text,
        num_samples=max(DRAWS), max_new_tokens=40, seed=scenario.seed,
    )  # fmt: skip
    figures["in draws"] = {str(draws): float(leak_at_k(drawn, draws).mean()) for draws in DRAWS}
    if name == "composed":  # whoever has the files has the target
        return figures
    figures["decoding, ms per token"] = milliseconds_per_token(scenario, model)
    figures["parameters"] = model.num_parameters()
    if name != "target":
        figures["relearning"] = {attack: steps_until_relearned(scenario, model, attack) for attack in RELEARNING}
        place = scenario.folder / name if name in REFERENCES else scenario.place(name)
        for bits, config in (("8 bit", {"load_in_8bit": True}), ("4 bit", {"load_in_4bit": True})):
            quantized = AutoModelForCausalLM.from_pretrained(place, quantization_config=BitsAndBytesConfig(**config))
            figures[bits] = {"forget": right(quantized, forget), "retain": right(quantized, kept)}
    return figures


def milliseconds_per_token(scenario: Scenario, model: PreTrainedModel) -> float:
    """Median of greedy decoding, beside the target in turns: its own time is the other figure of each turn."""
    inputs = scenario.tokenizer(
        scenario.prompts(scenario.retain["question"][:1]), return_tensors="pt", return_token_type_ids=False
    )
    models, times = (scenario.load("target"), model), ([], [])
    for _ in range(7):
        for each, of_model in zip(models, times, strict=True):
            start = time.perf_counter()
            each.generate(**inputs, do_sample=False, min_new_tokens=48, max_new_tokens=48)
            of_model.append((time.perf_counter() - start) / 48 * 1000)
    target, own = (statistics.median(of_model[1:]) for of_model in times)
    return {"target": target, "model": own}


def gather(folders: Sequence[Path]) -> dict[str, Any]:
    """The figures of all seeds."""
    report: dict[str, Any] = {}
    for folder in folders:
        scenario = Scenario(folder)
        names = [name for name in (*REFERENCES, *METHODS) if (folder / "bake" / f"{name}.json").exists()]
        evaluations = {name: Evaluation.load(folder / "bake" / f"{name}.evaluation.json") for name in names}
        compared = compare(evaluations)
        utility = {}
        for name in names:
            figures = json.loads((folder / "bake" / f"{name}.json").read_text())
            if "training" in figures:  # every tenth test is enough to draw it
                figures["training"]["curve"] = figures["training"]["curve"][::10]
            wanted = ("forget quality", "memorization", "privacy", "utility", "aggregate")
            figures["figures"] = {key: compared[name][key] for key in wanted if key in compared[name]}
            for part in ("forget", "retain"):
                summary = evaluations[name].sets[part].summary()
                figures["figures"] |= {
                    f"{part} {key}": summary[key] for key in ("probability", "ROUGE-L recall", "broken answers")
                }
            utility[name] = figures
        report[f"seed {scenario.seed}"] = utility
    return report


def show(report: dict[str, Any]) -> None:
    """A table of the means over the seeds."""
    names = list(next(iter(report.values())))

    def mean(name: str, *keys: str) -> str:
        values = []
        for of_seed in report.values():
            value: Any = of_seed.get(name, {})
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            values.append(value)
        values = [value for value in values if value is not None]
        if not values:
            return "-"
        spread = f" ({min(values):.3g}-{max(values):.3g})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3g}{spread}"

    rows = [
        *(("figures", key) for key in ("forget quality", "utility", "aggregate", "memorization", "privacy")),
        ("right", "forget"), ("right", "retain"), ("right, rephrased", "forget"),
        ("in draws", "1"), ("in draws", "10"), ("in draws", "100"), ("8 bit", "forget"), ("4 bit", "forget"),
        *(("relearning", attack, "steps") for attack in RELEARNING),
        ("training", "seconds"), ("training", "seconds to forget quality"),
        ("training", "peak bytes above the loaded models"),
        ("decoding, ms per token", "target"), ("decoding, ms per token", "model"),
    ]  # fmt: skip
    for keys in rows:
        print(f"{' / '.join(keys):<50}" + "".join(f"{mean(name, *keys):>28}" for name in names))
    print(f"{'':<50}" + "".join(f"{name:>28}" for name in names))


def tuning_file(folder: Path, method: str) -> Path:
    """Where it is kept what was tried of a method."""
    return folder / "bake" / f"{method}.tuning.json"


def make_missing(folders: Sequence[Path], tuned: dict[str, Path]) -> None:
    """Tune, train and measure, each in a process of its own."""
    for name, file in tuned.items():
        if not file.exists():
            subprocess.run([sys.executable, __file__, "--demos", str(folders[0]), "--tune", name], check=True)
    for folder in folders:
        for name in (*REFERENCES, *METHODS):
            command = [sys.executable, __file__, "--demos", str(folder), "--only", name]
            if name in tuned:
                command += ["--learning_rate", str(json.loads(tuned[name].read_text())["learning_rate"])]
            if not (folder / "bake" / f"{name}.json").exists():
                subprocess.run(command, check=True)


def main() -> None:
    """Make and measure what is missing, gather, print, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=Path, nargs="+", required=True, help="output folders of `uld demo`")
    parser.add_argument("--only", help="make and measure this one alone, in this process; nothing is gathered")
    parser.add_argument("--learning_rate", type=float, help="with --only: the learning rate, if not its own")
    parser.add_argument("--tune", help="choose the learning rate of this one alone; nothing is gathered")
    parser.add_argument("--gather_only", action="store_true", help="of what is there already; nothing is made")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.tune is not None:
        (folder,) = args.demos
        file = tuning_file(folder, args.tune)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(tune(Scenario(folder), args.tune), indent=1) + "\n")
        return
    if args.only is not None:
        change = {} if args.learning_rate is None else {"learning_rate": args.learning_rate}
        for folder in args.demos:
            scenario, file = Scenario(folder), folder / "bake" / f"{args.only}.json"
            file.parent.mkdir(exist_ok=True)
            if not file.exists():
                cost = {"training": train(scenario, args.only, change)} if args.only in METHODS else {}
                file.write_text(json.dumps(cost | measure(scenario, args.only), indent=1) + "\n")
        return
    tuned = {name: tuning_file(args.demos[0], name) for name in LEARNING_RATES}
    if not args.gather_only:
        make_missing(args.demos, tuned)
    report = gather(args.demos)
    show(report)
    if args.output is not None:
        machine = {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "versions": {"uld_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
            "settings": METHODS,
            "tuning": {name: json.loads(file.read_text()) for name, file in tuned.items()},
            "command": f"python {' '.join(sys.argv)}",
        }
        args.output.write_text(json.dumps({"machine": machine, **report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
