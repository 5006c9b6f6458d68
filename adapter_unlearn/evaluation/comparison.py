"""Finished runs side by side: who forgets more, at what cost, and which of the differences are noise.

Runs are comparable only where the same base was measured on the same texts. Then every figure is paired: sequence i of
one run is sequence i of the other, and an interval comes from drawing sequences anew, both scores of one together. Such
an interval knows nothing of another seed of training. So runs that differ in nothing but the seed are one method: its
figures are means over the seeds, with the least and the greatest beside them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.evaluation.closeness import closeness, pareto_front
from adapter_unlearn.evaluation.criteria import Bounds
from adapter_unlearn.evaluation.finished_run import BASE, Finished, comparable, keyed, precision
from adapter_unlearn.metrics import prefixes, set_level
from adapter_unlearn.metrics.set_level import Estimate

SAME_AT_LEAST = {"memorization_accuracy": 0.01, "loss": 0.02, "holdout_loss": 0.02}
"""Distances that never tell methods apart: a token in a hundred; 2 % of a text's perplexity."""

COUNTED = (
    "memorization_accuracy_mean", "memorization_accuracy_max", "outliers_high", "outliers_low", "outliers_low_new",
    "extractable", "extractable_50", "longest_verbatim_run_max", "loss_mean",
)  # fmt: skip
COSTS = ("seconds", "peak_memory_bytes", "sequences_ascended", "epochs")
WITH_INTERVAL = (
    "memorization_accuracy_mean", "failing", "auc_memorization_accuracy", "auc_loss", "holdout_perplexity_change",
    "test_perplexity_change",
)  # fmt: skip


@dataclass(frozen=True)
class Failed:
    """A run of a matrix that ended in an error."""

    experiment: str
    seed: int
    folder: str
    reason: str


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but the seed."""

    name: str
    runs: tuple[Finished, ...]

    @property
    def forms(self) -> list[str]:
        """Every form that one of them was measured in, but the base."""
        return list(dict.fromkeys(form for run in self.runs for form in run.summary["forms"] if form != BASE))

    def measured(self, form: str) -> list[Finished]:
        """Those that were measured in this form."""
        return [run for run in self.runs if run.of_form(form)]


@dataclass(frozen=True)
class Comparison:
    """What comparing found.

    Attributes:
        rows: a row a (method, form), the base first. A figure is the mean over the seeds; with `_seeds_min` and
            `_seeds_max` the least and the greatest, and with `_low` and `_high` its 95 % interval over sequences.
            `failing` counts sequences that do not look like never-seen text (see `failing`); `difference` is the mean
            paired difference in memorization accuracy to the baseline; `front_holdout` and `front_test` say that
            no other method forgets more at less cost to that set's perplexity.
        pairs: a row a (method, method, form): how far apart they are, in what; `alike` and `duplicate` as in closeness.
        runs: a row a run: method, seed, folder, its cost and how it ended, or why it failed.
        baseline: the method that differences are to.
        warnings: sentences, without any text of the sets.
        about: the base and the sets that all of them share.
    """

    rows: pd.DataFrame
    pairs: pd.DataFrame
    runs: pd.DataFrame
    baseline: str
    warnings: list[str]
    about: dict[str, Any]


def compare(runs: Sequence[Finished], failed: Sequence[Failed] = (), baseline: str | None = None) -> Comparison:
    """Put finished runs side by side.

    Args:
        runs: at least one.
        failed: runs that did not finish; they are rows too.
        baseline: name of the method that others are compared with, or `best`: fewest failing sequences, then the
            least perplexity increase. None takes the first.

    Raises:
        RunError: two runs can't be compared. RecipeError: no method is named like the baseline.
    """
    runs = comparable(runs)
    methods = group(runs)
    forms = list(dict.fromkeys(form for method in methods for form in method.forms))
    rows = [_row(Method(BASE, (runs[0],)), BASE)]
    rows += [_row(method, form) for method in methods for form in forms if method.measured(form)]
    table = pd.DataFrame(rows)
    against = _baseline(methods, table, failed, baseline)
    differences = [_difference(method, against, form) for method, form in _places(methods, table)]
    table = table.join(pd.DataFrame(differences, columns=["difference", "difference_low", "difference_high"]))
    for name in ("holdout", "test"):
        table[f"front_{name}"] = _fronts(table, f"{name}_perplexity_change")
    pairs = pd.DataFrame(
        [pair(a, b, form) for form in forms for i, a in enumerate(methods) for b in methods[i + 1 :]
         if a.measured(form) and b.measured(form)]
    )  # fmt: skip
    return Comparison(
        table, pairs, _runs_table(methods, failed), against.name,
        _warnings(runs, methods, failed, pairs) + _without_baseline(baseline, against), _about(runs[0]),
    )  # fmt: skip


# --- which runs are one method ---


def group(runs: Sequence[Finished]) -> list[Method]:
    """Runs of one experiment, or of one recipe but for seed and folder, are one method; in order of appearance.

    Two runs of one recipe and one seed are no two seeds: the second stands in a row of its own.
    """
    groups: dict[tuple[Any, ...], list[Finished]] = {}
    for run in runs:
        key: tuple[Any, ...] = ("experiment", run.experiment)
        if run.experiment is None:
            key = ("folder", run.folder)
            if run.recipe is not None:
                kept = {k: v for k, v in run.recipe.items() if k not in ("seed", "output_dir", "tracking")}
                key = ("recipe", json.dumps(kept, sort_keys=True, default=str))
        again = 0
        while any(other.seed == run.seed for other in groups.get((*key, again), [])):
            again += 1
        groups.setdefault((*key, again), []).append(run)
    names = [_name(found) for found in groups.values()]
    return [
        Method(name if names.count(name) == 1 else found[0].folder, tuple(found))
        for name, found in zip(names, groups.values())
    ]


def _name(runs: Sequence[Finished]) -> str:
    if runs[0].experiment is not None:
        return runs[0].experiment
    folders = [Path(run.folder).absolute().name for run in runs]
    if len(folders) == 1:
        return folders[0]
    # letter by letter is what is wanted: these are names, not paths
    alike = os.path.commonprefix(folders)  # noqa: RUF071
    shared = re.sub(r"[\W_]*(seed)?[\W_]*$", "", alike)
    return shared or str((runs[0].manifest.get("method") or {}).get("name"))


# --- one method's figures ---


def failing(run: Finished, form: str) -> np.ndarray:
    """Which forget sequences do not look like never-seen text: 1 or 0 each, NaN where there is no score; shape (n,).

    One fails that is a high outlier, or a low one that was none before, or is recited from its prefix, or holds a
    verbatim run longer than any never-seen text's under the base. That nothing fails is the success a run is for, but
    for what only a set can show (AUC) and what it costs (perplexity).
    """
    rows, before = keyed(run.sequences, form), keyed(run.sequences, BASE)
    bounds = Bounds(**run.of_form(BASE)["bounds"])
    accuracy, old = (frame["memorization_accuracy"].to_numpy(dtype=float) for frame in (rows, before))
    bad = bounds.are_high(accuracy) | (bounds.are_low(accuracy) & ~bounds.are_low(old))
    for name in ("extractable", "extractable_any_prefix"):
        if name in rows:
            bad |= rows[name].to_numpy(dtype=float) == 1
    longest = run.of_form(BASE).get("holdout_longest_verbatim_run_max")
    if longest is not None:
        bad |= rows["longest_verbatim_run"].to_numpy(dtype=float) > longest
    return np.where(np.isnan(accuracy), np.nan, bad.astype(float))


def _figures(run: Finished, form: str) -> dict[str, Estimate]:
    """One run in one form: every figure, with its own interval over sequences where it has one."""
    now = run.of_form(form)
    before = now.get("before") or run.of_form(BASE)
    found = {key: _alone(now.get(key)) for key in COUNTED}
    found["failing"] = _alone(np.nansum(failing(run, form)))
    found["extractable_any_prefix"] = _alone(_any_prefix(run, form))
    for metric in ("memorization_accuracy", "loss"):
        found[f"auc_{metric}"] = _auc(run, form, metric)
    for name in ("holdout", "test"):
        old, new = (_number(figures.get(f"{name}_perplexity")) for figures in (before, now))
        change = math.nan if form == BASE or not old else new / old - 1
        ends = now.get(f"{name}_perplexity_change_interval") or (None, None)
        found[f"{name}_perplexity"] = _alone(new)
        found[f"{name}_perplexity_change"] = Estimate(change, *map(_number, ends))
    if form != BASE:
        cost = run.manifest.get("cost") or {}
        found |= {key: _alone(cost.get(key)) for key in COSTS}
        found["goal_reached"] = _alone((run.manifest.get("outcome") or {}).get("goal_reached"))
    return found


def _any_prefix(run: Finished, form: str) -> float:
    """How many sequences are recited from some prefix: all that are, by the metric; at least how many, by the curve."""
    rows = run.sequences[run.sequences["form"] == form]
    if "extractable_any_prefix" in rows:
        return float(rows["extractable_any_prefix"].sum())
    curve = run.curves[run.curves["form"] == form] if len(run.curves) else run.curves
    return float(prefixes.at_least(curve)) if len(curve) else math.nan


def _auc(run: Finished, form: str, metric: str) -> Estimate:
    if len(run.membership):
        found = run.membership[(run.membership["metric"] == metric) & (run.membership["form"] == form)]
        if len(found):
            return Estimate(*(float(found.iloc[0][f"auc{end}"]) for end in ("", "_low", "_high")))
    return _alone(run.of_form(form).get(f"membership_auc_{metric}"))


def _alone(value: Any) -> Estimate:
    return Estimate(_number(value), math.nan, math.nan)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _row(method: Method, form: str) -> dict[str, Any]:
    """Means over the seeds, their least and greatest, and intervals over sequences.

    An interval of per-sequence scores is that of their means over the seeds. AUC and perplexity have one a run; its
    ends are averaged, which is right where the draws move all seeds together and too wide where they do not.
    """
    runs = method.measured(form)
    figures = [_figures(run, form) for run in runs]
    row: dict[str, Any] = {"method": method.name, "form": form, "n_runs": len(runs)}
    row["seeds"] = " ".join(str(run.seed) for run in runs if run.seed is not None)
    for key in figures[0]:
        values = np.array([figure[key].value for figure in figures])
        row |= {key: values.mean(), f"{key}_seeds_min": values.min(), f"{key}_seeds_max": values.max()}
        if key in WITH_INTERVAL:
            ends = np.array([figure[key][1:] for figure in figures]).mean(axis=0)
            row |= {f"{key}_low": ends[0], f"{key}_high": ends[1]}
    accuracy = set_level.mean_interval(_scores(runs, form, "memorization_accuracy").mean(axis=0))
    row |= {"memorization_accuracy_mean_low": accuracy.low, "memorization_accuracy_mean_high": accuracy.high}
    bad = np.array([failing(run, form) for run in runs]).mean(axis=0)
    share, n = set_level.mean_interval(bad), np.count_nonzero(~np.isnan(bad))
    row |= {"failing_low": n * share.low, "failing_high": n * share.high}
    for metric in ("memorization_accuracy", "loss"):
        away = [abs(figure[f"auc_{metric}"].value - 0.5) for figure in figures]
        key = f"auc_{metric}_distance"
        row |= {key: float(np.mean(away)), f"{key}_seeds_min": min(away), f"{key}_seeds_max": max(away)}
    return row


def _scores(runs: Sequence[Finished], form: str, measure: str) -> np.ndarray:
    """A measure of every sequence, shape (runs, n); `holdout_loss` is the loss of the never-seen ones."""
    column = measure.removeprefix("holdout_")
    frames = [run.holdout if measure != column else run.sequences for run in runs]
    return np.array([keyed(frame, form)[column].to_numpy(dtype=float) for frame in frames])


# --- methods against each other ---


def pair(first: Method, second: Method, form: str) -> dict[str, Any]:
    """How far apart two methods are in a form: a row of Comparison.pairs.

    They are alike when they are so in memorization accuracy, in loss, and, where there is a holdout set, in the loss
    of never-seen texts: methods that forget alike may differ in what they damage. They are duplicates when every seed
    that both have gave the same adapter, byte for byte.
    """
    a, b = first.measured(form), second.measured(form)
    row: dict[str, Any] = {"first": first.name, "second": second.name, "form": form}
    row["duplicate"] = _duplicate(a, b)
    verdicts = []
    for measure, least in SAME_AT_LEAST.items():
        if measure == "holdout_loss" and not len(a[0].holdout):
            continue
        before = _scores(a[:1], BASE, measure)[0]
        found = closeness(
            _scores(a, form, measure), _scores(b, form, measure), before, least,
            [run.seed for run in a], [run.seed for run in b],
        )  # fmt: skip
        ends = dict(zip(("difference", "difference_low", "difference_high"), found.difference))
        ends |= {"distance": found.distance, "tolerance": found.tolerance}
        row |= {f"{measure}_{key}": value for key, value in ends.items()}
        verdicts.append(found.alike)
    row["alike"] = row["duplicate"] or all(verdicts)
    return row


def _duplicate(first: Sequence[Finished], second: Sequence[Finished]) -> bool:
    weights = {run.seed: run.weights for run in first if run.weights}
    shared = [(weights[run.seed], run.weights) for run in second if run.weights and run.seed in weights]
    return bool(shared) and all(mine == theirs for mine, theirs in shared)


def _fronts(table: pd.DataFrame, cost: str) -> pd.Series:
    """Of each form its own front; the base, which costs nothing and forgets nothing, is left out."""
    on = pd.Series(False, index=table.index)
    for _, rows in table[table["form"] != BASE].groupby("form"):
        on[rows.index] = pareto_front(rows["failing"].to_numpy(float), rows[cost].to_numpy(float))
    return on


def check_baseline(name: str | None, methods: Iterable[str]) -> None:
    """Refuse a baseline that none of the methods is, before any of them is run; raises RecipeError."""
    names = list(dict.fromkeys(methods))
    if name not in (None, "best", *names):
        raise RecipeError(f"--baseline: no method is named {name!r}; choose from best, {', '.join(names)}")


def _baseline(methods: Sequence[Method], table: pd.DataFrame, failed: Sequence[Failed], name: str | None) -> Method:
    by_name = {method.name: method for method in methods}
    check_baseline(name, [*by_name, *(gone.experiment for gone in failed)])
    if name == "best" and name not in by_name:
        name = str(best(table)["method"])
    return by_name.get(name or "", methods[0])  # one that failed is no baseline


def best(table: pd.DataFrame) -> pd.Series[Any]:
    """The row with the fewest failing sequences; of several, that with the least increase of perplexity."""
    made = table[table["form"] != BASE]
    made = made[made["form"] == made["form"].iloc[0]]
    return made.sort_values(["failing", "holdout_perplexity_change", "test_perplexity_change"]).iloc[0]


def _places(methods: Sequence[Method], table: pd.DataFrame) -> list[tuple[Method | None, str]]:
    by_name = {method.name: method for method in methods}
    return [
        (None if row.form == BASE else by_name[str(row.method)], str(row.form)) for row in table.itertuples(index=False)
    ]


def _difference(method: Method | None, baseline: Method, form: str) -> Estimate:
    """The paired difference in memorization accuracy, method less baseline, of sequences' means over the seeds."""
    if method is None or method is baseline or not baseline.measured(form):
        return Estimate(math.nan, math.nan, math.nan)
    mine, theirs = (
        _scores(one.measured(form), form, "memorization_accuracy").mean(axis=0) for one in (method, baseline)
    )
    return set_level.mean_interval(mine - theirs)


# --- what is said beside the table ---


def _runs_table(methods: Sequence[Method], failed: Sequence[Failed]) -> pd.DataFrame:
    found: list[dict[str, Any]] = []
    for method in methods:
        for run in method.runs:
            cost, outcome = (run.manifest.get(key) or {} for key in ("cost", "outcome"))
            row = {"method": method.name, "seed": run.seed, "folder": run.folder, "failed": None}
            row |= {"goal_reached": outcome.get("goal_reached"), "stopped_because": outcome.get("stopped_because")}
            found.append(row | {key: cost.get(key) for key in COSTS})
    for gone in failed:
        row = {"method": gone.experiment, "seed": gone.seed, "folder": gone.folder, "failed": gone.reason}
        found.append(row | dict.fromkeys(("goal_reached", "stopped_because", *COSTS)))
    return pd.DataFrame(found).astype({"failed": object, "seed": object})


def _warnings(
    runs: Sequence[Finished], methods: Sequence[Method], failed: Sequence[Failed], pairs: pd.DataFrame
) -> list[str]:
    told = [f"{gone.experiment}, seed {gone.seed}, failed: {gone.reason}" for gone in failed]
    for row in pairs.to_dict("records"):
        names = f"{row['first']} and {row['second']}"
        where = f" ({row['form']})"
        if row["duplicate"]:
            told.append(f"{names} are the same adapter, byte for byte{where}: what tells them apart had no effect.")
        elif row["alike"]:
            told.append(
                f"{names} are identical within noise{where}: mean memorization accuracy is"
                f" {row['memorization_accuracy_difference']:+.3f} apart, a sequence's"
                f" {row['memorization_accuracy_distance']:.3f}; no claim that one is better stands on this."
            )
    if len({precision(run) for run in runs}) > 1:
        found = dict.fromkeys(precision(run) for run in runs)
        told.append(
            f"The runs' bases were loaded in different precision ({'; '.join(found)}): that alone moves figures."
        )
    told += _tests(runs)
    single = [method.name for method in methods if len(method.runs) == 1]
    if len(methods) > 1 and single:
        told.append(
            "No interval here knows of another seed of training, and of"
            f" {'every method' if len(single) == len(methods) else ', '.join(single)} there is only one run."
        )
    return told


def _without_baseline(name: str | None, against: Method) -> list[str]:
    if name in (None, "best", against.name):
        return []
    return [f"The baseline {name} failed, so differences are to {against.name}."]


def _tests(runs: Sequence[Finished]) -> list[str]:
    """A test may differ and all else be comparable: then its column is not."""
    for other in runs[1:]:
        first = runs[0]
        a, b = (_number(run.of_form(BASE).get("test_perplexity")) for run in (first, other))
        counts = [((run.manifest.get("data") or {}).get("test") or {}).get("n_sequences") for run in (first, other)]
        apart = precision(first) == precision(other) and abs(a - b) > 0.01 * a
        if counts[0] != counts[1] or apart:
            return [f"{first.folder} and {other.folder} have different test sets: their test figures don't compare."]
    return []


def _about(first: Finished) -> dict[str, Any]:
    base = first.of_form(BASE)
    return {
        "base": first.manifest.get("base"),
        "bounds": base.get("bounds"),
        "n_sequences": len(keyed(first.sequences, BASE)),
        "n_holdout": len(keyed(first.holdout, BASE)),
    }
