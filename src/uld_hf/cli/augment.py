"""`uld augment`: paraphrases and wrong answers for a user's own forget set, by rules or by a chat model."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TextGenerationPipeline, pipeline

from ..data.augmentation import Augmentation, check_counts
from ..data.augmentation import read_rows as read_sets
from ..data.augmentation_drawn import DrawnAnswers, disguise_questions, draw_wrong_answers
from ..data.augmentation_model import Sampling, augment_by_model
from ..data.augmentation_rules import augment_by_rules
from ..modeling_uld import ULDForCausalLM
from . import output
from .loading import load_model
from .parsing import CommandParser, check_model_path
from .questions import read_rows
from .rows import check_one_format


DESCRIPTION = """Make what ULD trains with besides a forget set: paraphrases, to forget, and wrong answers, to retain.

  uld augment --forget_dataset forget.jsonl --retain_dataset retain.jsonl --output_dir augmented
  uld augment --forget_dataset forget.jsonl --retain_dataset retain.jsonl --output_dir augmented --model my-chat-model
  uld augment --forget_dataset forget.jsonl --retain_dataset retain.jsonl --output_dir augmented --drawn_by my-model
  uld train my-model --forget_dataset augmented/forget.jsonl --retain_dataset augmented/retain.jsonl \\
      --output_dir forget-alice

Without --model the texts are made by rules: other forms of the question, and values swapped among the forget rows. With
it a chat model writes them, which takes longer and is better. Either way every text is checked. The two files written
hold the given rows, and after them the new ones. Read some of them.

With --drawn_by the target also draws wrong answers itself, to the same questions about somebody whom it never met. They
and the given retain rows are wording.jsonl, for the second assistant of a replacement (docs/contrast.md).

What a model writes or draws is kept batch by batch: the same command goes on where a run was cut off.

With --held_out 5 more is made of each row and joins neither set: questions.jsonl has the forget rows with a paraphrased
and five wrong answers, as `uld sweep` and `uld eval` take them. Beside wrong answers of the kind that it was trained on
an assistant seems to forget too soon: let those of training be from elsewhere, and make the like of what the target was
never told.
"""

# Of `report.json`, printed in this order.
_KINDS = {
    "question": "paraphrased questions",
    "answer": "paraphrased answers",
    "wrong answer": "wrong answers",
    "passage": "passages",
}

# What a run writes.
_OUTPUTS = ("forget.jsonl", "retain.jsonl", "variants.jsonl", "questions.jsonl", "report.json")
# Kept until a run is finished: what the chat model wrote so far, and what the target drew.
_WORK, _DRAWN_WORK = "work.jsonl", "work_drawn.jsonl"


@dataclass
class AugmentArguments:
    """
    What `uld augment` takes.

    Args:
        forget_dataset (`str`):
            JSONL file, or hub id, of what must be forgotten.
        output_dir (`str`):
            Folder for the files.
        retain_dataset (`str`, *optional*):
            JSONL file, or hub id, of a sample of what must be kept.
        model (`str`, *optional*):
            Folder or hub id of a chat model that writes the texts. By default they are made by rules.
        model_revision (`str`, *optional*):
            Revision of the chat model on the Hub.
        paraphrases (`int`, *optional*, defaults to `2`):
            Paraphrases of each row.
        wrong_answers (`int`, *optional*, defaults to `2`):
            Wrong answers to each row.
        held_out (`int`, *optional*, defaults to `0`):
            Wrong answers to each row, and a paraphrase, that join neither set but `questions.jsonl`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all choices.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows that the chat model is asked about at once.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest reply of the chat model, in tokens.
        temperature (`float`, *optional*, defaults to `0.9`):
            Temperature of the chat model's sampling.
        attempts (`int`, *optional*, defaults to `3`):
            How often the chat model is asked for what is still missing of a row.
        drawn_by (`str`, *optional*):
            Folder or hub id of the target, to draw wrong answers for `wording.jsonl`. By default there are none.
        drawn_answers (`int`, *optional*, defaults to `4`):
            Answers that the target draws to each question.
        drawn_max_new_tokens (`int`, *optional*, defaults to `96`):
            Longest of them, in tokens.
        drawn_batch_size (`int`, *optional*, defaults to `64`):
            Questions that the target is asked at once. The draws depend on it.
        drawn_people (`list[str]`, *optional*):
            Names in the forget questions that are people's, besides those that own something in some forget row.
    """

    forget_dataset: str = field(
        metadata={"help": "what must be forgotten: a JSONL file, or a hub id (owner/name, or owner/name:config)"}
    )
    output_dir: str = field(metadata={"help": "folder for the files"})
    retain_dataset: str | None = field(
        default=None,
        metadata={
            "help": "what must be kept, in the same format: no wrong answer may be right there, and it is copied"
        },
    )
    model: str | None = field(
        default=None, metadata={"help": "folder or hub id of a chat model that writes the texts (default: rules)"}
    )
    model_revision: str | None = field(default=None, metadata={"help": "revision of the chat model on the Hub"})
    paraphrases: int = field(default=2, metadata={"help": "paraphrases of each row"})
    wrong_answers: int = field(default=2, metadata={"help": "wrong answers to each row"})
    held_out: int = field(
        default=0, metadata={"help": "wrong answers to each row that join neither set, for questions.jsonl"}
    )
    seed: int = field(default=0, metadata={"help": "seed of all choices"})
    batch_size: int = field(default=8, metadata={"help": "rows that the chat model is asked about at once"})
    max_new_tokens: int = field(default=512, metadata={"help": "longest reply of the chat model, in tokens"})
    temperature: float = field(default=0.9, metadata={"help": "temperature of the chat model's sampling"})
    attempts: int = field(default=3, metadata={"help": "how often the chat model is asked for what is still missing"})
    drawn_by: str | None = field(
        default=None,
        metadata={"help": "folder or hub id of the target: it draws wrong answers, and wording.jsonl is written"},
    )
    drawn_answers: int = field(default=4, metadata={"help": "answers that the target draws to each question"})
    drawn_max_new_tokens: int = field(default=96, metadata={"help": "longest of them, in tokens"})
    drawn_batch_size: int = field(
        default=64, metadata={"help": "questions that the target is asked at once; the draws depend on it"}
    )
    drawn_people: list[str] = field(
        default_factory=list,
        metadata={"help": "names that are people's, besides those that own something in some forget row (Alice's)"},
    )


def load_set(path: str) -> Dataset:
    """
    Load a set with all that its rows have: some may be without a `fact` to ask for.

    Args:
        path (`str`):
            JSONL file, or a hub id with an optional configuration after a colon.

    Returns:
        [`~datasets.Dataset`]: The rows.

    Raises:
        ValueError: If a file is not JSONL, or its rows are of several formats.
    """
    rows = read_rows(path)
    check_one_format(rows, path)
    columns = dict.fromkeys(column for row in rows for column in row)
    return Dataset.from_list([{column: row.get(column) for column in columns} for row in rows])


def load_generator(model: str, revision: str | None) -> TextGenerationPipeline:
    """
    A chat model's pipeline, on the accelerator if there is one.

    Args:
        model (`str`):
            Folder or hub id.
        revision (`str`, *optional*):
            Revision on the Hub.

    Returns:
        [`~transformers.TextGenerationPipeline`]: The pipeline.
    """
    check_model_path(model, revision)
    return pipeline("text-generation", model=model, revision=revision, dtype="auto")


def check_drawing(arguments: AugmentArguments, forget: Dataset, retain: Dataset | None) -> None:
    """
    Refuse what the target cannot draw wrong answers for, before it is loaded.

    Args:
        arguments ([`AugmentArguments`]):
            The command line, with `drawn_by`.
        forget ([`~datasets.Dataset`]):
            Rows to forget.
        retain ([`~datasets.Dataset`], *optional*):
            Rows to keep.

    Raises:
        ValueError: If there is a `wording.jsonl` already, a number is out of range, there is no retain set, no question
            can be disguised, or there is no such model.
    """
    wording = Path(arguments.output_dir) / "wording.jsonl"
    if wording.exists():
        raise ValueError(f"{wording} is there already: choose another --output_dir, or delete it.")
    for name in ("drawn_answers", "drawn_max_new_tokens", "drawn_batch_size"):
        if vars(arguments)[name] < 1:
            raise ValueError(f"--{name} {vars(arguments)[name]} must be at least 1.")
    if retain is None:
        raise ValueError("--drawn_by needs --retain_dataset: wording.jsonl is what must be kept and the drawn answers.")
    disguise_questions(read_sets(forget, retain), arguments.seed, arguments.drawn_answers, arguments.drawn_people)
    check_model_path(arguments.drawn_by)


def draw_wording(arguments: AugmentArguments, forget: Dataset, retain: Dataset) -> DrawnAnswers:
    """
    Let the target draw wrong answers.

    Args:
        arguments ([`AugmentArguments`]):
            The command line, with `drawn_by`.
        forget ([`~datasets.Dataset`]):
            Rows to forget.
        retain ([`~datasets.Dataset`]):
            Rows to keep.

    Returns:
        [`DrawnAnswers`]: What `wording.jsonl` holds, and its report.

    Raises:
        ValueError: If `drawn_by` is an unlearned model, or see [`draw_wrong_answers`].
    """
    tokenizer = AutoTokenizer.from_pretrained(arguments.drawn_by)
    target = load_model(arguments.drawn_by)
    if isinstance(target, ULDForCausalLM):
        raise ValueError(f"{arguments.drawn_by} is an unlearned model: give its target to --drawn_by.")
    return draw_wrong_answers(
        forget,
        retain,
        target,
        tokenizer,
        seed=arguments.seed,
        per_row=arguments.drawn_answers,
        max_new_tokens=arguments.drawn_max_new_tokens,
        batch_size=arguments.drawn_batch_size,
        people=arguments.drawn_people,
        work_file=Path(arguments.output_dir) / _DRAWN_WORK,
    )


def check_outputs(folder: Path, *inputs: str | None) -> None:
    """
    Refuse a folder where a written file would take the place of one that is read.

    Args:
        folder (`Path`):
            Where the files are to be written.
        *inputs (`str`, *optional*):
            Files that are read, or hub ids; `None` is passed over.

    Raises:
        ValueError: If one of the inputs would be overwritten.
    """
    outputs = {(folder / name).resolve() for name in (*_OUTPUTS, _WORK, _DRAWN_WORK)}
    for path in inputs:
        if path is not None and Path(path).resolve() in outputs:
            raise ValueError(f"{path} would be overwritten: choose another --output_dir than {str(folder)!r}.")


def write_files(
    folder: Path, made: Augmentation, settings: dict[str, Any], drawn: DrawnAnswers | None = None
) -> dict[str, Any]:
    """
    Write the two sets, what was made of each row, what the target drew, and at last the report.

    Args:
        folder (`Path`):
            Where to.
        made ([`Augmentation`]):
            The result.
        settings (`dict[str, Any]`):
            How it was made, for the report.
        drawn ([`DrawnAnswers`], *optional*):
            What the target drew.

    Returns:
        `dict[str, Any]`: The counts of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "forget.jsonl", made.forget)
    if made.retain is not None:
        _write_lines(folder / "retain.jsonl", made.retain)
    _write_lines(folder / "variants.jsonl", map(asdict, made.variants))
    if made.questions:
        _write_lines(folder / "questions.jsonl", made.questions)
    counts = made.report
    if drawn is not None:
        _write_lines(folder / "wording.jsonl", drawn.wording)
        counts = counts | {"drawn answers": drawn.report}
    report = {"settings": settings, **counts}
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return counts


def _write_lines(path: Path, rows: Dataset | Sequence[dict[str, Any]]) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    unfinished.replace(path)


def format_report(report: dict[str, Any]) -> str:
    """
    The counts, for a terminal.

    Args:
        report (`dict[str, Any]`):
            Report of an [`Augmentation`].

    Returns:
        `str`: A few lines.
    """
    lines = []
    for kind, made in report["made"].items():
        short = report["rows with fewer than wanted"][kind]
        line = f"{_KINDS[kind]:<22}{made:>7}"
        line += f"   {short} rows have fewer than wanted" if short else ""
        lines.append(line + _format_dropped(report["dropped"][kind]))
    if "drawn answers" in report:
        drawn = report["drawn answers"]
        line = f"{'drawn wrong answers':<22}{drawn['kept']:>7}"
        for count in ("rows with nothing to disguise", "rows asked that kept none"):
            line += f"   {drawn[count]} {count}" if drawn[count] else ""
        lines.append(line + _format_dropped(drawn["dropped"]))
    return "\n".join(lines)


def _format_dropped(dropped: dict[str, int]) -> str:
    if not dropped:
        return ""
    return "   dropped: " + ", ".join(f"{count} ({reason})" for reason, count in dropped.items())


def build_parser() -> CommandParser:
    """The command line of `uld augment`."""
    return CommandParser((AugmentArguments,), "uld augment", DESCRIPTION, has_json=True)


def main(argv: Sequence[str]) -> None:
    """
    Run `uld augment`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld augment`.

    Raises:
        ValueError: If an option, a file or a model is not what it must be.
    """
    (arguments,) = build_parser().parse(argv)
    check_counts(arguments.paraphrases, arguments.wrong_answers, arguments.held_out)
    folder = Path(arguments.output_dir)
    check_outputs(folder, arguments.forget_dataset, arguments.retain_dataset)
    if (folder / "report.json").exists():
        raise ValueError(f"{folder} holds an augmentation already: give another --output_dir, or delete it.")
    sampling = Sampling(
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        attempts=arguments.attempts,
    )
    retain = None if arguments.retain_dataset is None else load_set(arguments.retain_dataset)
    forget = load_set(arguments.forget_dataset)
    options = {
        "forget": forget,
        "retain": retain,
        "paraphrases": arguments.paraphrases,
        "wrong_answers": arguments.wrong_answers,
        "seed": arguments.seed,
        "held_out": arguments.held_out,
    }
    drawn = None
    if arguments.drawn_by is not None:
        check_drawing(arguments, forget, retain)
        if arguments.model is not None:
            check_model_path(arguments.model, arguments.model_revision)
        drawn = draw_wording(arguments, forget, retain)  # and the target is gone before the chat model comes
    if arguments.model is None:
        made = augment_by_rules(**options)
    else:
        generator = load_generator(arguments.model, arguments.model_revision)
        made = augment_by_model(generator=generator, sampling=sampling, work_file=folder / _WORK, **options)
    report = write_files(folder, made, asdict(arguments), drawn)
    # What another kind of run has not finished stays.
    if arguments.model is not None:
        (folder / _WORK).unlink(missing_ok=True)
    if drawn is not None:
        (folder / _DRAWN_WORK).unlink(missing_ok=True)
    forget, retain = made.report["forget rows"], made.report["retain rows"]
    lines = [format_report(report), ""]
    lines.append(f"{folder / 'forget.jsonl'}: {forget['given']} rows given, {forget['made']} new")
    if made.retain is None:
        lines.append("There is no retain.jsonl: give --retain_dataset, or make one for uld train yourself.")
    else:
        lines.append(f"{folder / 'retain.jsonl'}: {retain['given']} rows given, {retain['made']} new")
        if not retain["given"]:
            lines.append("The retain set has nothing but wrong answers: add what must be kept before you train.")
    if drawn is not None:
        given, kept = len(drawn.wording) - len(drawn.rows), len(drawn.rows)
        lines.append(f"{folder / 'wording.jsonl'}: {given} rows given, {kept} drawn, for an assistant that is added")
    if made.questions:
        lines.append(
            f"{folder / 'questions.jsonl'}: {len(made.questions)} of {forget['given']} rows, for uld sweep and uld eval"
        )
        numbers = [len(row["perturbed_answer"]) for row in made.questions]
        if short := sum(number < arguments.held_out for number in numbers):
            lines.append(
                f"{short} of these have fewer than {arguments.held_out} wrong answers: {min(numbers)} or more."
            )
    output.result("\n".join(lines), {"output_dir": str(folder), **report})
