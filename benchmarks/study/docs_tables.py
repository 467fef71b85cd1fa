"""Puts the tables of all results into docs/study.md and docs/study-tables.md, between the marks that name them.

    python benchmarks/study/docs_tables.py

A mark is `<!-- table: PRESET KIND SPLIT -->`, and `<!-- table end -->` stands after the table; summaries, bars,
ablations, curves and books have no split.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ledger import Deadline, Ledger
from tables import (
    Results,
    ablation_table,
    alphas_table,
    bars_table,
    books_table,
    curves_table,
    gates_table,
    main_table,
    paper_table,
    rephrased_table,
    summary_table,
)


ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "study.md", ROOT / "docs" / "study-tables.md")
RESULTS = ROOT / "benchmarks" / "results" / "study"
OF_A_SPLIT: Mapping[str, Callable[[Results, str], str]] = {
    "methods": main_table,
    "paper": paper_table,
    "alphas": alphas_table,
    "gates": gates_table,
    "rephrased": rephrased_table,
}
OF_ALL: Mapping[str, Callable[[Results], str]] = {
    "summary": summary_table,
    "bars": bars_table,
    "ablations": ablation_table,
    "curves": curves_table,
    "books": books_table,
}
MARK = re.compile(r"(<!-- table: (\w+) (\w+)(?: (\w+))? -->\n).*?(\n<!-- table end -->)", re.DOTALL)


def filled(text: str, folder: Path) -> str:
    """
    A page with its tables.

    Args:
        text (`str`):
            The page, with marks.
        folder (`Path`):
            Folder of the presets' results.

    Returns:
        `str`: The page, with what the results say between the marks.
    """

    def table(match: re.Match) -> str:
        begin, preset, kind, split, end = match.groups()
        results = Ledger(folder / preset, Deadline(0)).results()
        if not results:
            raise ValueError(f"{folder / preset} has no results: there is no table for {begin.strip()!r}.")
        made = OF_ALL[kind](results) if split is None else OF_A_SPLIT[kind](results, split)
        return begin + made + end

    return MARK.sub(table, text)


def main() -> None:
    """Fill the pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main()
