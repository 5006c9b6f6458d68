"""Stop rules, the perplexity budget, and the order of epochs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from adapter_unlearn.evaluation import criteria
from adapter_unlearn.recipe import Stop
from adapter_unlearn.unlearning import stopping
from adapter_unlearn.unlearning.stopping import Goal


def record(mean=0.5, highest=0.9, extractable=1, run=9, failing=1, perplexity=10.0, auc=None):
    return {
        "memorization_accuracy_mean": mean, "memorization_accuracy_max": highest, "extractable": extractable,
        "longest_verbatim_run_max": run, "failing": failing, "validation_perplexity": perplexity,
        "membership_auc_loss": auc,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("goal", "figures", "expected"),
    [
        pytest.param(Goal(mean_below=0.4, extractable=0), {"mean": 0.3, "extractable": 1}, False, id="one of two"),
        pytest.param(Goal(mean_below=0.4, extractable=0), {"mean": 0.4, "extractable": 0}, False, id="mean at level"),
        pytest.param(Goal(mean_below=0.4, extractable=0), {"mean": 0.3, "extractable": 0}, True, id="both"),
        pytest.param(Goal(), {"mean": 0.0}, False, id="no levels"),
        pytest.param(Goal(longest_run=9), {"run": 9}, True, id="run at level"),
        pytest.param(Goal(longest_run=9), {"run": 10}, False, id="run above"),
        pytest.param(Goal(max_below=0.9), {"highest": 0.9}, True, id="maximum at level"),
        pytest.param(Goal(max_below=0.9), {"highest": np.nextafter(0.9, 1)}, False, id="maximum above"),
    ],
)
def test_all_levels_must_hold(goal, figures, expected):
    assert stopping.reached(goal, record(**figures)) is expected


HOLDOUT = pd.DataFrame({"memorization_accuracy": np.linspace(0, 0.4, 101), "longest_verbatim_run": [3.0] * 101})


def test_levels_from_the_holdout_set():
    stop = Stop(mean_below="holdout", max_below="holdout", longest_run="holdout", extractable=0)
    goal = stopping.resolve(stop, HOLDOUT)
    assert (goal.mean_below, goal.max_below) == (pytest.approx(0.2), pytest.approx(0.38))
    assert (goal.longest_run, goal.extractable) == (3, 0)
    assert stopping.resolve(Stop(), None) == Goal(mean_below=0.33)


@pytest.mark.parametrize("seed", range(5))
def test_the_maximum_is_reached_exactly_where_there_is_no_high_outlier(seed):
    accuracy = np.random.default_rng(seed).uniform(0, 0.4, 37)
    goal = stopping.resolve(Stop(mean_below=None, max_below="holdout"), HOLDOUT.iloc[:37].assign(
        memorization_accuracy=accuracy
    ))  # fmt: skip
    bounds = criteria.holdout_bounds(accuracy)
    for highest in (bounds.high, np.nextafter(bounds.high, 0), np.nextafter(bounds.high, 1)):
        assert stopping.reached(goal, record(highest=highest)) is not bool(bounds.are_high(np.array([highest]))[0])


def test_extraction_likelihood_is_open_when_all_other_levels_hold():
    holdout = pd.DataFrame({
        "memorization_accuracy": [0.2, 0.4], "longest_verbatim_run": [3.0, 4.0], "extraction_likelihood": [0.0, 0.1],
    })  # fmt: skip
    goal = stopping.resolve(Stop(mean_below=0.4, extraction_likelihood_below="holdout"), holdout)
    assert goal.extraction_likelihood_below == pytest.approx(0.05)
    open_one = record(mean=0.3)
    assert not stopping.reached(goal, open_one) and stopping.only_extraction_likelihood_is_open(goal, open_one)
    assert not stopping.only_extraction_likelihood_is_open(goal, record(mean=0.5))
    assert stopping.reached(goal, open_one | {"extraction_likelihood_mean": 0.04})
    assert not stopping.reached(goal, open_one | {"extraction_likelihood_mean": 0.05})
    assert stopping.only_extraction_likelihood_is_open(Goal(extraction_likelihood_below=0.1), record())
    assert not stopping.only_extraction_likelihood_is_open(Goal(), record())


@pytest.mark.parametrize(
    ("budget", "after", "before", "expected"),
    [
        pytest.param(0.05, 10.5, 10.0, True, id="at the budget"),
        pytest.param(0.05, 10.51, 10.0, False, id="past it"),
        pytest.param(0.05, math.nan, 10.0, False, id="not finite"),
        pytest.param(None, 99.0, 10.0, True, id="no budget"),
        pytest.param(0.05, None, None, True, id="no validation set"),
    ],
)
def test_the_budget(budget, after, before, expected):
    assert stopping.within(budget, record(perplexity=after), record(perplexity=before)) is expected


@pytest.mark.parametrize(
    ("after", "growth"), [(106.0, "+6.0%"), (999.0, "+899.0%"), (1000.0, "10 times"), (6e25, "6e+23 times")]
)
def test_the_excess_is_readable(after, growth):
    message = stopping.excess(0.05, record(perplexity=after), record(perplexity=100.0))
    assert f" {growth}" in message and "+5.0%" in message


BETTER_FIRST = {
    "failing before perplexity": [{"failing": 1, "perplexity": 8}, {"failing": 2, "perplexity": 1}],
    "failing before extractable": [{"failing": 1, "extractable": 5}, {"failing": 2, "extractable": 0}],
    "extractable before perplexity": [{"extractable": 0, "perplexity": 9}, {"extractable": 1, "perplexity": 1}],
    # within 0.1 of 0.5 no set is distinguishable
    "distinguishable before perplexity": [
        {"auc": 0.41, "perplexity": 8}, {"auc": 0.58, "perplexity": 9}, {"auc": 0.25, "perplexity": 2},
        {"auc": 0.8, "perplexity": 1},
    ],
    "failing before distinguishable": [{"auc": 0.9}, {"failing": 2, "auc": 0.5}],
    # past what never-seen text has, a lower accuracy is damage
    "run before mean": [{"mean": 0.15, "run": 12, "perplexity": None}, {"mean": 0.14, "run": 15, "perplexity": None}],
    "perplexity before run": [{"run": 15, "perplexity": 9.0}, {"run": 12}],
    "mean at last": [{"mean": 0.3}, {"mean": 0.4}],
}  # fmt: skip


@pytest.mark.parametrize("figures", BETTER_FIRST.values(), ids=BETTER_FIRST)
def test_merit_sorts_epochs_best_first(figures):
    epochs = [record(**figure) for figure in figures]
    assert all(stopping.merit(better) < stopping.merit(worse) for better, worse in itertools.pairwise(epochs))


def test_a_log_without_a_holdout_set_is_not_distinguishable():
    without = {key: value for key, value in record().items() if key != "membership_auc_loss"}
    assert stopping.merit(record(auc=None)) == stopping.merit(without) == stopping.merit(record(auc=0.5))
