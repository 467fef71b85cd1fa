"""Membership inference: can an attacker tell from likelihoods that the forget set was once trained on?

An attack is a number for each row, lower for rows that look trained on; its AUC says how well it tells the forget set
from rows of the same kind that no model has seen. 0.5 is chance. A retrained model need not be at 0.5: the two sets may
differ by themselves, which is why the unlearned model is compared with it and not with chance.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import hmean, rankdata
from sklearn.metrics import roc_auc_score

from .scoring import ChoiceScores, TokenScores


def _lowest(values: np.ndarray, share: float) -> float:
    return float(np.sort(values)[: max(1, int(share * len(values)))].mean())


def loss_attack(scores: ChoiceScores) -> float:
    """
    LOSS (Yeom et al., arXiv 1709.01604): the loss itself.

    Args:
        scores ([`ChoiceScores`]):
            Scores of the answer.

    Returns:
        `float`: Nats per token.
    """
    return scores.loss


def zlib_attack(scores: TokenScores, text: str) -> float:
    """
    ZLib (Carlini et al., arXiv 2012.07805): the loss, divided by how much the text can be compressed.

    Args:
        scores ([`TokenScores`]):
            Scores of the answer.
        text (`str`):
            The answer.

    Returns:
        `float`: Nats per token and compressed byte.
    """
    return scores.loss / len(zlib.compress(text.encode()))


def min_k_attack(scores: ChoiceScores, share: float = 0.4) -> float:
    """
    Min-K% (Shi et al., arXiv 2310.16789): the loss of the least probable tokens.

    Args:
        scores ([`ChoiceScores`]):
            Scores of the answer.
        share (`float`, *optional*, defaults to `0.4`):
            Share of the tokens that count; OpenUnlearning's.

    Returns:
        `float`: Nats per token.
    """
    return -_lowest(scores.log_probs, share)


def min_k_plus_plus_attack(scores: TokenScores, share: float = 0.4) -> float:
    """
    Min-K%++ (Zhang et al., arXiv 2404.02936): the same with every token beside what the model expected at its place.

    Args:
        scores ([`TokenScores`]):
            Scores of the answer.
        share (`float`, *optional*, defaults to `0.4`):
            Share of the tokens that count; OpenUnlearning's.

    Returns:
        `float`: Standard deviations below the mean.
    """
    # Where the model is certain there is no deviation: the token is as expected, or as far from it as can be.
    deviations = np.maximum(scores.deviations, 1e-6)
    return -_lowest((scores.log_probs - scores.means) / deviations, share)


def attack(scores: TokenScores, text: str) -> dict[str, float]:
    """
    All four attacks on one row.

    Args:
        scores ([`TokenScores`]):
            Scores of the answer.
        text (`str`):
            The answer.

    Returns:
        `dict[str, float]`: `"loss"`, `"zlib"`, `"min_k"` and `"min_k++"`; lower for rows that look trained on.
    """
    return {
        "loss": loss_attack(scores),
        "zlib": zlib_attack(scores, text),
        "min_k": min_k_attack(scores),
        "min_k++": min_k_plus_plus_attack(scores),
    }


def attack_auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """
    How well an attack tells the forget set from rows that were never trained on.

    Args:
        forget (`Sequence[float]`):
            The attack's numbers on the forget set.
        holdout (`Sequence[float]`):
            Its numbers on rows of the same kind that no model has seen, e.g. TOFU's holdout splits.

    Returns:
        `float`: Area under the ROC curve: 1 if every forget row looks trained on, 0.5 at chance.

    Raises:
        ValueError: If a number is NaN.
    """
    members = np.concatenate([np.ones(len(forget)), np.zeros(len(holdout))])
    # The order is all that counts. Where a token was ruled out the numbers are infinite, which scikit-learn refuses.
    ranks = rankdata(np.concatenate([forget, holdout]), nan_policy="raise")
    return float(roc_auc_score(members, -ranks))


def privacy_leakage(auc: float, retrained_auc: float) -> float:
    """
    MUSE's PrivLeak (arXiv 2407.06460, section 3.1): how far the attack's AUC is from the retrained model's.

    Args:
        auc (`float`):
            AUC of the attack on the unlearned model, forget set against holdout.
        retrained_auc (`float`):
            AUC on the retrained model.

    Returns:
        `float`: Per cent, negative if the unlearned model still gives the forget set away, positive if it has been
        pushed too far; near 0 is right. (MUSE takes the AUC of *not* having been trained on, `1 - auc`.)

    Raises:
        ValueError: If the retrained model's AUC is 1, so that there is nothing to divide by.
    """
    if retrained_auc == 1:
        raise ValueError("The retrained model's AUC is 1: the two sets differ by themselves, PrivLeak says nothing.")
    return 100 * ((1 - auc) - (1 - retrained_auc)) / (1 - retrained_auc)


def privacy_score(aucs: Mapping[str, float], retrained_aucs: Mapping[str, float]) -> float:
    """
    One figure from several attacks: 1 if each does as well as on the retrained model.

    Args:
        aucs (`Mapping[str, float]`):
            AUC of each attack on the unlearned model.
        retrained_aucs (`Mapping[str, float]`):
            AUC of each attack on the retrained model.

    Returns:
        `float`: Harmonic mean of `1 - |auc - retrained| / max(retrained, 1 - retrained)`.

    Raises:
        ValueError: If the attacks differ.
    """
    if aucs.keys() != retrained_aucs.keys():
        raise ValueError(f"Give the same attacks for both models, got {list(aucs)} and {list(retrained_aucs)}.")
    differences = [
        abs(auc - retrained_aucs[name]) / max(retrained_aucs[name], 1 - retrained_aucs[name])
        for name, auc in aucs.items()
    ]
    return float(hmean([1 - difference for difference in differences]))
