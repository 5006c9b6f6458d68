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
from adapter_unlearn.evaluation.summary import BASE, Perplexity
from adapter_unlearn.metrics import set_level
from adapter_unlearn.metrics.set_level import Estimate
from adapter_unlearn.recipe import as_dict

Row = dict[str, str | float]
"""Column -> value."""

_FORGOTTEN = ("memorization_accuracy_mean", "memorization_accuracy_max")
_COUNTS = ("extractable", "extractable_50", "longest_verbatim_run_max", "loss_mean", "failing")


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
    figures_of_runs = [_figures(run, form) for run in runs]
    row: Row = {"method": method.name, "form": form, "n_runs": len(runs)}
    row["seeds"] = " ".join(str(run.seed) for run in runs if run.seed is not None)
    for key, one in figures_of_runs[0].items():
        all_seeds = np.array([each[key] for each in figures_of_runs], dtype=float)  # (runs,), of estimates (runs, 3)
        row |= _over_seeds(key, all_seeds if all_seeds.ndim == 1 else all_seeds[:, 0])
        if isinstance(one, Estimate):
            row |= {f"{key}_low": float(all_seeds[:, 1].mean()), f"{key}_high": float(all_seeds[:, 2].mean())}
        if key.startswith("auc_"):
            row |= _over_seeds(f"{key}_distance", np.abs(all_seeds[:, 0] - 0.5))
    accuracy = set_level.mean_interval(scores(runs, form, "memorization_accuracy").mean(axis=0))
    row |= {"memorization_accuracy_mean_low": accuracy.low, "memorization_accuracy_mean_high": accuracy.high}
    fails = np.array([failing(run, form) for run in runs]).mean(axis=0)  # (n,)
    share, n = set_level.mean_interval(fails), np.count_nonzero(~np.isnan(fails))
    return row | {"failing_low": n * share.low, "failing_high": n * share.high}


def _over_seeds(key: str, values: np.ndarray) -> Row:
    return {key: float(values.mean()), f"{key}_seeds_min": float(values.min()), f"{key}_seeds_max": float(values.max())}


def _figures(run: Finished, form: str) -> dict[str, float | Estimate]:
    """Every figure of one run in one form; an Estimate where it has an interval of its own."""
    summary = run.summary.forms[form]
    figures: dict[str, float | Estimate] = {name: getattr(summary, name) for name in _FORGOTTEN}
    figures |= {f"outliers_{each.name}": getattr(summary.outliers, each.name) for each in fields(Outliers)}
    figures |= {name: getattr(summary, name) for name in _COUNTS}
    figures["extractable_any_prefix"] = rows_by_id(run.sequences, form)["extractable_any_prefix"].sum()
    for metric in ("memorization_accuracy", "loss"):
        figures[f"auc_{metric}"] = _auc(run.membership, form, metric)
    for name in ("holdout", "test"):
        perplexity = summary.perplexities.get(name, Perplexity(math.nan))
        figures[f"{name}_perplexity"] = perplexity.value
        figures[f"{name}_perplexity_change"] = Estimate(
            math.nan if perplexity.change is None else perplexity.change, *perplexity.change_interval
        )
    if form != BASE:
        figures |= {key: math.nan if value is None else float(value) for key, value in run.costs.items()}
    return figures


def _auc(membership: pd.DataFrame, form: str, metric: str) -> Estimate:
    if len(membership):
        rows = membership[(membership["metric"] == metric) & (membership["form"] == form)]
        for ends in rows[["auc", "auc_low", "auc_high"]].to_numpy(dtype=float):
            return Estimate(*ends)
    return Estimate(math.nan, math.nan, math.nan)
