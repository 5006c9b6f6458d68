"""Methods: which runs differ only in the seed, and the figures of such a group of runs in one form."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from adapter_unlearn.evaluation import criteria
from adapter_unlearn.evaluation.criteria import Outliers
from adapter_unlearn.evaluation.finished_run import Finished, rows_by_id
from adapter_unlearn.evaluation.summary import BASE
from adapter_unlearn.metrics import set_level
from adapter_unlearn.metrics.set_level import Estimate
from adapter_unlearn.recipe import as_dict

COSTS = ("seconds", "peak_memory_bytes", "sequences_ascended", "epochs")
"""Figures of a run's manifest."""
Row = dict[str, str | float]
"""Column -> value."""

_COUNTS = ("extractable", "extractable_50", "longest_verbatim_run_max", "loss_mean", "failing")
_WITH_INTERVAL = (
    "memorization_accuracy_mean", "failing", "auc_memorization_accuracy", "auc_loss", "holdout_perplexity_change",
    "test_perplexity_change",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """Runs that differ only in the seed."""

    name: str
    runs: tuple[Finished, ...]

    @property
    def forms(self) -> list[str]:
        """Every form that a run was measured in, except the base."""
        return list(dict.fromkeys(form for run in self.runs for form in run.summary.forms if form != BASE))

    def measured(self, form: str) -> list[Finished]:
        """The runs that were measured in this form."""
        return [run for run in self.runs if form in run.summary.forms]


def group(runs: Sequence[Finished]) -> list[Method]:
    """Group runs into methods, in order of appearance.

    Runs of one experiment belong together, as do runs whose recipes differ only in seed, folder and tracking. Two runs
    with the same recipe and the same seed are separate methods.
    """
    groups: dict[Hashable, list[Finished]] = {}
    for run in runs:
        key, copy = _identity(run), 0
        while any(other.seed == run.seed for other in groups.get((key, copy), [])):
            copy += 1
        groups.setdefault((key, copy), []).append(run)
    names = [_name(members) for members in groups.values()]
    return [
        Method(name if names.count(name) == 1 else members[0].folder, tuple(members))
        for name, members in zip(names, groups.values())
    ]


def _identity(run: Finished) -> tuple[str, str]:
    if run.experiment is not None:
        return "experiment", run.experiment
    if run.recipe is None:
        return "folder", run.folder
    keys = {key: value for key, value in as_dict(run.recipe).items() if key not in ("seed", "output_dir", "tracking")}
    return "recipe", json.dumps(keys, sort_keys=True, default=str)


def _name(runs: Sequence[Finished]) -> str:
    if runs[0].experiment is not None:
        return runs[0].experiment
    folders = [Path(run.folder).absolute().name for run in runs]
    if len(folders) == 1:
        return folders[0]
    common = os.path.commonprefix(folders)  # noqa: RUF071 (names, not paths: compared letter by letter)
    return re.sub(r"[\W_]*(seed)?[\W_]*$", "", common) or str((runs[0].manifest.get("method") or {}).get("name"))


def failing(run: Finished, form: str) -> np.ndarray:
    """Which forget sequences of a run fail in this form, shape (n,); see criteria.failing."""
    rows, before = rows_by_id(run.sequences, form), rows_by_id(run.sequences, BASE)
    return criteria.failing(rows, before, run.summary.criteria)


def scores(runs: Sequence[Finished], form: str, measure: str) -> np.ndarray:
    """A metric of every sequence, shape (runs, n). `holdout_loss` is the loss of the holdout set's sequences."""
    metric = measure.removeprefix("holdout_")
    frames = [run.sequences if metric == measure else run.holdout for run in runs]
    return np.array([rows_by_id(frame, form)[metric].to_numpy(dtype=float) for frame in frames])


def figures(method: Method, form: str) -> Row:
    """A row of Comparison.rows: means over the seeds with minimum and maximum, and intervals over sequences.

    The interval of a figure that is a mean over sequences is that of the sequences' means over the seeds. AUC and
    perplexity have one interval per run, and the ends are averaged. That is exact where resampling moves all seeds
    alike, and too wide otherwise.
    """
    runs = method.measured(form)
    estimates = [_estimates(run, form) for run in runs]
    row: Row = {"method": method.name, "form": form, "n_runs": len(runs)}
    row["seeds"] = " ".join(str(run.seed) for run in runs if run.seed is not None)
    for key in estimates[0]:
        row |= _over_seeds(key, [estimate[key].value for estimate in estimates])
        if key in _WITH_INTERVAL:
            low, high = np.array([estimate[key].interval for estimate in estimates]).mean(axis=0)
            row |= {f"{key}_low": low, f"{key}_high": high}
    accuracy = set_level.mean_interval(scores(runs, form, "memorization_accuracy").mean(axis=0))
    row |= {"memorization_accuracy_mean_low": accuracy.low, "memorization_accuracy_mean_high": accuracy.high}
    fails = np.array([failing(run, form) for run in runs]).mean(axis=0)
    share, n = set_level.mean_interval(fails), np.count_nonzero(~np.isnan(fails))
    row |= {"failing_low": n * share.low, "failing_high": n * share.high}
    for metric in ("memorization_accuracy", "loss"):
        distances = [abs(estimate[f"auc_{metric}"].value - 0.5) for estimate in estimates]
        row |= _over_seeds(f"auc_{metric}_distance", distances)
    return row


def _over_seeds(key: str, values: Sequence[float]) -> Row:
    mean, low, high = np.mean(values), np.min(values), np.max(values)  # a NaN makes all three NaN
    return {key: float(mean), f"{key}_seeds_min": float(low), f"{key}_seeds_max": float(high)}


def _estimates(run: Finished, form: str) -> dict[str, Estimate]:
    """Every figure of one run in one form, with its own interval over sequences where it has one."""
    summary = run.summary.forms[form]
    values: dict[str, float | None] = {
        name: getattr(summary, name) for name in ("memorization_accuracy_mean", "memorization_accuracy_max")
    }
    values |= {f"outliers_{each.name}": getattr(summary.outliers, each.name) for each in fields(Outliers)}
    values |= {name: getattr(summary, name) for name in _COUNTS}
    values["extractable_any_prefix"] = rows_by_id(run.sequences, form)["extractable_any_prefix"].sum()
    estimates = {key: _point(value) for key, value in values.items()}
    for metric in ("memorization_accuracy", "loss"):
        estimates[f"auc_{metric}"] = _auc(run.membership, form, metric)
    for name in ("holdout", "test"):
        perplexity, change = summary.perplexities.get(name), _point(None)
        if perplexity is not None and perplexity.change is not None:
            change = Estimate(perplexity.change, *perplexity.change_interval)
        estimates[f"{name}_perplexity"] = _point(None if perplexity is None else perplexity.value)
        estimates[f"{name}_perplexity_change"] = change
    if form != BASE:
        cost, outcome = (run.manifest.get(key) or {} for key in ("cost", "outcome"))
        estimates |= {key: _point(cost.get(key)) for key in COSTS}
        estimates["goal_reached"] = _point(outcome.get("goal_reached"))
    return estimates


def _auc(membership: pd.DataFrame, form: str, metric: str) -> Estimate:
    if len(membership):
        rows = membership[(membership["metric"] == metric) & (membership["form"] == form)]
        for ends in rows[["auc", "auc_low", "auc_high"]].to_numpy(dtype=float):
            return Estimate(*ends)
    return _point(None)


def _point(value: float | None) -> Estimate:
    """A figure without an interval."""
    return Estimate(math.nan if value is None else float(value), math.nan, math.nan)
