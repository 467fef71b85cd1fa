"""One HTML page about an unlearned model, from what `uld eval` and `uld sweep` wrote: for people, and to print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from typing import Any

import numpy as np

from .evaluation import Evaluation, SetResults, compare


LIMITS = (
    "The target's weights are unchanged: whoever holds them still has the knowledge.",
    "The assistant is a concentrated copy of the forget set and must be kept as carefully as the data.",
    "What was measured is greedy answers and likelihoods on these questions. Sampling many times, other wordings and "
    "other languages were not.",
    "A p-value above 0.05 means that no difference was found with so many rows, not that there is none.",
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.wide { overflow-x: auto }
.failed { color: #b00020; font-weight: 600 }
.passed { color: #1b5e20 }
mark { background: #ffe08a }
blockquote { margin: .3rem 0 1rem; padding-left: .8rem; border-left: 3px solid #ccc; overflow-wrap: anywhere }
code { overflow-wrap: anywhere }
svg { max-width: 100%; height: auto }
@media (max-width: 40rem) { th, td { padding: .2rem; font-size: .8rem } figure { margin: 1rem 0 } }
@media print { body { margin: 0; max-width: none } h2, figure, article { break-inside: avoid } }
"""
COLORS = {"target": "#757575", "retrained": "#1565c0", "unlearned": "#c62828"}


@dataclass(frozen=True)
class Check:
    """
    Something that must hold, and whether it does.

    Args:
        statement (`str`):
            What must hold, with the figure.
        passed (`bool`):
            Whether it does.
    """

    statement: str
    passed: bool


def run_checks(evaluations: Mapping[str, Evaluation], utility_budget: float = 0.02) -> list[Check]:
    """
    What a reader wants to know first: is it forgotten, is the rest kept, are the answers sound.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            `"target"`, `"unlearned"` and, if there is one, `"retrained"`.
        utility_budget (`float`, *optional*, defaults to `0.02`):
            Share of the target's figures on the retain set that may be lost.

    Returns:
        `list[Check]`: The checks.
    """
    target, unlearned = evaluations["target"].sets, evaluations["unlearned"].sets
    before, after = target["forget"].summary(), unlearned["forget"].summary()
    checks = [
        Check(
            f"The forgotten answers are less probable than before: {after['probability']:.3g} against "
            f"{before['probability']:.3g}",
            after["probability"] < before["probability"],
        )
    ]
    quality = compare(evaluations)["unlearned"].get("forget quality")
    if quality is not None:
        statement = f"It cannot be told from a model that never saw the forget set: p = {quality:.3g} (above 0.05)"
        checks.append(Check(statement, quality > 0.05))
    kept, had = unlearned["retain"].summary(), target["retain"].summary()
    for measure in ("probability", "ROUGE-L recall"):
        least = (1 - utility_budget) * had[measure]
        checks.append(
            Check(
                f"On the retain set {measure} is {kept[measure]:.3g}, of {had[measure]:.3g} before "
                f"(at least {least:.3g})",
                kept[measure] >= least,
            )
        )
    broken = after["broken answers"] + kept["broken answers"]
    usual = before["broken answers"] + had["broken answers"]
    checks.append(Check(f"No more broken answers than before: {broken:.0f}, {usual:.0f} before", broken <= usual))
    return checks


def mark_differences(before: str, after: str) -> str:
    """
    A text as HTML, with the words marked that another one does not have at their place.

    Args:
        before (`str`):
            The text to compare with.
        after (`str`):
            The text to show.

    Returns:
        `str`: HTML.
    """
    first, second = before.split(), after.split()
    parts = []
    for kind, _, _, start, end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        words = escape(" ".join(second[start:end]))
        if words:
            parts.append(words if kind == "equal" else f"<mark>{words}</mark>")
    return " ".join(parts)


def _axes(x_label: str, y_label: str) -> str:
    return (
        '<line x1="60" y1="300" x2="580" y2="300" stroke="#333"/><line x1="60" y1="20" x2="60" y2="300" stroke="#333"/>'
        f'<text x="320" y="340" text-anchor="middle">{escape(x_label)}</text>'
        f'<text x="18" y="160" text-anchor="middle" transform="rotate(-90 18 160)">{escape(y_label)}</text>'
        + "".join(
            f'<text x="{60 + 520 * tick}" y="318" text-anchor="middle" font-size="12">{tick:g}</text>'
            f'<text x="54" y="{304 - 280 * tick}" text-anchor="end" font-size="12">{tick:g}</text>'
            for tick in (0, 0.25, 0.5, 0.75, 1)
        )
    )


def _svg(body: str, title: str) -> str:
    return (
        f'<figure><svg viewBox="0 0 600 350" width="600" role="img" aria-label="{escape(title)}" '
        f'font-family="system-ui, sans-serif" font-size="14">{body}</svg>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def plot_truth_ratios(evaluations: Mapping[str, Evaluation]) -> str:
    """
    Cumulative distributions of the truth ratios on the forget set: what the forget quality compares.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            By name.

    Returns:
        `str`: An SVG figure; empty without truth ratios.
    """
    curves = []
    for name, evaluation in evaluations.items():
        ratios = evaluation.sets["forget"].truth_ratios
        if ratios is None:
            return ""
        # r / (1 + r) brings 0 to infinity onto the axis; 0.5 is where right and wrong answers are alike.
        x = np.sort(ratios / (1 + ratios))
        y = np.arange(1, len(x) + 1) / len(x)
        steps = " ".join(f"{60 + 520 * a:.1f},{300 - 280 * b:.1f}" for a, b in zip(x, y, strict=True))
        color = COLORS[name]
        curves.append(f'<polyline points="{steps}" fill="none" stroke="{color}" stroke-width="2"/>')
        curves.append(f'<text x="75" y="{40 + 20 * len(curves) // 2}" fill="{color}">{escape(name)}</text>')
    body = _axes("truth ratio r, as r / (1 + r)", "share of rows") + "".join(curves)
    return _svg(body, "Truth ratios on the forget set. Right of 0.5, wrong answers are the more probable.")


def plot_frontier(outcomes: Sequence[Mapping[str, Any]], target: Mapping[str, Any], chosen: int | None) -> str:
    """
    What forgetting costs, over the settings of a sweep.

    Args:
        outcomes (`Sequence[Mapping[str, Any]]`):
            `"settings"` of the file that `uld sweep --output` wrote.
        target (`Mapping[str, Any]`):
            Its `"target"`.
        chosen (`int`, *optional*):
            Its `"chosen"`.

    Returns:
        `str`: An SVG figure.
    """

    def place(point: Mapping[str, Any]) -> tuple[float, float]:
        return 60 + 520 * point["forget_probability"], 300 - 280 * point["retain_probability"]

    x, y = place(target)
    marks = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLORS["target"]}"><title>target</title></circle>']
    for index, point in enumerate(outcomes):
        x, y = place(point)
        ring = ' stroke="#000" stroke-width="2"' if index == chosen else ""
        name = f"alpha {point['alpha']:g}, filter {point['relative_top']:g}, clamp {'on' if point['clamp'] else 'off'}"
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLORS["unlearned"]}"{ring}><title>{name}</title></circle>'
            f'<text x="{x + 8:.1f}" y="{y - 6:.1f}" font-size="11">{point["alpha"]:g}</text>'
        )
    body = _axes("probability of the forgotten answers", "of the retained answers") + "".join(marks)
    return _svg(
        body, "What forgetting costs: top left is best. Numbers are alpha, grey is the target, ringed the choice."
    )


def _examples(before: SetResults, after: SetResults, number: int) -> str:
    # Spread over the set: the first ten may all be about the same.
    indices = np.unique(np.linspace(0, len(before.prompts) - 1, min(number, len(before.prompts))).astype(int))
    return "".join(
        f"<article><p><strong>{escape(before.prompts[index])}</strong></p>"
        f"<blockquote>before: {escape(before.completions[index])}<br>"
        f"after: {mark_differences(before.completions[index], after.completions[index])}</blockquote></article>"
        for index in indices
    )


def _table(evaluations: Mapping[str, Evaluation]) -> str:
    compared = compare(evaluations)
    rows: dict[str, dict[str, float]] = {}
    for name, evaluation in evaluations.items():
        for split, results in evaluation.sets.items():
            for measure, value in results.summary().items():
                rows.setdefault(f"{split}: {measure}", {})[name] = value
    for name, figures in compared.items():
        for measure, value in figures.items():
            rows.setdefault(measure, {})[name] = value
    head = "".join(f"<th>{escape(name)}</th>" for name in evaluations)
    body = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(f"<td>{row[name]:.3g}</td>" if name in row else "<td></td>" for name in evaluations)
        + "</tr>"
        for label, row in rows.items()
    )
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{body}</table></div>'


def render_report(
    title: str,
    evaluations: Mapping[str, Evaluation],
    versions: Mapping[str, str],
    date: str,
    sweep: Mapping[str, Any] | None = None,
    num_examples: int = 10,
) -> str:
    """
    The page.

    Args:
        title (`str`):
            What was asked, e.g. `"Forget Alice"`.
        evaluations (`Mapping[str, Evaluation]`):
            `"target"`, `"unlearned"` and, if there is one, `"retrained"`.
        versions (`Mapping[str, str]`):
            Versions of the packages used.
        date (`str`):
            Date of the report.
        sweep (`Mapping[str, Any]`, *optional*):
            What `uld sweep --output` wrote.
        num_examples (`int`, *optional*, defaults to `10`):
            Examples of each set. They show what was to be forgotten: leave them out (`0`) of a page that travels.

    Returns:
        `str`: A self-contained HTML document.
    """
    checks = run_checks(evaluations)
    failed = sum(not check.passed for check in checks)
    verdict = "All checks passed." if not failed else f"{failed} of {len(checks)} checks failed."
    items = "".join(
        f'<li class="{"passed" if check.passed else "failed"}">{"passed" if check.passed else "FAILED"}: '
        f"{escape(check.statement)}</li>"
        for check in checks
    )
    target, unlearned = evaluations["target"], evaluations["unlearned"]
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(date)}</p>",
        f'<p class="{"failed" if failed else "passed"}">{verdict}</p><ul>{items}</ul>',
        f"<h2>Figures</h2>{_table(evaluations)}",
        "<p>What each figure means: <code>docs/evaluation.md</code> of uld_hf.</p>",
        plot_truth_ratios(evaluations),
    ]
    if sweep is not None:
        parts.append(f"<h2>Settings tried</h2>{plot_frontier(sweep['settings'], sweep['target'], sweep['chosen'])}")
    if num_examples:
        for split, heading in (("forget", "What must be forgotten"), ("retain", "What must be kept")):
            examples = _examples(target.sets[split], unlearned.sets[split], num_examples)
            parts.append(f"<h2>{heading}: answers before and after</h2>{examples}")
    parts.append(f"<h2>Limits</h2><ul>{''.join(f'<li>{escape(limit)}</li>' for limit in LIMITS)}</ul>")
    identity = {
        **{f"data: {split}, SHA-256": value for split, value in unlearned.settings["data"].items()},
        **{f"target: {part}, SHA-256": value for part, value in unlearned.settings["target"].items()},
        **{f"assistant: {name}, SHA-256": value for name, value in unlearned.settings["lora"].items()},
        **{name: unlearned.settings[name] for name in ("assistants", "relative_top", "outside", "center", "clamp")},
        **versions,
    }
    rows = "".join(f"<li>{escape(name)}: <code>{escape(str(value))}</code></li>" for name, value in identity.items())
    parts.append(f"<h2>What exactly was measured</h2><ul>{rows}</ul>")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
