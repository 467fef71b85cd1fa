"""`uld eval`: what an unlearned model has forgotten and kept, beside its target and a retrained model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_uld import SHARED_SETTINGS
from ..evaluation.evaluation import Evaluation, compare, evaluate
from ..evaluation.scoring import MAX_BATCH_TOKENS
from . import output
from .identity import hash_files, identify, identify_unlearned
from .loading import load_model, load_tokenizer, load_unlearned
from .parsing import CommandParser, check_files, check_model_path
from .questions import read_questions


DESCRIPTION = """Measure what an unlearned model has forgotten and what it has kept, beside its target.

  uld eval forget-alice --forget_dataset forget.jsonl --retain_dataset retain.jsonl --output_dir evaluation

Rows are {"question": ..., "answer": ...} or {"prompt": ..., "completion": ...}; with "paraphrased_answer" and
"perturbed_answer" (a list of wrong answers), as TOFU has them, the truth ratio is measured too. --retrained, a model
trained without the forget set, adds the forget quality; --holdout_dataset, questions of the same kind that no model was
trained on, adds the membership attacks. What was measured is kept in --output_dir, and a second run goes on from there.
"""


@dataclass
class EvalArguments:
    """
    What `uld eval` takes.

    Args:
        model (`str`):
            Folder or hub id of a saved unlearned model.
        forget_dataset (`str`):
            JSONL file of questions about what must be forgotten.
        retain_dataset (`str`):
            JSONL file of questions about what must be kept.
        output_dir (`str`):
            Folder for the results.
        holdout_dataset (`str`, *optional*):
            JSONL file of questions like the forget set's that no model was trained on.
        retrained (`str`, *optional*):
            Folder or hub id of a model trained without the forget set.
        target (`str`, *optional*):
            Folder or hub id of the target, if it has moved since training.
        alpha (`float`, *optional*):
            Weight of the assistant's logits, in place of the saved one.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest greedy answer, in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Questions to answer at once.
        max_batch_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens to score at once.
    """

    model: str = field(metadata={"help": "folder or hub id of a saved unlearned model (what `uld train` wrote)"})
    forget_dataset: str = field(metadata={"help": "JSONL file of questions about what must be forgotten"})
    retain_dataset: str = field(metadata={"help": "JSONL file of questions about what must be kept"})
    output_dir: str = field(metadata={"help": "folder for the results"})
    holdout_dataset: str | None = field(
        default=None, metadata={"help": "JSONL file of questions of the same kind that no model was trained on"}
    )
    retrained: str | None = field(
        default=None, metadata={"help": "folder or hub id of a model trained without the forget set"}
    )
    target: str | None = field(
        default=None, metadata={"help": "folder or hub id of the target, if it has moved since training"}
    )
    alpha: float | None = field(default=None, metadata={"help": "weight of the subtraction, in place of the saved one"})
    max_new_tokens: int = field(default=64, metadata={"help": "longest answer, in tokens"})
    batch_size: int = field(default=32, metadata={"help": "questions to answer at once"})
    max_batch_tokens: int = field(default=MAX_BATCH_TOKENS, metadata={"help": "most tokens to score at once"})


def evaluate_or_load(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Mapping[str, str],
    settings: Mapping[str, Any],
    arguments: EvalArguments,
) -> Evaluation:
    """
    Evaluate a model on all sets, or on those that an earlier run with the same settings has not done.

    Args:
        name (`str`):
            `"target"`, `"unlearned"` or `"retrained"`: the file's name too.
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        data (`Mapping[str, str]`):
            JSONL files by set.
        settings (`Mapping[str, Any]`):
            What the figures depend on besides the data.
        arguments ([`EvalArguments`]):
            The command's.

    Returns:
        [`Evaluation`]: The results.
    """
    file = Path(arguments.output_dir) / f"{name}.json"
    settings = {**settings, "max_new_tokens": arguments.max_new_tokens, "data": hash_files(data)}
    evaluation = Evaluation(name, {}, settings)
    if file.exists():
        earlier = Evaluation.load(file)
        if earlier.settings == json.loads(json.dumps(settings)):
            evaluation.sets = earlier.sets
    for split, path in data.items():
        if split not in evaluation.sets:
            questions = read_questions(path, tokenizer)
            output.note(f"{name}: {split}, {len(questions)} questions")
            options = (arguments.max_new_tokens, arguments.batch_size, arguments.max_batch_tokens)
            evaluation.sets[split] = evaluate(model, tokenizer, questions, *options)
            evaluation.save(file)  # after every set: an interrupted run loses one at most
    return evaluation


def format_results(evaluations: Mapping[str, Evaluation]) -> str:
    """
    A table of all figures, one column for each model.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            By name.

    Returns:
        `str`: The table.
    """
    compared = compare(evaluations)
    rows = {
        f"{split}: {measure}": {name: each.sets[split].summary()[measure] for name, each in evaluations.items()}
        for split in next(iter(evaluations.values())).sets
        for measure in next(iter(evaluations.values())).sets[split].summary()
    }
    for measure in dict.fromkeys(measure for figures in compared.values() for measure in figures):
        rows[measure] = {name: figures[measure] for name, figures in compared.items() if measure in figures}
    lines = [" " * 36 + "".join(f"{name:>12}" for name in evaluations)]
    for label, row in rows.items():
        cells = [f"{row[name]:>12.3g}" if name in row else " " * 12 for name in evaluations]
        lines.append(f"{label:<36}" + "".join(cells))
    return "\n".join(lines)


def build_parser() -> CommandParser:
    """The command line of `uld eval`."""
    return CommandParser((EvalArguments,), "uld eval", DESCRIPTION, words=("model",), has_json=True)


def main(argv: Sequence[str]) -> None:
    """
    Run `uld eval`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld eval`.

    Raises:
        KeyboardInterrupt: At Ctrl-C, saying how to go on.
    """
    (arguments,) = build_parser().parse(argv)
    try:
        run(arguments)
    except KeyboardInterrupt:
        kept = f"what was measured is in {arguments.output_dir}, and the same command goes on from there"
        raise KeyboardInterrupt(f"interrupted; {kept}.") from None


def run(arguments: EvalArguments) -> None:
    """
    Measure, print and write down.

    Args:
        arguments ([`EvalArguments`]):
            The command's.
    """
    data = {"forget": arguments.forget_dataset, "retain": arguments.retain_dataset}
    if arguments.holdout_dataset is not None:
        data["holdout"] = arguments.holdout_dataset
    check_files(*data.values())
    for path in (arguments.model, arguments.target, arguments.retrained):
        if path is not None:
            check_model_path(path)
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)

    model = load_unlearned(arguments.model, arguments.target, arguments.alpha)
    tokenizer = load_tokenizer(model, arguments.model)
    for path in data.values():
        read_questions(path, tokenizer)  # a mistake in the last file is told before the first is measured
    subtraction = {name: vars(model.config)[name] for name in ("assistants", *SHARED_SETTINGS)}
    identity = identify_unlearned(model)
    target = {"target": identity["target"]}
    evaluations = {
        "target": evaluate_or_load("target", model.target, tokenizer, data, target, arguments),
        "unlearned": evaluate_or_load("unlearned", model, tokenizer, data, {**identity, **subtraction}, arguments),
    }
    if arguments.retrained is not None:
        del model  # one model at a time
        retrained = load_model(arguments.retrained)
        settings = {"retrained": identify(retrained)}
        evaluations["retrained"] = evaluate_or_load("retrained", retrained, tokenizer, data, settings, arguments)
    summary = {
        "models": {
            name: {split: results.summary() for split, results in evaluation.sets.items()}
            for name, evaluation in evaluations.items()
        },
        "compared": compare(evaluations),
    }
    file = Path(arguments.output_dir) / "summary.json"
    file.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    output.result(format_results(evaluations), summary)
    output.note(
        f"\nWritten to {arguments.output_dir}: summary.json, and for each model a file with the values of every row."
    )
