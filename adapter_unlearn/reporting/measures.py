"""The measures of a summary, in reading order: one table that the terminal, the report and the card all draw from.

Adding a figure to all three is adding a row here. A row that no form has (a set was not given) is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adapter_unlearn.reporting import forms
from adapter_unlearn.reporting.formatting import accuracy, count, decimal, percent, relative_change


@dataclass(frozen=True)
class Measure:
    """One figure of a form: where it stands in the summary (dots go deeper), what it is called, how it is shown."""

    key: str
    label: str
    show: Callable[[Any], str]
    with_change: bool = False


@dataclass(frozen=True)
class Cell:
    """One figure of one form as text, and its change against the base where that is what counts."""

    text: str
    change: str = ""


PERPLEXITIES = (
    Measure("holdout_perplexity", "perplexity, general text (holdout)", decimal, with_change=True),
    Measure("reference_perplexity", "perplexity, never-seen same kind (reference)", decimal, with_change=True),
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
REFERENCE = (
    Measure("reference_extractable", "never-seen: recited word for word", count),
    Measure("reference_memorization_accuracy_mean", "never-seen: accuracy, mean", accuracy),
    Measure("reference_memorization_accuracy_max", "never-seen: accuracy, highest", accuracy),
    Measure("reference_longest_verbatim_run_max", "never-seen: longest verbatim run", count),
    Measure("membership_auc_memorization_accuracy", "membership AUC by accuracy", accuracy),
    Measure("membership_auc_loss", "membership AUC by loss", accuracy),
)
ALL = MEMORIZATION + PERPLEXITIES + REFERENCE


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
    base = measured.get(forms.BASE, {})
    table = []
    for measure in measures:
        found = {form: look_up(figures, measure.key) for form, figures in measured.items()}
        if all(value is None for value in found.values()):
            continue
        before = look_up(base, measure.key)
        cells = {}
        for form, value in found.items():
            change = relative_change(before, value) if measure.with_change and form != forms.BASE else None
            cells[form] = Cell(measure.show(value), "" if change is None else percent(change))
        table.append((measure, cells))
    return table


def bounds_line(summary: dict[str, Any]) -> str:
    """What an outlier is, in one line; empty where there are no bounds."""
    for figures in (summary.get("forms") or {}).values():
        bounds = (figures or {}).get("bounds") or {}
        band = f"{accuracy(bounds.get('low'))} to {accuracy(bounds.get('high'))}"
        if bounds.get("kind") == "reference":
            return f"outliers: outside {band}, where 90 % of the reference set lies under the base model"
        if bounds:
            return f"outliers: at or outside {band}, the paper's fixed bounds"
    return ""
