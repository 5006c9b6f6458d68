"""The report's table of sequences: one row each, the worst first, every figure with the value it is sorted by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from adapter_unlearn.reporting import forms
from adapter_unlearn.reporting.formatting import accuracy, clean, count, number, yes_no

MEASURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("memorization_accuracy", "memorization accuracy", accuracy),
    ("extractable", "recited", yes_no),
    ("longest_verbatim_run", "longest verbatim run", count),
)


@dataclass(frozen=True)
class Cell:
    """What is read, what is sorted by, and what is wrong with it: `high`, `low` or nothing."""

    text: str
    value: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """One sequence; its note where a figure shown is missing."""

    id: str
    n_tokens: str
    tokens: float | None
    cells: list[Cell]
    note: str


def rows(sequences: pd.DataFrame, summary: dict[str, Any], max_rows: int) -> tuple[list[Row], int]:
    """The `max_rows` worst sequences, and how many there are in all.

    Worst is: still recited, then most memorized in whatever form is worst, then most memorized before.
    """
    table, names = forms.wide(sequences), forms.ordered(sequences["form"])
    judged = forms.after(names) or names
    order = pd.DataFrame({
        "recited": table[[("extractable", form) for form in judged]].max(axis=1),
        "worst": table[[("memorization_accuracy", form) for form in judged]].max(axis=1),
        "before": table.get(("memorization_accuracy", forms.BASE), pd.Series(0.0, index=table.index)),
    })  # fmt: skip
    worst = order.sort_values(list(order.columns), ascending=False, kind="stable").index[:max_rows]
    return [_row(table.loc[i], names, summary) for i in worst], len(table)


def _row(sequence: "pd.Series[Any]", names: list[str], summary: dict[str, Any]) -> Row:
    cells = []
    for measure, _, show in MEASURES:
        for form in names:
            value = number(sequence[measure, form])
            mark = "" if form == forms.BASE else _mark(measure, value, sequence, form, summary)
            cells.append(Cell(show(value), value, mark))
    note = sequence.get(("note", "")) if any(cell.value is None for cell in cells) else ""
    tokens = number(sequence.get(("n_tokens", "")))
    return Row(clean(sequence["id", ""]), count(tokens), tokens, cells, clean(note) if isinstance(note, str) else "")


def _mark(measure: str, value: float | None, sequence: "pd.Series[Any]", form: str, summary: dict[str, Any]) -> str:
    if value is None:
        return ""
    if measure == "extractable":
        return "high" if value else ""
    figures = (summary.get("forms") or {}).get(form) or {}
    if measure == "longest_verbatim_run":
        base = (summary.get("forms") or {}).get(forms.BASE) or {}
        longest = number(base.get("holdout_longest_verbatim_run_max"))
        return "high" if longest is not None and value > longest else ""
    bounds = figures.get("bounds") or {}
    before = number(sequence.get(("memorization_accuracy", forms.BASE)))
    if _outside(value, bounds, "high"):
        return "high"
    return "low" if _outside(value, bounds, "low") and not _outside(before, bounds, "low") else ""


def _outside(value: float | None, bounds: dict[str, Any], side: str) -> bool:
    """The paper counts from its bound on, the holdout beyond it."""
    bound = number(bounds.get(side))
    if value is None or bound is None:
        return False
    if bounds.get("kind") == "paper" and value == bound:
        return True
    return value > bound if side == "high" else value < bound
