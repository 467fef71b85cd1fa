"""`uld sweep`: the forget-utility trade-off over alpha and filter, and a choice."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_uld import SHARED_SETTINGS
from ..evaluation.evaluation import Question, evaluate
from ..evaluation.scoring import MAX_BATCH_TOKENS, Subtraction
from ..evaluation.sweep import (
    SWEEP_FIELDS,
    Outcome,
    Reference,
    apply_subtraction,
    as_rows,
    caution_of_few,
    check_kinds,
    choose,
    most_first_choices,
    sweep,
    tells_nothing,
)
from ..modeling_uld import ULDForCausalLM
from . import output
from .identity import check_tokenizer, hash_rows, identify_unlearned
from .loading import load_model, load_tokenizer, load_unlearned
from .parsing import CommandParser, check_model_path, make_room
from .questions import check_apart, check_sets_fit, note_wrong_answers, questions_of, read_rows


DESCRIPTION = """Try many settings of the subtraction, all from one pass of target and assistant, and choose one.

  uld sweep forget-alice --forget_dataset forget.jsonl --retain_dataset retain.jsonl \\
      --holdout_dataset never_seen.jsonl --alphas 0.25 0.5 0.75 1 1.5 2

--retrained is a model that never saw the forget set: one that was trained without it or, in its place, the one that the
target was finetuned from. Chosen is, within the budget of utility, the smallest alpha whose answers are no more
probable, and no more often the first choice, than that model finds them; where the forget rows have wrong answers, the
highest forget quality above 0.05 beside it. Without such a model --holdout_dataset takes its place: questions like the
forget set's that the target was never told, with wrong answers or without.

What is chosen by forget quality must also take away first choices, which greedy answers are made of. --save_to writes
the model with the chosen setting to a new folder, for `uld generate`, `uld eval` and the rest.

Of a model with an assistant that is added (docs/contrast.md) --shares tries its weights, and --match_attacks asks that
membership attacks make the same of the forgotten answers as of those of --holdout_dataset; the smaller p counts then.
"""


@dataclass
class SweepArguments:
    """
    What `uld sweep` takes.

    Args:
        model (`str`):
            Folder or hub id of a saved unlearned model.
        forget_dataset (`str`):
            JSONL file, or hub id, of questions about what must be forgotten.
        retain_dataset (`str`):
            JSONL file, or hub id, of questions about what must be kept.
        holdout_dataset (`str`, *optional*):
            JSONL file of questions like the forget set's that the target was not trained on.
        retrained (`str`, *optional*):
            Folder or hub id of a model that has never seen the forget set: one trained without it or, in its place, the
            one that the target was finetuned from.
        target (`str`, *optional*):
            Folder or hub id of the target, if it has moved since training.
        alphas (`list[float]`, *optional*):
            Weights to try.
        relative_tops (`list[float]`, *optional*):
            Filters to try. Defaults to the saved one.
        clamps (`list[str]`, *optional*):
            `"on"`, `"off"`, or both. Defaults to the saved one.
        gates (`list[float]`, *optional*):
            Gates to try. Defaults to the saved one.
        shares (`list[float]`, *optional*):
            Weights of the assistants that are added to try, as shares of alpha. Defaults to the saved proportions.
        match_attacks (`bool`, *optional*, defaults to `False`):
            Whether LOSS and Min-K% of the forgotten answers must be like those of held-out ones too.
        utility_budget (`float`, *optional*, defaults to `0.02`):
            Share of the retain answers' probability that may be lost.
        prefix_tokens (`int`, *optional*, defaults to `50`):
            Tokens of a document that the model is shown.
        continuation_tokens (`int`, *optional*, defaults to `50`):
            Tokens that follow in the document.
        max_batch_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens to score at once.
        save_to (`str`, *optional*):
            New folder for the unlearned model with the chosen setting.
        output (`str`, *optional*):
            JSON file to write the outcomes to as well.
    """

    model: str = field(metadata={"help": "folder or hub id of a saved unlearned model (what `uld train` wrote)"})
    forget_dataset: str = field(metadata={"help": "JSONL file or hub id: questions about what must be forgotten"})
    retain_dataset: str = field(metadata={"help": "JSONL file or hub id: questions about what must be kept"})
    holdout_dataset: str | None = field(
        default=None, metadata={"help": "JSONL file of questions of the same kind that the target was not trained on"}
    )
    retrained: str | None = field(
        default=None,
        metadata={"help": "folder or hub id of a model that never saw the forget set: retrained, or the target's base"},
    )
    target: str | None = field(
        default=None, metadata={"help": "folder or hub id of the target, if it has moved since training"}
    )
    alphas: list[float] = field(
        default_factory=lambda: [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0], metadata={"help": "weights to try"}
    )
    relative_tops: list[float] | None = field(default=None, metadata={"help": "filters to try, instead of the saved"})
    clamps: list[str] | None = field(default=None, metadata={"help": "'on', 'off' or both, instead of the saved"})
    gates: list[float] | None = field(default=None, metadata={"help": "gates to try, instead of the saved"})
    shares: list[float] | None = field(
        default=None, metadata={"help": "weights of added assistants to try, as shares of alpha, instead of the saved"}
    )
    match_attacks: bool = field(
        default=False, metadata={"help": "ask that LOSS and Min-K of forgotten answers are those of held-out ones too"}
    )
    utility_budget: float = field(
        default=0.02, metadata={"help": "share of the retain answers' probability that may be lost"}
    )
    prefix_tokens: int = field(default=50, metadata={"help": "tokens of a document that the model is shown"})
    continuation_tokens: int = field(default=50, metadata={"help": "tokens that follow in the document"})
    max_batch_tokens: int = field(default=MAX_BATCH_TOKENS, metadata={"help": "most tokens to score at once"})
    save_to: str | None = field(default=None, metadata={"help": "new folder for the model with the chosen setting"})
    output: str | None = field(default=None, metadata={"help": "JSON file to write the outcomes to as well"})

    def __post_init__(self) -> None:
        for name in ("prefix_tokens", "continuation_tokens", "max_batch_tokens"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name}={vars(self)[name]} must be at least 1.")
        if not 0 <= self.utility_budget < 1:
            raise ValueError(f"utility_budget={self.utility_budget} must be at least 0 and below 1: it is a share.")
        if self.save_to is not None:
            if self.retrained is None and self.holdout_dataset is None:
                raise ValueError("--save_to needs --retrained or --holdout_dataset: without them nothing is chosen.")
            if Path(self.save_to).exists():
                raise ValueError(f"{self.save_to} is there already: give --save_to a new folder.")
        if self.match_attacks and self.holdout_dataset is None:
            raise ValueError("--match_attacks needs --holdout_dataset: answers like the forgotten ones, never told.")
        if self.retrained is not None and self.holdout_dataset is not None and not self.match_attacks:
            raise ValueError(
                "Beside --retrained, --holdout_dataset is for --match_attacks only: add that, or leave one of them out."
            )
        unknown = set(self.clamps or ()) - {"on", "off"}
        if unknown:
            raise ValueError(f"--clamps takes 'on' and 'off', got {sorted(unknown)}.")

    @property
    def data(self) -> dict[str, str]:
        """Datasets by set."""
        given = {split: vars(self)[f"{split}_dataset"] for split in ("forget", "retain", "holdout")}
        return {split: path for split, path in given.items() if path is not None}

    def questions(
        self, split: str, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> list[Question]:
        """Questions of a set, as the models are to see them."""
        return questions_of(rows, self.data[split], tokenizer, self.prefix_tokens, self.continuation_tokens)


def build_parser() -> CommandParser:
    """The command line of `uld sweep`."""
    return CommandParser((SweepArguments,), "uld sweep", DESCRIPTION, words=("model",), has_json=True)


def is_sweep(path: str | None) -> bool:
    """
    Whether a file is what a sweep wrote, which a new one may replace.

    Args:
        path (`str`, *optional*):
            The file.

    Returns:
        `bool`: Whether it is there, and has a sweep's fields.
    """
    if path is None or not os.path.isfile(path):
        return False
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and content.keys() >= SWEEP_FIELDS


def main(argv: Sequence[str]) -> None:
    """
    Run `uld sweep`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld sweep`.

    Raises:
        ValueError: If a value, a file or a model is not what it must be, or there is nothing to save.
    """
    (arguments,) = build_parser().parse(argv)
    rows = {split: read_rows(path) for split, path in arguments.data.items()}  # before a model is loaded
    for path in (arguments.model, arguments.target, arguments.retrained):
        if path is not None:
            check_model_path(path)
    if not is_sweep(arguments.output):
        make_room(arguments.output)  # an earlier sweep is written anew, and nothing else

    model = load_unlearned(arguments.model, arguments.target, None)
    tokenizer = load_tokenizer(model, arguments.model)
    if arguments.retrained is not None:
        check_tokenizer(arguments.retrained, tokenizer)
    sets = {split: arguments.questions(split, rows[split], tokenizer) for split in rows}
    forget, retain, held_out = (sets.get(split) for split in ("forget", "retain", "holdout"))
    config = model.config
    grid = product(
        arguments.alphas,
        [config.relative_top] if arguments.relative_tops is None else arguments.relative_tops,
        [config.clamp] if arguments.clamps is None else [clamp == "on" for clamp in arguments.clamps],
        [config.gate] if arguments.gates is None else arguments.gates,
        [None] if arguments.shares is None else arguments.shares,
    )
    kept = {name: vars(config)[name] for name in SHARED_SETTINGS if name not in ("relative_top", "clamp", "gate")}
    settings = [
        Subtraction(alpha, **kept, relative_top=top, clamp=clamp, gate=gate, share=share)
        for alpha, top, clamp, gate, share in grid
    ]
    for setting in settings:
        setting.weights(list(config.alphas.values()))  # refused before any long work

    check_apart(sets)
    note_wrong_answers(forget, retain, arguments.retain_dataset)
    check_kinds(forget, retain)
    check_sets_fit(model.target, tokenizer, sets)
    reference = find_reference(arguments, model, tokenizer, forget, held_out)
    by_ratios = reference is not None and reference.truth_ratios is not None

    target, outcomes = sweep(model, tokenizer, forget, retain, settings, reference, arguments.max_batch_tokens)
    chosen, conclusion = None, "Nothing chosen: give --retrained or --holdout_dataset to say how much is enough."
    whose = "held-out answers" if arguments.retrained is None else "model of --retrained"
    if reference is not None:
        if tells_nothing(target, reference):
            knows = "the held-out answers" if arguments.retrained is None else "what the model of --retrained says"
            conclusion = (
                "Nothing chosen: by this measure the target itself has forgotten enough, or nearly. It never learned "
                f"the forget set, {knows} cannot be told from what it did learn, or there are too few questions."
            )
            if by_ratios:
                conclusion += " Rows without 'perturbed_answer' are chosen by probability, for which fewer do."
        else:
            chosen = choose(settings, outcomes, target, arguments.utility_budget, reference)
            enough = most_first_choices(target, reference) if by_ratios else reference
            conclusion = describe_choice(settings, chosen, enough, whose, arguments.match_attacks)
        if by_ratios and (caution := caution_of_few(len(forget))) is not None:
            conclusion += f"\n{caution}"
    never_told = reference and {"probability": reference.probability, "first_choice": reference.first_choice}
    report = {
        "target": vars(target),
        "never_told": never_told,
        "retrained": arguments.retrained,
        "chosen": chosen,
        "settings": as_rows(settings, outcomes),
        # By these `uld report` sees whether sweep and evaluation belong together.
        "measured": {
            "data": hash_rows({split: rows[split] for split in ("forget", "retain")}),
            **identify_unlearned(model),
        },
    }
    if arguments.output is not None:
        Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    output.result(f"{format_outcomes(settings, target, outcomes)}\n\n{conclusion}", report)
    if arguments.save_to is not None:
        if chosen is None:
            raise ValueError(f"Nothing was chosen, so nothing is saved to {arguments.save_to}.")
        apply_subtraction(model, settings[chosen])
        model.save_pretrained(arguments.save_to)
        tokenizer.save_pretrained(arguments.save_to)
        # A setting is chosen by likelihoods: what the answers then say is another matter.
        can_be_asked = os.path.isfile(arguments.forget_dataset) and not forget[0].is_passage
        asking = f"--prompts_file {arguments.forget_dataset}" if can_be_asked else '--prompt "..."'
        output.note(f"Saved to {arguments.save_to}. Look at its answers:\n  uld generate {arguments.save_to} {asking}")


def find_reference(
    arguments: SweepArguments,
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Question],
    held_out: Sequence[Question] | None,
) -> Reference | None:
    """
    What the model should be like on the forget set: as one that was never told, or as on what nobody told it.

    Args:
        arguments ([`SweepArguments`]):
            The command's.
        model ([`ULDForCausalLM`]):
            The unlearned model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        forget (`Sequence[Question]`):
            Questions about what must be forgotten.
        held_out (`Sequence[Question]`, *optional*):
            Questions of `--holdout_dataset`.

    Returns:
        [`Reference`] or `None`: By truth ratios where there are wrong answers to what is asked, else by probability;
            `None` if nothing was given.
    """

    def reference_by(by: PreTrainedModel, asked: Sequence[Question], by_ratios: bool = True) -> Reference:
        results = evaluate(by, tokenizer, asked, max_new_tokens=1, max_batch_tokens=arguments.max_batch_tokens)
        return Reference.from_results(results, by_ratios, arguments.match_attacks)

    if arguments.retrained is None:
        if held_out is None:
            return None
        lacking = None
        for column, of_forget, of_held_out in (
            # A ratio to a paraphrase is none to the right answer: what was learned is in the latter's words.
            ("paraphrased_answer", forget[0].paraphrased_answer, held_out[0].paraphrased_answer),
            ("perturbed_answer", forget[0].perturbed_answers, held_out[0].perturbed_answers),
        ):
            if bool(of_forget) != bool(of_held_out):
                lacking = arguments.holdout_dataset if of_forget else arguments.forget_dataset, column
        if lacking and (forget[0].perturbed_answers or held_out[0].perturbed_answers):
            output.note(f"No forget quality: the rows of {lacking[0]} have no {lacking[1]!r}. Chosen by probability.")
        return reference_by(model.target, held_out, by_ratios=not lacking)
    found = reference_by(load_model(arguments.retrained), forget)
    # To attacks the forgotten answers should look as the target's own would that it was never told.
    return replace(found, attacks=reference_by(model.target, held_out).attacks) if arguments.match_attacks else found


def format_outcomes(settings: Sequence[Subtraction], target: Outcome, outcomes: Sequence[Outcome]) -> str:
    """
    A table of what was tried.

    Args:
        settings (`Sequence[Subtraction]`):
            The settings.
        target ([`Outcome`]):
            Figures of the target.
        outcomes (`Sequence[Outcome]`):
            Figures of each setting.

    Returns:
        `str`: The table.
    """
    with_shares = any(setting.share is not None for setting in settings)
    with_attacks = target.attack_quality is not None
    share = f"{'share':>7}" if with_shares else ""
    lines = [
        f"{'alpha':>8}{share}{'filter':>8}{'clamp':>7}{'gate':>6}{'p(forget)':>12}{'1st choice':>12}{'p(retain)':>12}"
        f"{'forget quality':>16}{'attacks, p' if with_attacks else '':>12}".rstrip(),
        f"{'target':>29}{'':>{len(share)}}{target.forget_probability:>12.3g}{target.forget_first_choice:>12.0%}"
        f"{target.retain_probability:>12.3g}",
    ]
    for setting, outcome in zip(settings, outcomes, strict=True):
        quality = "" if outcome.forget_quality is None else f"{outcome.forget_quality:.3g}"
        attacks = f"{outcome.attack_quality:>12.3g}" if with_attacks else ""
        share = f"{setting.share:>7g}" if with_shares else ""
        lines.append(
            f"{setting.alpha:>8g}{share}{setting.relative_top:>8g}{'on' if setting.clamp else 'off':>7}"
            f"{setting.gate:>6g}{outcome.forget_probability:>12.3g}{outcome.forget_first_choice:>12.0%}"
            f"{outcome.retain_probability:>12.3g}{quality:>16}{attacks}".rstrip()
        )
    return "\n".join(lines)


def describe_choice(
    settings: Sequence[Subtraction],
    chosen: int | None,
    enough: Reference | float,
    whose: str = "held-out answers",
    with_attacks: bool = False,
) -> str:
    """
    A sentence about the choice.

    Args:
        settings (`Sequence[Subtraction]`):
            The settings tried.
        chosen (`int`, *optional*):
            Index of the one chosen.
        enough ([`Reference`] or `float`):
            What is made of answers that were never told, if that was the measure; with a forget quality, the share of
            first choices that must not be left.
        whose (`str`, *optional*, defaults to `"held-out answers"`):
            What the former is of.
        with_attacks (`bool`, *optional*, defaults to `False`):
            Whether attacks had to be like those on held-out answers too.

    Returns:
        `str`: The sentence.
    """
    kind = "the smallest alpha"
    if not isinstance(enough, Reference):
        kind = "the highest of the smaller of both p," if with_attacks else "the highest forget quality"
    measure = (
        f"a probability of at most {enough.probability:.3g} and at most {enough.first_choice:.0%} of the tokens "
        f"still the first choice, as of the {whose}"
        if isinstance(enough, Reference)
        else f"less than {enough:.0%} of the tokens still the first choice and p above 0.05"
    )
    measure += ", of attacks too," if with_attacks else ""
    if chosen is None:
        return f"No setting reaches {measure} within the budget: train the assistant better, or allow more to be lost."
    setting = settings[chosen]
    finer = ""
    if isinstance(enough, Reference):
        below = max((each.alpha for each in settings if each.alpha < setting.alpha), default=0.0)
        finer = f" A smaller one may do: try some between {below:g} and {setting.alpha:g} (--alphas)."
    else:
        finer = _describe_edge("alpha", setting.alpha, [each.alpha for each in settings])
        if setting.share is not None:
            finer += _describe_edge("share", setting.share, [each.share for each in settings])
    share = (
        "" if setting.share is None else f"share={setting.share:g} (added with {-setting.share * setting.alpha:g}), "
    )
    return (
        f"Chosen: alpha={setting.alpha:g}, {share}relative_top={setting.relative_top:g}, clamp={setting.clamp}, "
        f"gate={setting.gate:g}: {kind} with {measure} within the budget.{finer} Look at its answers "
        "before you trust it (--save_to, uld generate)."
    )


def _describe_edge(name: str, value: float, tried: Sequence[float]) -> str:
    """That a value chosen is the smallest or largest tried, as more may lie beyond; empty if it is not."""
    least, most = min(tried), max(tried)
    if least == most or least < value < most:
        return ""
    return (
        f" {name}={value:g} is the {'smallest' if value == least else 'largest'} tried: the best may lie beyond it "
        f"(--{name}s)."
    )
