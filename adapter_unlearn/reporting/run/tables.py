"""A run's tables for the terminal: ids and figures only, no text."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from adapter_unlearn.evaluation.summary import BASE, Summary
from adapter_unlearn.reporting import form_names, frames
from adapter_unlearn.reporting.formatting import Cell, clean, count, plural, shorten
from adapter_unlearn.reporting.run import measures, sequence_rows, task_table
from adapter_unlearn.reporting.run.verdict import Check
from adapter_unlearn.reporting.text_tables import WIDTH, new_table

ID_WIDTH = 24
_LABEL_WIDTH = 32  # the least width of the labels' column beside figures with intervals
_MARKS = {"pass": "green", "fail": "bold red", "unknown": "yellow"}


def proof_table(sequences: pd.DataFrame, holdout: pd.DataFrame, max_rows: int = 25, form: str | None = None) -> Table:
    """One row per forget sequence, before → after, most memorized first; below, both sets' mean and highest figures.

    Args:
        sequences: as in Report.
        holdout: as in Report.
        max_rows: further rows are only counted; they still enter the mean and highest figures.
        form: the deployment form shown as `after`; the first one by default.
    """
    chosen = form or next(iter(form_names.after(sequences["form"])), None)
    forms = [BASE] if chosen is None else [BASE, chosen]
    arrow = "" if chosen is None else "\nbefore → after"
    table = new_table(
        "sequence", ["tokens", f"accuracy{arrow}", "recited", f"verbatim run{arrow}"],
        ratio=None, no_wrap=True, overflow="ellipsis", max_width=ID_WIDTH,
    )  # fmt: skip
    pairs = frames.wide(sequences)
    by: Any = [("memorization_accuracy", form) for form in forms if ("memorization_accuracy", form) in pairs]
    pairs = pairs.sort_values(by=by, ascending=False, kind="stable") if by else pairs
    for _, row in pairs.head(max_rows).iterrows():
        table.add_row(
            Text(shorten(clean(row["id", ""]), ID_WIDTH)),
            count(row.get(("n_tokens", ""))),
            *(
                " → ".join(show(row.get((measure, form))) for form in forms)
                for measure, _, show in sequence_rows.MEASURES
            ),
        )
    hidden = len(pairs) - max_rows
    if hidden > 0:
        table.add_row(Text(f"… {hidden:,} more", style="dim"))
    for name, frame in (("forget set", sequences), ("never seen", holdout)):
        _add_aggregates(table, frame, name, forms)
    table.caption = "accuracy: the share of tokens predicted correctly, each from the true text before it"
    return table


def _add_aggregates(table: Table, frame: pd.DataFrame, name: str, forms: list[str]) -> None:
    """Mean and highest figures of a set, and the number of recited sequences."""
    table.add_section()
    for label, cells in sequence_rows.aggregates(frame, forms).items():
        pairs = [cells[i : i + len(forms)] for i in range(0, len(cells), len(forms))]
        table.add_row(f"{name} ({frame['id'].nunique():,}), {label}", "", *(" → ".join(filter(None, p)) for p in pairs))


def summary_table(summary: Summary) -> Table:
    """One row per measure, one column per form; perplexities with their change against the base."""
    base, rows = summary.base, measures.rows(summary)
    documents = "" if base.n_documents == base.n_sequences else f", {plural(base.n_documents, 'document')}"
    table, cells = _forms_table(f"{plural(base.n_sequences, 'sequence')}{documents}", summary, rows)
    groups = [next(i for i, group in enumerate(measures.GROUPS) if measure in group) for measure, _ in rows]
    for i, (measure, _) in enumerate(rows):
        if i and groups[i] != groups[i - 1]:
            table.add_section()
        table.add_row(Text(measure.label), *cells[i])
    table.caption = "\n".join([measures.bounds_line(summary), *measures.comparison_lines(summary)])
    return table


def tasks_table(summary: Summary) -> Table:
    """One row per (task, metric), one column per form; scores with their change against the base."""
    rows = task_table.rows(summary)
    table, cells = _forms_table("task, metric (samples)", summary, rows)
    for (task, _), scores in zip(rows, cells, strict=True):
        table.add_row(Text(f"{task.task}, {task.metric} ({count(task.n)})"), *scores)
    return table


def _forms_table(
    heading: str, summary: Summary, rows: Sequence[tuple[Any, dict[str, Cell]]]
) -> tuple[Table, list[list[Text]]]:
    """An empty table with one column per form, and the cells of its rows, with intervals if they fit."""
    forms = form_names.ordered(summary.forms)
    table = new_table(heading, [form_names.title(form).replace(" ", "\n") for form in forms])
    full, short = (
        [[_stacked(cells[form], len(forms), spread) for form in forms] for _, cells in rows] for spread in (True, False)
    )
    width = sum(2 + max(map(len, column)) for column in zip(*full, strict=True))
    return table, [[Text(cell) for cell in row] for row in (full if width <= WIDTH - _LABEL_WIDTH else short)]


def _stacked(cell: Cell, n_forms: int, with_spread: bool) -> str:
    """Value and change side by side, or on two lines if there are more than three forms."""
    text = f"{cell.text}{' ' if n_forms <= 3 else chr(10)}{cell.change}".strip()
    return f"{text} {cell.spread}".strip() if with_spread and (cell.change or cell.spread.startswith("±")) else text


def verdict_table(checks: list[Check]) -> Table:
    """One row per check: its outcome, the form if there are several, and its sentence."""
    several = len({check.form for check in checks}) > 1
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    if several:
        table.add_column(max_width=len("requantized"), overflow="fold")
    table.add_column(ratio=1)
    previous = None
    for check in checks:
        form = [Text(form_names.title(check.form) if check.form != previous else "", style="dim")] if several else []
        table.add_row(Text(check.outcome, style=_MARKS[check.outcome]), *form, Text(clean(check.sentence)))
        previous = check.form
    return table
