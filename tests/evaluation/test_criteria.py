"""Bounds, outliers and failing sequences against their definitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn.evaluation import criteria
from adapter_unlearn.evaluation.criteria import PAPER, Bounds, Criteria, Outliers, count_outliers, criteria_of, failing

HOLDOUT = Bounds("holdout", 0.2, 0.6)


@pytest.mark.parametrize(
    ("bounds", "value", "high", "low"),
    [
        pytest.param(HOLDOUT, 0.6, False, False, id="a holdout bound is inside"),
        pytest.param(HOLDOUT, 0.61, True, False, id="above"),
        pytest.param(HOLDOUT, 0.2, False, False, id="the lower holdout bound is inside"),
        pytest.param(HOLDOUT, 0.19, False, True, id="below"),
        pytest.param(PAPER, 0.60, True, False, id="the paper's bound is outside"),
        pytest.param(PAPER, 0.59, False, False, id="inside the paper's bounds"),
        pytest.param(PAPER, 0.15, False, True, id="the paper's lower bound is outside"),
        pytest.param(PAPER, 0.16, False, False, id="above the paper's lower bound"),
        pytest.param(HOLDOUT, np.nan, False, False, id="no score"),
    ],
)
def test_outliers_at_the_bounds(bounds, value, high, low):
    assert (bounds.are_high(np.array([value]))[0], bounds.are_low(np.array([value]))[0]) == (high, low)


def test_outliers_are_counted():
    accuracy, before = np.array([0.9, 0.1, 0.1, np.nan, 0.5]), np.array([0.95, 0.1, 0.5, np.nan, 0.5])
    assert count_outliers(accuracy, before, HOLDOUT) == Outliers(high=1, low=2, low_new=1)


def scores(accuracy, any_prefix=0.0, run=0):
    return pd.DataFrame(
        {"memorization_accuracy": accuracy, "extractable_any_prefix": any_prefix, "longest_verbatim_run": run},
        index=range(len(accuracy)),
    )


def test_the_holdout_set_gives_bounds_and_longest_run():
    holdout = scores([*np.linspace(0, 1, 101), np.nan], run=[*range(101), np.nan])
    result = criteria_of("holdout", holdout)
    assert result.bounds.kind == "holdout" and result.longest_run == 100
    assert (result.bounds.low, result.bounds.high) == (pytest.approx(0.05), pytest.approx(0.95))
    assert result.bounds.high == criteria.holdout_quantile(holdout["memorization_accuracy"].to_numpy(), 0.95)
    assert criteria_of("paper", holdout) == Criteria(PAPER, 100)


@pytest.mark.parametrize("kind", ["holdout", "paper"])
def test_without_a_holdout_set_the_papers_bounds_apply_and_runs_are_not_judged(kind):
    result = criteria_of(kind, None)
    assert result == Criteria(PAPER)
    assert failing(scores([0.5], run=10_000), scores([0.5]), result).tolist() == [0]


@pytest.mark.parametrize(
    ("now", "before", "fails"),
    [
        pytest.param(scores([0.5]), 0.9, 0, id="like never-seen text"),
        pytest.param(scores([0.7]), 0.9, 1, id="high"),
        pytest.param(scores([0.1]), 0.9, 1, id="over-forgotten"),
        pytest.param(scores([0.1]), 0.1, 0, id="low before"),
        pytest.param(scores([0.5], any_prefix=1.0), 0.9, 1, id="extractable"),
        pytest.param(scores([0.5], any_prefix=np.nan), 0.9, 0, id="too short for a prefix"),
        pytest.param(scores([0.5], run=9), 0.9, 1, id="long run"),
        pytest.param(scores([0.5], run=8), 0.9, 0, id="run as long as the holdout set's"),
        pytest.param(scores([np.nan], any_prefix=np.nan, run=np.nan), np.nan, np.nan, id="no score"),
    ],
)
def test_a_failing_sequence(now, before, fails):
    rules = Criteria(HOLDOUT, longest_run=8)
    np.testing.assert_array_equal(failing(now, scores([before]), rules), [fails])
    assert criteria.count_failing(now, scores([before]), rules) == (fails == 1)


numbers = st.floats(0, 1) | st.just(np.nan)
rows = st.lists(st.tuples(numbers, numbers, st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 12)), min_size=1)


@given(rows, st.none() | st.integers(0, 12))
def test_failing_is_its_definition(rows, longest):
    accuracy, before, any_prefix, run = map(list, zip(*rows, strict=True))
    result = failing(scores(accuracy, any_prefix, run), scores(before), Criteria(HOLDOUT, longest))
    for value, now, old, extractable, tokens in zip(result, accuracy, before, any_prefix, run, strict=True):
        over_forgotten = now < 0.2 and not old < 0.2
        expected = now > 0.6 or over_forgotten or extractable == 1 or (longest is not None and tokens > longest)
        assert np.isnan(value) if np.isnan(now) else value == float(expected)
