"""The aggregates of an evaluation, typed; `summary.json` is their JSON form.

One `FormSummary` per deployment form. Attributes are named as the keys of summary.json; the flat keys of a set
(`holdout_…`, `test_perplexity`, `test_perplexity_change`, …) are grouped into `holdout` and `perplexities`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from adapter_unlearn.evaluation.criteria import PAPER, Bounds, Criteria, Outliers
from adapter_unlearn.metrics import METRICS
from adapter_unlearn.runs.run_folder import SCHEMA_VERSION

BASE = "base"
SUMMARIZED = ("memorization_accuracy", "extractable", "extractable_50", "longest_verbatim_run", "loss")
"""Metrics with figures of their own; of every other metric a summary holds the mean."""
SETS = ("retain", "holdout", "validation", "test")
"""Sets with a perplexity."""

Interval = tuple[float, float]
"""The ends of a 95 % bootstrap interval over sequences; NaN where there is none."""
NO_INTERVAL: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Perplexity:
    """A set's perplexity in one form, with its relative change against the base (None for the base itself)."""

    value: float
    interval: Interval = NO_INTERVAL
    change: float | None = None
    change_interval: Interval = NO_INTERVAL


@dataclass(frozen=True)
class HoldoutSummary:
    """The same figures of the holdout set, and how distinguishable forget and holdout set are.

    Attributes:
        membership_auc_memorization_accuracy: membership AUC by that metric; 0.5: indistinguishable.
        membership_auc_loss: the same by the loss.
        means: mean of every further metric, by name.
    """

    extractable: int
    memorization_accuracy_mean: float
    memorization_accuracy_max: float
    longest_verbatim_run_max: int
    membership_auc_memorization_accuracy: float
    membership_auc_loss: float
    means: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScore:
    """A downstream task's score by one metric over n samples.

    The base has `value` and its standard error. Every other form has `before`, `value`, and the paired change with its
    interval.
    """

    task: str
    metric: str
    n: int
    value: float
    stderr: float = math.nan
    before: float = math.nan
    change: float = math.nan
    change_interval: Interval = NO_INTERVAL


@dataclass(frozen=True)
class DeltaSummary:
    """How much of the adapters' delta is in a form's weights, over all modules. See weights.rounding.overall."""

    relative_size: float
    projection: float
    relative_error: float


@dataclass(frozen=True)
class FormSummary:
    """The aggregates of one deployment form over the forget set.

    Attributes:
        means: mean of every further metric, by name.
        outliers: by `bounds`; `paper_outliers` by the paper's.
        holdout: None without a holdout set.
        perplexities: name of a set -> its perplexity.
        tasks: downstream tasks and replies; empty where none were measured.
        before: the base in this form's precision, where that is not the run's; None otherwise.
        loaded_as: dtype and quantization in words, of `before`.
        delta: None where nothing was merged.
    """

    form: str
    n_sequences: int
    n_documents: int
    failing: int
    extractable: int
    extractable_documents: int
    extractable_50: int
    memorization_accuracy_mean: float
    memorization_accuracy_mean_interval: Interval
    memorization_accuracy_max: float
    longest_verbatim_run_max: int
    loss_mean: float
    bounds: Bounds
    outliers: Outliers
    paper_outliers: Outliers
    means: Mapping[str, float] = field(default_factory=dict)
    holdout: HoldoutSummary | None = None
    perplexities: Mapping[str, Perplexity] = field(default_factory=dict)
    tasks: tuple[TaskScore, ...] = ()
    delta: DeltaSummary | None = None
    before: FormSummary | None = None
    loaded_as: str = ""


@dataclass(frozen=True)
class Summary:
    """All forms of an evaluation, the base first."""

    forms: Mapping[str, FormSummary]

    @property
    def base(self) -> FormSummary:
        """The model without any adapter."""
        return self.forms[BASE]

    @property
    def after(self) -> list[FormSummary]:
        """Every form but the base, in the order measured."""
        return [summary for name, summary in self.forms.items() if name != BASE]

    def before(self, form: str) -> FormSummary:
        """The base in the precision of this form: what the form is compared with."""
        return self.forms[form].before or self.base

    @property
    def criteria(self) -> Criteria:
        """The criteria that the run was judged by."""
        holdout = self.base.holdout
        return Criteria(self.base.bounds, None if holdout is None else holdout.longest_verbatim_run_max)


def to_json(summary: Summary) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        "schema_version": SCHEMA_VERSION,
        "forms": {name: _form_to_json(form) for name, form in summary.forms.items()},
    }


def from_json(values: Mapping[str, Any]) -> Summary:
    """Read the content of summary.json; null becomes NaN.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: not a summary of this schema version.
    """
    forms = {name: _form_from_json(name, form) for name, form in values["forms"].items()}
    return Summary({BASE: forms.pop(BASE)} | forms)


def _form_to_json(form: FormSummary) -> dict[str, Any]:
    values = _numbers_to_json(form) | {"bounds": asdict(form.bounds)}
    values["paper_bounds"] = _numbers_to_json(PAPER) | _numbers_to_json(form.paper_outliers, "outliers_")
    values |= _numbers_to_json(form.outliers, "outliers_") | _means_to_json("", form.means)
    if form.holdout is not None:
        values |= _numbers_to_json(form.holdout, "holdout_") | _means_to_json("holdout_", form.holdout.means)
    for name, perplexity in form.perplexities.items():
        values |= _numbers_to_json(perplexity, f"{name}_perplexity_")
    if form.tasks:
        values["utility"] = [{"task": task.task, "metric": task.metric} | _numbers_to_json(task) for task in form.tasks]
    if form.before is not None:
        values["before"] = _form_to_json(form.before) | {"loaded_as": form.loaded_as}
    if form.delta is not None:
        values["delta"] = _numbers_to_json(form.delta)
    return values


def _form_from_json(name: str, values: Mapping[str, Any]) -> FormSummary:
    holdout, before, delta = None, values.get("before"), values.get("delta")
    if "membership_auc_loss" in values:
        numbers = _numbers_from_json(HoldoutSummary, values, "holdout_")
        holdout = HoldoutSummary(**numbers, means=_means_from_json("holdout_", values))
    return FormSummary(
        form=name,
        **_numbers_from_json(FormSummary, values),
        bounds=Bounds(**values["bounds"]),
        outliers=Outliers(**_numbers_from_json(Outliers, values, "outliers_")),
        paper_outliers=Outliers(**_numbers_from_json(Outliers, values["paper_bounds"], "outliers_")),
        means=_means_from_json("", values),
        holdout=holdout,
        perplexities={
            of: Perplexity(**_numbers_from_json(Perplexity, values, f"{of}_perplexity_"))
            for of in SETS
            if f"{of}_perplexity" in values
        },
        tasks=tuple(
            TaskScore(task["task"], task["metric"], **_numbers_from_json(TaskScore, task))
            for task in values.get("utility", ())
        ),
        delta=None if delta is None else DeltaSummary(**_numbers_from_json(DeltaSummary, delta)),
        before=None if before is None else _form_from_json(BASE, before),
        loaded_as="" if before is None else before["loaded_as"],
    )


_NUMBERS = ("int", "float", "float | None", "Interval")
"""Types of the fields that are keys of their own."""


def _key(prefix: str, name: str) -> str:
    """The key of a field. A perplexity's value has the set's own key; a membership AUC is of two sets."""
    if name.startswith("membership_auc"):
        return name
    return prefix.removesuffix("_") if prefix and name == "value" else prefix + name


def _numbers_to_json(record: Any, prefix: str = "") -> dict[str, Any]:
    """The numbers and intervals of a dataclass, without those that were never set."""
    values = {each.name: getattr(record, each.name) for each in fields(record) if each.type in _NUMBERS}
    return {_key(prefix, key): value for key, value in values.items() if value is not None and value is not NO_INTERVAL}


def _numbers_from_json(kind: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    keys = {each.name: _key(prefix, each.name) for each in fields(kind) if each.type in _NUMBERS}
    return {name: _value(values[key]) for name, key in keys.items() if key in values}


def _value(value: Any) -> Any:
    """A number or the ends of an interval."""
    if isinstance(value, list | tuple):
        return tuple(map(_value, value))
    return math.nan if value is None else value


def _means_to_json(prefix: str, means: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}_mean": value for name, value in means.items()}


def _means_from_json(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    keys = {name: f"{prefix}{name}_mean" for name in METRICS if name not in SUMMARIZED}
    return {name: _value(values[key]) for name, key in keys.items() if key in values}
