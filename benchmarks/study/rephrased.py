"""Questions in other words: what compositions of one assistant leave of what is forgotten, and of what is kept.

The assistant has learned paraphrases of the forget questions, but not these; of the retain questions it has seen none.
The defaults of `ULDModelConfig` are from here and from the ablation of the subtraction.
"""

from typing import Any

import numpy as np
from authors import Split
from measure import MAX_NEW_TOKENS
from study import Study
from targets import load_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_hf.evaluation.evaluation import evaluate
from uld_hf.evaluation.scoring import Subtraction
from uld_hf.evaluation.sweep import apply_subtraction


# All with the filter, 0.01.
COMPOSITIONS = {
    "the paper's formula, alpha 0.75": Subtraction(0.75, center=False),
    "centred, alpha 0.75": Subtraction(0.75, clamp=False),
    "centred, alpha 1.5": Subtraction(1.5, clamp=False),
    "centred, clamped, alpha 1": Subtraction(1.0, clamp=True),
    "centred, clamped, alpha 1.25": Subtraction(1.25, clamp=True),
    "centred, clamped, alpha 1.5": Subtraction(1.5, clamp=True),
    "the same, 1.25, gate 0.1": Subtraction(1.25, clamp=True, gate=0.1),
    "the same, 1.25, gate 0.2": Subtraction(1.25, clamp=True, gate=0.2),
}


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split) -> dict[str, dict[str, float]]:
    """Probability of the right answers and ROUGE-L recall of greedy ones, by the set of questions."""
    sets = {
        "forget": split.forget_questions,
        "forget, rephrased": split.rephrased_forget_questions,
        "retain": split.retain_questions,
        "retain, rephrased": split.rephrased_retain_questions,
    }
    found = {}
    for name, questions in sets.items():
        results = evaluate(model, tokenizer, questions, MAX_NEW_TOKENS)
        found[name] = {
            "probability": float(np.exp(-np.array(results.loss)).mean()),
            "ROUGE": float(np.mean(results.rouge_l_recall)),
        }
    return found


def measure_rephrased(study: Study, split_name: str, seed: int) -> dict[str, Any]:
    """
    Target, retrained model, and the compositions on the assistant of ULD's final run.

    Args:
        study ([`Study`]):
            The study.
        split_name (`str`):
            The forget set.
        seed (`int`):
            Seed of all models.

    Returns:
        `dict`: [`ask`]'s figures by model.
    """
    split, tokenizer = study.split(split_name), study.tokenizer
    unit = f"rephrased.{split_name}.s{seed}"
    models = {"target": study.target(seed), "retrained": study.retrained(split_name, seed)}
    found = {
        name: study.parts.unit(f"{unit}.{name}", lambda folder=folder: ask(load_model(folder), tokenizer, split))
        for name, folder in models.items()
    }
    unlearned = study.unlearned(split_name, seed)
    for name, composition in COMPOSITIONS.items():
        apply_subtraction(unlearned, composition)
        found[name] = study.parts.unit(f"{unit}.{name}", lambda: ask(unlearned, tokenizer, split))
    return found


def run_rephrased(study: Study, seeds: list[int]) -> None:
    """All units."""
    for seed in seeds:
        for split_name in study.preset.splits:
            unit = f"rephrased.{split_name}.s{seed}"
            study.ledger.unit(unit, lambda of=(split_name, seed): measure_rephrased(study, *of))
            study.parts.remove(f"{unit}.")
