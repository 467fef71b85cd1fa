"""Which settings of the subtraction forget enough and cost little: all of them scored from one pass."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import ks_2samp
from transformers import PreTrainedTokenizerBase

from ..modeling_uld import ULDForCausalLM
from .evaluation import Question, SetResults, check_questions
from .privacy import loss_attack, min_k_attack
from .scoring import MAX_BATCH_TOKENS, ChoiceScores, Subtraction, score_subtractions
from .tofu import forget_quality, truth_ratio


# TOFU's threshold: above it two models cannot be told apart.
FORGOTTEN = 0.05
# Of so few questions a forget quality says little.
FEW = 40
# What the file of `uld sweep --output` has, which `uld report` reads.
SWEEP_FIELDS = {"settings", "target", "chosen", "measured"}
# Who finds answers so probable, beside the target, knows them too.
KNOWN = 0.9
# Those of the evaluation's attacks that log-probabilities are enough for, by its names.
MATCHED_ATTACKS: dict[str, Callable[[ChoiceScores], float]] = {"loss": loss_attack, "min_k": min_k_attack}


@dataclass(frozen=True)
class Outcome:
    """
    What a setting does to the likelihood of right answers; means over the rows.

    Args:
        forget_probability (`float`):
            Probability of the right answers about what must be forgotten.
        retain_probability (`float`):
            Probability of the right answers about what must be kept.
        forget_quality (`float`, *optional*):
            p-value against the retrained model, where its truth ratios are known.
        forget_first_choice (`float`, *optional*):
            Share of the forgotten answers' tokens that are still the first choice: greedy answers hang on it, however
            little probable the tokens have become.
        attack_quality (`float`, *optional*):
            Smallest p-value of membership attacks' numbers beside those of answers that were never told, where these
            are known.
    """

    forget_probability: float
    retain_probability: float
    forget_quality: float | None = None
    forget_first_choice: float | None = None
    attack_quality: float | None = None

    @property
    def least_p(self) -> float | None:
        """The smaller of forget quality and attack quality, as far as they are known: how alike all of it is."""
        known = [each for each in (self.forget_quality, self.attack_quality) if each is not None]
        return min(known, default=None)


@dataclass(frozen=True)
class Reference:
    """
    What forgotten answers should be like: what a model makes of answers that it was never told.

    That model is one that never saw the forget set, asked what the forget set asks; or the target, asked what is like
    it and was never told.

    Args:
        probability (`float`):
            Mean probability of the right answers.
        first_choice (`float`):
            Share of their tokens that are the model's first choice.
        truth_ratios (`numpy.ndarray` of shape `(num_rows,)`, *optional*):
            Their truth ratios, where the forget quality is what settings are chosen by.
        attacks (`dict[str, list[float]]`, *optional*):
            Numbers of [`MATCHED_ATTACKS`] on them, where attacks count.
    """

    probability: float
    first_choice: float
    truth_ratios: np.ndarray | None = None
    attacks: dict[str, list[float]] | None = None

    @classmethod
    def from_results(cls, results: SetResults, by_truth_ratios: bool = True, with_attacks: bool = False) -> "Reference":
        """
        What a model was found to make of answers.

        Args:
            results ([`SetResults`]):
                What was measured.
            by_truth_ratios (`bool`, *optional*, defaults to `True`):
                Whether truth ratios are what settings are chosen by, where there are some.
            with_attacks (`bool`, *optional*, defaults to `False`):
                Whether attacks count.

        Returns:
            [`Reference`]: The means of the rows, and what else counts.
        """
        return cls(
            probability=float(np.exp(-np.array(results.loss)).mean()),
            first_choice=float(np.mean(results.exact_memorization)),
            truth_ratios=results.truth_ratios if by_truth_ratios else None,
            attacks={name: results.attacks[name] for name in MATCHED_ATTACKS} if with_attacks else None,
        )


def check_kinds(forget: Sequence[Question], retain: Sequence[Question]) -> None:
    """
    Refuse questions beside documents, of which likelihoods mean different things.

    Args:
        forget (`Sequence[Question]`):
            Questions about what must be forgotten.
        retain (`Sequence[Question]`):
            Questions about what must be kept.

    Raises:
        ValueError: If one set has questions and the other documents.
    """
    if forget[0].is_passage != retain[0].is_passage:
        raise ValueError("One set has questions, the other documents: sweep over two of the same kind.")


def sweep(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Question],
    retain: Sequence[Question],
    subtractions: Sequence[Subtraction],
    reference: Reference | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> tuple[Outcome, list[Outcome]]:
    """
    Score the target and every setting of the subtraction.

    Args:
        model ([`ULDForCausalLM`]):
            The unlearned model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        forget (`Sequence[Question]`):
            Questions about what must be forgotten.
        retain (`Sequence[Question]`):
            Questions about what must be kept.
        subtractions (`Sequence[Subtraction]`):
            Settings to try.
        reference ([`Reference`], *optional*):
            What the forgotten answers should be like: of its truth ratios and attacks p-values are computed.
        max_batch_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens of a batch.

    Returns:
        `tuple[Outcome, list[Outcome]]`: The target's outcome, and that of each setting.

    Raises:
        ValueError: If a set is empty, one has questions and the other documents, or truth ratios are given and the
            questions have no wrong answers.
    """
    check_questions(forget)
    check_questions(retain)
    check_kinds(forget, retain)
    ratios, attacks = (None, None) if reference is None else (reference.truth_ratios, reference.attacks)
    with_ratios = ratios is not None
    if with_ratios and not forget[0].perturbed_answers:
        raise ValueError(
            "The forget quality needs wrong answers: the forget questions have none. Leave out the retrained model, or "
            "add 'perturbed_answer' to the rows."
        )
    are_paraphrased = with_ratios and forget[0].paraphrased_answer is not None
    asked = [(question, question.answer) for question in (*forget, *retain)]
    if are_paraphrased:
        asked += [(question, question.paraphrased_answer) for question in forget]
    if with_ratios:
        asked += [(question, wrong) for question in forget for wrong in question.perturbed_answers]
    rows = [(question.prompt, answer, question.end(tokenizer)) for question, answer in asked]
    prompts, answers, ends = zip(*rows, strict=True)

    def outcome(scores: Sequence[ChoiceScores]) -> Outcome:
        losses = (row.loss for row in scores)
        right, kept = (np.array([next(losses) for _ in questions]) for questions in (forget, retain))
        probabilities = [np.exp(-each).mean() for each in (right, kept)]
        quality = None
        if with_ratios:
            # Without a paraphrase it is of the right answer, as in `SetResults.truth_ratios`.
            paraphrased = np.array([next(losses) for _ in forget]) if are_paraphrased else right
            wrong = np.array([[np.mean([next(losses) for _ in question.perturbed_answers])] for question in forget])
            quality = forget_quality(truth_ratio(paraphrased, wrong), ratios)
        first_choice = np.mean([row.most_probable.mean() for row in scores[: len(forget)]])
        attack_quality = None
        if attacks is not None:
            found = {name: [MATCHED_ATTACKS[name](row) for row in scores[: len(forget)]] for name in attacks}
            attack_quality = min(float(ks_2samp(found[name], attacks[name]).pvalue) for name in attacks)
        return Outcome(*map(float, probabilities), quality, float(first_choice), attack_quality)

    arguments = (model, tokenizer, prompts, answers, subtractions, max_batch_tokens, ends)
    target, by_setting = score_subtractions(*arguments)
    return outcome(target), [outcome(scores) for scores in by_setting]


def has_forgotten(outcome: Outcome, reference: Reference | None = None) -> bool:
    """
    Whether enough is forgotten.

    Args:
        outcome ([`Outcome`]):
            Of a setting, or of the target.
        reference ([`Reference`], *optional*):
            What forgotten answers should be like. Not needed where the outcome has a forget quality.

    Returns:
        `bool`: Whether the forget quality exceeds 0.05; where there is none, whether the forgotten answers are no more
        probable, and no more often the first choice, than answers that were never told. Where attacks count, whether
        their p-values exceed 0.05 too.

    Raises:
        ValueError: If there is neither a forget quality nor anything unknown to go by.
    """
    if outcome.attack_quality is not None and outcome.attack_quality <= FORGOTTEN:
        return False
    if outcome.forget_quality is not None:
        return outcome.forget_quality > FORGOTTEN
    if reference is None:
        raise ValueError(
            "There is nothing to tell when enough is forgotten: give a retrained model, or held-out questions."
        )
    is_improbable = outcome.forget_probability <= reference.probability
    return is_improbable and outcome.forget_first_choice <= reference.first_choice


def tells_nothing(target: Outcome, reference: Reference | None = None) -> bool:
    """
    Whether a measure of enough cannot tell what a setting does, because the target itself, or nearly, has it.

    Args:
        target ([`Outcome`]):
            The target's.
        reference ([`Reference`], *optional*):
            What forgotten answers should be like.

    Returns:
        `bool`: Whether the target has forgotten by that measure, or the reference knows the answers as well as it does.
    """
    if has_forgotten(target, reference):
        return True
    if reference is None or target.forget_quality is not None:
        return False
    knows = reference.probability >= KNOWN * target.forget_probability
    return knows and reference.first_choice >= KNOWN * target.forget_first_choice


def most_first_choices(target: Outcome, reference: Reference | None = None) -> float | None:
    """
    What a setting that is chosen by forget quality must stay below, so that greedy answers are others too.

    Args:
        target ([`Outcome`]):
            The target's.
        reference ([`Reference`], *optional*):
            What forgotten answers should be like.

    Returns:
        `float` or `None`: Share of the forgotten answers' tokens that are still the first choice: half-way from the
        target's to that of never told answers, or the target's where that is not lower. `None` where the target's is
        not known.
    """
    of_target = target.forget_first_choice
    if of_target is None or reference is None or reference.first_choice >= of_target:
        return of_target
    return (of_target + reference.first_choice) / 2


def choose(
    subtractions: Sequence[Subtraction],
    outcomes: Sequence[Outcome],
    target: Outcome,
    utility_budget: float = 0.02,
    reference: Reference | None = None,
) -> int | None:
    """
    The setting that forgets best within a budget of utility.

    By forget quality that is the highest one, as in the study (docs/study.md): what just passes may pass by chance, and
    too large an `alpha` is told as surely as one too small. By probability, where less is always better, it is the
    smallest `alpha` that is enough. A forget quality alone does not tell of greedy answers, and of few questions it
    tells little: what is chosen by it must also take away first choices.

    Args:
        subtractions (`Sequence[Subtraction]`):
            The settings.
        outcomes (`Sequence[Outcome]`):
            What each does.
        target ([`Outcome`]):
            The target's.
        utility_budget (`float`, *optional*, defaults to `0.02`):
            Share of the target's probability of retain answers that may be lost.
        reference ([`Reference`], *optional*):
            What is enough where the outcomes have no forget quality, see [`has_forgotten`]. Where they have one, the
            share of first choices must be nearer to the reference's than to the target's; without a reference, below
            the target's.

    Returns:
        `int` or `None`: Index of the setting; `None` if no setting does both. Among equals the one that keeps the most.

    Raises:
        ValueError: If there is nothing to go by, or by that the target itself has forgotten.
    """
    if tells_nothing(target, reference):
        raise ValueError(
            "By this measure the target itself has forgotten enough, or nearly, so it cannot tell what a setting does: "
            "the reference knows the answers too, the target never learned them, or there are too few questions."
        )
    least = (1 - utility_budget) * target.retain_probability
    most = None if target.forget_quality is None else most_first_choices(target, reference)
    good = [
        index
        for index, each in enumerate(outcomes)
        if has_forgotten(each, reference)
        and (most is None or each.forget_first_choice < most)
        and each.retain_probability >= least
    ]

    def preference(index: int) -> tuple[float, float]:
        outcome = outcomes[index]
        first = -subtractions[index].alpha if outcome.forget_quality is None else outcome.least_p
        return first, outcome.retain_probability

    return max(good, key=preference, default=None)


def apply_subtraction(model: ULDForCausalLM, subtraction: Subtraction) -> None:
    """
    Set a model to a setting of the subtraction.

    Args:
        model ([`ULDForCausalLM`]):
            The unlearned model.
        subtraction ([`Subtraction`]):
            The setting.

    Raises:
        ValueError: If nothing would be subtracted, or there is a share and no assistant is added.
    """
    alphas = model.config.alphas
    weights = dict(zip(alphas, subtraction.weights(list(alphas.values())), strict=True))
    vars(model.config).update(subtraction.options)
    model.set_alphas(weights)


def caution_of_few(num_questions: int) -> str | None:
    """
    What is to be said of a forget quality of few questions.

    Args:
        num_questions (`int`):
            How many there are.

    Returns:
        `str` or `None`: A sentence; `None` if there are enough.
    """
    if num_questions >= FEW:
        return None
    return f"Of {num_questions} questions a forget quality says little: have {FEW} or more, or look closely."


def as_rows(subtractions: Sequence[Subtraction], outcomes: Sequence[Outcome]) -> list[dict[str, float | bool | str]]:
    """
    Settings and outcomes together, for a JSON file.

    Args:
        subtractions (`Sequence[Subtraction]`):
            The settings.
        outcomes (`Sequence[Outcome]`):
            What each does.

    Returns:
        `list[dict]`: One object for each setting.
    """
    return [{**asdict(setting), **asdict(each)} for setting, each in zip(subtractions, outcomes, strict=True)]
