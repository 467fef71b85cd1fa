"""`uld report`: a page for people from what `uld eval` and `uld sweep` measured."""

import datetime
import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.evaluation import Evaluation
from ..evaluation.report import check_same, render_report, run_checks
from ..evaluation.sweep import SWEEP_FIELDS
from ..evaluation.tofu_logs import load_tofu_log
from . import output
from .parsing import CommandParser, check_files, make_room


DESCRIPTION = """Write one HTML page about an unlearned model, from what `uld eval` (and `uld sweep --output`) measured.

  uld report evaluation --title "Forget Alice" --output report.html

The page needs no network and can be printed. It shows answers about what was to be forgotten: --num_examples 0 leaves
them out of a page that travels.
"""


@dataclass
class ReportArguments:
    """
    What `uld report` takes.

    Args:
        results (`str`):
            Folder that `uld eval` wrote.
        output (`str`):
            HTML file to write.
        title (`str`, *optional*, defaults to `"Unlearning report"`):
            What was asked.
        sweep (`str`, *optional*):
            JSON file that `uld sweep --output` wrote.
        num_examples (`int`, *optional*, defaults to `10`):
            Examples of answers from each set.
        request (`str`, *optional*):
            What was asked, at more length.
        retrained_log (`str`, *optional*):
            TOFU's evaluation log of a model trained without the forget set, as given to `uld eval`.
    """

    results: str = field(metadata={"help": "folder that `uld eval` wrote (its --output_dir)"})
    output: str = field(metadata={"help": "HTML file to write"})
    title: str = field(default="Unlearning report", metadata={"help": "what was asked, e.g. 'Forget Alice'"})
    sweep: str | None = field(default=None, metadata={"help": "JSON file that `uld sweep --output` wrote"})
    num_examples: int = field(default=10, metadata={"help": "examples of answers from each set; 0 for none"})
    request: str | None = field(default=None, metadata={"help": "what was asked, at more length than the title"})
    retrained_log: str | None = field(
        default=None, metadata={"help": "TOFU's log of a retrained model, as given to `uld eval`"}
    )


def build_parser() -> CommandParser:
    """The command line of `uld report`."""
    return CommandParser((ReportArguments,), "uld report", DESCRIPTION, words=("results",), has_json=True)


def is_page(path: str) -> bool:
    """
    Whether a file is a page, which a new one may replace.

    Args:
        path (`str`):
            The file.

    Returns:
        `bool`: Whether it is there, and begins as HTML does.
    """
    return os.path.isfile(path) and Path(path).read_bytes()[:15].lower() == b"<!doctype html>"


def main(argv: Sequence[str]) -> None:
    """
    Run `uld report`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld report`.

    Raises:
        FileNotFoundError: If there is nothing to report on.
        ValueError: If an option, a file or a model is not what it must be.
    """
    (arguments,) = build_parser().parse(argv)
    check_files(arguments.sweep, arguments.retrained_log)
    if not is_page(arguments.output):
        make_room(arguments.output)  # an earlier page is written anew, and nothing else
    folder = Path(arguments.results)
    missing = [name for name in ("target", "unlearned") if not (folder / f"{name}.json").is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {missing[0]}.json: run uld eval with --output_dir {folder} first.")
    main = [name for name in ("target", "retrained", "unlearned") if (folder / f"{name}.json").is_file()]
    summary = folder / "summary.json"  # of the last run, with the models of --others
    measured = json.loads(summary.read_text(encoding="utf-8"))["models"] if summary.is_file() else ()
    names = [*main, *(name for name in measured if name not in main)]
    evaluations = {name: Evaluation.load(folder / f"{name}.json") for name in names}
    for name, evaluation in evaluations.items():
        lacking = {"forget", "retain"} - set(evaluation.sets)
        if lacking:
            raise ValueError(f"{folder / name}.json lacks {sorted(lacking)}: uld eval was interrupted, run it again.")
    sweep = None
    if arguments.sweep is not None:
        sweep = json.loads(Path(arguments.sweep).read_text(encoding="utf-8"))
        if not set(sweep) >= SWEEP_FIELDS:
            raise ValueError(f"{arguments.sweep} was not written by this version's uld sweep --output.")
    check_same(evaluations, sweep)
    log = None if arguments.retrained_log is None else load_tofu_log(arguments.retrained_log)["Forget"]
    packages = ("uld_hf", "transformers", "peft", "torch")
    page = render_report(
        arguments.title,
        evaluations,
        {name: importlib.metadata.version(name) for name in packages},
        datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        sweep,
        arguments.num_examples,
        arguments.request,
        log,
    )
    Path(arguments.output).write_text(page, encoding="utf-8")
    checks = run_checks(evaluations, retrained_log=log)
    failed = [check.statement for check in checks if not check.passed]
    output.result(
        f"Written to {arguments.output}. " + (f"Failed: {'; '.join(failed)}" if failed else "All checks passed."),
        {
            "output": arguments.output,
            "checks": [{"statement": check.statement, "passed": bool(check.passed)} for check in checks],
        },
    )
