"""The search for a scale: the grid, its refinement, and the budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn import RecipeError
from adapter_unlearn.unlearning import scale_search


def record(failing, perplexity):
    return {
        "failing": failing, "extractable": 0, "memorization_accuracy_mean": 0.5,
        "longest_verbatim_run_max": 9, "validation_perplexity": perplexity,
    }  # fmt: skip


@given(st.floats(0.2, 5.0), st.integers(1, 4))
def test_the_search_closes_in_on_the_optimum(optimum, refinements):
    """Failing sequences grow with the distance from the optimum; the answer is as near as the refined grid allows."""
    measured = []

    def measure(scale):
        measured.append(scale)
        return record(round(1000 * abs(scale + optimum)), 10.0)

    best, rows = scale_search.search(measure, record(9999, 10.0), 0.05, refinements=refinements)
    assert sorted(measured) == [row["scale"] for row in rows] and len(set(measured)) == len(measured)
    counts = {scale: round(1000 * abs(scale + optimum)) for scale in measured}
    assert counts[best] == min(counts.values())
    # with one optimum, a round halves the gap around the best scale: at most 2 wide at first, so 1 from the optimum
    assert abs(best + optimum) <= 1.0 / 2**refinements + 1e-3


def test_no_scale_within_the_budget_leaves_the_model_as_it_is():
    def measure(scale):
        return record(0 if scale else 9, 10.0 + (5.0 if scale else 0.0))

    best, rows = scale_search.search(measure, record(9, 10.0), 0.05, refinements=1)
    assert best == 0 and not any(row["within_budget"] for row in rows if row["scale"])
    best, _ = scale_search.search(measure, record(9, 10.0), None, refinements=1)
    assert best != 0


@pytest.mark.parametrize("scales", [[], [math.nan], [np.inf, 1.0]])
def test_scales_that_are_no_numbers(scales):
    with pytest.raises(RecipeError, match="finite"):
        scale_search.search(lambda scale: record(0, 1.0), record(0, 1.0), None, scales)
