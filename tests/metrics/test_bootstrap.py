"""The bootstrap against a naive one, its properties and its coverage."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_unlearn.metrics import set_level
from adapter_unlearn.metrics.set_level import mean_interval


def naive_interval(values, seed, resamples):
    draw, means = random.Random(seed), []
    for _ in range(resamples):
        means.append(sum(draw.choices(values, k=len(values))) / len(values))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_the_interval_is_that_of_a_naive_bootstrap():
    values = np.random.default_rng(0).normal(0.3, 1.4, size=200)
    result = mean_interval(values, resamples=20_000)
    assert result.value == pytest.approx(values.mean())
    width = result.high - result.low
    assert result.interval == pytest.approx(naive_interval([*values], 1, 4000), abs=0.05 * width)
    assert width == pytest.approx(2 * 1.96 * values.std() / 200**0.5, rel=0.05)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_properties_of_the_interval(values):
    values = np.array(values)
    result = mean_interval(values, resamples=200)
    assert values.min() - 1e-9 <= result.low <= result.high <= values.max() + 1e-9
    assert mean_interval(-values, resamples=200) == pytest.approx((-result.value, -result.high, -result.low), abs=1e-9)
    assert mean_interval(np.ones(len(values)), resamples=200) == pytest.approx((1, 1, 1))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        changes = draw.choice([-1.0, 0.0, 1.0], p=[0.3, 0.6, 0.1], size=200)
        result = mean_interval(changes, resamples=400)
        hits += result.low <= -0.2 <= result.high
    assert 0.92 <= hits / 400 <= 0.975


def test_the_draws_do_not_depend_on_the_size_of_a_block(monkeypatch):
    values = np.random.default_rng(0).normal(size=37)
    whole = mean_interval(values)
    monkeypatch.setattr(set_level, "_BLOCK", 100)
    assert mean_interval(values) == pytest.approx(whole, rel=1e-12)
    assert mean_interval(values, seed=1) != whole


@pytest.mark.parametrize(
    ("values", "mean"), [([], math.nan), ([math.nan], math.nan), ([0.5], 0.5), ([0.5, math.nan], 0.5)]
)
def test_fewer_than_two_values_have_no_interval(values, mean):
    result = mean_interval(np.array(values))
    assert result.value == pytest.approx(mean, nan_ok=True) and all(map(math.isnan, result.interval))
