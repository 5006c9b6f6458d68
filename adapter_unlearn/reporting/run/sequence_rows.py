"""The report's table of sequences: one row per sequence, the worst first, and the holdout set's figures above."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from adapter_unlearn.evaluation.criteria import Criteria, failing
from adapter_unlearn.evaluation.summary import BASE, Summary
from adapter_unlearn.reporting import form_names, frames
from adapter_unlearn.reporting.formatting import DASH, accuracy, clean, count, number, yes_no

MEASURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("memorization_accuracy", "memorization accuracy", accuracy),
    ("extractable", "recited", yes_no),
    ("longest_verbatim_run", "longest verbatim run", count),
)


@dataclass(frozen=True)
class ScoreCell:
    """A figure as text, the value it is sorted by, and how it deviates: `high`, `low` or nothing."""

    text: str
    value: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """One sequence, with a note if one of its figures is missing."""

    id: str
    n_tokens: str
    tokens: float | None
    cells: list[ScoreCell]
    note: str


def rows(sequences: pd.DataFrame, summary: Summary, max_rows: int) -> tuple[list[Row], int]:
    """The `max_rows` worst sequences, and the number of all.

    Failing sequences come first, then recited ones, then the most memorized in the worst form, then before.

    Args:
        sequences: as in Report, with one row per (sequence, form).
        summary: of the same forms.
        max_rows: the most rows to return.
    """
    table, forms = frames.wide(sequences), form_names.ordered(sequences["form"])
    unseen = summary.base.holdout
    criteria = Criteria(summary.base.bounds, None if unseen is None else int(unseen.longest_verbatim_run_max))
    scores = {form: pd.DataFrame(table.xs(form, axis=1, level=1)) for form in forms}
    before = scores.get(BASE, pd.DataFrame(np.nan, table.index, list(frames.MEASURES)))
    after = form_names.after(forms) or forms
    order = pd.DataFrame({
        "failing": pd.DataFrame({form: failing(scores[form], before, criteria) for form in after}).max(axis=1),
        "recited": table[[("extractable", form) for form in after]].max(axis=1),
        "worst": table[[("memorization_accuracy", form) for form in after]].max(axis=1),
        "before": before["memorization_accuracy"],
    })  # fmt: skip
    worst = order.sort_values(list(order.columns), ascending=False, kind="stable").index[:max_rows]
    marks = {form: _marks(scores[form], before, criteria) for form in form_names.after(forms)}
    return [_row(table.loc[i], forms, {form: mark.loc[i] for form, mark in marks.items()}) for i in worst], len(table)


def _marks(scores: pd.DataFrame, before: pd.DataFrame, criteria: Criteria) -> pd.DataFrame:
    """`high`, `low` or nothing for every sequence and measure of one form."""
    value, old = (frame["memorization_accuracy"].to_numpy(dtype=float) for frame in (scores, before))
    low = criteria.bounds.are_low(value) & ~criteria.bounds.are_low(old)
    longest = np.inf if criteria.longest_run is None else criteria.longest_run
    high: dict[str, Any] = {
        "memorization_accuracy": criteria.bounds.are_high(value),
        "extractable": scores["extractable"] == 1,
        "longest_verbatim_run": scores["longest_verbatim_run"] > longest,
    }
    marks = pd.DataFrame({name: np.where(are, "high", "") for name, are in high.items()}, index=scores.index)
    marks.loc[low, "memorization_accuracy"] = "low"
    return marks


def _row(sequence: "pd.Series[Any]", forms: list[str], marks: "dict[str, pd.Series[Any]]") -> Row:
    cells = []
    for measure, _, show in MEASURES:
        for form in forms:
            value = number(sequence[measure, form])
            cells.append(ScoreCell(show(value), value, marks[form][measure] if form in marks else ""))
    note = sequence.get(("note", "")) if any(cell.value is None for cell in cells) else ""
    tokens = number(sequence.get(("n_tokens", "")))
    return Row(clean(sequence["id", ""]), count(tokens), tokens, cells, clean(note) if isinstance(note, str) else "")


def aggregates(frame: pd.DataFrame, forms: list[str]) -> dict[str, list[str]]:
    """The mean and the highest figures of a set, one cell per (measure, form) of the table of sequences.

    For recited sequences, the mean's cell holds their number and the highest figure's is empty.
    """

    def cell(measure: str, form: str, show: Callable[[Any], str], how: str) -> str:
        scores = frames.values(frame, form, measure)
        if measure == "extractable":
            how, show = ("sum", count) if how == "mean" else ("", lambda value: "")
        return DASH if scores.empty else show(scores.agg(how) if how else None)

    return {
        label: [cell(measure, form, show, how) for measure, _, show in MEASURES for form in forms]
        for label, how in ((("mean", "mean"), ("highest", "max")) if len(frame) else ())
    }
