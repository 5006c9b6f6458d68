"""What commands print when they are done: ids and figures only, no text of the sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapter_unlearn.evaluation import summary
from adapter_unlearn.reporting import form_names, page
from adapter_unlearn.reporting.comparison.columns import columns, signed
from adapter_unlearn.reporting.comparison.lines import lines
from adapter_unlearn.reporting.formatting import accuracy, clean, count, interval, shorten
from adapter_unlearn.reporting.interference.matrix import matrix_of, wakes
from adapter_unlearn.reporting.run.tables import proof_table, summary_table, tasks_table, verdict_table
from adapter_unlearn.reporting.run.verdict import verdict
from adapter_unlearn.reporting.text_tables import new_table
from adapter_unlearn.runs import run_folder

if TYPE_CHECKING:
    from adapter_unlearn.evaluation.comparison import Comparison
    from adapter_unlearn.evaluation.report import Report
    from adapter_unlearn.scoring import Overview

NAME_WIDTH = 14
_SETS_ACROSS = 3  # forget sets that fit side by side into 80 columns
_ACROSS = (
    ("failing", "fail"), ("memorization_accuracy_mean", "accuracy"),
    ("extractable", "recited"), ("longest_verbatim_run_max", "run"), ("auc_loss", "AUC\nloss"),
    ("holdout_perplexity_change", "holdout"), ("test_perplexity_change", "test"), ("seconds", "time"),
)  # fmt: skip


def show_run(folder: Path, demo: bool = False) -> None:
    """Print a finished run: its sequences, figures and verdict, and how to use the adapter.

    Args:
        folder: of the run.
        demo: show every sequence, and how to go on with one's own model and texts.
    """
    from adapter_unlearn.evaluation.report import Report

    values, manifest = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("summary.json", run_folder.MANIFEST)
    )
    tables = {
        name: pd.read_parquet(path) if (path := folder / f"{name}.parquet").exists() else pd.DataFrame()
        for name in ("sequences", "holdout", "curves")
    }
    show_report(Report(summary=summary.from_json(values), **tables), len(tables["sequences"]) if demo else 25)
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    about = {
        "folder": clean(folder.absolute()),
        "bytes": manifest["adapter"]["bytes"],
        "base": clean(base),
        "demo": demo,
    }
    about["report"] = clean((folder / "report.html").absolute())
    words = page.environment(autoescape=False).get_template("run/finished.j2")
    _console().print(words.render(stopped_because=manifest["outcome"]["stopped_because"], **about), end="")


def show_report(report: Report, max_rows: int = 25) -> None:
    """Print an evaluation: the sequences, at most `max_rows` of them, the aggregates, the tasks and the verdict."""
    console = _console()
    console.print(proof_table(report.sequences, report.holdout, max_rows=max_rows))
    console.print(summary_table(report.summary))
    if any(form.tasks for form in report.summary.forms.values()):
        console.print(tasks_table(report.summary))
    console.print(verdict_table(verdict(report.summary, report.curves)))
    console.print()


def show_interference(rows: pd.DataFrame) -> None:
    """Print the matrix of adapters and forget sets, and every case in which an adapter brings recitation back."""
    console = _console()
    sets = matrix_of(rows).sets
    for first in range(0, len(sets), _SETS_ACROSS):
        console.print(interference_table(rows, sets[first : first + _SETS_ACROSS]))
    for case in wakes(rows):
        active = f"with {case.adapters} active" if case.adapters else "with no adapter active"
        console.print(
            clean(f"{case.set}: {active}, adding {case.added} raises it from {case.before} to {case.after} recited")
        )
    console.print()


def interference_table(rows: pd.DataFrame, sets: Sequence[str]) -> Table:
    """One line per combination of adapters: recited sequences and mean memorization accuracy of some forget sets."""
    matrix = matrix_of(rows)
    table = new_table("active adapters", [shorten(clean(name), NAME_WIDTH) for name in sets])
    for i, subset in enumerate(matrix.subsets):
        cells = [f"{count(matrix.extractable.at[i, name])}  {accuracy(matrix.accuracy.at[i, name])}" for name in sets]
        table.add_row(Text(matrix.name(subset)), *cells)
    table.caption = "per forget set: sequences recited word for word, and mean memorization accuracy"
    return table


def show_comparison(comparison: Comparison, folder: str | Path | None) -> None:
    """Print methods side by side, their differences from the baseline, and the warnings."""
    console = _console()
    console.print(comparison_table(comparison))
    several = len(form_names.after(comparison.rows["form"])) > 1
    for row in comparison.rows[comparison.rows["difference"].notna()].to_dict("records"):
        ends = interval([row["difference_low"], row["difference_high"]], signed)
        form = f" ({form_names.title(str(row['form']))})" if several else ""
        console.print(
            clean(f"{row['method']} minus {comparison.baseline}{form}: accuracy {signed(row['difference'])} {ends}")
        )
    for warning in comparison.warnings:
        console.print(f"warning: {clean(warning)}")
    if folder is not None:
        console.print(f"\nreport   {clean((Path(folder) / 'report.html').absolute())}")


def comparison_table(comparison: Comparison) -> Table:
    """One line per (method, form) with the main figures; the page has the intervals and all columns."""
    keys = [column.key for column in columns(comparison)]
    places = [(keys.index(key), heading) for key, heading in _ACROSS if key in keys]
    table = new_table("method", [heading for _, heading in places], min_width=16)
    for line in lines(comparison):
        name = ", ".join(filter(None, [line.name, line.form, line.seeds]))
        table.add_row(Text(name), *(Text(line.cells[i].text) for i, _ in places))
    for row in comparison.runs[comparison.runs["failed"].notna()].to_dict("records"):
        table.add_row(Text(clean(f"{row['method']}, seed {row['seed']}")), Text("failed", style="bold red"))
    table.caption = (
        f"fail: how many of {count(comparison.about['n_sequences'])} sequences do not look like never-seen text;"
        " accuracy: mean memorization accuracy; holdout and test: change of perplexity against the base"
    )
    return table


def show_scores(scores: Overview) -> None:
    """Print the most memorized rows of a score table, and the means over all rows."""
    assert scores.top is not None
    with pd.option_context("display.max_colwidth", 40, "display.width", 140, "display.max_columns", 20):
        top = scores.top.assign(id=scores.top["id"].map(clean))
        print(top.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
        if scores.n > len(scores.top):
            print(f"… {scores.n - len(scores.top)} more")
        print("\nmean over all", scores.n, "sequences")
        print(scores.means.to_string(float_format=lambda value: f"{value:.3f}"))


def _console() -> Console:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if console.width < 1:  # COLUMNS=0, as some terminals without a size set it
        console.width = 80
    return console
