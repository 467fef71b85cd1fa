"""Make a model forget a book: it must no longer continue it word for word, and still read other texts as well.

python examples/forget_book.py        # a tiny model and two invented books; about a minute
python examples/forget_book.py --model org/reader-7b --book wizard_of_oz.txt --other_texts alice_in_wonderland.txt
"""

import argparse
from pathlib import Path

import tiny_model
from datasets import Dataset
from transformers import AutoTokenizer

from uld_hf import ULDConfig, ULDForCausalLM, ULDTrainer
from uld_hf.evaluation.verbatim import score_continuations, split_passages, word_perplexity


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="hub id or folder of a model that knows the book (default: a tiny one)")
parser.add_argument("--book", type=Path, help="text to forget")
parser.add_argument("--other_texts", type=Path, nargs="+", help="texts to keep, as many as you can")
parser.add_argument("--output_dir", default="out/forget-book")
args = parser.parse_args()
if args.model is not None and (args.book is None or args.other_texts is None):
    parser.error("a --model of your own needs --book and --other_texts")

# The paper's settings for training on books (appendix): fewer epochs and a lower rate than for facts.
settings = {"learning_rate": 5e-4, "num_train_epochs": 5, "max_length": 512}
if args.model is None:
    args.model = tiny_model.make_books()
    args.book, args.other_texts = tiny_model.FOLDER / "book.txt", [tiny_model.FOLDER / "other.txt"]
    settings = {**tiny_model.SETTINGS, "num_train_epochs": 40, "max_length": 64, "alpha": 1.4}
book = args.book.read_text(encoding="utf-8")
others = [path.read_text(encoding="utf-8") for path in args.other_texts]

trainer = ULDTrainer(
    model=args.model,
    args=ULDConfig(args.output_dir, **settings),
    # Rows of plain text count whole. A text longer than max_length is split into rows, never cut.
    forget_dataset=Dataset.from_dict({"text": [book]}),
    # Texts of the same kind: what is not in here may be lost.
    retain_dataset=Dataset.from_dict({"text": others}),
)
trainer.train()
trainer.save_model()

model = ULDForCausalLM.from_pretrained(args.output_dir, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(args.output_dir)
# Passages from all over the book: what is given, and what follows it there.
prefixes, continuations = (part[:20] for part in split_passages(tokenizer, book, 32, 24))
for name, speaking in (("target", model.target), ("unlearned", model)):
    scores = score_continuations(speaking, tokenizer, prefixes, continuations, max_new_tokens=24)
    perplexity = word_perplexity(speaking, tokenizer, others[0], window=64)
    print(
        f"\n{name}: BLEU {scores.bleu.mean():.1f}, ROUGE-L {scores.rouge_l_recall.mean():.2f}, words in a row "
        f"as in the book {scores.longest_common_run.mean():.1f}; perplexity per word of what is kept {perplexity:.2f}\n"
        f"  {prefixes[0]!r}\n  -> {scores.continuations[0]!r}"
    )
