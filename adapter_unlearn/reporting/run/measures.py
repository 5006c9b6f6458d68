"""The table of a summary's figures, in reading order; terminal, report and card all show its rows.

To add a figure to all three, add a row here. A row that no form has a value for is left out. Every further metric of
the metrics table has its rows automatically.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapter_unlearn.evaluation.summary import BASE, SUMMARIZED, FormSummary, Summary
from adapter_unlearn.metrics.table import METRICS
from adapter_unlearn.reporting import form_names
from adapter_unlearn.reporting import formatting as fmt
from adapter_unlearn.reporting.formatting import Cell, accuracy, count, decimal, ratio


@dataclass(frozen=True)
class Measure:
    """One figure of a form.

    Attributes:
        key: path of the figure in FormSummary.
        label: what it is called.
        show: the figure as text.
        interval: path of its 95 % interval.
        change_interval: path of the interval of its relative change; empty if the change is not shown.
        means: explains a label that is only the name of a metric. The terminal has no space for it.
    """

    key: str
    label: str
    show: Callable[[Any], str]
    interval: str = ""
    change_interval: str = ""
    means: str = ""


def meaning(metric: str) -> str:
    """What a metric measures: its line in the metrics table, up to a semicolon."""
    return METRICS[metric].means.partition(";")[0]


def _of_set(name: str, label: str) -> Measure:
    path = f"perplexities.{name}"
    return Measure(f"{path}.value", f"perplexity, {label}", decimal, f"{path}.interval", f"{path}.change_interval")


PERPLEXITIES = (
    _of_set("test", "general text (test)"),
    _of_set("holdout", "never-seen same kind (holdout)"),
    _of_set("validation", "validation"),
    _of_set("retain", "retain"),
)
_MEAN = "memorization_accuracy_mean"
MEMORIZATION = (
    Measure("failing", "failing sequences", count),
    Measure("extractable", "recited word for word", count),
    Measure("extractable_documents", "documents with such a sequence", count),
    Measure("extractable_50", "next 50 tokens recited", count),
    Measure(_MEAN, "memorization accuracy, mean", accuracy, f"{_MEAN}_interval"),
    Measure("memorization_accuracy_max", "memorization accuracy, highest", accuracy),
    Measure("longest_verbatim_run_max", "longest verbatim run, tokens", count),
    Measure("outliers.high", "outliers, high", count),
    Measure("outliers.low", "outliers, low", count),
    Measure("outliers.low_new", "outliers, new low", count),
    Measure("paper_outliers.high", "by the paper's bounds: high", count),
    Measure("paper_outliers.low", "by the paper's bounds: low", count),
    Measure("paper_outliers.low_new", "by the paper's bounds: new low", count),
    Measure("loss_mean", "loss, mean", decimal),
)
HOLDOUT = (
    Measure("holdout.extractable", "never-seen: recited word for word", count),
    Measure("holdout.memorization_accuracy_mean", "never-seen: accuracy, mean", accuracy),
    Measure("holdout.memorization_accuracy_max", "never-seen: accuracy, highest", accuracy),
    Measure("holdout.longest_verbatim_run_max", "never-seen: longest verbatim run", count),
)
MEMBERSHIP = (
    Measure("holdout.membership_auc_memorization_accuracy", "membership AUC by accuracy", accuracy),
    Measure("holdout.membership_auc_loss", "membership AUC by loss", accuracy),
)
FURTHER = tuple(
    row
    for name in METRICS
    if name not in SUMMARIZED
    for row in (
        Measure(f"means.{name}", f"{name}, mean", fmt.metric_value, means=meaning(name)),
        Measure(f"holdout.means.{name}", f"never-seen: {name}, mean", fmt.metric_value),
    )
)
DELTA = (
    Measure("delta.relative_size", "delta: size, relative to the weights'", ratio),
    Measure("delta.projection", "delta: share that remains (projection)", ratio),
    Measure("delta.relative_error", "delta: error, relative to its size", ratio),
)
GROUPS = (MEMORIZATION, PERPLEXITIES, HOLDOUT + MEMBERSHIP, FURTHER, DELTA)
ALL = tuple(measure for group in GROUPS for measure in group)


def look_up(form: FormSummary, path: str) -> Any:
    """The value at a path; None where a part of it was not measured."""
    value: Any = form
    for name in path.split("."):
        if value is not None:
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name)
    return value


def rows(summary: Summary, measures: Iterable[Measure] = ALL) -> list[tuple[Measure, dict[str, Cell]]]:
    """Each measure that at least one form has, with one cell per form."""
    forms = form_names.ordered(summary.forms)
    return [
        (measure, {form: _cell(measure, summary, form) for form in forms})
        for measure in measures
        if any(look_up(summary.forms[form], measure.key) is not None for form in forms)
    ]


def _cell(measure: Measure, summary: Summary, form: str) -> Cell:
    now = summary.forms[form]
    value = look_up(now, measure.key)
    if measure.change_interval and form != BASE:
        change = fmt.relative_change(look_up(summary.before(form), measure.key), value)
        if change is not None:
            spread = fmt.percent_interval(look_up(now, measure.change_interval))
            return Cell(measure.show(value), fmt.percent(change), spread)
    ends = look_up(now, measure.interval) if measure.interval else None
    return Cell(measure.show(value), spread=fmt.interval(ends, measure.show))


def comparison_lines(summary: Summary) -> list[str]:
    """For forms whose changes are not against the base's column: what they are against. Usually empty."""
    bases: dict[str, list[str]] = {}
    for name, form in summary.forms.items():
        if form.before is not None:
            loaded = fmt.clean(form.loaded_as or "as the form is deployed")
            bases.setdefault(f"{loaded} ({_base_figures(form.before)})", []).append(name)
    return [
        f"changes of {' and '.join(map(form_names.title, form_names.ordered(names)))} are against the base in {base}"
        for base, names in bases.items()
    ]


def _base_figures(base: FormSummary) -> str:
    texts = (("test", "general text"), ("holdout", "never-seen text"))
    parts = [f"{decimal(base.perplexities[name].value)} on {on}" for name, on in texts if name in base.perplexities]
    return f"{count(base.extractable)} recited{', perplexity ' if parts else ''}{' and '.join(parts)}"


def bounds_line(summary: Summary) -> str:
    """What an outlier is, in one line."""
    bounds = summary.base.bounds
    band = f"{accuracy(bounds.low)} to {accuracy(bounds.high)}"
    if bounds.kind == "holdout":
        return f"outliers: outside {band}, the range of 90 % of the holdout set under the base model"
    return f"outliers: at or outside {band}, the paper's fixed bounds"
