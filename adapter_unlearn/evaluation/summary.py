"""The aggregates of an evaluation, typed; `summary.json` is their JSON form.

One `FormSummary` per deployment form. Attributes are named as the keys of summary.json; the flat keys of a set
(`holdout_…`, `test_perplexity`, `test_perplexity_change`, …) are grouped into `holdout` and `perplexities`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from adapter_unlearn.evaluation.criteria import Bounds, Outliers
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
    """The same figures of the holdout set, and how well forget and holdout set can be told apart (0.5: not at all)."""

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

    Of the base: `value` and its standard error. Of another form: `before`, `value`, and the paired change with its
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
    """How much of the adapters' delta is in a form's weights, over all modules; see weights.rounding.overall."""

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
        """What a form is compared with: the base in the form's own precision."""
        return self.forms[form].before or self.base


def to_json(summary: Summary) -> dict[str, Any]:
    """What summary.json holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "forms": {name: _form_to_json(form) for name, form in summary.forms.items()},
    }


def from_json(values: Mapping[str, Any]) -> Summary:
    """A summary from what summary.json holds; null becomes NaN.

    Raises:
        KeyError, TypeError, ValueError: it is no summary of this schema version.
    """
    return Summary({name: _form_from_json(name, form) for name, form in values["forms"].items()})


_PLAIN = (
    "n_sequences", "n_documents", "failing", "extractable", "extractable_documents", "extractable_50",
    "memorization_accuracy_mean", "memorization_accuracy_max", "longest_verbatim_run_max", "loss_mean",
)  # fmt: skip
_OF_HOLDOUT = (
    "extractable", "memorization_accuracy_mean", "memorization_accuracy_max", "longest_verbatim_run_max",
)  # fmt: skip
_AUC = ("membership_auc_memorization_accuracy", "membership_auc_loss")


def _form_to_json(form: FormSummary) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(form, name) for name in _PLAIN}
    found["memorization_accuracy_mean_interval"] = list(form.memorization_accuracy_mean_interval)
    found |= {"bounds": asdict(form.bounds), "paper_bounds": _outliers_to_json(form.paper_outliers)}
    found |= _outliers_to_json(form.outliers) | _means_to_json(form.means)
    if form.holdout is not None:
        found |= {f"holdout_{name}": getattr(form.holdout, name) for name in _OF_HOLDOUT}
        found |= {name: getattr(form.holdout, name) for name in _AUC}
        found |= {f"holdout_{key}": value for key, value in _means_to_json(form.holdout.means).items()}
    for name, perplexity in form.perplexities.items():
        found |= {f"{name}_perplexity": perplexity.value, f"{name}_perplexity_interval": list(perplexity.interval)}
        if perplexity.change is not None:
            found[f"{name}_perplexity_change"] = perplexity.change
            found[f"{name}_perplexity_change_interval"] = list(perplexity.change_interval)
    if form.tasks:
        found["utility"] = [asdict(task) | {"change_interval": list(task.change_interval)} for task in form.tasks]
    if form.before is not None:
        found["before"] = _form_to_json(form.before) | {"loaded_as": form.loaded_as}
    if form.delta is not None:
        found["delta"] = asdict(form.delta)
    return found


def _form_from_json(name: str, values: Mapping[str, Any]) -> FormSummary:
    before = values.get("before")
    holdout = None
    if "holdout_memorization_accuracy_mean" in values:
        holdout = HoldoutSummary(
            **{key: _number(values[f"holdout_{key}"]) for key in _OF_HOLDOUT},
            **{key: _number(values[key]) for key in _AUC},
            means=_means_from_json(values, "holdout_"),
        )
    return FormSummary(
        form=name,
        **{key: _number(values[key]) for key in _PLAIN},
        memorization_accuracy_mean_interval=_interval(values["memorization_accuracy_mean_interval"]),
        bounds=Bounds(**values["bounds"]),
        outliers=_outliers_from_json(values),
        paper_outliers=_outliers_from_json(values["paper_bounds"]),
        means=_means_from_json(values, ""),
        holdout=holdout,
        perplexities={of: _perplexity(values, of) for of in SETS if f"{of}_perplexity" in values},
        tasks=tuple(_task(task) for task in values.get("utility", ())),
        delta=DeltaSummary(**{k: _number(v) for k, v in values["delta"].items()}) if "delta" in values else None,
        before=None if before is None else _form_from_json(BASE, before),
        loaded_as="" if before is None else str(before.get("loaded_as", "")),
    )


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _interval(ends: Any) -> Interval:
    low, high = map(_number, ends or (None, None))
    return float(low), float(high)


def _perplexity(values: Mapping[str, Any], name: str) -> Perplexity:
    key = f"{name}_perplexity"
    changed = f"{key}_change" in values
    return Perplexity(
        _number(values[key]),
        _interval(values.get(f"{key}_interval")),
        _number(values[f"{key}_change"]) if changed else None,
        _interval(values.get(f"{key}_change_interval")),
    )


def _task(values: Mapping[str, Any]) -> TaskScore:
    numbers = {key: _number(value) for key, value in values.items() if key != "change_interval"}
    return TaskScore(**numbers, change_interval=_interval(values["change_interval"]))


def _outliers_to_json(outliers: Outliers) -> dict[str, int]:
    return {f"outliers_{key}": value for key, value in asdict(outliers).items()}


def _outliers_from_json(values: Mapping[str, Any]) -> Outliers:
    return Outliers(**{key: int(values[f"outliers_{key}"]) for key in ("high", "low", "low_new")})


def _means_to_json(means: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_mean": value for name, value in means.items()}


def _means_from_json(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    further = [name for name in METRICS if name not in SUMMARIZED and f"{prefix}{name}_mean" in values]
    return {name: _number(values[f"{prefix}{name}_mean"]) for name in further}
