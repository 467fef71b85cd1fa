"""The methods of the study: how each is trained, which settings are tried of it, and how its logits are composed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from ledger import Deadline
from peft import LoraConfig
from presets import Preset
from targets import load_model
from training import common_options, is_trained, loading_options, read_cost, train_within
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from uld_hf import (
    OffsetConfig,
    OffsetTrainer,
    ULDBakeConfig,
    ULDBakeTrainer,
    ULDConfig,
    ULDForCausalLM,
    ULDTrainer,
    UnlearnConfig,
    UnlearnTrainer,
)
from uld_hf.evaluation.scoring import Subtraction


@dataclass(frozen=True)
class Job:
    """
    One training to do.

    Args:
        target (`Path`):
            Folder of the target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        forget (`Dataset`):
            Rows to forget.
        retain (`Dataset`):
            Rows to keep.
        folder (`Path`):
            Folder for what is trained.
        assistant (`Path`):
            Folder of ULD's assistant with the same rows and setting, trained or not: a pair begins with it.
        seed (`int`):
            Seed.
        preset ([`Preset`]):
            The study's size.
        deadline ([`Deadline`]):
            The time.
        teacher (`Callable[[], ULDForCausalLM]`, *optional*):
            Loads the unlearned model to bake.
        drawn (`Callable[[], Dataset]`, *optional*):
            Makes the retain set with wrong answers that the target draws itself.
    """

    target: Path
    tokenizer: PreTrainedTokenizerBase
    forget: Dataset
    retain: Dataset
    folder: Path
    assistant: Path
    seed: int
    preset: Preset
    deadline: Deadline
    teacher: Callable[[], ULDForCausalLM] | None = None
    drawn: Callable[[], Dataset] | None = None

    def options(self, folder: Path, setting: dict[str, Any]) -> dict[str, Any]:
        """Options that all methods have, and those of the setting."""
        return {
            "output_dir": str(folder),
            "num_train_epochs": self.preset.unlearning_epochs,
            "per_device_train_batch_size": self.preset.batch_size,
            "lr_scheduler_type": "cosine",
            "max_length": 512,
            **common_options(self.preset, self.seed),
            **setting,
        }

    def train(self, trainer_class: type[Trainer], args: TrainingArguments, **options: Any) -> None:
        """Train the target, or what is made of it, within the time."""

        def build_trainer() -> Trainer:
            return trainer_class(str(self.target), args, processing_class=self.tokenizer, **options)

        train_within(build_trainer, self.deadline)


@dataclass(frozen=True)
class Method:
    """
    A line of the tables.

    Args:
        name (`str`):
            What the tables call it.
        paper (`str`):
            What the paper's tables call it; empty if they do not have it.
        recipe (`str`):
            How it is trained: methods of one recipe share their trainings.
        subtractions (`tuple[Subtraction, ...]`):
            Compositions that are tried, without training; none for methods that change the weights.
        augmented (`bool`):
            Whether it trains on paraphrases and wrong answers too.
        tuned_as (`str`, *optional*):
            Key of the line whose setting this has. Of a composition it is the training too; if there are several, it is
            then chosen anew on every forget set, and without a retrained model: so that truth ratios are those of
            authors that the target has never met.
        ratios (`tuple[float, ...]`):
            Weights of the second assistant that are tried, as shares of the first one's. Where there is a choice, and
            no retrained model, likelihoods and Min-K are to be those of unseen authors too.
    """

    name: str
    paper: str
    recipe: str
    subtractions: tuple[Subtraction, ...] = ()
    augmented: bool = False
    tuned_as: str | None = None
    ratios: tuple[float, ...] = (1.0,)

    @property
    def changes_weights(self) -> bool:
        """Whether what is trained is a model of the target's size, and no assistant."""
        return not self.subtractions and not self.recipe.startswith("offset ")

    @property
    def is_fixed(self) -> bool:
        """Whether there is one composition, and nothing to choose."""
        return len(self.subtractions) == len(self.ratios) == 1

    def tried(self, preset: Preset) -> tuple[Subtraction, ...]:
        """Compositions that a study of a size tries in its trials."""
        more = (replace(each, gate=gate) for gate in preset.more_gates for each in self.subtractions if each.gate)
        return tuple(dict.fromkeys((*self.subtractions, *more)))

    def tried_after(self, best: dict[str, Any], preset: Preset) -> tuple[Subtraction, ...]:
        """Compositions that are tried with a setting that is chosen: with its gate, where there was a choice of one."""
        if not preset.more_gates:
            return self.subtractions
        return tuple(dict.fromkeys(replace(each, gate=best["subtraction"]["gate"]) for each in self.subtractions))


ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0)


def _subtractions(alphas: tuple[float, ...] = ALPHAS, **settings: Any) -> tuple[Subtraction, ...]:
    return tuple(Subtraction(alpha, **settings) for alpha in alphas)


ULD_LINES: dict[str, Method] = {
    # The paper's formula, with more alphas than the paper's.
    "uld_paper": Method(
        "ULD, the paper's formula", "ULD", "uld", _subtractions(relative_top=0.01, center=False), augmented=True
    ),
    # What its code generates with.
    "uld_released": Method(
        "ULD, as its code generates",
        "",
        "uld",
        _subtractions(relative_top=0.01, center=False, outside="mask"),
        augmented=True,
    ),
    # Ours.
    "uld_centered": Method(
        "ULD, centred (ours)", "", "uld", _subtractions(relative_top=0.01, clamp=False), augmented=True
    ),
    "uld_clamped": Method(
        "ULD, no filter, clamped (ours)", "", "uld", _subtractions(relative_top=0.0, clamp=True), augmented=True
    ),
    # uld_hf's default.
    "uld_clamped_filter": Method(
        "ULD, filter, clamped (uld_hf's default)",
        "",
        "uld",
        _subtractions(relative_top=0.01, clamp=True),
        augmented=True,
    ),
    "uld_gated": Method(
        "ULD, filter, clamped, gated (ours)",
        "",
        "uld",
        _subtractions(relative_top=0.01, clamp=True, gate=0.1),
        augmented=True,
    ),
}
# Beside the assistant one that knows how such answers are worded, and wrong ones.
CONTRAST = Method(
    "ULD, gated contrast (ours)",
    "",
    "contrast",
    tuple(setting for gate in (0.1, 0.2, 0.3) for setting in _subtractions(relative_top=0.0, clamp=False, gate=gate)),
    augmented=True,
    ratios=(0.4, 0.6, 0.8, 1.0),
)
# The same two assistants; where the first is sure, the second takes the target's place. Between an alpha that leaves
# facts likely and one that makes them too unlikely there is little room, and 1.1 lies in it.
REPLACED = replace(
    CONTRAST,
    name="ULD, gated replacement (ours), weights by unseen authors",
    tuned_as="uld_gated",
    subtractions=_subtractions(
        (0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0), relative_top=0.0, clamp=True, gate=0.1, replace=True
    ),
    ratios=(0.8, 1.0, 1.2, 1.4, 1.6, 1.8),
)
# The same, drawn, with an alpha for every position: of what the first assistant is half sure, half is subtracted.
CERTAIN = replace(
    REPLACED,
    name="ULD, replacement by certainty, drawn (ours), weights by unseen authors",
    recipe="contrast_drawn",
    subtractions=_subtractions(
        (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75),
        relative_top=0.0,
        clamp=True,
        gate=0.1,
        by_certainty=True,
        replace=True,
    ),
    ratios=(0.9, 1.0, 1.1, 1.2, 1.3),
)
DIVERGENCE = Method("Divergence Decoding, linear", "", "divergence", _subtractions(relative_top=0.0, center=False))
RIVALS: dict[str, Method] = {
    "dd_linear": DIVERGENCE,
    # With what our lines of two assistants choose from, and by their rule.
    "dd_linear_unseen": replace(
        DIVERGENCE,
        name=f"{DIVERGENCE.name}, weights by unseen authors",
        tuned_as="dd_linear",
        ratios=CONTRAST.ratios,
    ),
    "dd_rank": Method(
        "Divergence Decoding, rank",
        "",
        "divergence",
        tuple(Subtraction(1.0, relative_top=0.0, center=False, remove_top_k=top) for top in (1, 2, 5, 10, 20, 50, 100)),
    ),
    "offset_ga_kl": Method("Offset, GA + KL", "Offset-GA+KL", "offset ga kl"),
    "offset_npo_kl": Method("Offset, NPO + KL", "Offset-NPO+KL", "offset npo kl"),
    "offset_dpo_kl": Method("Offset, DPO + KL", "Offset-DPO+KL", "offset dpo kl"),
    "ga": Method("GA", "GA", "ga none"),
    "ga_gd": Method("GA + GD (gradient difference)", "GA+GD", "ga nll"),
    "ga_kl": Method("GA + KL", "GA+KL", "ga kl"),
    "npo": Method("NPO", "NPO", "npo none"),
    "npo_gd": Method("NPO + GD", "NPO+GD", "npo nll"),
    "npo_kl": Method("NPO + KL", "NPO+KL", "npo kl"),
    "dpo": Method("DPO", "DPO", "dpo none"),
    "dpo_gd": Method("DPO + GD", "DPO+GD", "dpo nll"),
    "dpo_kl": Method("DPO + KL", "DPO+KL", "dpo kl"),
    "simnpo": Method("SimNPO", "", "simnpo nll"),
    "undial": Method("UNDIAL", "", "undial nll"),
    # As OpenUnlearning configures it.
    "undial_none": Method("UNDIAL, no retain term", "", "undial none"),
    "rmu": Method("RMU", "", "rmu activations"),
}
METHODS: dict[str, Method] = {
    **ULD_LINES,
    "uld_contrast": CONTRAST,
    # What a user can do who has no retrained model.
    **{
        f"{key}_unseen": replace(
            ULD_LINES[key], name=f"{ULD_LINES[key].name}, alpha by unseen authors", paper="", tuned_as=key
        )
        for key in ("uld_paper", "uld_clamped_filter", "uld_gated")
    },
    # With hundreds of questions the band in which p passes is narrower than the steps of the others.
    "uld_gated_fine": replace(
        ULD_LINES["uld_gated"],
        name=f"{ULD_LINES['uld_gated'].name}, alpha by unseen authors in steps of 0.05",
        paper="",
        tuned_as="uld_gated",
        subtractions=_subtractions(
            tuple(round(0.05 * step, 2) for step in range(20, 41)), relative_top=0.01, clamp=True, gate=0.1
        ),
    ),
    "uld_contrast_unseen": replace(
        CONTRAST, name=f"{CONTRAST.name}, weights by unseen authors", tuned_as="uld_contrast"
    ),
    "uld_replaced_unseen": REPLACED,
    # The second assistant learns wrong answers that the target draws, in place of the released ones.
    "uld_drawn_unseen": replace(
        REPLACED, name="ULD, gated replacement, drawn (ours), weights by unseen authors", recipe="contrast_drawn"
    ),
    # Chosen as everything else is: on one split, beside the retrained model.
    "uld_certain": replace(CERTAIN, name="ULD, replacement by certainty, drawn (ours)", tuned_as=None),
    "uld_certain_unseen": CERTAIN,
    # Weights that were good on the finetuned preset's seeds 0 to 2, beside the retrained models, for all runs alike.
    "uld_certain_fixed": replace(
        CERTAIN,
        name="ULD, replacement by certainty, drawn (ours), fixed weights",
        subtractions=tuple(setting for setting in CERTAIN.subtractions if setting.alpha == 1.4),
        ratios=(1.1,),
    ),
    "uld_rules": Method(
        "ULD, clamped, augmented by rules (ours)",
        "",
        "uld_rules",
        _subtractions(relative_top=0.0, clamp=True),
        augmented=True,
    ),
    # What do paraphrases and wrong answers do for ULD?
    "uld_plain": Method(
        "ULD, filter, clamped, gated (ours), on rivals' rows", "", "uld_plain", ULD_LINES["uld_gated"].subtractions
    ),
    "bake": Method("ULD, gated, baked (ours)", "", "bake", augmented=True),
    "bake_contrast": Method("ULD, gated contrast, baked (ours)", "", "bake_contrast", augmented=True, tuned_as="bake"),
    **RIVALS,
    # And what do they for rivals, whose papers do not have them?
    **{
        f"{key}_augmented": replace(RIVALS[key], name=f"{RIVALS[key].name}, on ULD's rows", paper="", augmented=True)
        for key in ("dd_linear", "npo_gd", "ga_gd")
    },
}

# Methods whose weights are attacked when they have forgotten.
ROBUST_METHODS = ("bake", "bake_contrast", "npo_gd")

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
OURS = ("uld", "uld_rules", "uld_plain", "contrast", "contrast_drawn", "bake", "bake_contrast")
# The teachers of baked models, by recipe: with weights that need no retrained model.
TEACHERS = {"bake": "uld_gated_unseen", "bake_contrast": "uld_contrast_unseen"}
# It is no rival: its epochs are its own. A divergence alone leaves the forgotten too likely; some settings learn the
# likelihood of given text beside it.
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
            One of [`RECIPES`], or `"{loss} {retain loss}"` of a method that changes the weights; with `"offset "`
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


def folder_name(recipe: str, augmented: bool) -> str:
    """
    Where trainings of a recipe are.

    Args:
        recipe (`str`):
            One of [`RECIPES`], or one that names its losses.
        augmented (`bool`):
            Whether it trains on paraphrases and wrong answers too: a rival that does has a folder of its own.

    Returns:
        `str`: The folder's name.
    """
    return recipe.replace(" ", "_") + ("_augmented" if augmented and recipe not in OURS else "")


def train_assistant(job: Job, setting: dict[str, Any]) -> ULDForCausalLM:
    """ULD: the assistant learns the forget set and is uniform on the retain set."""
    setting = dict(setting)
    lora_rank = setting.pop("lora_rank", 32)
    if not is_trained(job.folder):
        lora = LoraConfig(task_type="CAUSAL_LM", r=lora_rank, lora_alpha=lora_rank, target_modules="all-linear")
        args = ULDConfig(**job.options(job.folder, setting))
        rows = {"forget_dataset": job.forget, "retain_dataset": job.retain}
        job.train(ULDTrainer, args, **rows, peft_config=lora)
    return ULDForCausalLM.from_pretrained(job.folder, **loading_options())


def train_auxiliaries(job: Job, setting: dict[str, Any]) -> ULDForCausalLM:
    """Divergence Decoding: one assistant learns the forget set, another the retain set."""
    parts = {"forget": (1.0, {"forget_dataset": job.forget}), "retain": (-1.0, {"retain_dataset": job.retain})}
    for name, (alpha, rows) in parts.items():
        folder = job.folder / name
        if not is_trained(folder):
            composed = {"alpha": alpha, "relative_top": 0.0, "center": False}
            args = ULDConfig(objective="likelihood", **composed, **job.options(folder, setting))
            job.train(ULDTrainer, args, **rows)
    model = ULDForCausalLM.from_pretrained(job.folder / "forget", **loading_options())
    model.add_assistant(str(job.folder / "retain"))
    return model


def train_contrast(job: Job, setting: dict[str, Any]) -> ULDForCausalLM:
    """ULD's assistant, and one that learned what must be kept and the wrong answers to what must be forgotten."""
    return train_pair(job, setting, lambda: job.retain)


def train_drawn(job: Job, setting: dict[str, Any]) -> ULDForCausalLM:
    """The same with wrong answers that the target draws itself."""
    return train_pair(job, setting, job.drawn)


def train_pair(job: Job, setting: dict[str, Any], retain: Callable[[], Dataset]) -> ULDForCausalLM:
    """ULD's assistant, and one that learned the rows that `retain` makes."""
    model = train_assistant(replace(job, folder=job.assistant), setting)
    folder = job.folder / "retain"
    if not is_trained(folder):
        setting = {name: setting[name] for name in ("learning_rate", "num_assistant_layers")}
        args = ULDConfig(
            objective="likelihood", alpha=-1.0, relative_top=0.0, center=False, **job.options(folder, setting)
        )
        job.train(ULDTrainer, args, retain_dataset=retain())
    model.add_assistant(str(folder))
    return model


def train_baked(job: Job, setting: dict[str, Any]) -> PreTrainedModel:
    """One plain checkpoint of an unlearned model."""
    if not is_trained(job.folder):
        options = {"teacher_answers": 2, "max_new_tokens": 96, **job.options(job.folder / "model", setting)}
        rows = {"forget_dataset": job.forget, "retain_dataset": job.retain}
        teacher = job.teacher()

        def build_trainer() -> ULDBakeTrainer:
            return ULDBakeTrainer(teacher, ULDBakeConfig(**options), **rows, processing_class=job.tokenizer)

        train_within(build_trainer, job.deadline, job.folder)
    return load_model(job.folder / "model")


def train_offset(job: Job, setting: dict[str, Any]) -> ULDForCausalLM:
    """Offset unlearning: what an assistant has changed in itself is added to the target's logits."""
    if not is_trained(job.folder):
        args = OffsetConfig(**job.options(job.folder, setting))
        rows = {"forget_dataset": job.forget, "retain_dataset": job.retain}
        job.train(OffsetTrainer, args, **rows)
    return ULDForCausalLM.from_pretrained(job.folder, **loading_options())


def train_weights(job: Job, setting: dict[str, Any]) -> PreTrainedModel:
    """A rival that changes the target's weights; the setting names its losses."""
    if not is_trained(job.folder):
        args = UnlearnConfig(**job.options(job.folder, setting))
        rows = {"forget_dataset": job.forget, "retain_dataset": job.retain}
        if args.retain_loss_type == "none":
            rows["retain_dataset"] = None
        job.train(UnlearnTrainer, args, **rows)
    return load_model(job.folder)


PAIRS = {"contrast": train_contrast, "contrast_drawn": train_drawn}
RECIPES: dict[str, Callable[[Job, dict[str, Any]], PreTrainedModel]] = {
    "uld": train_assistant,
    "uld_rules": train_assistant,
    "uld_plain": train_assistant,
    **PAIRS,
    **dict.fromkeys(TEACHERS, train_baked),
    "divergence": train_auxiliaries,
}


def train(recipe: str, job: Job, setting: dict[str, Any]) -> PreTrainedModel:
    """
    Train by a recipe, unless it was done.

    Args:
        recipe (`str`):
            One of [`RECIPES`], or `"{loss} {retain loss}"` of a method that changes the weights.
        job ([`Job`]):
            What is to be trained on what.
        setting (`dict`):
            Options of the recipe's trainer, see [`grid`].

    Returns:
        [`~transformers.PreTrainedModel`]: The unlearned model.

    Raises:
        OutOfTimeError: If the training is not finished.
    """
    if recipe in RECIPES:
        return RECIPES[recipe](job, setting)
    *offset, loss_type, retain_loss_type = recipe.split()
    options = {"loss_type": loss_type, "retain_loss_type": retain_loss_type, **setting}
    return train_offset(job, options) if offset else train_weights(job, options)


def costs(recipe: str, job: Job) -> list[dict[str, float]]:
    """What each training of a job took: pairs and Divergence Decoding have two."""
    folders = (job.assistant, job.folder) if recipe in PAIRS else (job.folder,)
    logs = [log for folder in folders for log in sorted(folder.glob("**/log.json"))]
    return [read_cost(log.parent) for log in logs]
