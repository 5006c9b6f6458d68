"""Two methods against each other: how far apart they are, and whether they are the same within noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from adapter_unlearn.evaluation.closeness import closeness
from adapter_unlearn.evaluation.comparison.methods import Method, Row, scores
from adapter_unlearn.evaluation.finished_run import Finished
from adapter_unlearn.evaluation.summary import BASE
from adapter_unlearn.metrics import set_level
from adapter_unlearn.metrics.set_level import Estimate

MIN_TOLERANCE = {"memorization_accuracy": 0.01, "loss": 0.02, "holdout_loss": 0.02}
"""Mean distances that never distinguish methods: one token in a hundred; 2 % of a text's perplexity."""


def pair(first: Method, second: Method, form: str) -> Row:
    """A row of Comparison.pairs.

    Two methods are alike if they are alike in memorization accuracy, in loss and, with a holdout set, in the holdout
    set's loss: methods that forget alike may differ in their damage. They are duplicates if every seed that both have
    gave the same adapter, byte for byte.
    """
    a, b = first.measured(form), second.measured(form)
    row: Row = {"first": first.name, "second": second.name, "form": form, "duplicate": _duplicate(a, b)}
    verdicts = []
    for measure, least in MIN_TOLERANCE.items():
        if measure == "holdout_loss" and not len(a[0].holdout):
            continue
        before = scores(a[:1], BASE, measure)[0]
        result = closeness(
            scores(a, form, measure), scores(b, form, measure), before, least,
            [run.seed for run in a], [run.seed for run in b],
        )  # fmt: skip
        ends = zip(("difference", "difference_low", "difference_high"), result.difference)
        row |= {f"{measure}_{key}": value for key, value in ends}
        row |= {f"{measure}_distance": result.distance, f"{measure}_tolerance": result.tolerance}
        verdicts.append(result.alike)
    return row | {"alike": row["duplicate"] or all(verdicts)}


def _duplicate(first: Sequence[Finished], second: Sequence[Finished]) -> bool:
    weights = {run.seed: run.weights for run in first if run.weights}
    shared = [(weights[run.seed], run.weights) for run in second if run.weights and run.seed in weights]
    return bool(shared) and all(mine == theirs for mine, theirs in shared)


def warnings(pairs: pd.DataFrame) -> list[str]:
    """One sentence per pair of methods that are the same, or the same within noise."""
    sentences = []
    for row in pairs.to_dict("records"):
        names = f"{row['first']} and {row['second']} ({row['form']})"
        if row["duplicate"]:
            sentences.append(f"{names} are the same adapter, byte for byte: the setting that differs had no effect.")
        elif row["alike"]:
            sentences.append(
                f"{names} are identical within noise: their mean memorization accuracies differ by"
                f" {row['memorization_accuracy_difference']:+.3f}, that of a sequence by"
                f" {row['memorization_accuracy_distance']:.3f}; this does not show that one is better."
            )
    return sentences


def difference(method: Method, baseline: Method, form: str) -> Estimate:
    """The paired difference in memorization accuracy, method less baseline, over the sequences' means over the seeds.

    NaN for the baseline itself, and where one of the two was not measured in this form.
    """
    if method is baseline or not (method.measured(form) and baseline.measured(form)):
        return Estimate(math.nan, math.nan, math.nan)
    mine, theirs = (
        scores(one.measured(form), form, "memorization_accuracy").mean(axis=0) for one in (method, baseline)
    )
    return set_level.mean_interval(mine - theirs)
