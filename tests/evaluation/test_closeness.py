"""Closeness and the Pareto front against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_unlearn.evaluation.closeness import SAME_AS_SEEDS, SAME_SHARE, closeness, pareto_front


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_closeness_is_its_definition(data):
    n = data.draw(st.integers(2, 9))
    matrix = st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=1, max_size=3)
    a, b = np.array(data.draw(matrix)), np.array(data.draw(matrix))
    before = np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    result = closeness(a, b, before, 0.01, list(range(len(a))), list(range(len(b))))
    means = [sum(row[i] for row in a) / len(a) - sum(row[i] for row in b) / len(b) for i in range(n)]
    assert result.difference.value == pytest.approx(sum(means) / n)
    generator = np.random.default_rng(0)
    drawn = np.concatenate([np.array(means)[generator.integers(n, size=(2000, n))].mean(axis=1)])
    low, high = (np.quantile(drawn, q, method=m) for q, m in ((0.025, "lower"), (0.975, "higher")))
    assert (result.difference.low, result.difference.high) == pytest.approx((low, high))
    within = [np.mean(np.abs(x[i] - x[j])) for x in (a, b) for i in range(len(x)) for j in range(i + 1, len(x))]
    cross = [(i, j) for i in range(len(a)) for j in range(len(b)) if not within or i != j]
    distance = np.mean([np.mean(np.abs(a[i] - b[j])) for i, j in cross])
    effect = min(np.mean(np.abs(x.mean(axis=0) - before)) for x in (a, b))
    tolerance = max(0.01, SAME_SHARE * effect, SAME_AS_SEEDS * np.mean(within) if within else 0)
    assert result.distance == pytest.approx(distance) and result.tolerance == pytest.approx(tolerance)
    spans = [(x.mean(axis=1).min(), x.mean(axis=1).max()) for x in (a, b)]
    overlap = bool(within) and spans[0][0] <= spans[1][1] and spans[1][0] <= spans[0][1]
    if abs(distance - tolerance) > 1e-9 and min(abs(low), abs(high)) > 1e-9:
        assert result.alike == ((low <= 0 <= high or overlap) and distance <= tolerance)


def test_what_is_alike_and_what_is_not():
    rng = np.random.default_rng(1)
    before, level = rng.uniform(0.6, 1, 64), rng.uniform(0.2, 0.4, 64)
    jitter = rng.normal(0, 0.01, (4, 64))
    assert closeness(level[None], level[None], before, 0.01).alike
    assert closeness(level[None], (level + jitter[0])[None], before, 0.01).alike
    assert not closeness(level[None], (level + 0.03 + jitter[0])[None], before, 0.01).alike, "a direction"
    swing = np.where(np.arange(64) % 2, 0.15, -0.15)
    cancelled = closeness(level[None], (level + swing)[None], before, 0.01)
    assert not cancelled.alike and abs(cancelled.difference.value) < 1e-9, "large differences that cancel"
    few = closeness(level[None, :3], (level + rng.normal(0, 0.3, 64))[None, :3], before[:3], 0.01)
    assert few.difference.low < 0 < few.difference.high and not few.alike, "lack of evidence is no likeness"
    # two methods as far apart as two seeds of one method are alike; with one seed each there is no such evidence
    shifts = np.array([-0.1, 0.1, -0.05, 0.12])[:, None]
    both = [level + shifts[:2], level + shifts[2:]]
    assert closeness(*both, before, 0.01, [0, 1], [0, 1]).alike
    assert not closeness(both[0][:1], both[1][:1], before, 0.01, [0], [1]).alike


def test_shared_seeds_do_not_make_methods_look_closer():
    """Two methods that are equal seed by seed are compared across seeds, as two seeds of one method are."""
    rng = np.random.default_rng(0)
    runs = rng.uniform(0, 1, (3, 40))
    result = closeness(runs, runs, np.ones(40), 0.0, [0, 1, 2], [0, 1, 2])
    apart = np.mean([np.abs(runs[i] - runs[j]).mean() for i in range(3) for j in range(3) if i != j])
    assert result.distance == pytest.approx(apart) and result.alike


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan]), st.integers(0, 4)), min_size=1, max_size=12))
def test_front_is_its_definition(points):
    x, y = (np.array(column, dtype=float) for column in zip(*points))
    for i, on in enumerate(pareto_front(x, y)):
        beaten = any(
            x[j] <= x[i] and y[j] <= y[i] and (x[j] < x[i] or y[j] < y[i]) for j in range(len(x)) if not np.isnan(x[j])
        )
        assert on == (not np.isnan(x[i]) and not beaten)
