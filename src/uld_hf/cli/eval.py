"""`uld eval`: what an unlearned model has forgotten and kept, beside its target and a retrained model."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, pipeline

from .. import __version__
from ..context import context_length
from ..evaluation.comparison import compare, figure_table, remembered
from ..evaluation.encoding import encode
from ..evaluation.evaluation import Evaluation, Question, SetResults, evaluate
from ..evaluation.memorization import CLEAN
from ..evaluation.scoring import MAX_BATCH_TOKENS
from ..evaluation.sweep import caution_of_few
from ..evaluation.tofu_logs import SetLog, check_has_ratios, check_same_rows, load_tofu_log
from ..evaluation.verbatim import documents_perplexity
from ..hub import fingerprint_tokenizer, record_evaluation
from ..modeling_uld import ULDForCausalLM
from . import output
from .identity import check_is_not_target, check_tokenizer, has_same_files, hash_rows, identify, identify_any
from .loading import find_base, is_unlearned, load_model, load_tokenizer, load_unlearned, note_base
from .parsing import CommandParser, check_model_path
from .questions import check_apart, check_sets_fit, documents_of, note_wrong_answers, questions_of, read_rows


DESCRIPTION = """Measure what an unlearned model has forgotten and what it has kept, beside its target.

  uld eval forget-alice --forget_dataset forget.jsonl --retain_dataset retain.jsonl --output_dir evaluation

Rows are {"question": ..., "answer": ...}, {"prompt": ..., "completion": ...} or {"text": ...}; with
"paraphrased_answer" and "perturbed_answer" (a list of wrong answers), as TOFU has them, the truth ratio is measured
too; with "paraphrased_question", whether the question in other words gets the answer; with "fact", the words that must
not come out, how often they do. --retrained, a model trained without the forget set, or --retrained_log, TOFU's log of
one, adds the forget quality; --holdout_dataset, questions of the same kind that no model was trained on, adds the
membership attacks. --others, models that another method made (`uld train --method npo`, `uld bake`), get columns of
their own; without a model that ULD made, give one of them as MODEL, and --target. What was measured is kept in
--output_dir, and a second run goes on from there.

TOFU, from the Hub:

  uld eval forget-authors --output_dir evaluation --retrained_log retain90.json \\
      --forget_dataset locuslab/TOFU:forget10_perturbed --retain_dataset locuslab/TOFU:retain_perturbed \\
      --real_authors_dataset locuslab/TOFU:real_authors_perturbed \\
      --world_facts_dataset locuslab/TOFU:world_facts_perturbed --holdout_dataset locuslab/TOFU:holdout10
"""
_NAMES = ("target", "unlearned", "retrained", "summary")  # of files that are written without --others
# Settings that have a value for each set, and options that only what is done with the forget set depends on.
_BY_SET = ("data", "questions")
_OF_FORGET_SET = ("num_samples", "fluency_classifier")
WINDOW = 1024  # tokens in which documents are read, where the model's context is no shorter


def _name(path: str) -> str:
    """What a model of `--others` is called: the last part of its folder or hub id."""
    return os.path.basename(os.path.normpath(path))


@dataclass
class EvalArguments:
    """
    What `uld eval` takes. Datasets are JSONL files, or hub ids with an optional configuration after a colon.

    Args:
        model (`str`):
            Folder or hub id of a saved unlearned model; or, with `target`, of one that another method made.
        forget_dataset (`str`):
            Questions about what must be forgotten, or documents.
        retain_dataset (`str`):
            Questions about what must be kept, or documents.
        output_dir (`str`):
            Folder for the results.
        holdout_dataset (`str`, *optional*):
            Questions like the forget set's that no model was trained on.
        real_authors_dataset (`str`, *optional*):
            TOFU's questions about real authors.
        world_facts_dataset (`str`, *optional*):
            TOFU's questions about the world.
        retrained (`str`, *optional*):
            Folder or hub id of a model trained without the forget set.
        retrained_log (`str`, *optional*):
            TOFU's evaluation log of such a model, for the forget quality.
        others (`list[str]`, *optional*):
            Folders or hub ids of other models or adapters to measure beside it, each in a column with its own name.
        target (`str`, *optional*):
            Folder or hub id of the target, if it has moved since training or the model does not name it.
        alpha (`float`, *optional*):
            Weight of the assistant's logits, in place of the saved one.
        num_samples (`int`, *optional*, defaults to `10`):
            Answers to draw to each question of the forget set; `0` for none.
        fluency_classifier (`str`, *optional*):
            Folder or hub id of a text classifier with a label "clean".
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest greedy answer, in tokens.
        prefix_tokens (`int`, *optional*, defaults to `50`):
            Tokens of a document that the model is shown.
        continuation_tokens (`int`, *optional*, defaults to `50`):
            Tokens that follow in the document.
        batch_size (`int`, *optional*, defaults to `32`):
            Questions to answer at once.
        max_batch_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens to score at once.
        add_to_card (`bool`, *optional*, defaults to `False`):
            Put the figures into the model's card too.
    """

    model: str = field(
        metadata={"help": "folder or hub id of a saved unlearned model; with --target, of what another method wrote"}
    )
    forget_dataset: str = field(metadata={"help": "JSONL file or hub id: questions about what must be forgotten"})
    retain_dataset: str = field(metadata={"help": "JSONL file or hub id: questions about what must be kept"})
    output_dir: str = field(metadata={"help": "folder for the results"})
    holdout_dataset: str | None = field(
        default=None, metadata={"help": "questions of the same kind as the forget set's that no model was trained on"}
    )
    real_authors_dataset: str | None = field(default=None, metadata={"help": "TOFU's questions about real authors"})
    world_facts_dataset: str | None = field(default=None, metadata={"help": "TOFU's questions about the world"})
    retrained: str | None = field(
        default=None, metadata={"help": "folder or hub id of a model trained without the forget set"}
    )
    retrained_log: str | None = field(
        default=None, metadata={"help": "TOFU's evaluation log (JSON) of a model trained without the forget set"}
    )
    others: list[str] | None = field(
        default=None,
        metadata={"help": "other models to measure beside it: folders or hub ids, of adapters too"},
    )
    target: str | None = field(
        default=None, metadata={"help": "folder or hub id of the target, if it has moved since training"}
    )
    alpha: float | None = field(default=None, metadata={"help": "weight of the subtraction, in place of the saved one"})
    num_samples: int = field(
        default=10, metadata={"help": "answers to draw to each question of the forget set; 0 for none"}
    )
    fluency_classifier: str | None = field(
        default=None,
        metadata={
            "help": "text classifier with a label 'clean', e.g. madhurjindal/autonlp-Gibberish-Detector-492513457"
        },
    )
    max_new_tokens: int = field(default=64, metadata={"help": "longest answer, in tokens"})
    prefix_tokens: int = field(default=50, metadata={"help": "tokens of a document that the model is shown"})
    continuation_tokens: int = field(default=50, metadata={"help": "tokens that follow in the document"})
    batch_size: int = field(default=32, metadata={"help": "questions to answer at once"})
    max_batch_tokens: int = field(default=MAX_BATCH_TOKENS, metadata={"help": "most tokens to score at once"})
    add_to_card: bool = field(
        default=False, metadata={"help": "put the figures into the card and config.json of --model (a folder) too"}
    )

    def __post_init__(self) -> None:
        numbers = ("max_new_tokens", "prefix_tokens", "continuation_tokens", "batch_size", "max_batch_tokens")
        for name in numbers:
            if vars(self)[name] < 1:
                raise ValueError(f"{name}={vars(self)[name]} must be at least 1.")
        if self.num_samples < 0:
            raise ValueError(f"num_samples={self.num_samples} must be 0 or more.")
        if self.retrained is not None and self.retrained_log is not None:
            raise ValueError("Give --retrained or --retrained_log, not both: the forget quality is against one model.")
        if self.add_to_card and (self.alpha is not None or not os.path.isdir(self.model)):
            raise ValueError(
                "--add_to_card needs a model in a folder, evaluated with its own alpha: save it with the alpha first."
            )
        names = [_name(path) for path in self.others or ()]
        for path, name in zip(self.others or (), names, strict=True):
            if name in _NAMES or names.count(name) > 1 or os.path.realpath(path) == os.path.realpath(self.model):
                raise ValueError(
                    f"--others {path}: there is a column {name!r} already, or it is the model itself. Leave it out if "
                    "that is the same model, else rename its folder."
                )

    @property
    def data(self) -> dict[str, str]:
        """Datasets by set."""
        sets = ("forget", "retain", "holdout", "real_authors", "world_facts")
        given = {split: vars(self)[f"{split}_dataset"] for split in sets}
        return {split: path for split, path in given.items() if path is not None}

    @cached_property
    def classifier(self) -> Any:
        """The classifier of gibberish, loaded when first asked for."""
        if self.fluency_classifier is None:
            return None
        # Answers may be longer than what it reads.
        classifier = pipeline("text-classification", model=self.fluency_classifier, top_k=None, truncation=True)
        labels = list(classifier.model.config.id2label.values())
        if CLEAN not in labels:
            raise ValueError(
                f"--fluency_classifier {self.fluency_classifier} has no label {CLEAN!r}, only {labels}: it was not "
                "trained to tell text from gibberish. Give one that was, see `uld eval --help`."
            )
        return classifier


@dataclass(frozen=True)
class AskedSet:
    """
    A dataset as it is put to every model.

    Args:
        questions (`list[Question]`):
            Its questions, or passages of its documents.
        documents (`list[str]`):
            Its documents, if it is of these.
    """

    questions: list[Question]
    documents: list[str]


def measure_set(
    split: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: AskedSet,
    arguments: EvalArguments,
) -> SetResults:
    """
    Measure a model on one set; on the forget set, more closely.

    Args:
        split (`str`):
            Name of the set.
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        asked ([`AskedSet`]):
            The set.
        arguments ([`EvalArguments`]):
            The command's.

    Returns:
        [`SetResults`]: The results.
    """
    is_forget = split == "forget"
    results = evaluate(
        model,
        tokenizer,
        asked.questions,
        arguments.max_new_tokens,
        arguments.batch_size,
        arguments.max_batch_tokens,
        probe=is_forget,
        num_samples=arguments.num_samples,
        classifier=arguments.classifier if is_forget else None,
    )
    if asked.documents:
        window = min(WINDOW, context_length(model.config) or WINDOW)
        results.word_perplexity = documents_perplexity(model, tokenizer, asked.documents, window)
    return results


def describe_generation(model: PreTrainedModel) -> dict[str, Any] | None:
    """
    What a model's own `generate()` does unless it is told otherwise.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.

    Returns:
        `dict[str, Any]` or `None`: What its generation config says, but for versions; `None` if it has none.
    """
    config = model.generation_config
    return None if config is None else json.loads(config.to_json_string(ignore_metadata=True))


def _settings_of(split: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an evaluation's settings that the figures of one set depend on."""
    common = {name: value for name, value in settings.items() if name not in _BY_SET}
    if split != "forget":
        common = {name: value for name, value in common.items() if name not in _OF_FORGET_SET}
    return {**common, **{name: settings.get(name, {}).get(split) for name in _BY_SET}}


def evaluate_or_load(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, AskedSet],
    settings: Mapping[str, Any],
    arguments: EvalArguments,
) -> Evaluation:
    """
    Evaluate a model on all sets, or on those that no earlier run has done as this one would.

    Args:
        name (`str`):
            `"target"`, `"unlearned"`, `"retrained"` or that of one of `others`: the file's name too.
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        sets (`Mapping[str, AskedSet]`):
            Sets by name.
        settings (`Mapping[str, Any]`):
            What the figures depend on: the model, and hashes of the data.
        arguments ([`EvalArguments`]):
            The command's.

    Returns:
        [`Evaluation`]: The results.
    """
    file = Path(arguments.output_dir) / f"{name}.json"
    options = ("max_new_tokens", "num_samples", "fluency_classifier", "prefix_tokens", "continuation_tokens")
    settings = {
        **settings,
        **{option: vars(arguments)[option] for option in options},
        "version of uld_hf": __version__,  # another one may measure otherwise
        "tokenizer": fingerprint_tokenizer(tokenizer),
        # As the model is asked them: a chat template is no part of the tokenizer's fingerprint.
        "questions": hash_rows({split: [asdict(each) for each in asked.questions] for split, asked in sets.items()}),
        "generation_config": describe_generation(model),
        "dtype": str(model.dtype),
    }
    evaluation = Evaluation(name, {}, settings)
    if file.exists():
        earlier, now = Evaluation.load(file), json.loads(json.dumps(settings))
        changed: dict[str, list[str]] = {}
        for split in (split for split in sets if split in earlier.sets):
            then, wanted = _settings_of(split, earlier.settings), _settings_of(split, now)
            if then == wanted:
                evaluation.sets[split] = earlier.sets[split]
            else:
                changed[split] = [each for each in then | wanted if then.get(each) != wanted.get(each)]
        if changed:
            reasons = ", ".join(sorted({reason for differ in changed.values() for reason in differ}))
            anew = ", ".join(sorted(changed))
            output.note(f"{file} was measured with other settings ({reasons}): measured anew are {anew}.")
        if evaluation.sets.keys() == sets.keys() and earlier.settings != now:  # there were more sets
            evaluation.save(file)
    for split, asked in sets.items():
        if split not in evaluation.sets:
            output.note(f"{name}: {split.replace('_', ' ')} set")
            measured = {**evaluation.sets, split: measure_set(split, model, tokenizer, asked, arguments)}
            evaluation.sets = {each: measured[each] for each in sets if each in measured}  # in the same order
            evaluation.save(file)  # after every set: an interrupted run loses one at most
    return evaluation


def format_results(evaluations: Mapping[str, Evaluation], compared: Mapping[str, Mapping[str, float]]) -> str:
    """
    A table of all figures, one column for each model.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            By name.
        compared (`Mapping[str, Mapping[str, float]]`):
            Figures that need more than one set or model, by name.

    Returns:
        `str`: The table.
    """
    table = figure_table(evaluations, compared)
    width = 2 + max(map(len, table))
    columns = {name: max(12, 2 + len(name)) for name in evaluations}
    lines = [" " * width + "".join(f"{name:>{column}}" for name, column in columns.items())]
    for label, row in table.items():
        cells = [f"{row[name]:>{column}.3g}" if name in row else " " * column for name, column in columns.items()]
        lines.append(f"{label:<{width}}" + "".join(cells))
    return "\n".join(lines)


def card_figures(evaluation: Evaluation, compared: Mapping[str, float]) -> dict[str, float]:
    """
    The figures that a model card shows: of what must be forgotten and kept, and those that need several models.

    Args:
        evaluation ([`Evaluation`]):
            The unlearned model's.
        compared (`Mapping[str, float]`):
            Its figures that need more than one set or model.

    Returns:
        `dict[str, float]`: By name.
    """
    table = figure_table({"unlearned": evaluation}, {"unlearned": compared})
    return {label: row["unlearned"] for label, row in table.items() if not label.startswith("holdout")}


def describe_missing(evaluations: Mapping[str, Evaluation], figures: Mapping[str, float]) -> list[str]:
    """
    Why figures that one might expect are not there, or say little.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            By name.
        figures (`Mapping[str, float]`):
            The unlearned model's that need more than one set or model.

    Returns:
        `list[str]`: Sentences.
    """
    forget = evaluations["unlearned"].sets["forget"]
    reasons = []
    if forget.truth_ratios is None:
        reasons.append("No truth ratio and no forget quality: the forget rows have no 'perturbed_answer'.")
    elif "forget quality" not in figures:
        reasons.append("No forget quality: give --retrained or --retrained_log.")
    elif (caution := caution_of_few(len(forget.prompts))) is not None:
        reasons.append(caution)
    if "privacy" not in figures:
        given = {"--retrained": evaluations, "--holdout_dataset": evaluations["unlearned"].sets}
        needed = [option for option in given if option.strip("-").split("_")[0] not in given[option]]
        reasons.append(f"No privacy and no aggregate: give {' and '.join(needed)}.")
    elif "utility" not in figures:
        reasons.append("No utility and no aggregate: the target answers none of the questions that must be kept.")
    return reasons


def describe_zeros(evaluations: Mapping[str, Evaluation], compared: Mapping[str, Mapping[str, float]]) -> list[str]:
    """
    What makes a memorization 0 that other figures would not: one part of it, which the harmonic mean follows.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            By name.
        compared (`Mapping[str, Mapping[str, float]]`):
            Figures that need more than one set or model, by name.

    Returns:
        `list[str]`: A sentence for each part of each model.
    """
    before = remembered(evaluations["target"])
    sentences = []
    for name, evaluation in evaluations.items():
        if name != "target" and compared[name]["memorization"] == 0:
            sentences += [
                f"{name}: memorization is 0, as its {measure} ({value:.3g}) is not below the target's "
                f"({before[measure]:.3g})."
                for measure, value in remembered(evaluation).items()
                if value >= before[measure] > 0
            ]
    return sentences


def load_model_and_target(
    arguments: EvalArguments,
) -> tuple[PreTrainedModel | None, PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load what is measured first.

    Args:
        arguments ([`EvalArguments`]):
            The command's.

    Returns:
        `tuple[PreTrainedModel | None, PreTrainedModel, PreTrainedTokenizerBase]`: The model, the target and their
            tokenizer. `None` stands for a model with weights of its own, which is to be loaded when the target has been
            measured: one model at a time.

    Raises:
        ValueError: If the model does not say what its target is, or has no assistant, and options are for such a one.
    """
    if arguments.target is None and find_base(arguments.model) != arguments.model:
        raise ValueError(f"{arguments.model} is an adapter: say what it was trained on, with --target.")
    if arguments.target is None or is_unlearned(arguments.model):
        model = load_unlearned(arguments.model, arguments.target, arguments.alpha)
        return model, model.target, load_tokenizer(model, arguments.model)
    if arguments.alpha is not None or arguments.add_to_card:
        raise ValueError(
            f"--alpha and --add_to_card are for models with an assistant: {arguments.model} is an ordinary one."
        )
    return None, load_model(arguments.target), AutoTokenizer.from_pretrained(arguments.target)


def prepare_sets(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    log: SetLog | None,
    arguments: EvalArguments,
) -> dict[str, AskedSet]:
    """
    Put the rows as every model is asked, and look for mistakes in all of them.

    Args:
        rows (`Mapping[str, Sequence[Mapping[str, Any]]]`):
            By set.
        target ([`~transformers.PreTrainedModel`]):
            The target, whose context they must fit into.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        log ([`SetLog`], *optional*):
            TOFU's log of a retrained model, which must be of the same rows.
        arguments ([`EvalArguments`]):
            The command's.

    Returns:
        `dict[str, AskedSet]`: By set.

    Raises:
        ValueError: If rows are too long, in two sets, or not those of the log.
    """
    lengths = (arguments.prefix_tokens, arguments.continuation_tokens)
    sets = {
        split: AskedSet(questions_of(rows[split], path, tokenizer, *lengths), documents_of(rows[split], path))
        for split, path in arguments.data.items()
    }
    questions_by_set = {split: asked.questions for split, asked in sets.items()}
    check_apart({split: each for split, each in questions_by_set.items() if split in ("forget", "retain", "holdout")})
    note_wrong_answers(questions_by_set["forget"], questions_by_set["retain"], arguments.retain_dataset)
    check_sets_fit(target, tokenizer, questions_by_set, arguments.max_new_tokens)
    if log is not None:
        forget = questions_by_set["forget"]
        check_has_ratios(forget[0].paraphrased_answer, forget[0].perturbed_answers)
        encoded = [encode(tokenizer, each.prompt, each.answer, each.end(tokenizer)) for each in forget]
        check_same_rows(log, [each.answer for each in forget], [len(ids) - at for ids, at in encoded])
    return sets


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

    Raises:
        ValueError: If a file or a model is not what it must be, or they do not belong together.
    """
    rows = {split: read_rows(path) for split, path in arguments.data.items()}  # before a model is loaded
    others = arguments.others or []
    for path in (arguments.model, arguments.target, arguments.retrained, *others, arguments.fluency_classifier):
        if path is not None:
            check_model_path(path)
    log: SetLog | None = None
    if arguments.retrained_log is not None:
        log = load_tofu_log(arguments.retrained_log)["Forget"]
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)

    model, target, tokenizer = load_model_and_target(arguments)
    base = arguments.target or target.name_or_path or None  # of adapters
    composed = [path for path in others if is_unlearned(path)]
    for argument, path in (("--retrained", arguments.retrained), *(("--others", path) for path in others)):
        if base is not None and path is not None:
            is_target = os.path.realpath(path) == os.path.realpath(base) or has_same_files(path, base)
            check_is_not_target(argument, path, is_target)
    _ = arguments.classifier  # a wrong one is told before any work
    for path in composed:
        ULDForCausalLM.from_pretrained(path, target=target)  # refuses what was made for another
    for path in others if model is not None else (arguments.model, *others):
        check_tokenizer(path, tokenizer, base)
        note_base(path, base)
    if arguments.retrained is not None:
        check_tokenizer(arguments.retrained, tokenizer)
    sets = prepare_sets(rows, target, tokenizer, log, arguments)  # a mistake in the last file is told before any work
    data = {"data": hash_rows(rows)}
    identity = {"target": identify(target)} if model is None else identify_any(model)
    settings = {"target": identity["target"], **data}
    evaluations = {"target": evaluate_or_load("target", target, tokenizer, sets, settings, arguments)}
    del target
    if model is None:
        model = load_model(arguments.model, base)
        identity |= identify_any(model)
        check_is_not_target("MODEL", arguments.model, identity["model"] == identity["target"])
    settings = {**identity, **data}
    evaluations["unlearned"] = evaluate_or_load("unlearned", model, tokenizer, sets, settings, arguments)
    del model
    if arguments.retrained is not None:
        retrained = load_model(arguments.retrained)
        settings = {"retrained": identify(retrained), **data}
        check_is_not_target("--retrained", arguments.retrained, settings["retrained"] == identity["target"])
        evaluations["retrained"] = evaluate_or_load("retrained", retrained, tokenizer, sets, settings, arguments)
        del retrained
    for path in others:
        other = load_unlearned(path, base) if path in composed else load_model(path, base)
        settings = {**identify_any(other), **data}
        check_is_not_target("--others", path, settings.get("model") == identity["target"])
        evaluations[_name(path)] = evaluate_or_load(_name(path), other, tokenizer, sets, settings, arguments)
        del other
    compared = compare(evaluations, log)
    if arguments.add_to_card:
        record_evaluation(arguments.model, card_figures(evaluations["unlearned"], compared["unlearned"]))
    summary = {
        "models": {
            name: {split: results.summary() for split, results in evaluation.sets.items()}
            for name, evaluation in evaluations.items()
        },
        "compared": compared,
    }
    file = Path(arguments.output_dir) / "summary.json"
    file.write_text(output.to_json(summary, indent=1) + "\n", encoding="utf-8")
    sentences = [*describe_missing(evaluations, compared["unlearned"]), *describe_zeros(evaluations, compared)]
    output.result("\n".join([format_results(evaluations, compared), *sentences]), summary)
    output.note(
        f"\nWritten to {arguments.output_dir}: summary.json, and for each model a file with the values of every row."
    )
