"""Tables for the terminal, at home in 80 columns and as plain text: ids and figures only, never a word of the texts."""

import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from adapter_unlearn.evaluation.comparison import Comparison
from adapter_unlearn.reporting import comparison, forms, interference, measures, utility
from adapter_unlearn.reporting.formatting import DASH, accuracy, clean, count, number, shorten, yes_no
from adapter_unlearn.reporting.verdict import Check

ID_WIDTH = 24
NAME_WIDTH = 14
WIDTH = 80
_LABEL_WIDTH = 32  # the least that a column of labels is left, for intervals to be shown beside the figures
_MARKS = {"pass": "green", "fail": "bold red", "unknown": "yellow"}


def proof_table(sequences: pd.DataFrame, holdout: pd.DataFrame, max_rows: int = 25, form: str | None = None) -> Table:
    """A row a forget sequence, before → after, most memorized first; below them the whole set beside never-seen text.

    `form` is the deployment form shown as `after`, by default the first one there is. The rows past `max_rows` are
    counted, and still stand in the lines of means and highest values.
    """
    chosen = form or next(iter(forms.after(sequences["form"])), None)
    shown = [forms.BASE] if chosen is None else [forms.BASE, chosen]
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", caption_style="dim", pad_edge=False)
    table.add_column("sequence", no_wrap=True, overflow="ellipsis", max_width=ID_WIDTH)
    table.add_column("tokens", justify="right", no_wrap=True)
    arrow = "" if chosen is None else "\nbefore → after"
    table.add_column(f"accuracy{arrow}", justify="right", no_wrap=True)
    table.add_column("recited", justify="right", no_wrap=True)
    table.add_column(f"verbatim run{arrow}", justify="right", no_wrap=True)

    pairs = forms.wide(sequences)
    by: Any = [("memorization_accuracy", form) for form in shown if ("memorization_accuracy", form) in pairs]
    pairs = pairs.sort_values(by=by, ascending=False, kind="stable") if by else pairs
    for _, row in pairs.head(max_rows).iterrows():
        table.add_row(
            Text(shorten(clean(row["id", ""]), ID_WIDTH)),
            count(row.get(("n_tokens", ""))),
            _pair(row, "memorization_accuracy", shown, accuracy),
            _pair(row, "extractable", shown, yes_no),
            _pair(row, "longest_verbatim_run", shown, count),
        )
    hidden = len(pairs) - max_rows
    if hidden > 0:
        table.add_row(Text(f"… {hidden:,} more", style="dim"))
    table.add_section()
    _add_aggregates(table, sequences, "forget set", shown)
    if len(holdout):
        table.add_section()
        _add_aggregates(table, holdout, "never seen", shown)
    table.caption = "accuracy: the share of tokens the model gets right, each from the true text before it"
    return table


def _pair(row: "pd.Series[Any]", measure: str, shown: list[str], show: Any) -> str:
    return " → ".join(show(row.get((measure, form))) for form in shown)


def _add_aggregates(table: Table, frame: pd.DataFrame, name: str, shown: list[str]) -> None:
    """Mean and highest of a set; under `recited` stands how many are."""
    name = f"{name} ({frame['id'].nunique():,})"

    def joined(measure: str, how: str, show: Any) -> str:
        columns = [forms.values(frame, form, measure) for form in shown]
        return " → ".join(DASH if column.empty else show(column.agg(how)) for column in columns)

    for how, recited in (("mean", joined("extractable", "sum", count)), ("max", "")):
        accuracies = joined("memorization_accuracy", how, accuracy)
        label = f"{name}, {'mean' if how == 'mean' else 'highest'}"
        table.add_row(label, "", accuracies, recited, joined("longest_verbatim_run", how, count))


def summary_table(summary: dict[str, Any]) -> Table:
    """A row a measure, a column a form; perplexities with their change against the base."""
    table, shown = _forms_table(_population(summary), summary, rows := measures.rows(summary))
    previous = None
    for (measure, _), cells in zip(rows, shown, strict=True):
        group = next(i for i, measured in enumerate(measures.GROUPS) if measure in measured)
        if previous is not None and group != previous:
            table.add_section()
        previous = group
        table.add_row(Text(measure.label), *cells)
    table.caption = "\n".join(filter(None, [measures.bounds_line(summary), *measures.comparison_lines(summary)]))
    return table


def utility_table(summary: dict[str, Any]) -> Table:
    """A row a downstream task and metric, a column a form; scores with their change against the base."""
    rows = utility.rows(summary)
    table, shown = _forms_table("task, metric (samples)", summary, rows)
    for (task, _), cells in zip(rows, shown, strict=True):
        table.add_row(Text(f"{task.task}, {task.metric} ({count(task.n)})"), *cells)
    return table


def _forms_table(
    heading: str, summary: dict[str, Any], rows: Sequence[tuple[Any, dict[str, measures.Cell]]]
) -> tuple[Table, list[list[Text]]]:
    """An empty table with a column of labels and one a form, and the cells of its rows.

    Intervals stand in it where they leave room for the labels; the report and the card have them always.
    """
    names = forms.ordered(summary.get("forms") or {})
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", caption_style="dim", pad_edge=False)
    table.add_column(heading, ratio=1, overflow="fold")
    for name in names:
        title = forms.title(name).replace(" ", "\n")  # a long name would leave the labels no room
        table.add_column(Text(title), justify="right", no_wrap=True)
    told, short = (
        [[_stacked(cells[name], len(names), spread) for name in names] for _, cells in rows] for spread in (True, False)
    )
    width = sum(2 + max(map(len, column)) for column in zip(*told, strict=True))
    return table, [[Text(cell) for cell in row] for row in (told if width <= WIDTH - _LABEL_WIDTH else short)]


def interference_table(rows: pd.DataFrame, sets: Sequence[str]) -> Table:
    """A line a combination of adapters: how many sequences of each of some forget sets are recited, and the mean MA."""
    found = interference.matrix(rows)
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", caption_style="dim", pad_edge=False)
    table.add_column("adapters that are on", ratio=1, overflow="fold")
    for name in sets:
        table.add_column(Text(shorten(clean(name), NAME_WIDTH)), justify="right", no_wrap=True)
    for i, subset in enumerate(found.subsets):
        cells = [f"{count(found.extractable.at[i, name])}  {accuracy(found.accuracy.at[i, name])}" for name in sets]
        table.add_row(Text(found.name(subset)), *cells)
    table.caption = "per forget set: sequences recited word for word, and mean memorization accuracy"
    return table


_ACROSS = (
    ("failing", "fail"), ("memorization_accuracy_mean", "accuracy"),
    ("extractable", "recited"), ("longest_verbatim_run_max", "run"), ("auc_loss", "AUC\nloss"),
    ("holdout_perplexity_change", "neigh-\nbourhood"), ("test_perplexity_change", "test"), ("seconds", "time"),
)  # fmt: skip


def comparison_table(found: Comparison) -> Table:
    """A line a (method, form), the figures that decide; intervals and the other columns stand in the page."""
    shown = comparison.columns(found)
    places = [(i, heading) for key, heading in _ACROSS for i, column in enumerate(shown) if column.key == key]
    table = Table(
        box=box.SIMPLE_HEAD, caption_justify="left", caption_style="dim", pad_edge=False, padding=(0, 0, 0, 1)
    )
    table.add_column("method", ratio=1, overflow="fold", min_width=16)
    for _, heading in places:
        table.add_column(Text(heading, justify="right"), justify="right", no_wrap=True)
    for line in comparison.lines(found):
        name = ", ".join(filter(None, [line.name, line.form, line.seeds]))
        table.add_row(Text(name), *(Text(line.cells[i].text) for i, _ in places))
    for row in found.runs[found.runs["failed"].notna()].to_dict("records"):
        table.add_row(Text(clean(f"{row['method']}, seed {row['seed']}")), Text("failed", style="bold red"))
    n = count(found.about["n_sequences"])
    table.caption = (
        f"fail: how many of {n} sequences do not look like never-seen text; accuracy: mean memorization accuracy;"
        " perplexities: change against the base"
    )
    return table


def _stacked(cell: measures.Cell, n_forms: int, with_spread: bool) -> str:
    """Value and change side by side; one above the other where four forms would not fit."""
    told = f"{cell.text}{' ' if n_forms <= 3 else chr(10)}{cell.change}".strip()
    return f"{told} {cell.spread}".strip() if with_spread and (cell.change or cell.spread.startswith("±")) else told


def _population(summary: dict[str, Any]) -> str:
    for figures in (summary.get("forms") or {}).values():
        n, documents = number((figures or {}).get("n_sequences")), number((figures or {}).get("n_documents"))
        if n is not None:
            return (
                f"{n:,.0f} sequences" if documents in (None, n) else f"{n:,.0f} sequences, {documents:,.0f} documents"
            )
    return ""


def verdict_table(checks: list[Check]) -> Table:
    """A row a check: the outcome as a word, its topic, the sentence; the form too where there are several."""
    several = len({check.form for check in checks}) > 1
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    if several:
        table.add_column(max_width=len("requantized"), overflow="fold")
    table.add_column(ratio=1)
    previous = None
    for check in checks:
        form = [Text(forms.title(check.form) if check.form != previous else "", style="dim")] if several else []
        table.add_row(Text(check.outcome, style=_MARKS[check.outcome]), *form, Text(clean(check.sentence)))
        previous = check.form
    return table


def render_text(renderable: RenderableType, width: int = WIDTH) -> str:
    """Plain text without colour or escapes, for logs, pipes, notebooks and tests."""
    stream = io.StringIO()
    plain: dict[str, Any] = {"no_color": True, "force_terminal": False, "legacy_windows": False}
    # in a notebook rich would show a cell's output instead of writing to the stream
    Console(file=stream, width=width, force_jupyter=False, **plain).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
