"""Single measures on hand-made predictions, outliers, and the area under the curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn.memorization import outliers, teacher_forced
from adapter_unlearn.memorization.outliers import PAPER, Bounds
from adapter_unlearn.memorization.table import METRICS
from adapter_unlearn.memorization.teacher_forced import NotScorableError, Predictions


def seen(pattern: str, prefix_tokens=1, scored_from=1, nll=None):
    hits = np.array([mark == "x" for mark in pattern], dtype=bool)
    return Predictions(hits, np.ones(len(hits)) if nll is None else np.array(nll), prefix_tokens, scored_from)


def test_by_hand():
    predictions = seen("xx.xxx.", prefix_tokens=4)
    assert teacher_forced.memorization_accuracy(predictions) == pytest.approx(5 / 7)
    assert teacher_forced.longest_verbatim_run(predictions) == 3
    assert teacher_forced.extractable(predictions) == 0
    assert teacher_forced.extractable(seen(".x.xxxx", prefix_tokens=4)) == 1
    assert teacher_forced.loss(seen("xx", nll=[1.0, 3.0])) == 2
    assert teacher_forced.longest_verbatim_run(seen("...")) == 0


def test_a_prompt_counts_for_nothing():
    predictions = seen("....xx", prefix_tokens=5, scored_from=5, nll=[9, 9, 9, 9, 1, 1])
    assert teacher_forced.memorization_accuracy(predictions) == 1
    assert teacher_forced.loss(predictions) == 1


def test_fifty_needs_fifty():
    assert teacher_forced.extractable_50(seen("." * 9 + "x" * 50 + ".", prefix_tokens=10)) == 1
    assert teacher_forced.extractable_50(seen("x" * 9 + "." + "x" * 49, prefix_tokens=10)) == 0
    with pytest.raises(NotScorableError, match="50 needed"):
        teacher_forced.extractable_50(seen("x" * 58, prefix_tokens=10))


@given(st.text(alphabet="x.", min_size=1, max_size=80))
def test_the_longest_run_is_the_longest_stretch(pattern):
    assert teacher_forced.longest_verbatim_run(seen(pattern)) == max(map(len, pattern.split(".")))


@pytest.mark.parametrize("name", METRICS)
def test_no_tokens_no_number(name):
    with pytest.raises(NotScorableError):
        METRICS[name].function(seen(""))


@pytest.mark.parametrize("name", METRICS)
def test_numbers_keep_to_their_range(name):
    for pattern in ("x" * 70, "." * 70, "x." * 35):
        assert METRICS[name].lower <= METRICS[name].function(seen(pattern)) <= METRICS[name].upper


def test_outliers():
    accuracy, before = np.array([0.9, 0.1, 0.1, np.nan, 0.5]), np.array([0.95, 0.1, 0.5, np.nan, 0.5])
    counts = outliers.count(accuracy, before, Bounds("reference", 0.2, 0.6))
    assert counts == {"outliers_high": 1, "outliers_low": 2, "outliers_low_new": 1}
    assert PAPER.are_high(np.array([0.60, 0.59])).tolist() == [True, False]
    assert PAPER.are_low(np.array([0.15, 0.16])).tolist() == [True, False]
    bounds = outliers.reference_bounds(np.linspace(0, 1, 101))
    assert (bounds.kind, bounds.low, bounds.high) == ("reference", pytest.approx(0.05), pytest.approx(0.95))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_auc_is_the_share_of_pairs(members, others):
    naive = np.mean([(m > o) + 0.5 * (m == o) for m in members for o in others])
    assert outliers.auc(np.array(members, float), np.array(others, float)) == pytest.approx(naive)


def test_auc_of_nothing():
    assert np.isnan(outliers.auc(np.array([np.nan]), np.array([1.0])))
