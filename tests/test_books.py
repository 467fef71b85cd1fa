"""Forget one book and keep the other, for real: a small target learns the beginnings of both, word for word."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from uld_hf import ULDConfig, ULDForCausalLM, ULDTrainer
from uld_hf.cli.demo import learn, train_tokenizer, training_options
from uld_hf.cli.main import main as uld
from uld_hf.evaluation.evaluation import Evaluation
from uld_hf.evaluation.verbatim import Continuations, score_continuations, split_passages, word_perplexity


BOOKS = Path(__file__).resolve().parents[2] / "shared" / "data" / "books"
PREFIX, CONTINUATION, PASSAGES = 16, 32, 24
pytestmark = pytest.mark.skipif(not BOOKS.exists(), reason=f"the books are not at {BOOKS}")
QUOTES = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}
FILES = {"forget": "wizard_of_oz.txt", "retain": "alice_in_wonderland.txt"}


class Books(NamedTuple):
    """The unlearned model, its tokenizer, and the passages of both books."""

    model: ULDForCausalLM
    tokenizer: PreTrainedTokenizerBase
    passages: dict[str, tuple[list[str], list[str]]]
    folder: Path

    def continuations(self, model: object, split: str) -> Continuations:
        return score_continuations(model, self.tokenizer, *self.passages[split], CONTINUATION)

    def perplexity(self, model: object, split: str) -> float:
        texts = map("".join, zip(*self.passages[split], strict=True))
        return float(np.mean([word_perplexity(model, self.tokenizer, text, PREFIX + CONTINUATION) for text in texts]))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    folder = tmp_path_factory.mktemp("books")
    # Straight quotes in both, or the two would be told apart by their typography.
    texts = {
        split: (BOOKS / file).read_text(encoding="utf-8").translate(QUOTES)[:20_000] for split, file in FILES.items()
    }
    tokenizer = train_tokenizer(list(texts.values()), vocab_size=800)
    tokenizer.chat_template = None
    passages = {}
    for split, text in texts.items():
        prefixes, continuations = split_passages(tokenizer, text, PREFIX, CONTINUATION)
        passages[split] = (prefixes[:PASSAGES], continuations[:PASSAGES])
    rows = {
        split: Dataset.from_dict({"text": list(map("".join, zip(*pairs, strict=True)))})
        for split, pairs in passages.items()
    }
    both = Dataset.from_dict({"text": [*rows["forget"]["text"], *rows["retain"]["text"]]})
    target, _ = learn(both, tokenizer, folder / "target", seed=0, num_epochs=60)
    trainer = ULDTrainer(
        target,
        ULDConfig(
            str(folder / "unlearned"),
            num_assistant_layers=2,
            learning_rate=3e-3,
            num_train_epochs=60,
            retain_weight=3.0,
            alpha=1.5,
            relative_top=0.0,
            clamp=True,
            **training_options(0),
        ),
        forget_dataset=rows["forget"],
        retain_dataset=rows["retain"],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    return Books(ULDForCausalLM.from_pretrained(folder / "unlearned"), tokenizer, passages, folder / "unlearned")


@pytest.mark.slow
def test_the_target_knows_both_books_by_heart(books: Books):
    for split in FILES:
        assert books.continuations(books.model.target, split).bleu.mean() > 80


@pytest.mark.slow
def test_the_forgotten_book_is_not_continued_any_more(books: Books):
    known, forgotten = (books.continuations(model, "forget") for model in (books.model.target, books.model))
    assert forgotten.bleu.mean() < 10
    assert forgotten.rouge_l_recall.mean() < 0.3 * known.rouge_l_recall.mean()
    assert forgotten.longest_common_run.mean() < 0.3 * known.longest_common_run.mean()
    assert books.perplexity(books.model, "forget") > 100 * books.perplexity(books.model.target, "forget")


@pytest.mark.slow
def test_the_other_book_is_kept(books: Books):
    had, kept = (books.continuations(model, "retain") for model in (books.model.target, books.model))
    assert kept.bleu.mean() > 0.9 * had.bleu.mean()
    assert kept.rouge_l_recall.mean() > 0.9 * had.rouge_l_recall.mean()
    assert books.perplexity(books.model, "retain") < 2 * books.perplexity(books.model.target, "retain")


@pytest.mark.slow
def test_uld_eval_measures_documents_by_the_same_functions(books: Books, tmp_path: Path):
    for split, pairs in books.passages.items():
        lines = [json.dumps({"text": "".join(pair)}) + "\n" for pair in zip(*pairs, strict=True)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    sets = [part for split in FILES for part in (f"--{split}_dataset", str(tmp_path / f"{split}.jsonl"))]
    options = ["--prefix_tokens", str(PREFIX), "--continuation_tokens", str(CONTINUATION), "--num_samples", "2"]
    options += ["--max_new_tokens", str(CONTINUATION), "--output_dir", str(tmp_path / "results")]
    assert uld(["eval", "--model", str(books.folder), *sets, *options]) == 0
    for name, model in (("target", books.model.target), ("unlearned", books.model)):
        evaluation = Evaluation.load(tmp_path / "results" / f"{name}.json")
        for split in FILES:
            expected = books.continuations(model, split)
            assert evaluation.sets[split].bleu == pytest.approx(expected.bleu)
            assert evaluation.sets[split].longest_common_run == expected.longest_common_run.tolist()
    unlearned, target = (Evaluation.load(tmp_path / "results" / f"{name}.json") for name in ("unlearned", "target"))
    assert unlearned.sets["forget"].word_perplexity > 100 * target.sets["forget"].word_perplexity
    assert unlearned.sets["retain"].word_perplexity < 2 * target.sets["retain"].word_perplexity
    assert unlearned.sets["forget"].summary()["leak@2"] < 0.2 * target.sets["forget"].summary()["leak@2"]
