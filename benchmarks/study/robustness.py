"""How well weights that have forgotten hold: taught again, quantized, drawn from, asked in other words.

Models are a baked one, NPO's and the retrained one. A fact of TOFU is a sentence, so ROUGE-L recall of answers is what
is looked at: a model remembers half where it is halfway from the retrained model's to the target's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from authors import to_training
from datasets import Dataset
from measure import MAX_NEW_TOKENS
from methods import METHODS, ROBUST_METHODS, TEACHERS
from recipes import folder_name
from study import Study
from targets import load_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from uld_hf.evaluation.evaluation import Question
from uld_hf.evaluation.memorization import sample_completions
from uld_hf.evaluation.relearning import relearn
from uld_hf.evaluation.tofu import generate_completions, rouge_l_recall


# Steps between two tests, and at most.
ATTACKS = {"all forget rows": (4, 120), "5 % of them": (20, 120), "kept rows": (20, 120)}
DRAWS = 100


def recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> float:
    """Mean ROUGE-L recall of greedy answers."""
    answers = generate_completions(model, tokenizer, [each.prompt for each in questions], MAX_NEW_TOKENS)
    return float(rouge_l_recall(answers, [each.answer for each in questions]).mean())


def recall_in_draws(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> float:
    """Mean over the questions of the highest ROUGE-L recall of several drawn answers."""
    prompts = [each.prompt for each in questions]
    drawn = sample_completions(model, tokenizer, prompts, num_samples=DRAWS, max_new_tokens=MAX_NEW_TOKENS)
    best = [rouge_l_recall(texts, [each.answer] * DRAWS).max() for each, texts in zip(questions, drawn, strict=True)]
    return float(np.mean(best))


def teach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    questions: list[Question],
    halfway: float,
    attack: str,
    seed: int,
) -> dict[str, Any]:
    """Steps of one of [`ATTACKS`] after which half of the answers is back, and the recall at every test."""
    every, most = ATTACKS[attack]

    def remembered(student: PreTrainedModel) -> float:
        return recall(student, tokenizer, questions)

    found = relearn(model, tokenizer, rows, remembered, halfway, test_every=every, max_steps=most, seed=seed)
    return {"steps": found.steps, "recall": [round(value, 4) for value in found.remembered]}


def measure_robustness(study: Study, name: str, folder: Path, split_name: str, seed: int) -> dict[str, Any]:
    """
    Everything about one model.

    Args:
        study ([`Study`]):
            The study.
        name (`str`):
            Name of the model.
        folder (`Path`):
            The model's.
        split_name (`str`):
            The forget set.
        seed (`int`):
            Seed of target and model.

    Returns:
        `dict`: Recalls by what was done, and steps of relearning.
    """
    split, tokenizer = study.split(split_name), study.tokenizer
    asked = split.forget_questions
    target, retrained = (
        float(np.mean(each.sets["forget"].rouge_l_recall)) for each in study.references(split_name, seed)
    )
    halfway = (target + retrained) / 2
    taught = max(1, round(0.05 * len(asked)))
    model = load_model(folder)

    def quantized(**config: bool) -> PreTrainedModel:
        settings = BitsAndBytesConfig(**config)
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings).eval()

    def part(measure: str, compute: Callable[[], Any]) -> Any:
        unit = f"robustness.{name}.{split_name}.s{seed}.{measure}"
        return study.parts.unit(unit, lambda: {"measured": compute()})["measured"]

    recalls: dict[str, Callable[[], float]] = {
        "greedy": lambda: recall(model, tokenizer, asked),
        f"best of {DRAWS} draws": lambda: recall_in_draws(model, tokenizer, asked),
        "rephrased": lambda: recall(model, tokenizer, split.rephrased_forget_questions),
        "8 bit": lambda: recall(quantized(load_in_8bit=True), tokenizer, asked),
        "4 bit": lambda: recall(quantized(load_in_4bit=True), tokenizer, asked),
    }
    found: dict[str, Any] = {"halfway": halfway} | {measure: part(measure, of) for measure, of in recalls.items()}
    lessons = {
        "all forget rows": (split.forget, asked),
        "5 % of them": (split.forget.select(range(taught)), asked[taught:]),
        "kept rows": (split.retain.select(range(len(asked))), asked),
    }
    found["relearning"] = {
        attack: part(
            attack,
            lambda rows=rows, questions=questions, attack=attack: teach(
                model, tokenizer, to_training(rows), questions, halfway, attack, seed
            ),
        )
        for attack, (rows, questions) in lessons.items()
    }
    return found


def run_robustness(study: Study, methods: list[str], seeds: list[int]) -> None:
    """All units, on the split for tuning: the models of these methods' final runs, and the retrained ones."""
    split_name = study.preset.tune_on
    for seed in seeds:
        folders = {"retrained": study.retrained(split_name, seed)}
        for key in [key for key in ROBUST_METHODS if key in methods]:
            study.final(key, split_name, seed)
            recipe = METHODS[key].recipe
            number, _ = study.chosen(METHODS[key].tuned_as or key)
            name = folder_name(recipe, METHODS[key].augmented)
            place = study.work / study.run_folder(name, number, split_name, seed)
            folders[key] = place / "model" if recipe in TEACHERS else place
        for model, folder in folders.items():
            unit, of = f"robustness.{model}.{split_name}.s{seed}", (model, folder, split_name, seed)
            study.ledger.unit(unit, lambda of=of: measure_robustness(study, *of))
            study.parts.remove(f"{unit}.")
