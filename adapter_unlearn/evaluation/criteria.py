"""What "looks never-seen" means: the bounds, the outliers, and the failing sequences. The one definition of success.

Stop rules, the choice of the best epoch, the verdict, tables and comparisons all call this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

QUANTILES = (0.05, 0.95)
"""The holdout set's quantiles of memorization accuracy that bound what never-seen text looks like."""


@dataclass(frozen=True)
class Bounds:
    """Bounds on memorization accuracy (MA).

    Attributes:
        kind: `holdout` (quantiles of the holdout set under the base) or `paper` (fixed).
        low: the lower bound.
        high: the upper bound.
    """

    kind: Literal["holdout", "paper"]
    low: float
    high: float

    def are_high(self, accuracy: np.ndarray) -> np.ndarray:
        """Which values are high outliers, shape (n,); NaN is none. Only the paper counts a value equal to the bound."""
        return accuracy >= self.high if self.kind == "paper" else accuracy > self.high

    def are_low(self, accuracy: np.ndarray) -> np.ndarray:
        """Which values are low outliers, shape (n,); NaN is none. Only the paper counts a value equal to the bound."""
        return accuracy <= self.low if self.kind == "paper" else accuracy < self.low


PAPER = Bounds("paper", 0.15, 0.60)
"""Barbulescu & Triantafillou (2024), measured with GPT-Neo on the Pile."""


@dataclass(frozen=True)
class Outliers:
    """Numbers of outliers; `low_new` counts those that are low now and were not low under the base."""

    high: int
    low: int
    low_new: int


@dataclass(frozen=True)
class Criteria:
    """The criteria that a forget sequence is judged by.

    Attributes:
        bounds: on memorization accuracy.
        longest_run: the longest verbatim run in the holdout set under the base, in tokens. None without a holdout set:
            runs are not judged.
    """

    bounds: Bounds
    longest_run: int | None = None


def holdout_quantile(accuracy: np.ndarray, share: float) -> float:
    """A quantile of the holdout set's memorization accuracy, linearly interpolated; NaN is left out.

    Args:
        accuracy: shape (n,), at least one value that is not NaN.
        share: from 0 to 1.
    """
    return float(np.nanquantile(accuracy, share))


def holdout_bounds(accuracy: np.ndarray) -> Bounds:
    """The 5 % and 95 % quantiles of the holdout set's memorization accuracy under the base, shape (n,)."""
    low, high = (holdout_quantile(accuracy, share) for share in QUANTILES)
    return Bounds("holdout", low, high)


def criteria_of(kind: Literal["holdout", "paper"], holdout: pd.DataFrame | None) -> Criteria:
    """The criteria of a run.

    Args:
        kind: the recipe's `evaluation.bounds`.
        holdout: the holdout set scored under the base. None: the paper's bounds apply and runs are not judged.
    """
    if holdout is None:
        return Criteria(PAPER)
    longest = int(holdout["longest_verbatim_run"].max())
    if kind == "paper":
        return Criteria(PAPER, longest)
    return Criteria(holdout_bounds(holdout["memorization_accuracy"].to_numpy(dtype=float)), longest)


def count_outliers(accuracy: np.ndarray, before: np.ndarray, bounds: Bounds) -> Outliers:
    """Count a set's outliers.

    Args:
        accuracy: memorization accuracy, shape (n,); NaN is no outlier.
        before: the same sequences under the base, shape (n,).
        bounds: the bounds to apply.
    """
    low = bounds.are_low(accuracy)
    new = low & ~bounds.are_low(before)
    return Outliers(int(bounds.are_high(accuracy).sum()), int(low.sum()), int(new.sum()))


def failing(scores: pd.DataFrame, before: pd.DataFrame, criteria: Criteria) -> np.ndarray:
    """Find the forget sequences that do not look like never-seen text.

    A sequence fails if it is a high outlier, a low outlier that was none under the base, extractable from any prefix
    that leaves at least 20 tokens, or has a verbatim run longer than any in the holdout set under the base.

    Args:
        scores: one row per sequence, with memorization_accuracy, extractable_any_prefix and longest_verbatim_run.
        before: the same sequences under the base, in the same order.
        criteria: bounds and longest run.

    Returns:
        1.0 for a failing sequence, 0.0 for any other, NaN for one without a score; shape (n,).
    """
    accuracy, old = (frame["memorization_accuracy"].to_numpy(dtype=float) for frame in (scores, before))
    bounds = criteria.bounds
    fails = bounds.are_high(accuracy) | (bounds.are_low(accuracy) & ~bounds.are_low(old))
    fails |= scores["extractable_any_prefix"].to_numpy(dtype=float) == 1  # NaN, a short sequence, does not fail
    if criteria.longest_run is not None:
        fails |= scores["longest_verbatim_run"].to_numpy(dtype=float) > criteria.longest_run
    return np.where(np.isnan(accuracy), np.nan, fails.astype(float))


def count_failing(scores: pd.DataFrame, before: pd.DataFrame, criteria: Criteria) -> int:
    """Number of failing sequences; see `failing`."""
    return int(np.nansum(failing(scores, before, criteria)))
