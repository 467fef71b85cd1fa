"""`uld sweep`: the forget-utility trade-off over alpha and filter, and a choice."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..configuration_uld import SHARED_SETTINGS
from ..evaluation.evaluation import Question, evaluate
from ..evaluation.scoring import MAX_BATCH_TOKENS, Subtraction
from ..evaluation.sweep import (
    MATCHED_ATTACKS,
    Outcome,
    Unknown,
    apply_subtraction,
    as_rows,
    choose,
    has_forgotten,
    most_first_choices,
    score_answers,
    sweep,
)
from ..modeling_uld import ULDForCausalLM
from . import output
from .identity import check_tokenizer, hash_files, identify_unlearned
from .loading import load_model, load_tokenizer, load_unlearned
from .parsing import CommandParser, check_model_path
from .questions import check_apart, has_questions, note_wrong_answers, read_questions, read_rows


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

# Of fewer questions a forget quality says little.
FEW = 40


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
    max_batch_tokens: int = field(default=MAX_BATCH_TOKENS, metadata={"help": "most tokens to score at once"})
    save_to: str | None = field(default=None, metadata={"help": "new folder for the model with the chosen setting"})
    output: str | None = field(default=None, metadata={"help": "JSON file to write the outcomes to as well"})


def build_parser() -> CommandParser:
    """The command line of `uld sweep`."""
    return CommandParser((SweepArguments,), "uld sweep", DESCRIPTION, words=("model",), has_json=True)


def main(argv: Sequence[str]) -> None:
    """
    Run `uld sweep`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld sweep`.

    Raises:
        ValueError: If there is nothing to save.
    """
    (arguments,) = build_parser().parse(argv)
    for path in (arguments.forget_dataset, arguments.retain_dataset, arguments.holdout_dataset):
        if path is not None:
            read_rows(path)  # what is not there is told before a model is loaded
    for path in (arguments.model, arguments.target, arguments.retrained):
        if path is not None:
            check_model_path(path)
    if not 0 <= arguments.utility_budget < 1:
        raise ValueError(f"utility_budget={arguments.utility_budget} must be at least 0 and below 1: it is a share.")
    if arguments.save_to is not None:
        if arguments.retrained is None and arguments.holdout_dataset is None:
            raise ValueError("--save_to needs --retrained or --holdout_dataset: without them nothing is chosen.")
        if Path(arguments.save_to).exists():
            raise ValueError(f"{arguments.save_to} is there already: give --save_to a new folder.")
    if arguments.match_attacks and arguments.holdout_dataset is None:
        raise ValueError("--match_attacks needs --holdout_dataset: answers like the forgotten ones, never told.")
    unknown = set(arguments.clamps or ()) - {"on", "off"}
    if unknown:
        raise ValueError(f"--clamps takes 'on' and 'off', got {sorted(unknown)}.")

    model = load_unlearned(arguments.model, arguments.target, None)
    tokenizer = load_tokenizer(model, arguments.model)
    if arguments.retrained is not None:
        check_tokenizer(arguments.retrained, tokenizer)
    forget, retain = (read_questions(path, tokenizer) for path in (arguments.forget_dataset, arguments.retain_dataset))
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

    held_out = None
    if arguments.holdout_dataset is not None:
        held_out = read_questions(arguments.holdout_dataset, tokenizer)
    check_apart({"forget": forget, "retain": retain} | ({} if held_out is None else {"holdout": held_out}))
    note_wrong_answers(forget, retain, arguments.retain_dataset)
    reference = find_reference(arguments, model, tokenizer, forget, held_out)
    ratios, first_choice, unknown = reference.truth_ratios, reference.first_choice, reference.unknown
    attacks = reference.attacks

    questions = (forget, retain)
    target, outcomes = sweep(model, tokenizer, *questions, settings, ratios, arguments.max_batch_tokens, attacks)
    chosen, conclusion = None, "Nothing chosen: give --retrained or --holdout_dataset to say how much is enough."
    if ratios is not None or unknown is not None:
        if has_forgotten(target, unknown):
            conclusion = (
                "Nothing chosen: by this measure the target itself has forgotten enough. It never learned the forget "
                "set, the model of --retrained knows it as well, or there are too few questions to tell."
            )
            if ratios is not None:
                conclusion += " Rows without 'perturbed_answer' are chosen by probability, for which fewer do."
        else:
            chosen = choose(settings, outcomes, target, arguments.utility_budget, unknown, first_choice)
            most = most_first_choices(target, first_choice)
            whose = "held-out answers" if arguments.retrained is None else "model of --retrained"
            conclusion = describe_choice(settings, chosen, unknown or most, whose, attacks is not None)
        if ratios is not None and len(forget) < FEW:
            conclusion += (
                f"\nOf {len(forget)} questions a forget quality says little: have {FEW} or more, or look closely."
            )
    report = {
        "target": vars(target),
        "unknown": None if unknown is None else vars(unknown),
        "first_choice": first_choice,
        "retrained": arguments.retrained,
        "chosen": chosen,
        "settings": as_rows(settings, outcomes),
        # By these `uld report` sees whether sweep and evaluation belong together.
        "measured": {
            "data": hash_files({"forget": arguments.forget_dataset, "retain": arguments.retain_dataset}),
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
        for training in config.training.values():
            training.pop("evaluation", None)  # its figures are of another setting
        model.save_pretrained(arguments.save_to)
        tokenizer.save_pretrained(arguments.save_to)
        as_questions = tokenizer.chat_template is not None or has_questions(arguments.forget_dataset)
        asking = "--question" if as_questions and not forget[0].is_passage else "--prompt"
        output.note(
            f'Saved to {arguments.save_to}. Look at its answers:\n  uld generate {arguments.save_to} {asking} "..."'
        )


@dataclass(frozen=True)
class Reference:
    """
    What the settings are held against; all of it `None` where nothing was given.

    Args:
        truth_ratios (`numpy.ndarray`, *optional*):
            Truth ratios to be reached.
        first_choice (`float`, *optional*):
            Beside these, the share of the answers' tokens that are the first choice.
        unknown ([`Unknown`], *optional*):
            Where there are no truth ratios, what is made of the answers.
        attacks (`dict[str, list[float]]`, *optional*):
            Numbers of attacks on held-out answers, if they count.
    """

    truth_ratios: np.ndarray | None = None
    first_choice: float | None = None
    unknown: Unknown | None = None
    attacks: dict[str, list[float]] | None = None


def find_reference(
    arguments: SweepArguments,
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Question],
    held_out: Sequence[Question] | None,
) -> Reference:
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
        [`Reference`]: By truth ratios where there are wrong answers to what is asked, else by probability.
    """
    if arguments.retrained is None and held_out is None:
        return Reference()
    by, asked, by_ratios = model.target, held_out, bool(forget[0].perturbed_answers)
    if arguments.retrained is not None:
        by, asked = load_model(arguments.retrained), forget
    elif by_ratios != bool(held_out[0].perturbed_answers):
        lacking = arguments.holdout_dataset if by_ratios else arguments.forget_dataset
        output.note(f"No forget quality: the rows of {lacking} have no 'perturbed_answer'. Chosen by probability.")
        by_ratios = False
    tokens = arguments.max_batch_tokens
    if by_ratios:
        results = evaluate(by, tokenizer, asked, max_new_tokens=1, max_batch_tokens=tokens)
        found = Reference(results.truth_ratios, float(np.mean(results.exact_memorization)))
    else:
        scores = score_answers(by, tokenizer, asked, tokens)
        found = Reference(unknown=Unknown.from_scores(scores))
    if arguments.match_attacks:
        if by_ratios or asked is not held_out:
            scores = score_answers(model.target, tokenizer, held_out, tokens)
        attacks = {name: [attack(row) for row in scores] for name, attack in MATCHED_ATTACKS.items()}
        found = replace(found, attacks=attacks)
    return found


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
    reference: Unknown | float,
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
        reference ([`Unknown`] or `float`):
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
    if not isinstance(reference, Unknown):
        kind = "the highest of the smaller of both p," if with_attacks else "the highest forget quality"
    measure = (
        f"a probability of at most {reference.probability:.3g} and at most {reference.first_choice:.0%} of the tokens "
        f"still the first choice, as of the {whose}"
        if isinstance(reference, Unknown)
        else f"less than {reference:.0%} of the tokens still the first choice and p above 0.05"
    )
    measure += ", of attacks too," if with_attacks else ""
    if chosen is None:
        return f"No setting reaches {measure} within the budget: train the assistant better, or allow more to be lost."
    setting = settings[chosen]
    finer = ""
    if isinstance(reference, Unknown):
        below = max((each.alpha for each in settings if each.alpha < setting.alpha), default=0.0)
        finer = f" A smaller one may do: try some between {below:g} and {setting.alpha:g} (--alphas)."
    share = (
        "" if setting.share is None else f"share={setting.share:g} (added with {-setting.share * setting.alpha:g}), "
    )
    return (
        f"Chosen: alpha={setting.alpha:g}, {share}relative_top={setting.relative_top:g}, clamp={setting.clamp}, "
        f"gate={setting.gate:g}: {kind} with {measure} within the budget.{finer} Look at its answers "
        "before you trust it (--save_to, uld generate)."
    )
