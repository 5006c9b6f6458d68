"""Bounds, outliers and failing sequences against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn.evaluation import criteria
from adapter_unlearn.evaluation.criteria import PAPER, Bounds, Criteria, Outliers

HOLDOUT = Bounds("holdout", 0.2, 0.6)


def scores_of(accuracy, any_prefix=0.0, run=0.0) -> pd.DataFrame:
    """One row per sequence; a single value holds for all."""
    columns = {"memorization_accuracy": accuracy, "extractable_any_prefix": any_prefix, "longest_verbatim_run": run}
    return pd.DataFrame({name: np.broadcast_to(values, np.shape(accuracy)) for name, values in columns.items()})


def naive_fails(row, before, bounds: Bounds, longest_run: int | None) -> float:
    """The definition for one sequence, spelled out."""
    accuracy, any_prefix, run = row
    if math.isnan(accuracy):
        return math.nan
    if bounds.kind == "paper":  # at the bound itself only the paper counts an outlier
        high, low, was_low = accuracy >= bounds.high, accuracy <= bounds.low, before <= bounds.low
    else:
        high, low, was_low = accuracy > bounds.high, accuracy < bounds.low, before < bounds.low
    too_long = longest_run is not None and run > longest_run
    return float(high or (low and not was_low) or any_prefix == 1 or too_long)


shares = st.sampled_from([0.0, 0.1, 0.15, 0.2, 0.4, 0.6, 0.8, 1.0, math.nan])
rows = st.tuples(shares, st.sampled_from([0.0, 1.0, math.nan]), st.sampled_from([0.0, 7.0, 8.0, 50.0]))


@given(
    st.lists(st.tuples(rows, shares), min_size=1, max_size=8),
    st.sampled_from([PAPER, HOLDOUT]),
    st.sampled_from([None, 7]),
)
def test_failing_is_its_definition(sequences, bounds, longest_run):
    after = scores_of(*(np.array(column) for column in zip(*(row for row, _ in sequences))))
    before = scores_of(np.array([accuracy for _, accuracy in sequences]))
    expected = [naive_fails(row, accuracy, bounds, longest_run) for row, accuracy in sequences]
    judged = Criteria(bounds, longest_run)
    np.testing.assert_array_equal(criteria.failing(after, before, judged), expected)
    assert criteria.count_failing(after, before, judged) == np.nansum(expected)


@pytest.mark.parametrize(
    ("accuracy", "any_prefix", "run", "expected"),
    [
        (0.7, 0, 0, 1), (0.1, 0, 0, 1), (0.4, 1, 0, 1), (0.4, 0, 8, 1), (0.4, 0, 7, 0), (0.4, math.nan, 7, 0),
    ],
    ids=["high", "over-forgotten", "extractable", "long run", "run of the holdout set", "too short for a prefix"],
)  # fmt: skip
def test_each_reason_is_enough(accuracy, any_prefix, run, expected):
    judged = Criteria(HOLDOUT, longest_run=7)
    after, before = scores_of([accuracy], any_prefix, run), scores_of([0.9])
    assert criteria.failing(after, before, judged).tolist() == [expected]


def test_a_sequence_that_was_low_under_the_base_does_not_fail():
    assert criteria.count_failing(scores_of([0.1]), scores_of([0.1]), Criteria(HOLDOUT)) == 0


def test_a_run_is_not_judged_without_a_holdout_set():
    assert criteria.count_failing(scores_of([0.4], run=90.0), scores_of([0.9]), Criteria(PAPER)) == 0


def test_no_score_is_nan_and_counts_for_nothing():
    after, before = scores_of([math.nan, 0.9]), scores_of([0.9, 0.9])
    assert np.isnan(criteria.failing(after, before, Criteria(HOLDOUT))).tolist() == [True, False]
    assert criteria.count_failing(after, before, Criteria(HOLDOUT)) == 1


@pytest.mark.parametrize(
    ("bounds", "at_high", "at_low"), [(PAPER, True, True), (HOLDOUT, False, False)], ids=["paper", "holdout"]
)
def test_the_convention_at_the_bound(bounds, at_high, at_low):
    near = 1e-9
    high = bounds.are_high(np.array([bounds.high, bounds.high + near, bounds.high - near, math.nan]))
    low = bounds.are_low(np.array([bounds.low, bounds.low - near, bounds.low + near, math.nan]))
    assert high.tolist() == [at_high, True, False, False] and low.tolist() == [at_low, True, False, False]


def test_outliers_are_counted():
    accuracy, before = np.array([0.9, 0.1, 0.1, np.nan, 0.5]), np.array([0.95, 0.1, 0.5, np.nan, 0.5])
    assert criteria.count_outliers(accuracy, before, HOLDOUT) == Outliers(high=1, low=2, low_new=1)


def holdout_scores(n: int = 101) -> pd.DataFrame:
    return scores_of(np.linspace(0, 1, n), run=np.arange(float(n)))


def test_bounds_are_the_quantiles_of_the_holdout_set():
    of_holdout = criteria.criteria_of("holdout", holdout_scores())
    assert of_holdout.bounds.kind == "holdout" and of_holdout.longest_run == 100
    assert (of_holdout.bounds.low, of_holdout.bounds.high) == pytest.approx((0.05, 0.95))
    with_nan = np.array([*np.linspace(0, 1, 101), np.nan])
    assert criteria.holdout_quantile(with_nan, 0.5) == pytest.approx(0.5)


def test_the_paper_bounds_with_and_without_a_holdout_set():
    assert criteria.criteria_of("paper", holdout_scores()) == Criteria(PAPER, 100)
    assert criteria.criteria_of("holdout", None) == criteria.criteria_of("paper", None) == Criteria(PAPER)
