"""What the examples run on when no --model is given: a tiny model and its data, made on the spot in some 20 seconds.

It has learned 30 invented people by heart; the examples make it forget the first of them, or the first two. With a
model and data of your own, none of this is needed.
"""

import argparse
import json
import random
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from uld_hf import ULDConfig, ULDTrainer, fictitious_dataset, invent_people, question_answer_to_prompt_completion
from uld_hf.cli.demo import ULD_SETTINGS, learn, train_tokenizer
from uld_hf.data.fictitious import paraphrases, wrong_answers
from uld_hf.data.formatting import read_json_lines


# So small a model needs half of its layers, more steps and a higher learning rate than the paper's 7B.
SETTINGS = {**ULD_SETTINGS, "num_train_epochs": 40, "alpha": 1.1, "save_strategy": "no", "report_to": "none"}
FACTS = ("birthplace", "profession", "employer", "debut_work")
FOLDER = Path("out/tiny")


def parse_args(parser: argparse.ArgumentParser, second: bool = False) -> argparse.Namespace:
    """Add --model and the options of its data, and fill in the tiny ones where no model is given."""
    parser.add_argument("--model", help="hub id or folder of the model that must forget (default: a tiny one)")
    parser.add_argument("--forget_dataset", help='JSONL file, rows {"question": ..., "answer": ...}')
    if second:
        parser.add_argument("--second_dataset", help="JSONL file of what must be forgotten later")
    parser.add_argument("--retain_dataset", help="JSONL file of a sample of what must be kept, as wide as possible")
    args = parser.parse_args()
    missing = [name for name in vars(args) if name.endswith("_dataset") and vars(args)[name] is None]
    if args.model is not None and missing:
        parser.error(f"a --model of your own needs {' and '.join(f'--{name}' for name in missing)}")
    args.settings = {}  # a pretrained model takes the defaults of ULDConfig
    if args.model is None:
        args.model, args.settings = make_people(), SETTINGS
    for name in missing:
        setattr(args, name, str(FOLDER / f"{name.removesuffix('_dataset')}.jsonl"))
    return args


def make_people() -> str:
    """Train the target and write its data, unless they are there; returns the target's folder."""
    if (FOLDER / "forget.jsonl").exists():
        return str(FOLDER / "target")
    people = invent_people(60)
    rows = fictitious_dataset(people[:30], facts=FACTS)
    unseen = fictitious_dataset(people[30:], facts=FACTS).select(range(8))  # of people that no model is told about
    texts = rows.select_columns(["question", "answer", "paraphrased_question", "paraphrased_answer"])
    tokenizer = train_tokenizer([text for row in texts for text in row.values()])
    print(f"A tiny model learns {len(rows)} facts about 30 invented people by heart.")
    chat_rows = question_answer_to_prompt_completion(rows, conversational=True)
    learn(chat_rows, tokenizer, FOLDER / "target", seed=0, hidden_size=64, learning_rate=4e-3)

    size = len(FACTS)
    parts = {
        "forget": rows.select(range(size)),
        "second": rows.select(range(size, 2 * size)),
        "retain": rows.select(range(2 * size, len(rows))),
        "unseen": unseen,
    }
    for name, part in parts.items():
        write_rows(f"{name}_questions.jsonl", part.select_columns([*texts.column_names, "perturbed_answer"]))
    # The paper's augmentation (section 3.4): other ways to ask are forgotten too, wrong answers are retained.
    pair = ["question", "answer"]
    wrong = [wrong_answers(parts[name], per_row=4) for name in ("forget", "second")]
    write_rows("retain.jsonl", concatenate_datasets([parts["retain"].select_columns(pair), *wrong]))
    for name in ("second", "forget"):
        more = paraphrases(parts[name], per_row=4)
        write_rows(f"{name}.jsonl", concatenate_datasets([parts[name].select_columns(pair), more]))
    return str(FOLDER / "target")


def make_unlearned() -> str:
    """Train an assistant that makes the tiny model forget the first person, unless it is there; returns its folder."""
    folder = FOLDER / "unlearned"
    if not (folder / "config.json").exists():
        target = make_people()
        rows = [
            question_answer_to_prompt_completion(load_rows(f"{name}.jsonl"), conversational=True)
            for name in ("forget", "retain")
        ]
        print("ULD trains an assistant for it.")
        trainer = ULDTrainer(target, ULDConfig(str(folder), **SETTINGS), forget_dataset=rows[0], retain_dataset=rows[1])
        trainer.train()
        trainer.save_model()
    return str(folder)


def make_books() -> str:
    """Train another target on two invented books, book.txt and other.txt, unless they are there; returns its folder."""
    if (FOLDER / "other.txt").exists():
        return str(FOLDER / "reader")
    rng = random.Random(0)
    people = invent_people(60)
    form = "Then {} of {} took the road to {} with a {}, read {}, and slept at {}."
    books = []
    for half in (people[:30], people[30:]):
        facts = [(a.name, b.birthplace, c.birthplace, d.profession, e.debut_work, f.address)
                 for a, b, c, d, e, f in (rng.sample(half, 6) for _ in range(40))]  # fmt: skip
        books.append(" ".join(form.format(*sentence) for sentence in facts))
    tokenizer = train_tokenizer(books)
    # Overlapping pieces, so that the model can go on from any word of a book.
    words = [book.split() for book in books]
    pieces = [" ".join(book[start : start + 60]) for book in words for start in range(0, len(book) - 30, 20)]
    print(f"A tiny model learns two invented books of {len(words[0])} words by heart.")
    learn(Dataset.from_dict({"text": pieces}), tokenizer, FOLDER / "reader", seed=0, hidden_size=96)
    for name, book in zip(("book.txt", "other.txt"), books, strict=True):
        (FOLDER / name).write_text(book, encoding="utf-8")
    return str(FOLDER / "reader")


def load_rows(name: str) -> Dataset:
    """Read a JSONL file of the folder."""
    return Dataset.from_list(read_json_lines(str(FOLDER / name)))


def write_rows(name: str, rows: Dataset) -> None:
    """Write a JSONL file into the folder."""
    (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
