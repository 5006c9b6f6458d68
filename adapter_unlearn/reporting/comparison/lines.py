"""The comparison of methods as text: the lines of its tables, its headline, and its JSON form."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from adapter_unlearn.evaluation.comparison import Comparison, best
from adapter_unlearn.evaluation.summary import BASE
from adapter_unlearn.reporting import form_names
from adapter_unlearn.reporting.comparison.columns import DAMAGED, SPENT, Column, columns, mean, signed
from adapter_unlearn.reporting.formatting import Cell, accuracy, clean, count, interval, number, percent


@dataclass(frozen=True)
class Line:
    """One (method, form): its names, its number of seeds, and one cell per column."""

    name: str
    form: str
    seeds: str
    cells: list[Cell]
    is_baseline: bool
    on_front: bool


def lines(comparison: Comparison) -> list[Line]:
    """One line per (method, form). A cell's spread is its interval over sequences, its change the range over seeds."""
    visible, named = columns(comparison), set()
    several_forms = comparison.rows.loc[comparison.rows["form"] != BASE, "form"].nunique() > 1
    table = []
    for row in comparison.rows.to_dict("records"):
        name, first = str(row["method"]), row["method"] not in named
        named.add(row["method"])
        is_base = row["form"] == BASE
        cells = [Cell("") if column.once and not first else _cell(column, row) for column in visible]
        seeds = "" if is_base or not first else _seeds(row)
        form = "" if is_base else form_names.title(str(row["form"])) if several_forms else ""
        table.append(
            Line(
                "before" if is_base else clean(name), form, seeds, cells,
                name == comparison.baseline and not is_base, bool(row["front_holdout"] or row["front_test"]),
            )
        )  # fmt: skip
    return table


def _seeds(row: dict[Any, Any]) -> str:
    n = int(row["n_runs"])
    return f"{n} seeds" if n > 1 else ""


def _cell(column: Column, row: dict[Any, Any]) -> Cell:
    if row["form"] == BASE and column.group in (DAMAGED, SPENT):
        return Cell("")
    if column.key == "difference" and number(row[column.key]) is None:
        return Cell("")
    bounds = [row.get(f"{column.key}_low"), row.get(f"{column.key}_high")]
    ends = [number(row.get(f"{column.key}_seeds_{end}")) for end in ("min", "max")]
    seeds = ""
    if row["n_runs"] > 1 and None not in ends and ends[0] != ends[1]:
        seeds = f"{column.show(ends[0])} to {column.show(ends[1])}"
    spread = column.spread(bounds) if column.spread else interval(bounds, column.show)
    return Cell(column.show(row[column.key]), seeds, spread)


def headline(comparison: Comparison) -> str:
    """The method with the fewest failing sequences, and what that costs."""
    others = comparison.rows[comparison.rows["form"] != BASE]
    first = best(comparison.rows)
    n_methods = others["method"].nunique()
    ties = len(others[(others["form"] == first["form"]) & (others["failing"] == first["failing"])]) - 1
    opening = f"{clean(first['method'])}: "
    if n_methods > 1:
        opening = f"Of {count(n_methods)} methods, {clean(first['method'])} has the fewest failing sequences, "
    counts = f"{mean(first['failing'])} of {count(comparison.about['n_sequences'])}"
    changes = {name: number(first[f"{name}_perplexity_change"]) for name in ("holdout", "test")}
    name = next((name for name, change in changes.items() if change is not None), "")
    cost = f", with {name} perplexity changed by {percent(changes[name])}" if name else ""
    as_few = f"; {ties} other{'s have' if ties > 1 else ' has'} as few" if ties else ""
    return f"{opening}{counts}{'' if n_methods > 1 else ' sequences fail'}{cost}{as_few}"


@dataclass(frozen=True)
class PairLine:
    """Two methods, how they compare in words, and their distances."""

    names: str
    verdict: str
    cells: list[Cell]


PAIR_MEASURES = {"memorization_accuracy": "accuracy", "loss": "loss, nats", "holdout_loss": "never-seen: loss, nats"}


def pair_lines(comparison: Comparison) -> list[PairLine]:
    """One line per pair: of each measure the mean difference with its interval, and the mean absolute difference."""
    several = len(set(comparison.pairs.get("form", []))) > 1
    table = []
    for row in comparison.pairs.to_dict("records"):
        where = f" ({form_names.title(str(row['form']))})" if several else ""
        verdict = "same adapter" if row["duplicate"] else "identical within noise" if row["alike"] else "differ"
        cells = [
            Cell(
                signed(row[f"{measure}_difference"]),
                f"{accuracy(row[f'{measure}_distance'])} apart",
                interval([row[f"{measure}_difference_low"], row[f"{measure}_difference_high"]], signed),
            )
            for measure in PAIR_MEASURES
            if f"{measure}_difference" in row
        ]
        table.append(PairLine(f"{clean(row['first'])} minus {clean(row['second'])}{where}", verdict, cells))
    return table


def as_json(comparison: Comparison, manifest: dict[str, Any]) -> dict[str, Any]:
    """The content of comparison.json: what all runs share, the rows, the pairs, the runs and the warnings."""
    tables = {name: records(getattr(comparison, name)) for name in ("rows", "pairs", "runs")}
    return {**manifest, "baseline": comparison.baseline, **tables, "warnings": comparison.warnings}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; a missing one is None whatever the type of its column."""

    def plain(value: Any) -> Any:
        return None if pd.isna(value) else value.item() if hasattr(value, "item") else value

    return [{str(key): plain(value) for key, value in row.items()} for row in frame.to_dict("records")]
