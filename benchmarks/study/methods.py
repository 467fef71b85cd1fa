"""The methods of the study: by which recipe each is trained, and how its logits are composed."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from presets import Preset

from uld_hf.evaluation.scoring import Subtraction


@dataclass(frozen=True)
class Method:
    """
    A line of the tables.

    Args:
        name (`str`):
            What the tables call it.
        paper (`str`):
            What the paper's tables call it; empty if they do not have it.
        recipe (`str`):
            How it is trained: methods of one recipe share their trainings.
        subtractions (`tuple[Subtraction, ...]`):
            Compositions that are tried, without training; none for methods that change the weights.
        augmented (`bool`):
            Whether it trains on paraphrases and wrong answers too.
        tuned_as (`str`, *optional*):
            Key of the line whose setting this has. Of a composition it is the training too; if there are several, it is
            then chosen anew on every forget set, and without a retrained model.
        stand_in (`str`):
            What is then to be reached: the target's truth ratios on authors that it has never met (`"unseen"`), those
            of the model that the target was finetuned from on the forget set (`"base"`), or what that model makes of
            the right answers (`"base_probability"`).
        ratios (`tuple[float, ...]`):
            Weights of the second assistant that are tried, as shares of the first one's. Where there is a choice, by
            unseen authors, likelihoods and Min-K are to be theirs too.
    """

    name: str
    paper: str
    recipe: str
    subtractions: tuple[Subtraction, ...] = ()
    augmented: bool = False
    tuned_as: str | None = None
    stand_in: Literal["unseen", "base", "base_probability"] = "unseen"
    ratios: tuple[float, ...] = (1.0,)

    @property
    def changes_weights(self) -> bool:
        """Whether what is trained is a model of the target's size, and no assistant."""
        return not self.subtractions and not self.recipe.startswith("offset ")

    @property
    def is_fixed(self) -> bool:
        """Whether there is one composition, and nothing to choose."""
        return len(self.subtractions) == len(self.ratios) == 1

    def can_be_run(self, preset: Preset) -> bool:
        """Whether a study of a size has what this line goes by."""
        return self.stand_in == "unseen" or preset.pretraining_epochs > 0

    def tried(self, preset: Preset) -> tuple[Subtraction, ...]:
        """Compositions that a study of a size tries in its trials."""
        more = (replace(each, gate=gate) for gate in preset.more_gates for each in self.subtractions if each.gate)
        return tuple(dict.fromkeys((*self.subtractions, *more)))

    def tried_after(self, best: dict[str, Any], preset: Preset) -> tuple[Subtraction, ...]:
        """Compositions that are tried with a setting that is chosen: with its gate, where there was a choice of one."""
        if not preset.more_gates:
            return self.subtractions
        return tuple(dict.fromkeys(replace(each, gate=best["subtraction"]["gate"]) for each in self.subtractions))


ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0)


def _subtractions(alphas: tuple[float, ...] = ALPHAS, **settings: Any) -> tuple[Subtraction, ...]:
    return tuple(Subtraction(alpha, **settings) for alpha in alphas)


ULD_LINES: dict[str, Method] = {
    # The paper's formula, with more alphas than the paper's.
    "uld_paper": Method(
        "ULD, the paper's formula", "ULD", "uld", _subtractions(relative_top=0.01, center=False), augmented=True
    ),
    # What its code generates with.
    "uld_released": Method(
        "ULD, as its code generates",
        "",
        "uld",
        _subtractions(relative_top=0.01, center=False, outside="mask"),
        augmented=True,
    ),
    # Ours.
    "uld_centered": Method(
        "ULD, centred (ours)", "", "uld", _subtractions(relative_top=0.01, clamp=False), augmented=True
    ),
    "uld_clamped": Method(
        "ULD, no filter, clamped (ours)", "", "uld", _subtractions(relative_top=0.0, clamp=True), augmented=True
    ),
    # uld_hf's default.
    "uld_clamped_filter": Method(
        "ULD, filter, clamped (uld_hf's default)",
        "",
        "uld",
        _subtractions(relative_top=0.01, clamp=True),
        augmented=True,
    ),
    "uld_gated": Method(
        "ULD, filter, clamped, gated (ours)",
        "",
        "uld",
        _subtractions(relative_top=0.01, clamp=True, gate=0.1),
        augmented=True,
    ),
}
# Beside the assistant one that knows how such answers are worded, and wrong ones.
CONTRAST = Method(
    "ULD, gated contrast (ours)",
    "",
    "contrast",
    tuple(setting for gate in (0.1, 0.2, 0.3) for setting in _subtractions(relative_top=0.0, clamp=False, gate=gate)),
    augmented=True,
    ratios=(0.4, 0.6, 0.8, 1.0),
)
# The same two assistants; where the first is sure, the second takes the target's place. Between an alpha that leaves
# facts likely and one that makes them too unlikely there is little room, and 1.1 lies in it.
REPLACED = replace(
    CONTRAST,
    name="ULD, gated replacement (ours), weights by unseen authors",
    tuned_as="uld_gated",
    subtractions=_subtractions(
        (0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0), relative_top=0.0, clamp=True, gate=0.1, replace=True
    ),
    ratios=(0.8, 1.0, 1.2, 1.4, 1.6, 1.8),
)
# The same, drawn, with an alpha for every position: of what the first assistant is half sure, half is subtracted.
CERTAIN = replace(
    REPLACED,
    name="ULD, replacement by certainty, drawn (ours), weights by unseen authors",
    recipe="contrast_drawn",
    subtractions=_subtractions(
        (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75),
        relative_top=0.0,
        clamp=True,
        gate=0.1,
        by_certainty=True,
        replace=True,
    ),
    ratios=(0.9, 1.0, 1.1, 1.2, 1.3),
)
# With hundreds of questions the band in which p passes is narrower than the steps of the others.
FINE = replace(
    ULD_LINES["uld_gated"],
    name=f"{ULD_LINES['uld_gated'].name}, alpha by unseen authors in steps of 0.05",
    paper="",
    tuned_as="uld_gated",
    subtractions=_subtractions(
        tuple(round(0.05 * step, 2) for step in range(20, 41)), relative_top=0.01, clamp=True, gate=0.1
    ),
)
DIVERGENCE = Method("Divergence Decoding, linear", "", "divergence", _subtractions(relative_top=0.0, center=False))
RIVALS: dict[str, Method] = {
    "dd_linear": DIVERGENCE,
    # With what our lines of two assistants choose from, and by their rule.
    "dd_linear_unseen": replace(
        DIVERGENCE,
        name=f"{DIVERGENCE.name}, weights by unseen authors",
        tuned_as="dd_linear",
        ratios=CONTRAST.ratios,
    ),
    "dd_rank": Method(
        "Divergence Decoding, rank",
        "",
        "divergence",
        tuple(Subtraction(1.0, relative_top=0.0, center=False, remove_top_k=top) for top in (1, 2, 5, 10, 20, 50, 100)),
    ),
    "offset_ga_kl": Method("Offset, GA + KL", "Offset-GA+KL", "offset ga kl"),
    "offset_npo_kl": Method("Offset, NPO + KL", "Offset-NPO+KL", "offset npo kl"),
    "offset_dpo_kl": Method("Offset, DPO + KL", "Offset-DPO+KL", "offset dpo kl"),
    "ga": Method("GA", "GA", "ga none"),
    "ga_gd": Method("GA + GD (gradient difference)", "GA+GD", "ga nll"),
    "ga_kl": Method("GA + KL", "GA+KL", "ga kl"),
    "npo": Method("NPO", "NPO", "npo none"),
    "npo_gd": Method("NPO + GD", "NPO+GD", "npo nll"),
    "npo_kl": Method("NPO + KL", "NPO+KL", "npo kl"),
    "dpo": Method("DPO", "DPO", "dpo none"),
    "dpo_gd": Method("DPO + GD", "DPO+GD", "dpo nll"),
    "dpo_kl": Method("DPO + KL", "DPO+KL", "dpo kl"),
    "simnpo": Method("SimNPO", "", "simnpo nll"),
    "undial": Method("UNDIAL", "", "undial nll"),
    # As OpenUnlearning configures it.
    "undial_none": Method("UNDIAL, no retain term", "", "undial none"),
    "rmu": Method("RMU", "", "rmu activations"),
}
RULES_GATED = "ULD, filter, clamped, gated, augmented by rules (ours)"
METHODS: dict[str, Method] = {
    **ULD_LINES,
    "uld_contrast": CONTRAST,
    # What a user can do who has no retrained model.
    **{
        f"{key}_unseen": replace(
            ULD_LINES[key], name=f"{ULD_LINES[key].name}, alpha by unseen authors", paper="", tuned_as=key
        )
        for key in ("uld_paper", "uld_clamped_filter", "uld_gated")
    },
    "uld_gated_fine": FINE,
    # What a user can do who has the model that the target was finetuned from.
    "uld_gated_base": replace(
        FINE,
        name=f"{ULD_LINES['uld_gated'].name}, alpha by the base model in steps of 0.05",
        stand_in="base",
    ),
    "uld_contrast_unseen": replace(
        CONTRAST, name=f"{CONTRAST.name}, weights by unseen authors", tuned_as="uld_contrast"
    ),
    "uld_replaced_unseen": REPLACED,
    # The second assistant learns wrong answers that the target draws, in place of the released ones.
    "uld_drawn_unseen": replace(
        REPLACED, name="ULD, gated replacement, drawn (ours), weights by unseen authors", recipe="contrast_drawn"
    ),
    # Chosen as everything else is: on one split, beside the retrained model.
    "uld_certain": replace(CERTAIN, name="ULD, replacement by certainty, drawn (ours)", tuned_as=None),
    "uld_certain_unseen": CERTAIN,
    # Weights that were good on the finetuned preset's seeds 0 to 2, beside the retrained models, for all runs alike.
    "uld_certain_fixed": replace(
        CERTAIN,
        name="ULD, replacement by certainty, drawn (ours), fixed weights",
        subtractions=tuple(setting for setting in CERTAIN.subtractions if setting.alpha == 1.4),
        ratios=(1.1,),
    ),
    "uld_rules": Method(
        "ULD, clamped, augmented by rules (ours)",
        "",
        "uld_rules",
        _subtractions(relative_top=0.0, clamp=True),
        augmented=True,
    ),
    "uld_rules_gated": replace(
        ULD_LINES["uld_gated"],
        name=RULES_GATED,
        recipe="uld_rules",
    ),
    "uld_rules_gated_base": replace(
        FINE,
        name=f"{RULES_GATED}, alpha by the base model's probabilities in steps of 0.05",
        recipe="uld_rules",
        tuned_as="uld_rules_gated",
        stand_in="base_probability",
    ),
    # What do paraphrases and wrong answers do for ULD?
    "uld_plain": Method(
        "ULD, filter, clamped, gated (ours), on rivals' rows", "", "uld_plain", ULD_LINES["uld_gated"].subtractions
    ),
    "bake": Method("ULD, gated, baked (ours)", "", "bake", augmented=True),
    "bake_contrast": Method("ULD, gated contrast, baked (ours)", "", "bake_contrast", augmented=True, tuned_as="bake"),
    **RIVALS,
    # And what do they for rivals, whose papers do not have them?
    **{
        f"{key}_augmented": replace(RIVALS[key], name=f"{RIVALS[key].name}, on ULD's rows", paper="", augmented=True)
        for key in ("dd_linear", "npo_gd")
    },
}

# Methods whose weights are attacked when they have forgotten.
ROBUST_METHODS = ("bake", "bake_contrast", "npo_gd")
# Recipes that are no rivals'.
OURS = ("uld", "uld_rules", "uld_plain", "contrast", "contrast_drawn", "bake", "bake_contrast")
# The teachers of baked models, by recipe: with weights that need no retrained model.
TEACHERS = {"bake": "uld_gated_unseen", "bake_contrast": "uld_contrast_unseen"}
