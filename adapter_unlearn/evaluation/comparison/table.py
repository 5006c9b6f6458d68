"""Put finished runs side by side: `compare`, and the tables that it returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.evaluation.closeness import pareto_front
from adapter_unlearn.evaluation.comparison import comparable, pairs
from adapter_unlearn.evaluation.comparison.methods import Method, figures, group
from adapter_unlearn.evaluation.finished_run import COSTS, Finished, rows_by_id
from adapter_unlearn.evaluation.summary import BASE


@dataclass(frozen=True)
class Failed:
    """A run of a matrix that ended in an error."""

    experiment: str
    seed: int
    folder: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        rows: one row per (method, form), the base first. A figure is the mean over the seeds; `_seeds_min` and
            `_seeds_max` are minimum and maximum, `_low` and `_high` its 95 % interval over sequences. `failing` is
            the number of failing sequences (see criteria.failing). `difference` is the mean paired difference in
            memorization accuracy to the baseline. `front_holdout` and `front_test`: no other method forgets more at
            less cost to that set's perplexity.
        pairs: one row per (method, method, form): the distances; `alike` and `duplicate` as in pairs.pair.
        runs: one row per run: method, seed, folder, its cost and outcome, or why it failed.
        baseline: the method that differences refer to.
        warnings: sentences, without any text of the sets.
        about: entries of the comparison's manifest: the base and the sets that all runs share.
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
        failed: runs that did not finish; they appear in Comparison.runs.
        baseline: name of the method that the others are compared with, or `best`: fewest failing sequences, then the
            smallest perplexity increase. None takes the first.

    Raises:
        RunError: two runs are not comparable.
        RecipeError: no method has the baseline's name.
    """
    runs = comparable.comparable(runs)
    methods = group(runs)
    forms = list(dict.fromkeys(form for method in methods for form in method.forms))
    places = [(method, form) for method in methods for form in forms if method.measured(form)]
    base = Method(BASE, (runs[0],))
    rows = pd.DataFrame([figures(method, form) for method, form in [(base, BASE), *places]])
    reference = _baseline(methods, rows, failed, baseline)
    differences = [pairs.difference(method, reference, form) for method, form in [(reference, BASE), *places]]
    rows = rows.join(pd.DataFrame(differences, columns=["difference", "difference_low", "difference_high"]))
    for name in ("holdout", "test"):
        rows[f"front_{name}"] = _fronts(rows, f"{name}_perplexity_change")
    distances = pd.DataFrame(
        [pairs.pair(a, b, form) for form in forms for a, b in combinations(methods, 2)
         if a.measured(form) and b.measured(form)]
    )  # fmt: skip
    warnings = [f"{run.experiment}, seed {run.seed}, failed: {run.reason}" for run in failed]
    warnings += pairs.warnings(distances) + comparable.warnings(runs)
    single = [method.name for method in methods if len(method.runs) == 1]
    if len(methods) > 1 and single:
        warnings.append(
            f"There is only one run of {', '.join(single)}, and no interval covers the variance between training seeds."
        )
    if baseline not in (None, "best", reference.name):
        warnings.append(f"The baseline {baseline} failed, so differences are to {reference.name}.")
    return Comparison(rows, distances, _runs_table(methods, failed), reference.name, warnings, _about(runs[0]))


def best(rows: pd.DataFrame) -> pd.Series[Any]:
    """The row with the fewest failing sequences; among equals the smallest perplexity increase. First form only."""
    rows = rows[rows["form"] != BASE]
    rows = rows[rows["form"] == rows["form"].iloc[0]]
    return rows.sort_values(["failing", "holdout_perplexity_change", "test_perplexity_change"]).iloc[0]


def check_baseline(name: str | None, methods: Iterable[str]) -> None:
    """Check the baseline's name before anything is run.

    Raises:
        RecipeError: it is neither `best` nor one of the methods.
    """
    names = list(dict.fromkeys(methods))
    if name not in (None, "best", *names):
        raise RecipeError(f"--baseline: no method is named {name!r}; choose from best, {', '.join(names)}")


def _baseline(methods: Sequence[Method], rows: pd.DataFrame, failed: Sequence[Failed], name: str | None) -> Method:
    by_name = {method.name: method for method in methods}
    check_baseline(name, [*by_name, *(run.experiment for run in failed)])
    if name == "best" and name not in by_name:
        name = str(best(rows)["method"])
    return by_name.get(name or "", methods[0])  # a failed run is no baseline


def _fronts(rows: pd.DataFrame, cost: str) -> pd.Series:
    """Which rows are on their form's Pareto front. The base forgets nothing at no cost, so it is left out."""
    front = pd.Series(False, index=rows.index)
    for _, part in rows[rows["form"] != BASE].groupby("form"):
        front[part.index] = pareto_front(part["failing"].to_numpy(float), part[cost].to_numpy(float))
    return front


def _runs_table(methods: Sequence[Method], failed: Sequence[Failed]) -> pd.DataFrame:
    columns = ["method", "seed", "folder", "failed", "goal_reached", "stopped_because", *COSTS]
    records: list[dict[str, Any]] = []
    for method in methods:
        for run in method.runs:
            reason = (run.manifest.get("outcome") or {}).get("stopped_because")
            place = {"method": method.name, "seed": run.seed, "folder": run.folder, "failed": None}
            records.append(place | {"stopped_because": reason} | run.costs)
    for failure in failed:
        place = {"method": failure.experiment, "seed": failure.seed, "folder": failure.folder}
        records.append(dict.fromkeys(columns) | place | {"failed": failure.reason})
    return pd.DataFrame(records, columns=columns).astype({"failed": object, "seed": object})


def _about(run: Finished) -> dict[str, Any]:
    return {
        "base": run.manifest.get("base"),
        "bounds": asdict(run.summary.base.bounds),
        "n_sequences": len(rows_by_id(run.sequences, BASE)),
        "n_holdout": len(rows_by_id(run.holdout, BASE)),
    }
