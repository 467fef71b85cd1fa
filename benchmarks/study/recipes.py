"""How each recipe is trained: ULD, what is made of it, and its rivals."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from ledger import Deadline
from methods import OURS, TEACHERS
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
