"""The paper's other scenario: forget one book, keep another. Oz and Alice, learned from scratch."""

import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from ledger import Ledger
from presets import Preset
from recipes import Job, costs, train
from targets import book_tokenizer, learn, load_model
from training import read_cost
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_hf.data.augmentation_model import passages
from uld_hf.data.augmentation_rules import augment_by_rules
from uld_hf.evaluation.scoring import Subtraction
from uld_hf.evaluation.sweep import apply_subtraction
from uld_hf.evaluation.verbatim import documents_perplexity, score_continuations, split_passages


FORGET, RETAIN = "wizard_of_oz.txt", "alice_in_wonderland.txt"
# Title page and contents come before.
FIRST_WORDS = {FORGET: "Folklore, legends, myths", RETAIN: "Alice was beginning"}
PREFIX_TOKENS, CONTINUATION_TOKENS = 32, 48
MOST_PASSAGES = 60
WINDOW = 256  # tokens
BASELINES = ("ga kl", "npo nll")
# Of the baselines: without a retrained model's word for it there is no telling which is best, so all go into the table.
LEARNING_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
COMPOSITIONS = {
    "the paper's formula": {"relative_top": 0.01, "center": False},
    "clamped (ours)": {"relative_top": 0.0, "clamp": True},
    "clamped, gated (ours)": {"relative_top": 0.01, "clamp": True, "gate": 0.1},
}
ALPHAS = (0.5, 1.0, 1.5, 2.0)


def read_book(folder: Path, name: str, characters: int) -> str:
    """The beginning of a book with straight quotes: Alice has curly ones, and would be told apart by them alone."""
    text = (folder / name).read_text(encoding="utf-8")
    text = text[text.index(FIRST_WORDS[name]) :][:characters]
    for curly, straight in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'")):
        text = text.replace(curly, straight)
    return " ".join(text.split())


def as_rows(text: str) -> Dataset:
    """A book as rows of plain text."""
    return Dataset.from_list([{"text": passage} for passage in passages(text, characters=600)])


def measure_books(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, forget: Dataset, retain: Dataset
) -> dict[str, float]:
    """
    How well a model continues the one book, and how surprised it is by either.

    All begins where the rows begin that were learned: small models that know these by heart do not know them from the
    middle.
    """
    needed = PREFIX_TOKENS + CONTINUATION_TOKENS
    texts = [text for text in forget["text"] if len(tokenizer(text)["input_ids"]) >= needed]  # the last may be short
    starts = [split_passages(tokenizer, text, PREFIX_TOKENS, CONTINUATION_TOKENS) for text in texts]
    prefixes, references = ([pair[part][0] for pair in starts][:MOST_PASSAGES] for part in (0, 1))
    found = score_continuations(model, tokenizer, prefixes, references, CONTINUATION_TOKENS)
    return {
        "forget BLEU": float(found.bleu.mean()),
        "forget ROUGE": float(found.rouge_l_recall.mean()),
        "longest common run": float(found.longest_common_run.mean()),
        "forget perplexity": documents_perplexity(model, tokenizer, forget["text"], WINDOW),
        "retain perplexity": documents_perplexity(model, tokenizer, retain["text"], WINDOW),
    }


def run_books(preset: Preset, folder: Path, work: Path, ledger: Ledger) -> None:
    """
    All units of the book scenario, with the first seed: ULD by alpha, baselines by learning rate.

    Args:
        preset ([`Preset`]):
            The study's size.
        folder (`Path`):
            Folder of the books.
        work (`Path`):
            Folder for models.
        ledger ([`Ledger`]):
            The results, and the time.
    """
    texts = {name: read_book(folder, name, preset.book_characters) for name in (FORGET, RETAIN)}
    work, seed = work / "books", preset.seeds[0]
    tokenizer = book_tokenizer(preset, list(texts.values()), work / "tokenizer")
    rows = {name: as_rows(text) for name, text in texts.items()}
    both = Dataset.from_list([*rows[FORGET].to_list(), *rows[RETAIN].to_list()])

    def measured(model: PreTrainedModel) -> dict[str, float]:
        return measure_books(model, tokenizer, rows[FORGET], rows[RETAIN])

    def learned(name: str, of: Dataset) -> Path:
        return learn(of, preset, tokenizer, work / name, preset.book_epochs, seed, ledger.deadline)

    def reference(name: str, of: Dataset) -> dict[str, Any]:
        path = learned(name, of)
        return {"figures": measured(load_model(path)), "costs": [read_cost(path)]}

    ledger.unit("books.target", lambda: reference("target", both))
    ledger.unit("books.retrained", lambda: reference("retrained", rows[RETAIN]))

    def job(name: str, forget: Dataset) -> Job:
        target = learned("target", both)
        return Job(target, tokenizer, forget, rows[RETAIN], work / name, work / "uld", seed, preset, ledger.deadline)

    def assistant() -> dict[str, Any]:
        varied = augment_by_rules(rows[FORGET], rows[RETAIN], seed=seed).forget
        setting = {"learning_rate": 3e-3, "retain_weight": 3.0, "num_assistant_layers": preset.assistant_layers}
        task = job("uld", varied)
        model = train("uld", task, setting)
        found = {}
        for name, options in COMPOSITIONS.items():
            for alpha in ALPHAS:
                apply_subtraction(model, Subtraction(alpha, **options))
                found[f"{name}, alpha {alpha:g}"] = measured(model)
        return {"setting": setting, "figures": found, "costs": costs("uld", task)}

    def baseline(recipe: str) -> dict[str, Any]:
        found, spent = {}, []
        for rate in LEARNING_RATES:
            task = job(f"{recipe.replace(' ', '_')}.{rate:g}", rows[FORGET])
            try:
                model = train(recipe, task, {"learning_rate": rate})
            except FloatingPointError:
                found[f"rate {rate:g}, diverged"] = {}
                continue
            found[f"rate {rate:g}"] = measured(model)
            spent += costs(recipe, task)
            if not preset.keeps_models:
                shutil.rmtree(task.folder)
        return {"figures": found, "costs": spent}

    ledger.unit("books.uld", assistant)
    for recipe in BASELINES:
        ledger.unit(f"books.{recipe.replace(' ', '_')}", lambda recipe=recipe: baseline(recipe))
