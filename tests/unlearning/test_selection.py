"""Selections: each against its definition, and the table."""

from __future__ import annotations

import functools
import inspect
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn.evaluation import criteria
from adapter_unlearn.unlearning.selection import SELECTIONS, Known, above, at_least, below, most_memorized, sample


def scores(accuracy, runs=None):
    return pd.DataFrame({"memorization_accuracy": accuracy, "longest_verbatim_run": runs or [0.0] * len(accuracy)})


def known(accuracy, runs=None, before=None, holdout=None, seed=0):
    frame = scores(accuracy, runs)
    return Known(np.random.default_rng(seed), frame, frame if before is None else scores(before), holdout)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1))
def test_threshold_selects_what_is_memorized_or_the_most_memorized_one(accuracy, threshold):
    selected = at_least(known(accuracy), threshold).tolist()
    expected = [i for i, g in enumerate(accuracy) if g >= threshold]
    assert selected == (expected or [accuracy.index(max(accuracy))])


def test_what_cannot_be_scored_is_not_ascended():
    partly = known([math.nan, 0.2, math.nan, 0.9])
    assert at_least(partly).tolist() == [1, 3]
    assert at_least(partly, 0.95).tolist() == [3]


def test_a_long_run_is_selected_whatever_the_accuracy():
    partly = known([0.1, 0.9, 0.2, math.nan], runs=[9, 2, 8, math.nan])
    assert at_least(partly, 0.5, run_threshold=9).tolist() == [0, 1]
    assert at_least(partly, 0.95, run_threshold=10).tolist() == [1]


UNSEEN = scores(np.linspace(0, 0.4, 101).tolist(), runs=[3.0] * 101)
LOW, HIGH = np.quantile(UNSEEN["memorization_accuracy"], [0.05, 0.95])  # .02 and .38


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20), st.booleans())
def test_the_band_ascends_above_and_raises_what_it_lowered(rows, holdout):
    now, before = zip(*rows)
    state = known(now, before=before, holdout=UNSEEN)
    band = {"low": "holdout", "high": "holdout"} if holdout else {"low": 0.2, "high": 0.5}
    bottom, top = (LOW, HIGH) if holdout else (0.2, 0.5)
    expected = [i for i, g in enumerate(now) if g > top]
    assert above(state, **band).tolist() == expected, "there is no fallback to the most memorized one"
    expected = [i for i, g in enumerate(now) if g < bottom and g < before[i]]
    assert below(state, **band).tolist() == expected


def test_the_band_selects_the_outliers_of_the_criteria():
    """A value equal to a bound is neither: the selection, the outliers and the stop rule use one convention."""
    bounds = criteria.holdout_bounds(UNSEEN["memorization_accuracy"].to_numpy())
    around = [
        f(b) for b in (bounds.low, bounds.high) for f in (lambda b: np.nextafter(b, 0), float, lambda b: b + 1e-9)
    ]
    state = known(around, before=[1.0] * 6, holdout=UNSEEN)
    accuracy = np.array(around)
    assert above(state, "holdout", "holdout").tolist() == np.flatnonzero(bounds.are_high(accuracy)).tolist() == [5]
    assert below(state, "holdout", "holdout").tolist() == np.flatnonzero(bounds.are_low(accuracy)).tolist() == [0]


def test_the_band_and_long_runs():
    state = known([0.1, 0.9, math.nan, 0.0], runs=[4, 0, math.nan, 3], before=[0.5, 1, math.nan, 0.5], holdout=UNSEEN)
    assert above(state, 0.5).tolist() == [1]
    assert above(state, 0.5, run_threshold="holdout").tolist() == [0, 1]
    assert below(state, 0.5, 0.2).tolist() == [0, 3]
    assert below(state, 0.5, 0.2, "holdout").tolist() == [3], "no row is ascended and descended at once"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 25))
def test_the_most_memorized(accuracy, number):
    selected = most_memorized(known([*accuracy, math.nan]), number).tolist()
    best = sorted(range(len(accuracy)), key=lambda i: (-accuracy[i], i))[:number]
    assert selected == sorted(best)


def test_a_sample_has_no_row_twice():
    drawn = sample(known([0.0] * 20, seed=1), 8)
    assert len(set(drawn.tolist())) == 8
    assert sample(known([0.0] * 5), 8).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_row_names_its_functions_options(name):
    row = SELECTIONS[name]
    defaults = {key: option.default for key, option in row.options.items()}
    for function in filter(None, (row.forget, row.restore)):
        assert defaults.keys() <= inspect.signature(function).parameters.keys()
        selected = functools.partial(function, **defaults)(known([0.1, 0.9], holdout=UNSEEN))
        assert set(selected.tolist()) <= {0, 1}
