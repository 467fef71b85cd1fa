"""Target and retrained models, trained from scratch: no pretrained weights can be had where this study runs."""

from pathlib import Path

from authors import learned_rows, load_split, pretraining_rows, to_training
from datasets import Dataset
from ledger import Deadline
from presets import Preset
from training import common_options, is_trained, loading_options, train_within
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from uld_hf import load_tofu
from uld_hf.cli.demo import train_tokenizer


def study_tokenizer(preset: Preset, tofu: Path, folder: Path) -> PreTrainedTokenizerBase:
    """
    The tokenizer of all models, learned from the learned rows and from the texts that are only asked about.

    Args:
        preset ([`Preset`]):
            The study's size.
        tofu (`Path`):
            Folder of TOFU's files.
        folder (`Path`):
            Where it is kept.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: The tokenizer, without chat template.
    """
    if (folder / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(folder)
    rows = learned_rows(preset, tofu).to_list()
    if preset.pretraining_epochs:
        rows += [row for row in pretraining_rows(preset, tofu) if row not in rows]
    texts = [text for row in rows for text in row.values()]
    for name in ("forget10_perturbed", "retain_perturbed"):
        texts += load_tofu(name, tofu)["paraphrased_answer"]
    return _save_tokenizer(texts, preset.vocab_size, folder)


def _save_tokenizer(texts: list[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(texts, vocab_size)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return tokenizer


def book_tokenizer(preset: Preset, texts: list[str], folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the book scenario's models."""
    if (folder / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(folder)
    return _save_tokenizer(texts, preset.vocab_size, folder)


def new_model(preset: Preset, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Llama with random weights."""
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.hidden_size,
        intermediate_size=4 * preset.hidden_size,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=max(2, preset.hidden_size // 64),
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        # The default of 0.02 is meant for widths of thousands: facts are learned in half the steps with this.
        initializer_range=preset.hidden_size**-0.5,
    )
    return AutoModelForCausalLM.from_config(config)


def learn(
    rows: Dataset,
    preset: Preset,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    epochs: float,
    seed: int,
    deadline: Deadline,
    base: Path | None = None,
) -> Path:
    """
    Train a model, unless it was.

    Args:
        rows (`Dataset`):
            Prompt-completion rows, or rows of text.
        preset ([`Preset`]):
            The study's size.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        folder (`Path`):
            Folder for the model.
        epochs (`float`):
            Passes over the rows.
        seed (`int`):
            Seed of weights and order.
        deadline ([`Deadline`]):
            The time.
        base (`Path`, *optional*):
            Folder of the model to begin with. Defaults to random weights.

    Returns:
        `Path`: The folder.
    """
    if not is_trained(folder):
        args = SFTConfig(
            output_dir=str(folder),
            num_train_epochs=epochs,
            learning_rate=preset.target_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            weight_decay=0.01,
            per_device_train_batch_size=preset.batch_size,
            max_length=512,
            train_sampling_strategy="group_by_length" if preset.group_by_length else "random",
            **common_options(preset, seed),
        )

        def build_trainer() -> SFTTrainer:
            model = new_model(preset, tokenizer, seed) if base is None else load_model(base)
            return SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)

        train_within(build_trainer, deadline)
    return folder


def base_folder(
    preset: Preset, tofu: Path, work: Path, tokenizer: PreTrainedTokenizerBase, deadline: Deadline
) -> Path | None:
    """The folder of the model that target and retrained model begin with, one for all seeds; trained if it was not."""
    if not preset.pretraining_epochs:
        return None
    rows = to_training(pretraining_rows(preset, tofu))
    return learn(rows, preset, tokenizer, work / "base", preset.pretraining_epochs, 0, deadline)


def target_folder(
    preset: Preset, tofu: Path, work: Path, tokenizer: PreTrainedTokenizerBase, seed: int, deadline: Deadline
) -> Path:
    """The target's folder; it is trained if it was not."""
    base = base_folder(preset, tofu, work, tokenizer, deadline)
    rows = to_training(learned_rows(preset, tofu))
    return learn(rows, preset, tokenizer, work / f"target.s{seed}", preset.target_epochs, seed, deadline, base)


def retrained_folder(
    preset: Preset,
    tofu: Path,
    work: Path,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    seed: int,
    deadline: Deadline,
) -> Path:
    """The folder of a model that never saw a split's forget set; it is trained if it was not."""
    base = base_folder(preset, tofu, work, tokenizer, deadline)
    rows = to_training(load_split(preset, split, tofu).retain)
    folder = work / f"retrained.{split}.s{seed}"
    return learn(rows, preset, tokenizer, folder, preset.target_epochs, seed, deadline, base)


def load_model(folder: Path) -> PreTrainedModel:
    """A saved model."""
    return AutoModelForCausalLM.from_pretrained(folder, **loading_options()).eval()
