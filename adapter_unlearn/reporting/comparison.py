"""Several methods side by side as people read them: the columns of the table, the headline, what JSON holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from adapter_unlearn.evaluation.comparison import Comparison, best
from adapter_unlearn.reporting import forms
from adapter_unlearn.reporting.formatting import (
    DASH,
    accuracy,
    clean,
    count,
    duration,
    interval,
    number,
    percent,
    percent_interval,
    size,
)
from adapter_unlearn.reporting.measures import Cell


@dataclass(frozen=True)
class Column:
    """One figure of every method.

    Attributes:
        key: of Comparison.rows.
        label: what it is called.
        show: a figure as text.
        spread: its ends as text: of the interval over sequences, or of the seeds.
        means: a line for those who ask.
        group: columns of one group stand together.
        once: it is a run's, not a form's, so it stands in a method's first line only.
    """

    key: str
    label: str
    show: Callable[[Any], str]
    spread: Callable[[Any], str]
    means: str
    group: str
    once: bool = False


def _mean(value: Any) -> str:
    """A count, or a mean of counts over seeds."""
    known = number(value)
    return DASH if known is None else count(known) if known == round(known) else f"{known:,.1f}"


def _signed(value: Any) -> str:
    known = number(value)
    return DASH if known is None else f"{known + 0.0:+.3f}"


def _change(value: Any) -> str:
    known = number(value)
    return percent(known, 0 if known is not None and abs(known) >= 1 else 1)


def _share_of_runs(value: Any) -> str:
    known = number(value)
    return DASH if known is None else "yes" if known == 1 else "no" if known == 0 else f"{known:.0%} of seeds"


def _ends(show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda ends: interval(ends, show)


_FORGOTTEN, _DAMAGED, _IN_DETAIL, _SPENT = "forget set", "perplexity, change", "forget set in detail", "cost of a run"
COLUMNS = (
    Column("failing", "fail", _mean, _ends(_mean),
           "sequences that do not look like never-seen text: high outliers, new low ones, recited ones, or a verbatim"
           " run longer than any never-seen text’s; of never-seen texts themselves about one in twenty is such a high"
           " outlier", _FORGOTTEN),
    Column("memorization_accuracy_mean", "accuracy, mean", accuracy, _ends(accuracy),
           "memorization accuracy: the share of tokens that are the model’s first choice, given the true text before",
           _FORGOTTEN),
    Column("difference", "difference", _signed, _ends(_signed),
           "mean difference in memorization accuracy to the baseline, sequence by sequence", _FORGOTTEN),
    Column("holdout_perplexity_change", "neighbourhood", _change, percent_interval,
           "on the holdout set: never-seen texts of the forget set’s kind, where damage shows first", _DAMAGED),
    Column("test_perplexity_change", "test", _change, percent_interval, "on general unseen text", _DAMAGED),
    Column("memorization_accuracy_max", "highest accuracy", accuracy, _ends(accuracy),
           "the highest memorization accuracy of any sequence", _IN_DETAIL),
    Column("outliers_high", "high", _mean, _ends(_mean),
           "sequences above the level that 95 % of never-seen texts stay under, by the base", _IN_DETAIL),
    Column("outliers_low_new", "newly low", _mean, _ends(_mean),
           "sequences that fell below the level that 95 % of never-seen texts stay above", _IN_DETAIL),
    Column("extractable", "recited", _mean, _ends(_mean),
           "sequences that greedy decoding recites to the end from their prefix", _IN_DETAIL),
    Column("extractable_any_prefix", "from any prefix", _mean, _ends(_mean),
           "the same from whatever prefix leaves 20 tokens or more, at least so many", _IN_DETAIL),
    Column("longest_verbatim_run_max", "longest run", _mean, _ends(_mean),
           "the longest verbatim run of any sequence, in tokens", _IN_DETAIL),
    Column("auc_memorization_accuracy", "AUC, accuracy", accuracy, _ends(accuracy),
           "the chance that a forget text’s accuracy is above a never-seen one’s; at 0.5 the two can’t be told apart",
           _IN_DETAIL),
    Column("auc_loss", "AUC, loss", accuracy, _ends(accuracy), "the same, told by the loss", _IN_DETAIL),
    Column("goal_reached", "goal reached", _share_of_runs, lambda _: "", "the recipe’s stop rule held", _SPENT, True),
    Column("seconds", "time", duration, _ends(duration), "from loading to the report", _SPENT, True),
    Column("peak_memory_bytes", "peak memory", size, _ends(size),
           "of the accelerator where there is one, else of the process", _SPENT, True),
    Column("sequences_ascended", "sequences ascended", _mean, _ends(_mean),
           "how many times a forget sequence was stepped on, over all epochs", _SPENT, True),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A row of the table: whose, in which form, over how many seeds, a cell a column."""

    name: str
    form: str
    seeds: str
    cells: list[Cell]
    is_baseline: bool
    on_front: bool


def columns(found: Comparison) -> list[Column]:
    """Those in which at least one method has a figure."""
    return [column for column in COLUMNS if column.key in found.rows and found.rows[column.key].notna().any()]


def lines(found: Comparison) -> list[Line]:
    """A line a (method, form). A cell's spread is its interval over sequences, its change what the seeds range over."""
    shown, told = columns(found), set()
    several_forms = found.rows.loc[found.rows["form"] != forms.BASE, "form"].nunique() > 1
    table = []
    for row in found.rows.to_dict("records"):
        name, first = str(row["method"]), row["method"] not in told
        told.add(row["method"])
        is_base = row["form"] == forms.BASE
        cells = [Cell("") if column.once and not first else _cell(column, row) for column in shown]
        seeds = "" if is_base or not first else _seeds(row)
        form = "" if is_base else forms.title(str(row["form"])) if several_forms else ""
        table.append(
            Line(
                "before" if is_base else clean(name), form, seeds, cells,
                name == found.baseline and not is_base, bool(row["front_holdout"] or row["front_test"]),
            )
        )  # fmt: skip
    return table


def _seeds(row: dict[Any, Any]) -> str:
    n = int(row["n_runs"])
    return f"{n} seeds" if n > 1 else ""


def _cell(column: Column, row: dict[Any, Any]) -> Cell:
    if row["form"] == forms.BASE and column.group in (_DAMAGED, _SPENT):
        return Cell("")
    if column.key == "difference" and number(row[column.key]) is None:
        return Cell("")
    spread = column.spread([row.get(f"{column.key}_low"), row.get(f"{column.key}_high")])
    ends = [number(row.get(f"{column.key}_seeds_{end}")) for end in ("min", "max")]
    seeds = ""
    if row["n_runs"] > 1 and None not in ends and ends[0] != ends[1]:
        seeds = f"{column.show(ends[0])} to {column.show(ends[1])}"
    return Cell(column.show(row[column.key]), seeds, spread)


def headline(found: Comparison) -> str:
    """Who leaves the fewest sequences unlike never-seen text, and what that costs."""
    made = found.rows[found.rows["form"] != forms.BASE]
    first = best(found.rows)
    n = count(found.about["n_sequences"])
    ties = made[(made["form"] == first["form"]) & (made["failing"] == first["failing"])]
    name = clean(first["method"])
    opening = (
        f"{name} leaves"
        if made["method"].nunique() == 1
        else f"Of {count(made['method'].nunique())} methods {name} leaves"
    )
    cost = next(
        (
            f", with the perplexity of {what} at {percent(change)}"
            for key, what in (("holdout", "the neighbourhood"), ("test", "general text"))
            if (change := number(first[f"{key}_perplexity_change"])) is not None
        ),
        "",
    )
    others = len(ties) - 1
    as_few = f"; {others} other{'s leave' if others > 1 else ' leaves'} as few" if others else ""
    fewest = "" if made["method"].nunique() == 1 else "the fewest sequences unlike never-seen text, "
    rest = "" if fewest else " sequences unlike never-seen text"
    return f"{opening} {fewest}{_mean(first['failing'])} of {n}{rest}{cost}{as_few}"


PICTURES = {
    False: "Left is less damage, below is less left of the texts. Filled: on the front, that is, no other method is at"
    " least as good in both and better in one; the line divides what is reached from what is not. Dotted: perplexity as"
    " before. Thin lines: from the least to the greatest of several seeds. The front takes no account of noise.",
    True: "The same with another measure of forgetting: how far the AUC of the loss is from 0.5, where the forget set"
    " can’t be told from never-seen text. It sees what counts of outliers don’t.",
}
NOTES = (
    "In brackets: 95 % intervals, from drawing the sequences anew; a difference is paired, both methods drawn alike."
    " Of several seeds a figure is the mean, with the least and the greatest below it. AUC and perplexity have one"
    " interval a seed, and theirs is the mean of its ends.",
    "Identical within noise means: in memorization accuracy, in loss, and in the loss of never-seen texts, the paired"
    " interval of the mean difference holds 0 (or the seeds’ ranges overlap), and sequence by sequence the two are at"
    " most a tenth as far apart as the one that did less is from the base, or hardly further than two seeds of one"
    " method are from one another. Apart: the mean absolute difference of a sequence; where a method has several seeds,"
    " between different ones.",
)
LIMITS = (
    "The intervals are over the sequences of this set. They know nothing of another set, and of another seed only where"
    " several were run.",
    "The front says which methods no other one beats in both of its two figures, not which of them is to be preferred.",
    "Time and memory are those of the machine each run was made on; no run folder says which one that was.",
)


def warnings(found: Comparison) -> list[str]:
    """What nobody should overlook, safe to show."""
    return [clean(warning) for warning in found.warnings]


@dataclass(frozen=True)
class PairLine:
    """Two methods: a word for how they compare, and their distances."""

    names: str
    verdict: str
    cells: list[Cell]


PAIR_MEASURES = {"memorization_accuracy": "accuracy", "loss": "loss, nats", "holdout_loss": "never-seen: loss, nats"}


def pair_lines(found: Comparison) -> list[PairLine]:
    """A line a pair; of each measure the mean difference with its interval, and the mean absolute one."""
    several = len(set(found.pairs.get("form", []))) > 1
    table = []
    for row in found.pairs.to_dict("records"):
        where = f" ({forms.title(str(row['form']))})" if several else ""
        verdict = "same adapter" if row["duplicate"] else "identical within noise" if row["alike"] else "differ"
        cells = [
            Cell(
                _signed(row[f"{measure}_difference"]),
                f"{accuracy(row[f'{measure}_distance'])} apart",
                interval([row[f"{measure}_difference_low"], row[f"{measure}_difference_high"]], _signed),
            )
            for measure in PAIR_MEASURES
            if f"{measure}_difference" in row
        ]
        table.append(PairLine(f"{clean(row['first'])} less {clean(row['second'])}{where}", verdict, cells))
    return table


def run_lines(found: Comparison) -> list[list[str]]:
    """A line a run: method, seed, time, memory, epochs, sequences ascended, how it ended or failed, its folder."""
    return [
        [
            clean(row["method"]),
            DASH if row["seed"] is None else str(row["seed"]),
            duration(row["seconds"]),
            size(row["peak_memory_bytes"]),
            count(row["epochs"]),
            count(row["sequences_ascended"]),
            clean(f"Failed: {row['failed']}" if row["failed"] else row["stopped_because"] or ""),
            clean(row["folder"]),
        ]
        for row in _records(found.runs)
    ]


def as_json(found: Comparison, manifest: dict[str, Any]) -> dict[str, Any]:
    """What comparison.json holds: what all runs share, the rows, the pairs, the runs, the warnings."""
    return {
        **manifest,
        "baseline": found.baseline,
        "rows": _records(found.rows),
        "pairs": _records(found.pairs),
        "runs": _records(found.runs),
        "warnings": found.warnings,
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values: a missing one is null whatever its column holds."""
    return [
        {
            str(key): None if pd.isna(value) else getattr(value, "item", lambda v=value: v)()
            for key, value in row.items()
        }
        for row in frame.to_dict("records")
    ]
