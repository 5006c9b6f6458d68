"""Intervals and membership against their definitions, pair by pair and draw by draw."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_unlearn import RecipeError
from adapter_unlearn.metrics import set_level
from adapter_unlearn.metrics.set_level import (
    auc_interval,
    mean_interval,
    membership,
    perplexity_change_interval,
    perplexity_interval,
    tpr_at_fpr_interval,
)

scores = st.lists(st.integers(-3, 3) | st.sampled_from([math.nan, -math.inf]), min_size=1, max_size=12)


def known(values) -> list[float]:
    return [value for value in values if not math.isnan(value)]


@given(scores, scores)
def test_auc_is_the_share_of_pairs(members, others):
    pairs = [(m > o) + 0.5 * (m == o) for m in known(members) for o in known(others)]
    found = auc_interval(np.array(members, float), np.array(others, float), resamples=50)
    assert found.value == pytest.approx(np.mean(pairs) if pairs else math.nan, nan_ok=True)
    assert found.value == pytest.approx(set_level.auc(np.array(members, float), np.array(others, float)), nan_ok=True)
    assert not pairs or len(pairs) == 1 or 0 <= found.low <= found.high <= 1


def tpr(members, others, fpr) -> float:
    """Try every threshold."""
    allowed = [t for t in [*members, *others, math.inf] if sum(o >= t for o in others) <= fpr * len(others) + 1e-9]
    return max(sum(m >= t for m in members) / len(members) for t in allowed)


@given(scores, scores, st.sampled_from([0.01, 0.1, 0.25, 0.5]))
def test_tpr_is_that_of_the_best_threshold(members, others, fpr):
    found = tpr_at_fpr_interval(np.array(members, float), np.array(others, float), fpr, resamples=50)
    if known(members) and known(others):
        assert found.value == pytest.approx(tpr(known(members), known(others), fpr))
    else:
        assert all(map(math.isnan, found))


def test_one_of_a_hundred_may_be_wrong():
    others = np.arange(100.0)
    members = np.array([98.5, 99.0, 99.5, 200])
    assert tpr_at_fpr_interval(members, others).value == 1, "99 is above 98.5, and is the one of a hundred"
    assert tpr_at_fpr_interval(members, others[:-1] + 1).value == 0.5, (
        "99 others allow none; a tie with 99 is not found"
    )
    assert tpr_at_fpr_interval(members, np.append(others, 99.0)).value == 0.5, "101 allow one, and two are at 99"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_intervals_are_quantiles_of_resampled_sets(seed):
    """Draw by draw, with the same indices, however they are blocked."""
    generator = np.random.default_rng(seed)
    members, others = generator.integers(0, 6, 9).astype(float), generator.integers(0, 5, 7).astype(float)
    drawn = [draw for draws in set_level._draws([9, 7], 60, seed) for draw in zip(*draws)]
    assert len(drawn) == 60
    areas = sorted(np.mean([(m > o) + 0.5 * (m == o) for m in members[a] for o in others[b]]) for a, b in drawn)
    rates = sorted(tpr(members[a], others[b], 0.2) for a, b in drawn)
    found = auc_interval(members, others, 0.9, 60, seed)
    assert (found.low, found.high) == (pytest.approx(areas[2]), pytest.approx(areas[57]))
    found = tpr_at_fpr_interval(members, others, 0.2, 0.9, 60, seed)
    assert (found.low, found.high) == (pytest.approx(rates[2]), pytest.approx(rates[57]))
    means = sorted(members[draw[0]].mean() for draws in set_level._draws([9], 60, seed) for draw in zip(*draws))
    found = mean_interval(members, 0.9, 60, seed)
    assert found == (pytest.approx(members.mean()), pytest.approx(means[2]), pytest.approx(means[57]))


def test_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    members, others = generator.normal(1, 1, 30), generator.normal(0, 1, 40)
    whole = auc_interval(members, others)
    monkeypatch.setattr(set_level, "_BLOCK", 140)
    parts = auc_interval(members, others)
    assert parts.value == whole.value
    # Blocks draw the two sets in turns, so the draws differ; the interval hardly does.
    assert parts == pytest.approx(whole, abs=0.02)


def test_intervals_hold_what_they_promise():
    """Of 300 sets drawn from a known distribution, about 95 in 100 have its mean within their interval."""
    generator = np.random.default_rng(0)
    within = 0
    for seed in range(300):
        found = mean_interval(generator.exponential(size=60), resamples=400, seed=seed)
        assert found.low < found.value < found.high
        within += found.low <= 1 <= found.high
    assert 0.88 <= within / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_perplexity_weighs_by_tokens():
    losses, tokens = np.array([1.0, 3.0, np.nan]), np.array([300, 100, 0])
    found = perplexity_interval(losses, tokens)
    assert found.value == pytest.approx(math.exp(1.5))
    assert (found.low, found.high) == (pytest.approx(math.e), pytest.approx(math.e**3)), "either sequence, twice"


def test_a_paired_change_is_much_surer_than_two_intervals():
    generator = np.random.default_rng(0)
    before, tokens = generator.uniform(1, 6, 200), generator.integers(20, 200, 200)
    after = before + generator.normal(0.02, 0.01, 200)
    found = perplexity_change_interval(before, after, tokens)
    ratio = perplexity_interval(after, tokens).value / perplexity_interval(before, tokens).value
    assert found.value == pytest.approx(ratio - 1)
    assert 0.015 < found.low < found.value < found.high < 0.025
    wide = perplexity_interval(before, tokens)
    assert (wide.high - wide.low) / wide.value > 10 * (found.high - found.low)
    drawn = [draw[0] for draws in set_level._draws([200], 50, 7) for draw in zip(*draws)]
    ratios = sorted(
        math.exp((after * tokens)[d].sum() / tokens[d].sum() - (before * tokens)[d].sum() / tokens[d].sum()) - 1
        for d in drawn
    )
    again = perplexity_change_interval(before, after, tokens, 0.9, 50, 7)
    assert (again.low, again.high) == (pytest.approx(ratios[2]), pytest.approx(ratios[47]))


def test_nothing_and_one():
    nothing, one = np.array([np.nan]), np.array([0.5])
    assert math.isnan(set_level.auc(nothing, one))
    assert all(map(math.isnan, mean_interval(nothing))) and all(map(math.isnan, auc_interval(one, nothing)))
    assert mean_interval(one).value == 0.5 and math.isnan(mean_interval(one).low), "one sequence shows no spread"
    assert all(map(math.isnan, perplexity_interval(one, np.array([0]))))


def test_summary():
    found = set_level.summarize(np.array([*np.linspace(0, 1, 101), np.nan]))
    assert (found["n"], found["n_nan"], found["min"], found["max"]) == (101, 1, 0, 1)
    assert found["mean"] == pytest.approx(0.5) and found["mean_low"] < 0.5 < found["mean_high"]
    assert [found[f"quantile_{q}"] for q in ("05", "25", "50", "75", "95")] == pytest.approx(set_level.QUANTILES)
    empty = set_level.summarize(np.array([np.nan]))
    assert (empty["n"], empty["n_nan"]) == (0, 1) and math.isnan(empty["mean"]) and math.isnan(empty["quantile_50"])
    assert list(empty) == list(found)


def test_membership_knows_which_way_a_metric_goes():
    generator = np.random.default_rng(0)
    forget = pd.DataFrame({"id": "x", "loss": generator.normal(1, 0.5, 120), "min_k": generator.normal(-2, 1, 120)})
    unseen = pd.DataFrame({"id": "y", "loss": generator.normal(4, 0.5, 150), "min_k": generator.normal(-2, 1, 150)})
    forget.loc[:9, "loss"] = math.nan
    forget["zlib"] = math.nan
    unseen["zlib"] = 1.0
    told = membership(forget, unseen).set_index("metric")
    assert list(told.index) == ["loss", "zlib", "min_k"], "every metric of both, none dropped"
    assert (told.loc["loss", "n_forget"], told.loc["loss", "n_holdout"]) == (110, 150)
    assert told.loc["loss", "auc"] > 0.99 and told.loc["loss", "tpr_at_1_fpr"] > 0.9
    assert told.loc["min_k", "auc_low"] < 0.5 < told.loc["min_k", "auc_high"]
    assert told.loc["zlib", "n_forget"] == 0 and math.isnan(told.loc["zlib", "auc"])
    assert list(membership(forget, unseen, ["min_k"])["metric"]) == ["min_k"]
    with pytest.raises(RecipeError, match="unknown metric"):
        membership(forget, unseen, ["bleurt"])
