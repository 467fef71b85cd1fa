"""The settings that are tried of every recipe."""

from typing import Any

from methods import OURS, TEACHERS
from presets import Preset


# Settings to try, the likeliest first; a preset says how many.
ULD_GRID = (
    {"learning_rate": 3e-3, "retain_weight": 3.0, "retain_per_forget": 2.0},
    {"learning_rate": 1e-3, "retain_weight": 6.5, "retain_per_forget": 1.0},  # the paper's
    {"learning_rate": 5e-3, "retain_weight": 3.0, "retain_per_forget": 2.0},
    {"learning_rate": 3e-3, "retain_weight": 6.5, "retain_per_forget": 1.0},
    {"learning_rate": 3e-3, "retain_weight": 1.0, "retain_per_forget": 2.0},
    {"learning_rate": 3e-3, "retain_weight": 3.0, "retain_per_forget": 4.0},
    {"learning_rate": 1e-3, "retain_weight": 3.0, "retain_per_forget": 2.0},
    {"learning_rate": 5e-3, "retain_weight": 6.5, "retain_per_forget": 4.0},
)
# Baking is no rival: its epochs are its own. A divergence alone leaves the forgotten too likely; some settings learn
# the likelihood of given text beside it.
BAKE_GRID = (
    {"learning_rate": 1e-3, "likelihood_weight": 0.0},
    {"learning_rate": 2e-3, "num_train_epochs": 12, "likelihood_weight": 0.2, "retain_weight": 3.0},
    {"learning_rate": 1e-3, "num_train_epochs": 15, "likelihood_weight": 0.3, "retain_weight": 3.0},
    {
        "learning_rate": 2e-3,
        "num_train_epochs": 40,
        "likelihood_weight": 0.2,
        "retain_weight": 3.0,
        "noise": 0.4,
        "temperature": 1.5,
        "teacher_top_k": 200,
    },
    {"learning_rate": 2e-3, "likelihood_weight": 0.0, "noise": 0.3},
    {"learning_rate": 2e-3, "num_train_epochs": 12, "likelihood_weight": 0.1},
    {"learning_rate": 2e-3, "num_train_epochs": 12, "likelihood_weight": 0.3},
    {"learning_rate": 2e-3, "likelihood_weight": 0.0, "divergence": "reverse_kl"},
)
DIVERGENCE_GRID = (
    *({"learning_rate": rate, "num_train_epochs": epochs} for epochs in (10, 5) for rate in (5e-3, 3e-3, 1e-2, 1e-3)),
    {"learning_rate": 2e-2, "num_train_epochs": 10},
    {"learning_rate": 2e-2, "num_train_epochs": 5},
)
WEIGHTS_GRID = (
    *({"learning_rate": rate, "retain_weight": weight} for weight in (1.0, 5.0) for rate in (3e-4, 1e-4, 1e-3, 3e-5)),
    {"learning_rate": 3e-3, "retain_weight": 1.0},
    {"learning_rate": 3e-3, "retain_weight": 5.0},
)
# Its authors weigh the retain term eight times as much as the forget term.
SIMNPO_GRID = (*WEIGHTS_GRID, *({"learning_rate": rate, "retain_weight": 8.0} for rate in (1e-3, 3e-3, 3e-4)))
# LoRA wants a higher rate than all weights.
OFFSET_GRID = (
    *({"learning_rate": rate, "retain_weight": weight} for weight in (1.0, 5.0) for rate in (1e-3, 3e-4, 3e-3, 1e-4)),
    {"learning_rate": 1e-2, "retain_weight": 1.0},
    {"learning_rate": 1e-2, "retain_weight": 5.0},
)
# What activations are steered to must be longer than they are, and that differs between models.
RMU_GRID = (
    *(
        {"learning_rate": rate, "steering_coefficient": length}
        for length in (20.0, 6.5)
        for rate in (3e-4, 1e-4, 1e-3, 3e-5)
    ),
    {"learning_rate": 1e-3, "steering_coefficient": 6.5, "retain_weight": 10.0},
    {"learning_rate": 1e-3, "steering_coefficient": 6.5, "retain_weight": 100.0},
)
# Without a retain term there is no weight to try.
NO_RETAIN_GRID = (
    *({"learning_rate": rate, "num_train_epochs": epochs} for epochs in (10, 3) for rate in (3e-4, 1e-4, 1e-3, 3e-5)),
    {"learning_rate": 3e-3, "num_train_epochs": 10},
    {"learning_rate": 3e-3, "num_train_epochs": 3},
)


def grid(recipe: str, preset: Preset) -> list[dict[str, Any]]:
    """
    The settings that are tried of a recipe.

    Args:
        recipe (`str`):
            One of `recipes.RECIPES`, or `"{loss} {retain loss}"` of a method that changes the weights; with `"offset "`
            before it, one that changes an assistant.
        preset ([`Preset`]):
            The study's size: how many, K, and, if it is fewer than a setting asks for, the epochs.

    Returns:
        `list[dict]`: Options of the recipe's trainer.
    """
    if recipe in TEACHERS:
        settings = [dict(each) for each in BAKE_GRID]
    elif recipe in OURS:
        settings = [{**each, "num_assistant_layers": preset.assistant_layers} for each in ULD_GRID]
    elif recipe == "divergence":
        settings = [{**each, "num_assistant_layers": preset.assistant_layers} for each in DIVERGENCE_GRID]
    elif recipe.startswith("offset "):
        settings = [{**each, "num_assistant_layers": preset.assistant_layers} for each in OFFSET_GRID]
    elif recipe.startswith("simnpo "):
        settings = [dict(each) for each in SIMNPO_GRID]
    elif recipe.startswith("rmu "):
        settings = [dict(each) for each in RMU_GRID]
    else:
        settings = [dict(each) for each in (NO_RETAIN_GRID if recipe.endswith(" none") else WEIGHTS_GRID)]
    for each in settings:
        if "num_train_epochs" in each and recipe not in TEACHERS:
            each["num_train_epochs"] = min(each["num_train_epochs"], preset.unlearning_epochs)
    return settings[: preset.trials if recipe in OURS else preset.rival_trials]
