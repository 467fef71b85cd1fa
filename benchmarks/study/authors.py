"""TOFU's rows as the study uses them: what is learned, forgotten and asked, and both augmentations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets import Dataset, concatenate_datasets
from presets import ROWS_PER_AUTHOR, Preset

from uld_hf import load_tofu, question_answer_to_prompt_completion
from uld_hf.data.augmentation_entities import normalize
from uld_hf.data.augmentation_rules import augment_by_rules
from uld_hf.data.formatting import PROMPT_TEMPLATE, read_json_lines
from uld_hf.evaluation.evaluation import Question


Augmentation = Literal["released", "rules", "none"]
COLUMNS = ["question", "answer"]
# As many of each as the paper has.
PER_ROW = 2


@dataclass(frozen=True)
class Split:
    """
    One forget set with all that belongs to it.

    Args:
        name (`str`):
            Its name.
        forget (`Dataset`):
            Rows to forget, with TOFU's paraphrased and perturbed answers.
        retain (`Dataset`):
            All other rows that the target learned.
        retain_questions (`list[Question]`):
            Questions about some of these, with paraphrased and perturbed answers.
        rephrased_retain_questions (`list[Question]`):
            The same questions in other words.
        holdout_questions (`list[Question]`):
            Questions about authors that no model has seen.
        unseen_questions (`list[Question]`):
            Questions about authors that the target has not learned, with paraphrased and perturbed answers.
        forget_beside_unseen (`Dataset`):
            The forget rows as they are put beside these: with paraphrased and perturbed answers of the same origin.
    """

    name: str
    forget: Dataset
    retain: Dataset
    retain_questions: list[Question]
    rephrased_retain_questions: list[Question]
    holdout_questions: list[Question]
    unseen_questions: list[Question]
    forget_beside_unseen: Dataset

    @property
    def forget_questions(self) -> list[Question]:
        """Questions about what must be forgotten."""
        return to_questions(self.forget)

    @property
    def rephrased_forget_questions(self) -> list[Question]:
        """The same questions in other words, which nothing was trained on."""
        return to_questions(rephrased(self.forget))


def rephrased(rows: Dataset) -> Dataset:
    """Rows with TOFU's question in other words in place of the question."""
    return rows.remove_columns("question").rename_column("paraphrased_question", "question")


def to_questions(rows: Dataset) -> list[Question]:
    """Rows as questions to evaluate on; the prompts are those of training."""
    perturbed = "perturbed_answer" in rows.column_names
    return [
        Question(
            prompt=PROMPT_TEMPLATE.format(question=row["question"]),
            answer=f" {row['answer']}",
            paraphrased_answer=f" {row['paraphrased_answer']}" if perturbed else None,
            perturbed_answers=tuple(f" {text}" for text in row["perturbed_answer"]) if perturbed else (),
        )
        for row in rows
    ]


def to_training(rows: Dataset) -> Dataset:
    """Rows as the trainers take them."""
    return question_answer_to_prompt_completion(rows.select_columns(COLUMNS))


def with_variants_by_rules(rows: Dataset) -> Dataset:
    """Rows with a paraphrased and wrong answers as a user gets them; those without a wrong answer are left out."""
    made = augment_by_rules(rows.select_columns(COLUMNS), paraphrases=1, wrong_answers=5).variants
    return Dataset.from_list(
        [
            {**row, "paraphrased_answer": variants.answers[0], "perturbed_answer": variants.wrong_answers}
            for row, variants in zip(rows.select_columns(COLUMNS), made, strict=True)
            if variants.answers and variants.wrong_answers
        ]
    )


def last_rows(rows: Dataset, number: int) -> Dataset:
    """The last rows of a set."""
    return rows.select(range(len(rows) - number, len(rows)))


def spread_rows(rows: Dataset, number: int) -> Dataset:
    """As many rows of a set, spread over it."""
    return rows.select(range(0, len(rows), max(1, len(rows) // number))[:number])


def learned_rows(preset: Preset, tofu: Path) -> Dataset:
    """What the target learns: TOFU's first authors, whose retain questions have paraphrases, and its last ones."""
    full = load_tofu("full", tofu).select_columns(COLUMNS)
    most = max(preset.splits.values())
    first = ROWS_PER_AUTHOR * (preset.num_authors - most)
    return concatenate_datasets([full.select(range(first)), last_rows(full, ROWS_PER_AUTHOR * most)])


def pretraining_rows(preset: Preset, tofu: Path) -> Dataset:
    """What a model reads first: authors that it is not to learn; where it learns all, those that are always kept."""
    full = load_tofu("full", tofu).select_columns(COLUMNS)
    kept = ROWS_PER_AUTHOR * (preset.num_authors - max(preset.splits.values()))
    end = len(full) - len(load_tofu("forget10", tofu))
    return full.select(range(kept if kept < end else 0, end))


def load_split(preset: Preset, name: str, tofu: Path) -> Split:
    """
    A forget set and what belongs to it.

    Args:
        preset ([`Preset`]):
            The study's size.
        name (`str`):
            One of its splits.
        tofu (`Path`):
            Folder of TOFU's files.

    Returns:
        [`Split`]: The rows.
    """
    learned = learned_rows(preset, tofu)
    num_forget = ROWS_PER_AUTHOR * preset.splits[name]
    first_authors = ROWS_PER_AUTHOR * (preset.num_authors - max(preset.splits.values()))
    asked = load_tofu("retain_perturbed", tofu)
    asked = asked.select(range(min(first_authors, len(asked))))
    asked = spread_rows(asked, preset.retain_questions)
    perturbed = load_tofu("forget10_perturbed", tofu)
    forget = last_rows(perturbed, num_forget)
    holdout = load_tofu("holdout01" if num_forget <= 40 else "holdout05", tofu)
    unseen, beside = perturbed.select(range(len(perturbed) - ROWS_PER_AUTHOR * max(preset.splits.values()))), forget
    if not len(unseen):
        # The target has learned all of TOFU. What attacks are measured with is not what weights are chosen by.
        others = load_tofu("holdout10", tofu)
        unseen = with_variants_by_rules(others.select(range(len(load_tofu("holdout05", tofu)), len(others))))
        beside = with_variants_by_rules(forget)
    return Split(
        name=name,
        forget=forget,
        retain=learned.select(range(len(learned) - num_forget)),
        retain_questions=to_questions(asked),
        rephrased_retain_questions=to_questions(rephrased(asked)),
        holdout_questions=to_questions(holdout),
        unseen_questions=to_questions(spread_rows(unseen, preset.retain_questions)),
        forget_beside_unseen=beside,
    )


def _different(texts: list[str], original: str) -> list[str]:
    """Texts without the original and without repetitions: half of the released ones repeat another."""
    kept = {normalize(text): text for text in reversed(texts)}
    kept.pop(normalize(original), None)
    return list(kept.values())[::-1]


def released_augmentation(split: Split, tofu: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """
    The augmentation that the paper's authors released, two of each a row.

    All files hold TOFU's last rows last; of the wrong answers' files, which all hold forget10, only the last are taken.

    Args:
        split ([`Split`]):
            The forget set.
        tofu (`Path`):
            Folder of TOFU's files, with `uld_aug/`.

    Returns:
        `tuple`: What joins the forget set, and what joins the retain set.
    """
    number = len(split.forget)
    source = next(name for name, size in (("forget01", 40), ("forget05", 200), ("forget10", 400)) if number <= size)
    folder = tofu / "uld_aug"
    paraphrased = read_json_lines(str(folder / f"{source}_paraphrase.jsonl"))[-number:]
    perturbed = read_json_lines(str(folder / f"{source}_perturb.jsonl"))[-number:]
    forget, retain = [], []
    for row, said, wrong in zip(split.forget, paraphrased, perturbed, strict=True):
        if not row["question"] == said["question"] == wrong["question"]:
            raise ValueError(f"{source}: the released augmentation is not of this row: {row['question']!r}.")
        questions = _different(said["paraphrased_questions"], row["question"])[:PER_ROW]
        answers = _different(said["paraphrased_answers"], row["answer"])[:PER_ROW]
        forget += [dict(zip(COLUMNS, pair, strict=True)) for pair in zip(questions, answers, strict=False)]
        wrongs = _different(wrong["perturbed_answers"], row["answer"])[:PER_ROW]
        retain += [{"question": row["question"], "answer": answer} for answer in wrongs]
    return forget, retain


def augmentation_by_rules(split: Split) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Ours, as `uld augment` makes it: what joins the forget set, and what joins the retain set."""
    made = augment_by_rules(split.forget.select_columns(COLUMNS), split.retain, PER_ROW, PER_ROW)
    return made.forget.to_list()[len(split.forget) :], made.retain.to_list()[len(split.retain) :]


def training_rows(
    split: Split,
    tofu: Path,
    augmentation: Augmentation = "released",
    paraphrases: bool = True,
    wrong_answers: bool = True,
    retain_share: float = 1.0,
) -> tuple[Dataset, Dataset]:
    """
    What a method trains on.

    Args:
        split ([`Split`]):
            The forget set.
        tofu (`Path`):
            Folder of TOFU's files.
        augmentation (`str`, *optional*, defaults to `"released"`):
            `"released"` by the paper's authors, `"rules"`, ours, or `"none"`.
        paraphrases (`bool`, *optional*, defaults to `True`):
            Whether to add the paraphrases to the forget set.
        wrong_answers (`bool`, *optional*, defaults to `True`):
            Whether to add the wrong answers to the retain set.
        retain_share (`float`, *optional*, defaults to `1.0`):
            Share of the retain rows that the method gets to see.

    Returns:
        `tuple[Dataset, Dataset]`: Forget and retain rows, as prompt and completion.
    """
    added: tuple[list, list] = ([], [])
    if augmentation != "none":
        added = released_augmentation(split, tofu) if augmentation == "released" else augmentation_by_rules(split)
    # Spread over the authors.
    step = round(1 / retain_share)
    retain = split.retain.select(range(0, len(split.retain), step)).to_list()
    forget = split.forget.select_columns(COLUMNS).to_list()
    return (
        to_training(Dataset.from_list(forget + (added[0] if paraphrases else []))),
        to_training(Dataset.from_list(retain + (added[1] if wrong_answers else []))),
    )
