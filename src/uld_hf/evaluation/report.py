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
GLOSSARY = {
    "probability": "how likely the model finds the right answer, per token; 1 is certain.",
    "ROUGE-L recall": "share of the right answer's words that the model's own answer has, in order.",
    "exact memorization": "share of the right answer's tokens that are the model's first choice.",
    "extraction strength": "share of the right answer that the model completes by itself once it has been begun.",
    "broken answers": "number of answers that are empty or repeat themselves.",
    "paraphrased probability": "the same as probability, of the right answer in other words.",
    "truth ratio": "how much more likely right answers are than wrong ones in like words; 0.5 is no difference.",
    "forget quality": "how well the model passes for the retrained one (a p-value); below 0.05 it does not.",
    "memorization": "1 if nothing of what the target remembered is left, 0 if all of it.",
    "AUC": "how well an attacker can tell from the model what it was trained on; compare with the retrained model's.",
    "privacy": "1 if attackers learn no more than from the retrained model.",
}
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
figure { margin: 1rem 0 }
@media (max-width: 40rem) { th, td { padding: .2rem; font-size: .8rem } ul { padding-left: 1.2rem }
  svg text { font-size: 20px } }
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
    compared = compare(evaluations)
    if "forget quality" in compared["unlearned"]:
        quality, usual = (compared[name]["forget quality"] for name in ("unlearned", "target"))
        statement = f"It cannot be told from a model that never saw the forget set: p = {quality:.3g} (above 0.05)"
        checks.append(Check(statement, quality > 0.05))
        # A test that finds nothing in the target either says nothing about what has been forgotten.
        statement = f"The same test does tell the target from that model: p = {usual:.3g} (at most 0.05)"
        checks.append(Check(statement, usual <= 0.05))
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


def check_same(evaluations: Mapping[str, Evaluation], sweep: Mapping[str, Any] | None = None) -> None:
    """
    Refuse results that do not belong together, of which a table would compare what cannot be compared.

    Args:
        evaluations (`Mapping[str, Evaluation]`):
            `"target"`, `"unlearned"` and, if there is one, `"retrained"`.
        sweep (`Mapping[str, Any]`, *optional*):
            What `uld sweep --output` wrote.

    Raises:
        ValueError: If they are of other data, another target or another assistant.
    """
    settings = evaluations["unlearned"].settings
    for name, evaluation in evaluations.items():
        for measured in ("data", "max_new_tokens", "target") if name == "target" else ("data", "max_new_tokens"):
            if evaluation.settings[measured] != settings[measured]:
                raise ValueError(
                    f"{name!r} and 'unlearned' were evaluated with different {measured!r}: run uld eval again for all "
                    f"models, or delete {name}.json."
                )
    if sweep is None:
        return
    for part in ("target", "lora"):
        if sweep["measured"][part] != settings[part]:
            raise ValueError(f"The sweep was made with another {part!r} than the evaluation: run uld sweep again.")
    for split, digest in sweep["measured"]["data"].items():
        if digest != settings["data"][split]:
            raise ValueError(f"The sweep was made on another {split} set than the evaluation: run uld sweep again.")


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


@dataclass(frozen=True)
class _Axes:
    """A plot's frame: what its axes are called and which values they span."""

    x_label: str
    y_label: str
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point goes, in pixels."""
        across, up = ((value - low) / (high - low) for value, (low, high) in ((x, self.x_range), (y, self.y_range)))
        return 60 + 520 * across, 300 - 280 * up

    def draw(self) -> str:
        """Lines, ticks and labels."""
        ticks = zip(np.linspace(*self.x_range, 5), np.linspace(*self.y_range, 5), strict=True)
        return (
            '<line x1="60" y1="300" x2="580" y2="300" stroke="#333"/>'
            '<line x1="60" y1="20" x2="60" y2="300" stroke="#333"/>'
            f'<text x="320" y="344" text-anchor="middle">{escape(self.x_label)}</text>'
            f'<text x="-22" y="160" text-anchor="middle" transform="rotate(-90 -22 160)">{escape(self.y_label)}</text>'
            + "".join(
                f'<text x="{60 + 130 * index}" y="320" text-anchor="middle" font-size="12">{x:.3g}</text>'
                f'<text x="54" y="{304 - 70 * index}" text-anchor="end" font-size="12">{y:.3g}</text>'
                for index, (x, y) in enumerate(ticks)
            )
        )


def _svg(body: str, title: str) -> str:
    return (
        f'<figure><svg viewBox="-44 0 664 356" width="664" role="img" aria-label="{escape(title)}" '
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
    axes = _Axes("truth ratio r, as r / (1 + r)", "share of rows")
    curves = []
    for number, (name, evaluation) in enumerate(evaluations.items()):
        ratios = evaluation.sets["forget"].truth_ratios
        if ratios is None:
            return ""
        # r / (1 + r) brings 0 to infinity onto the axis; 0.5 is where right and wrong answers are alike.
        x = np.sort(ratios / (1 + ratios))
        y = np.arange(1, len(x) + 1) / len(x)
        steps = " ".join("{:.1f},{:.1f}".format(*axes.place(*point)) for point in zip(x, y, strict=True))
        color = COLORS[name]
        curves.append(f'<polyline points="{steps}" fill="none" stroke="{color}" stroke-width="2"/>')
        curves.append(f'<text x="75" y="{40 + 22 * number}" fill="{color}">{escape(name)}</text>')
    return _svg(
        axes.draw() + "".join(curves),
        "Truth ratios on the forget set. Right of 0.5, wrong answers are the more probable.",
    )


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

    forgotten, kept = (
        [point[name] for point in (target, *outcomes)] for name in ("forget_probability", "retain_probability")
    )
    margin = max(0.1 * (max(kept) - min(kept)), 0.01 * max(kept))
    axes = _Axes(
        "probability of the forgotten answers",
        "of the retained answers",
        (0.0, 1.05 * max(forgotten)),
        (max(0.0, min(kept) - margin), max(kept) + margin),
    )
    x, y = axes.place(target["forget_probability"], target["retain_probability"])
    marks = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLORS["target"]}"><title>target</title></circle>']
    labelled: list[tuple[float, float]] = []
    for index in sorted(range(len(outcomes)), key=lambda index: index != chosen):  # the choice gets its label first
        point = outcomes[index]
        x, y = axes.place(point["forget_probability"], point["retain_probability"])
        ring = ' stroke="#000" stroke-width="2"' if index == chosen else ""
        name = f"alpha {point['alpha']:g}, filter {point['relative_top']:g}, clamp {'on' if point['clamp'] else 'off'}"
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLORS["unlearned"]}"{ring}><title>{name}</title></circle>'
        )
        if all(abs(x - other) > 30 or abs(y - beside) > 16 for other, beside in labelled):
            labelled.append((x, y))
            marks.append(f'<text x="{x + 8:.1f}" y="{y - 6:.1f}" font-size="11">{point["alpha"]:g}</text>')
    return _svg(
        axes.draw() + "".join(marks),
        "What forgetting costs: top left is best. Numbers are alpha, grey is the target, ringed the choice. "
        "The scales follow the points.",
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
    meanings = "".join(f"<li><strong>{term}</strong>: {escape(meaning)}</li>" for term, meaning in GLOSSARY.items())
    target, unlearned = evaluations["target"], evaluations["unlearned"]
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(date)}</p>",
        f'<p class="{"failed" if failed else "passed"}">{verdict}</p><ul>{items}</ul>',
        f"<h2>Figures</h2>{_table(evaluations)}",
        f"<ul>{meanings}</ul><p>The formulas: <code>docs/evaluation.md</code> of uld_hf.</p>",
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
