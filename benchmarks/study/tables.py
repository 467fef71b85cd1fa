"""Tables in Markdown and plots, written from the results alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from bars import BARS_HEADER, Results, bars_rows
from measure import rank
from methods import METHODS, ULD_LINES
from presets import Preset

from uld_hf.evaluation.sweep import Outcome


plt.switch_backend("svg")
# Without these, every run would write other files.
plt.rcParams["svg.hashsalt"] = "uld_hf"
SVG_OPTIONS = {"format": "svg", "metadata": {"Date": None}}

LINES = {"target": "target", "retrained": "retrained"} | {key: method.name for key, method in METHODS.items()}
# Besides forget quality, which is shown by seed: a mean of p-values says nothing.
COLUMNS: dict[str, Callable[[float], str]] = {
    "forget ROUGE": lambda value: f"{100 * value:.1f}",
    "forget probability": lambda value: f"{value:.3f}",
    "utility, relative": lambda value: f"{value:.3f}",
    "retain ROUGE": lambda value: f"{100 * value:.1f}",
    "retain probability": lambda value: f"{value:.3f}",
    "memorization": lambda value: f"{value:.2f}",
    "privacy": lambda value: f"{value:.2f}",
    "overall": lambda value: f"{value:.2f}",
    "broken answers": lambda value: f"{value:.0f}",
}
BOOK_FIGURES = ("forget BLEU", "forget ROUGE", "longest common run", "forget perplexity", "retain perplexity")
# The paper's TOFU table (Llama-2-7B-chat): forget quality, forget ROUGE-L, model utility, retain ROUGE-L.
PAPER: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "forget01": {
        "target": (1e-3, 95.2, 0.62, 98.2), "retrained": (1, 37.6, 0.62, 98.5), "GA": (0.40, 34.4, 0.52, 59.6),
        "GA+GD": (0.27, 30.5, 0.53, 58.9), "GA+KL": (0.40, 35.2, 0.53, 59.9), "DPO": (0.27, 4.09, 0.58, 55.2),
        "DPO+GD": (0.25, 4.08, 0.58, 56.5), "DPO+KL": (0.26, 4.18, 0.58, 55.6), "NPO": (0.66, 39.2, 0.52, 62.8),
        "NPO+GD": (0.58, 34.5, 0.57, 63.1), "NPO+KL": (0.52, 33.7, 0.54, 58.7), "ULD": (0.99, 40.7, 0.62, 98.3),
        "Offset-GA+KL": (0.27, 44.7, 0.52, 45.8), "Offset-DPO+KL": (0.13, 3.8, 0.12, 19.1),
        "Offset-NPO+KL": (0.41, 31.4, 0.43, 34.5),
    },
    "forget05": {
        "target": (3e-16, 97.3, 0.62, 98.2), "retrained": (1, 39.3, 0.62, 98.1), "GA": (0.05, 24.4, 0.37, 31.3),
        "GA+GD": (0.11, 19.5, 0.33, 28.9), "GA+KL": (0.14, 20.3, 0.35, 29.2), "DPO": (1e-4, 1.1, 0.02, 0.89),
        "DPO+GD": (1e-7, 1.2, 0.02, 0.84), "DPO+KL": (4e-5, 1.1, 0.03, 0.93), "NPO": (0.68, 15.9, 0.19, 24.6),
        "NPO+GD": (0.46, 24.7, 0.44, 36.5), "NPO+KL": (0.44, 24.2, 0.48, 40.2), "ULD": (0.73, 41.2, 0.62, 93.4),
        "Offset-GA+KL": (0.0001, 1.2, 0, 0), "Offset-DPO+KL": (2e-08, 0, 0, 0),
        "Offset-NPO+KL": (5e-10, 37.3, 0.59, 40.9),
    },
    "forget10": {
        "target": (2e-19, 98.6, 0.62, 98.2), "retrained": (1, 39.8, 0.62, 98.2), "GA": (8e-10, 0, 0, 0),
        "GA+GD": (9e-3, 19.6, 0.17, 23.9), "GA+KL": (2e-4, 12.1, 0.05, 18.6), "DPO": (5e-7, 0.7, 0, 0.72),
        "DPO+GD": (8e-10, 0.8, 0, 0.89), "DPO+KL": (5e-8, 0.7, 0.03, 0.81), "NPO": (0.09, 15.2, 0.26, 15.3),
        "NPO+GD": (0.29, 25.7, 0.53, 41.1), "NPO+KL": (0.07, 18.1, 0.32, 22.9), "ULD": (0.52, 42.6, 0.62, 85.9),
        "Offset-GA+KL": (2e-06, 3.1, 0.04, 2.9), "Offset-DPO+KL": (3e-09, 1.3, 0.02, 1.4),
        "Offset-NPO+KL": (4e-05, 34.2, 0.48, 34.8),
    },
}  # fmt: skip


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def finals(results: Results, split: str) -> dict[str, list[dict[str, Any]]]:
    """Final results of a split by line of the table, one for each seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key in LINES:
        prefix = f"final.{key}.{split}.s"
        runs = [result for name, result in results.items() if name.startswith(prefix) and "figures" in result]
        if runs:
            found[key] = runs
    return found


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Mean, and standard deviation where there are several."""
    if len(values) == 1:
        return show(values[0])
    return f"{show(float(np.mean(values)))} ± {show(float(np.std(values, ddof=1)))}"


def run_cost(run: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of all trainings of a run, and the highest peak in bytes."""
    costs = run.get("costs") or [run["cost"]]
    return sum(cost["seconds"] for cost in costs), max(cost["peak_memory"] for cost in costs)


def qualities(results: Results, key: str, split: str) -> str:
    """Forget quality of a line on a split by seed; what diverged is counted."""
    prefix = f"final.{key}.{split}.s"
    runs = [result for name, result in results.items() if name.startswith(prefix)]
    shown = [f"{run['figures']['forget quality']:.2g}" for run in runs if "figures" in run]
    return ", ".join(shown + ["diverged" for run in runs if "failed" in run])


def main_table(results: Results, split: str) -> str:
    """Every method on a split; what diverged is counted, and not in the means."""
    rows = []
    for key, runs in finals(results, split).items():
        cells = [spread([run["figures"][name] for run in runs], show) for name, show in COLUMNS.items()]
        seconds, memory = zip(*map(run_cost, runs), strict=True)
        show = "{:.0f}".format
        rows.append(
            [LINES[key], qualities(results, key, split), *cells, show(np.mean(seconds)), show(max(memory) / 1e6)]
        )
    return markdown(["", "forget quality p, by seed", *COLUMNS, "training s", "peak MB"], rows)


def summary_table(results: Results) -> str:
    """All splits at a glance: p by seed, the worst of what is kept, and the aggregate as a mean over the seeds."""
    splits = sorted({name.split(".")[2] for name in results if name.startswith("final.target.")})
    by_split = {split: finals(results, split) for split in splits}
    rows = []
    for key, name in LINES.items():
        runs = {split: [run["figures"] for run in by_split[split].get(key, [])] for split in splits}
        found = [figures for split in splits for figures in runs[split]]
        if found:
            rows.append(
                [
                    name,
                    *(qualities(results, key, split) or "-" for split in splits),
                    f"{min(each['utility, relative'] for each in found):.3f}",
                    f"{100 * min(each['retain ROUGE'] for each in found):.1f}",
                    ", ".join(
                        f"{np.mean([each['overall'] for each in runs[split]]):.2f}" if runs[split] else "-"
                        for split in splits
                    ),
                ]
            )
    quality = [f"p, {split}" for split in splits]
    return markdown(["", *quality, "least utility", "least retain ROUGE", "aggregate, by split"], rows)


def bars_table(results: Results) -> str:
    """In how many runs each method reaches the bars that the study sets."""
    return markdown(BARS_HEADER, bars_rows(results))


def paper_table(results: Results, split: str) -> str:
    """Ours beside the paper's, where the paper has a split of that name; p by seed, means of the rest."""
    rows = []
    for key, runs in finals(results, split).items():
        name = METHODS[key].paper if key in METHODS else key
        if name in PAPER[split]:
            quality, forget, utility, retain = PAPER[split][name]
            ours = qualities(results, key, split)
            figures = {name: float(np.mean([run["figures"][name] for run in runs])) for name in runs[0]["figures"]}
            relative = utility / PAPER[split]["target"][2]
            rows.append(
                [
                    LINES[key],
                    f"{quality:.2g} / {ours}",
                    f"{forget:g} / {100 * figures['forget ROUGE']:.1f}",
                    f"{relative:.2f} / {figures['utility, relative']:.2f}",
                    f"{retain:g} / {100 * figures['retain ROUGE']:.1f}",
                ]
            )
    header = ["paper / ours", "forget quality", "forget ROUGE", "utility, relative to the target's", "retain ROUGE"]
    return markdown(header, rows)


def trials_table(results: Results) -> str:
    """What was tried of every method, and what came of it."""
    rows = []
    for name, result in results.items():
        if name.startswith("trial."):
            key, outcome = name.split(".")[1], result["outcome"]
            alpha = f"{result['subtraction']['alpha']:g}" if "subtraction" in result else ""
            rows.append(
                [
                    LINES[key],
                    ", ".join(
                        f"{option} {value if isinstance(value, str) else format(value, 'g')}"
                        for option, value in result["setting"].items()
                    ),
                    alpha,
                    f"{outcome['forget_quality']:.2g}",
                    f"{outcome['forget_probability']:.3f}",
                    f"{outcome['retain_probability']:.3f}",
                ]
            )
    header = ["", "setting", "best alpha", "forget quality", "forget probability", "retain probability"]
    return markdown(header, rows)


def ablation_table(results: Results) -> str:
    """Every change with the best alpha of each composition: alpha, forget quality, retain probability."""
    ablations = {
        name.removeprefix("ablation."): result
        for name, result in results.items()
        if name.startswith("ablation.") and name != "ablation.subtraction"
    }
    # Some were run before there was a line.
    lines = [key for key in ULD_LINES if all(key in run or "failed" in run for run in ablations.values())]
    rows = []
    for name, result in ablations.items():
        if "failed" in result:
            rows.append([name, *(["diverged"] * len(lines)), ""])
            continue
        cells = []
        for key in lines:
            outcome, subtraction = result[key]["outcome"], result[key]["subtraction"]
            cells.append(
                f"{subtraction['alpha']:g}; {outcome['forget_quality']:.2g}; {outcome['retain_probability']:.3f}"
            )
        rows.append([name, *cells, f"{run_cost(result)[0]:.0f}"])
    return markdown(["", *(LINES[key] for key in lines), "training s"], rows)


def _composition(setting: Mapping[str, Any]) -> str:
    top = f"{setting['relative_top']:g}" if setting["relative_top"] else "off"
    outside = f" {setting['outside']}" if setting["relative_top"] else ""
    kind = "clamped" if setting["clamp"] else "centred" if setting["center"] else "uncentred"
    return f"filter {top}{outside}, {kind}"


def subtraction_curves(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Outcomes by composition, in order of alpha."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for setting in results["ablation.subtraction"]["settings"]:
        curves.setdefault(_composition(setting), []).append(setting)
    return curves


def subtraction_table(results: Results) -> str:
    """The best alpha of every composition, by the rule of the trials."""
    rows, target = [], Outcome(**results["ablation.subtraction"]["target"])
    for name, curve in subtraction_curves(results).items():
        best = max(curve, key=lambda each: rank(_outcome(each), target))
        rows.append(
            [
                name,
                f"{best['alpha']:g}",
                f"{best['forget_quality']:.2g}",
                f"{best['forget_probability']:.3f}",
                f"{best['retain_probability']:.3f}",
            ]
        )
    header = ["composition", "best alpha", "forget quality", "forget probability", "retain probability"]
    return markdown(header, rows)


def curves_table(results: Results) -> str:
    """Forget quality and what is kept by composition and alpha, all on one assistant."""
    curves = subtraction_curves(results)
    (alphas,) = {tuple(f"{each['alpha']:g}" for each in curve) for curve in curves.values()}
    rows = [
        [name, *(f"{each['forget_quality']:.2g}; {each['retain_probability']:.3f}" for each in curve)]
        for name, curve in curves.items()
    ]
    return markdown(["", *alphas], rows)


def _outcome(values: Mapping[str, Any]) -> Outcome:
    return Outcome(**{field.name: values.get(field.name) for field in fields(Outcome)})  # older runs have fewer


def alphas_table(results: Results, split: str) -> str:
    """Forget quality by seed and what is kept, a mean, by alpha, of every ULD line."""
    runs = [result["lines"] for name, result in results.items() if name.startswith(f"alphas.{split}.s")]
    alphas = [f"{each['alpha']:g}" for each in next(iter(runs[0].values()))]
    rows = []
    for key in runs[0]:
        cells = []
        for outcomes in zip(*(run[key] for run in runs), strict=True):
            quality = ", ".join(f"{each['forget_quality']:.2g}" for each in outcomes)
            kept = float(np.mean([each["retain_probability"] for each in outcomes]))
            cells.append(f"{quality}; {kept:.3f}")
        rows.append([LINES[key], *cells])
    return markdown(["", *alphas], rows)


def gates_table(results: Results, split: str) -> str:
    """Forget quality and what is kept by gate and alpha; means over the seeds of what is kept, all p-values."""
    runs = [result["settings"] for name, result in results.items() if name.startswith(f"gates.{split}.s")]
    alphas = sorted({setting["alpha"] for setting in runs[0]})
    by_place: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for run in runs:
        for setting in run:
            by_place.setdefault((setting["gate"], setting["alpha"]), []).append(setting)
    rows = []
    for gate in sorted({gate for gate, _ in by_place}):
        cells = []
        for alpha in alphas:
            found = by_place[gate, alpha]
            quality = ", ".join(f"{each['forget_quality']:.2g}" for each in found)
            cells.append(f"{quality}; {np.mean([each['retain_probability'] for each in found]):.3f}")
        rows.append([f"gate {gate:g}" if gate else "no gate", *cells])
    return markdown(["alpha", *(f"{alpha:g}" for alpha in alphas)], rows)


def rephrased_table(results: Results, split: str) -> str:
    """Questions in other words: means over the seeds."""
    runs = [result for name, result in results.items() if name.startswith(f"rephrased.{split}.s")]
    rows = []
    for key in runs[0]:
        sets = zip(*(run[key].values() for run in runs), strict=True)
        cells = [
            "; ".join(f"{np.mean([each[figure] for each in found]):.3f}" for figure in ("probability", "ROUGE"))
            for found in sets
        ]
        rows.append([key, *cells])
    return markdown(["", *runs[0]["target"]], rows)


def robustness_table(results: Results) -> str:
    """How unlearned weights hold: recalls, and steps until half is back."""
    measured: dict[str, list[dict]] = {}
    for name, result in results.items():
        if name.startswith("robustness."):
            measured.setdefault(name.split(".")[1], []).append(result)
    first = next(iter(measured.values()))[0]
    recalls = [key for key, value in first.items() if isinstance(value, float) and key != "halfway"]
    rows = []
    for key, runs in measured.items():
        cells = [", ".join(f"{run[recall]:.2f}" for run in runs) for recall in recalls]
        for attack in first["relearning"]:
            steps = [run["relearning"][attack]["steps"] for run in runs]
            cells.append(", ".join("not" if number is None else str(number) for number in steps))
        rows.append([LINES.get(key, key), *cells])
    lessons = [f"steps, taught {attack}" for attack in first["relearning"]]
    return markdown(["", *(f"recall, {recall}" for recall in recalls), *lessons], rows)


def books_table(results: Results) -> str:
    """The book scenario: models that learned it, then methods in all their variants."""
    found = {name.removeprefix("books."): result for name, result in results.items() if name.startswith("books.")}
    rows = []
    learned = ("target", "retrained")
    for key in sorted(found, key=lambda key: (key not in learned, key)):
        label = "ULD" if key == "uld" else key.replace("_", " + ")
        by_variant = {"": found[key]["figures"]} if key in learned else found[key]["figures"]
        for variant, figures in by_variant.items():
            title = f"{label}, {variant}" if variant else label
            rows.append([title, *(f"{figures[name]:.3g}" if name in figures else "-" for name in BOOK_FIGURES)])
    return markdown(["", *BOOK_FIGURES], rows)


def plot_frontier(results: Results, split: str, file: Path) -> None:
    """Forget quality against what is left of the utility."""
    figure, axes = plt.subplots(figsize=(7, 5))
    for key, runs in finals(results, split).items():
        x = [run["figures"]["utility, relative"] for run in runs]
        y = [max(run["figures"]["forget quality"], 1e-20) for run in runs]
        marker = "*" if key.startswith("uld") else "s" if key in ("target", "retrained") else "o"
        axes.scatter(x, y, marker=marker, s=60, label=LINES[key])
    axes.axhline(0.05, color="grey", linestyle=":", label="p = 0.05")
    axes.set(yscale="log", xlabel="utility, relative to the target's", ylabel="forget quality (p)", title=split)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, bbox_inches="tight", **SVG_OPTIONS)
    plt.close(figure)


def plot_alphas(results: Results, file: Path) -> None:
    """What alpha does in each composition."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    names = ("forget_quality", "forget_probability", "retain_probability")
    for name, curve in subtraction_curves(results).items():
        for axis, column in zip(axes, names, strict=True):
            values = [max(each[column], 1e-20) for each in curve]
            axis.plot([each["alpha"] for each in curve], values, marker=".", label=name)
    for axis, column in zip(axes, names, strict=True):
        axis.set(
            xlabel="alpha", title=column.replace("_", " "), yscale="log" if column == "forget_quality" else "linear"
        )
    axes[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, bbox_inches="tight", **SVG_OPTIONS)
    plt.close(figure)


def write_report(preset: Preset, results: Results, folder: Path) -> Path:
    """
    Write tables and plots of what there is so far.

    Args:
        preset ([`Preset`]):
            The study's size.
        results (`Mapping[str, dict]`):
            All results by name.
        folder (`Path`):
            Where to.

    Returns:
        `Path`: The file with the tables.
    """
    parts = [
        f"# Study `{preset.name}`\n\nTargets are trained from scratch. {preset.num_authors} of TOFU's authors, "
        f"{preset.num_layers} layers of width {preset.hidden_size}, K {preset.assistant_layers}; settings chosen on "
        f"{preset.tune_on} with {preset.trials} trainings of ULD and up to {preset.rival_trials} of each rival. "
        "Written by `benchmarks/study/run.py`."
    ]
    if any(name.startswith("final.target.") for name in results):
        parts.append(f"## All splits\n\np by seed; the aggregate as a mean.\n\n{summary_table(results)}")
    if bars_rows(results):
        parts.append(f"## Bars\n\nRuns that reach them.\n\n{bars_table(results)}")
    for split, authors in preset.splits.items():
        if finals(results, split):
            parts.append(f"## {split}: {authors} of {preset.num_authors} authors\n\n{main_table(results, split)}")
            plot_frontier(results, split, folder / f"{split}.svg")
            parts.append(f"![{split}]({split}.svg)")
            if split in PAPER:
                parts.append(f"### Beside the paper's {split}\n\n{paper_table(results, split)}")
    if any(name.startswith("ablation.") and name != "ablation.subtraction" for name in results):
        parts.append(
            "## Ablations\n\nBest alpha of each composition; forget quality; retain probability.\n\n"
            + ablation_table(results)
        )
    if "ablation.subtraction" in results:
        parts.append(f"## Settings of the subtraction\n\n{subtraction_table(results)}\n\n![alpha](alphas.svg)")
        plot_alphas(results, folder / "alphas.svg")
    for split in preset.splits:
        if any(name.startswith(f"alphas.{split}.s") for name in results):
            parts.append(
                f"## Alpha on {split}\n\nForget quality by seed; retain probability. Final runs' assistants.\n\n"
                + alphas_table(results, split)
            )
    for split in preset.splits:
        if any(name.startswith(f"gates.{split}.s") for name in results):
            parts.append(
                f"## The gate on {split}\n\nForget quality by seed; retain probability. Filtered and clamped.\n\n"
                + gates_table(results, split)
            )
    for split in preset.splits:
        if any(name.startswith(f"rephrased.{split}.s") for name in results):
            parts.append(
                f"## {split} in other words\n\nProbability of right answers; ROUGE-L recall of greedy ones; means over "
                f"the seeds.\n\n{rephrased_table(results, split)}"
            )
    if any(name.startswith("robustness.") for name in results):
        parts.append(
            f"## Robustness on {preset.tune_on}\n\nBy seed: ROUGE-L recall of forget answers, and steps until half is "
            f"back (*not*: in no test).\n\n{robustness_table(results)}"
        )
    if any(name.startswith("books.") for name in results):
        parts.append(f"## Books\n\n{books_table(results)}")
    if any(name.startswith("trial.") for name in results):
        parts.append(f"## Trials on {preset.tune_on}\n\n{trials_table(results)}")
    file = folder / "tables.md"
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return file
