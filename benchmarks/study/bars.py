"""The bars that the study sets: in how many runs a method reaches each of them, and all of them."""

from collections.abc import Callable, Mapping
from typing import Any

from methods import METHODS

from uld_hf.evaluation.sweep import FORGOTTEN


Results = Mapping[str, dict[str, Any]]
Figures = Mapping[str, float]

FORGETS = f"p > {FORGOTTEN}"
KEPT_UTILITY = "utility within 1 %"
KEPT_ROUGE = "retain ROUGE within 2 %"
NEAR_RETRAINED = "aggregate > 0.85 of retrained"
ABOVE_DIVERGENCE = "aggregate > Divergence Decoding's"
# What a run is held against: the run's own figures, the target's, the retrained model's.
BARS: dict[str, Callable[[Figures, Figures, Figures], bool]] = {
    FORGETS: lambda run, target, retrained: run["forget quality"] > FORGOTTEN,
    KEPT_UTILITY: lambda run, target, retrained: run["utility, relative"] >= 0.99,
    KEPT_ROUGE: lambda run, target, retrained: run["retain ROUGE"] >= 0.98 * target["retain ROUGE"],
    NEAR_RETRAINED: lambda run, target, retrained: run["overall"] > 0.85 * retrained["overall"],
}
FORGETS_AND_KEEPS = (FORGETS, KEPT_UTILITY, KEPT_ROUGE)


def reached(results: Results, key: str) -> dict[str, dict[str, bool]]:
    """
    The bars that the runs of a method reach.

    Args:
        results (`Mapping[str, dict]`):
            All results by name.
        key (`str`):
            The method's key.

    Returns:
        `dict[str, dict[str, bool]]`: By `"{split}.s{seed}"` whether each bar is reached. What diverged reaches none.
        That of Divergence Decoding (linear) is there where it was run with the same split and seed, and did not
        diverge.
    """
    prefix = f"final.{key}."
    runs = {}
    for run in [name.removeprefix(prefix) for name in results if name.startswith(prefix)]:
        target, retrained = (results[f"final.{of}.{run}"]["figures"] for of in ("target", "retrained"))
        figures = results[prefix + run].get("figures")
        runs[run] = {bar: figures is not None and holds(figures, target, retrained) for bar, holds in BARS.items()}
        divergence = results.get(f"final.dd_linear.{run}", {}).get("figures")
        if divergence is not None and key != "dd_linear":
            runs[run][ABOVE_DIVERGENCE] = figures is not None and figures["overall"] > divergence["overall"]
    return runs


def bars_rows(results: Results) -> list[list[str]]:
    """
    Every method, the number of its runs that reach each bar, and of how many.

    Args:
        results (`Mapping[str, dict]`):
            All results by name.

    Returns:
        `list[list[str]]`: Names and numbers, in the order of [`BARS_HEADER`].
    """
    rows = []
    for key, method in METHODS.items():
        runs = reached(results, key).values()
        if not runs:
            continue
        beside = [run for run in runs if ABOVE_DIVERGENCE in run]
        rows.append(
            [
                method.name,
                str(len(runs)),
                *(str(sum(run[bar] for run in runs)) for bar in FORGETS_AND_KEEPS),
                str(sum(all(run[bar] for bar in FORGETS_AND_KEEPS) for run in runs)),
                str(sum(run[NEAR_RETRAINED] for run in runs)),
                _share(sum(run[ABOVE_DIVERGENCE] for run in beside), len(beside)),
                _share(sum(all(run.values()) for run in beside), len(beside)),
            ]
        )
    return rows


def _share(number: int, of: int) -> str:
    return f"{number} of {of}" if of else "-"


BARS_HEADER = ("", "runs", *FORGETS_AND_KEEPS, "these three", NEAR_RETRAINED, ABOVE_DIVERGENCE, "all")
