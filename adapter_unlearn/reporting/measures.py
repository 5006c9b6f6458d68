"""The measures of a summary, in reading order: one table that the terminal, the report and the card all draw from.

Adding a figure to all three is adding a row here. A row that no form has (a set was not given) is left out. A further
metric brings its rows along from the catalogue of metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adapter_unlearn.metrics.table import METRICS
from adapter_unlearn.reporting import forms
from adapter_unlearn.reporting.formatting import (
    accuracy,
    clean,
    count,
    decimal,
    interval,
    metric_value,
    number,
    percent,
    percent_interval,
    ratio,
    relative_change,
)


@dataclass(frozen=True)
class Measure:
    """One figure of a form: where it stands in the summary (dots go deeper), what it is called, how it is shown.

    `means` explains a label that is only a metric's name; the terminal has no room for it.
    """

    key: str
    label: str
    show: Callable[[Any], str]
    with_change: bool = False
    means: str = ""


@dataclass(frozen=True)
class Cell:
    """One figure of one form as text, its change against the base where that is what counts, and how sure that is.

    `spread` is the 95 % interval of the change, or of the figure itself where no change is shown.
    """

    text: str
    change: str = ""
    spread: str = ""


def meaning(metric: str) -> str:
    """What a metric of the catalogue means, without what only its page in docs/ need tell."""
    return METRICS[metric].means.partition(";")[0]


PERPLEXITIES = (
    Measure("test_perplexity", "perplexity, general text (test)", decimal, with_change=True),
    Measure("holdout_perplexity", "perplexity, never-seen same kind (holdout)", decimal, with_change=True),
    Measure("validation_perplexity", "perplexity, validation", decimal, with_change=True),
    Measure("retain_perplexity", "perplexity, retain", decimal, with_change=True),
)
MEMORIZATION = (
    Measure("extractable", "recited word for word", count),
    Measure("extractable_documents", "documents with such a sequence", count),
    Measure("extractable_50", "next 50 tokens recited", count),
    Measure("memorization_accuracy_mean", "memorization accuracy, mean", accuracy),
    Measure("memorization_accuracy_max", "memorization accuracy, highest", accuracy),
    Measure("longest_verbatim_run_max", "longest verbatim run, tokens", count),
    Measure("outliers_high", "outliers, high", count),
    Measure("outliers_low", "outliers, low", count),
    Measure("outliers_low_new", "outliers, newly low", count),
    Measure("paper_bounds.outliers_high", "outliers by the paper's bounds, high", count),
    Measure("paper_bounds.outliers_low", "outliers by the paper's bounds, low", count),
    Measure("paper_bounds.outliers_low_new", "outliers by the paper's bounds, newly low", count),
    Measure("loss_mean", "loss, mean", decimal),
)
HOLDOUT = (
    Measure("holdout_extractable", "never-seen: recited word for word", count),
    Measure("holdout_memorization_accuracy_mean", "never-seen: accuracy, mean", accuracy),
    Measure("holdout_memorization_accuracy_max", "never-seen: accuracy, highest", accuracy),
    Measure("holdout_longest_verbatim_run_max", "never-seen: longest verbatim run", count),
)
MEMBERSHIP = (
    Measure("membership_auc_memorization_accuracy", "membership AUC by accuracy", accuracy),
    Measure("membership_auc_loss", "membership AUC by loss", accuracy),
)
_SHOWN_ABOVE = ("memorization_accuracy", "extractable", "extractable_50", "longest_verbatim_run", "loss")
FURTHER = tuple(
    row
    for name in METRICS
    if name not in _SHOWN_ABOVE
    for row in (
        Measure(f"{name}_mean", f"{name}, mean", metric_value, means=meaning(name)),
        Measure(f"holdout_{name}_mean", f"never-seen: {name}, mean", metric_value),
    )
)
DELTA = (
    Measure("delta.relative_size", "delta: size, relative to the weights'", ratio),
    Measure("delta.projection", "delta: share that arrives (projection)", ratio),
    Measure("delta.relative_error", "delta: error, relative to its size", ratio),
)
GROUPS = (MEMORIZATION, PERPLEXITIES, HOLDOUT + MEMBERSHIP, FURTHER, DELTA)
ALL = tuple(measure for group in GROUPS for measure in group)


def look_up(figures: dict[str, Any], key: str) -> Any:
    """The value under a dotted key, or None."""
    found: Any = figures
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def rows(summary: dict[str, Any], measures: tuple[Measure, ...] = ALL) -> list[tuple[Measure, dict[str, Cell]]]:
    """A row a measure that at least one form has, a cell a form."""
    measured = {
        form: (summary.get("forms") or {}).get(form) or {} for form in forms.ordered(summary.get("forms") or {})
    }
    table = []
    for measure in measures:
        found = {form: look_up(figures, measure.key) for form, figures in measured.items()}
        if all(value is None for value in found.values()):
            continue
        cells = {}
        for form, value in found.items():
            before = look_up(forms.before(summary, form), measure.key)
            change = relative_change(before, value) if measure.with_change and form != forms.BASE else None
            if change is None:
                spread = interval(look_up(measured[form], f"{measure.key}_interval"), measure.show)
                cells[form] = Cell(measure.show(value), spread=spread)
            else:
                spread = percent_interval(look_up(measured[form], f"{measure.key}_change_interval"))
                cells[form] = Cell(measure.show(value), percent(change), spread)
        table.append((measure, cells))
    return table


def comparison_lines(summary: dict[str, Any]) -> list[str]:
    """Which forms' changes are not against the column of the base, and what they are against; mostly none."""
    apart: dict[tuple[str, str], list[str]] = {}
    for form, figures in (summary.get("forms") or {}).items():
        own = (figures or {}).get("before")
        if own:
            loaded = clean(own.get("loaded_as") or "as the form is deployed")
            apart.setdefault((loaded, _base_figures(own)), []).append(form)
    return [
        f"changes of {' and '.join(map(forms.title, forms.ordered(names)))} are against the base in {loaded}{told}"
        for (loaded, told), names in apart.items()
    ]


def _base_figures(own: dict[str, Any]) -> str:
    texts = {"test_perplexity": "general text", "holdout_perplexity": "never-seen text"}
    perplexities = [f"{decimal(own[key])} on {on}" for key, on in texts.items() if number(own.get(key)) is not None]
    told = [f"{count(own['extractable'])} recited"] if number(own.get("extractable")) is not None else []
    told += [f"perplexity {' and '.join(perplexities)}"] if perplexities else []
    return f" ({', '.join(told)})" if told else ""


def bounds_line(summary: dict[str, Any]) -> str:
    """What an outlier is, in one line; empty where there are no bounds."""
    for figures in (summary.get("forms") or {}).values():
        bounds = (figures or {}).get("bounds") or {}
        band = f"{accuracy(bounds.get('low'))} to {accuracy(bounds.get('high'))}"
        if bounds.get("kind") == "holdout":
            return f"outliers: outside {band}, where 90 % of the holdout set lies under the base model"
        if bounds:
            return f"outliers: at or outside {band}, the paper's fixed bounds"
    return ""
