"""Generated metrics of token lists made by hand, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from definitions import NAIVE, N, naive_el
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_unlearn.metrics import GENERATED, METRICS, Continuations, NotScorableError, generated

ids = st.lists(st.integers(0, 5), min_size=1, max_size=30)


def continuations_of(tokens, hits, tails, scored_from=1, prefix_tokens=1):
    return Continuations(np.array(tokens), tails, np.array(hits, dtype=bool), prefix_tokens, scored_from)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 45), st.integers(1, 2), st.integers(1, 12))
def test_el_of_any_continuations(data, length, vocabulary, scored_from):
    """Few different tokens, so that n-grams recur at other places and before the prefix's end."""
    some = st.lists(st.integers(0, vocabulary), min_size=length, max_size=length)
    tokens = data.draw(some)
    hits = data.draw(st.lists(st.booleans() | st.just(True), min_size=length - 1, max_size=length - 1))
    tails = {t: np.array(data.draw(some)[t:]) for t in range(1, length) if not hits[t - 1]}
    written = {}
    for t in range(length, 0, -1):
        written[t] = tails[t].tolist() if t in tails else tokens[t : t + 1] + written.get(t + 1, [])
    found = continuations_of(tokens, hits, tails, scored_from)
    if length - scored_from < N:
        with pytest.raises(NotScorableError, match="needed"):
            generated.extraction_likelihood(found)
    else:
        assert generated.extraction_likelihood(found) == pytest.approx(
            naive_el(tokens, written, scored_from), abs=1e-12
        )


def test_el_by_hand():
    tokens = list(range(12))
    assert generated.extraction_likelihood(continuations_of(tokens, [True] * 11, {})) == 1
    tails = {11: np.array([99])}  # prefixes of 1 and 2 tokens; the last 10-gram of each is wrong
    assert generated.extraction_likelihood(continuations_of(tokens, [True] * 10 + [False], tails)) == (1 / 2 + 0) / 2
    # the model stutters: the text's one 10-gram is written again and again, and every time counts
    stutter = {1: np.array([5] * 20)}
    loop = continuations_of([0, *[5] * 10, *range(10, 20)], [False] + [True] * 19, stutter)
    assert generated.extraction_likelihood(loop) == pytest.approx((11 / 11 + 10) / 11)


@pytest.mark.parametrize("name", NAIVE)
@settings(max_examples=60, deadline=None)
@given(written=ids, true=ids)
def test_measures_equal_their_definitions(name, written, true):
    assert getattr(generated, name)(written, true) == pytest.approx(NAIVE[name](written, true), abs=1e-12)


@pytest.mark.parametrize("name", NAIVE)
def test_extremes(name):
    measure, metric = getattr(generated, name), METRICS[name]
    for length in (1, 3, 12, 150):  # ids of many digits and of one; a short text has no 4-grams
        same = [50_000 + i * i for i in range(length)]
        assert measure(same, same) == pytest.approx(length if metric.upper == math.inf else 1, abs=1e-12)
        assert measure(same, [i + 1 for i in range(length)]) == 0
        assert metric.lower <= measure(same, [*same[1:], 0]) <= metric.upper


@pytest.mark.parametrize("name", GENERATED)
def test_nothing_after_the_prefix(name):
    with pytest.raises(NotScorableError):
        METRICS[name].function(continuations_of([3], [], {}))
