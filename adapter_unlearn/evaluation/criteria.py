"""Bounds on memorization accuracy, the sequences outside them, and how well two sets can be told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Bounds:
    """Below `low` a text is avoided, above `high` it is recited; both are as conspicuous."""

    kind: Literal["holdout", "paper"]
    low: float
    high: float

    def are_high(self, accuracy: np.ndarray) -> np.ndarray:
        """Which are high outliers, shape (n,). The paper counts from its bound on, the holdout beyond it."""
        return accuracy >= self.high if self.kind == "paper" else accuracy > self.high

    def are_low(self, accuracy: np.ndarray) -> np.ndarray:
        """Which are low outliers, shape (n,)."""
        return accuracy <= self.low if self.kind == "paper" else accuracy < self.low


PAPER = Bounds("paper", 0.15, 0.60)
"""Barbulescu & Triantafillou (2024), read off GPT-Neo and the Pile."""


def holdout_bounds(accuracy: np.ndarray) -> Bounds:
    """The 5 % and 95 % quantiles of the holdout set's memorization accuracy under the base, shape (n,)."""
    low, high = np.nanquantile(accuracy, [0.05, 0.95])
    return Bounds("holdout", float(low), float(high))


def count(accuracy: np.ndarray, before: np.ndarray, bounds: Bounds) -> dict[str, int]:
    """Outliers of a set, now and new.

    Args:
        accuracy: memorization accuracy, shape (n,); NaN is no outlier.
        before: the same sequences under the base, shape (n,).
        bounds: what is high and what is low.

    Returns:
        outliers_high, outliers_low, and outliers_low_new: low now and not low before.
    """
    low = bounds.are_low(accuracy)
    return {
        "outliers_high": int(bounds.are_high(accuracy).sum()),
        "outliers_low": int(low.sum()),
        "outliers_low_new": int((low & ~bounds.are_low(before)).sum()),
    }
