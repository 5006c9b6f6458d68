"""Records of an epoch: their figures against the criteria."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn import score
from adapter_unlearn.evaluation import criteria
from adapter_unlearn.metrics import set_level
from adapter_unlearn.unlearning import records


@pytest.mark.parametrize("kind", ["holdout", "paper"])
def test_figures_are_those_of_the_criteria(problem, kind):
    _, task = problem()
    task = dataclasses.replace(task, criteria=criteria.criteria_of(kind, task.holdout_scores))
    now = task.before.assign(memorization_accuracy=np.linspace(0, 1, len(task.before)), extractable_any_prefix=0.0)
    now.loc[2, "extractable_any_prefix"] = 1.0
    record = records.record_of(3, now, task, 10.0, 0.0, stage="ascend")
    outliers = criteria.count_outliers(*(f["memorization_accuracy"].to_numpy() for f in (now, task.before)),
                                       task.criteria.bounds)  # fmt: skip
    assert record["failing"] == criteria.count_failing(now, task.before, task.criteria) > 0
    assert [record[f"outliers_{name}"] for name in ("high", "low", "low_new")] == [
        outliers.high, outliers.low, outliers.low_new,
    ]  # fmt: skip
    assert record["extractable"] == task.before["extractable"].sum()
    assert record["memorization_accuracy_max"] == 1.0 and record["memorization_accuracy_mean"] == pytest.approx(0.5)
    auc = set_level.auc(-now["loss"].to_numpy(), -task.holdout_scores["loss"].to_numpy())
    assert record["membership_auc_loss"] == auc
    assert (record["epoch"], record["stage"], record["validation_perplexity"]) == (3, "ascend", 10.0)


def test_without_a_holdout_set_there_is_no_membership(problem):
    _, task = problem(holdout=False)
    assert records.base_outcome(task).log[0]["membership_auc_loss"] is None


def test_a_scale_is_measured_and_left(problem):
    """At scale 0 the model is the base, and a fresh adapter changes nothing."""
    model, task = problem()
    record, scored = records.measured_at(0.0, model, "default", task, 4, Accelerator())
    base = records.base_outcome(task).log[0]
    assert record["scale"] == 0.0 and record["failing"] == base["failing"]
    assert record["memorization_accuracy_mean"] == pytest.approx(base["memorization_accuracy_mean"])
    assert scored["loss"].tolist() == pytest.approx(score(model, task.forget)["loss"].tolist())


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.one_of(st.none(), st.integers(1, 400)))
def test_drawn_rows_stay_within_the_tokens(tokens, limit):
    rows = records.drawn(np.array(tokens), limit)
    assert rows.tolist() == sorted(set(rows.tolist())) and set(rows) <= set(range(len(tokens)))
    assert rows.tolist() == records.drawn(np.array(tokens), limit).tolist(), "the draw is fixed"
    total = sum(tokens[row] for row in rows)
    if limit is None or sum(tokens) <= limit:
        assert len(rows) == len(tokens)
    else:
        assert len(rows) == 1 or total <= limit
        assert total + max(tokens) >= limit or len(rows) == 1


def test_drawn_rows_come_from_all_over_the_set():
    rows = records.drawn(np.full(100, 10), 200)
    assert len(rows) == 20 and rows.min() < 20 and rows.max() >= 80
