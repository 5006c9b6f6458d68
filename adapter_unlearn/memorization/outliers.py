"""Bounds on memorization accuracy, the sequences outside them, and how well two sets can be told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Bounds:
    """Below `low` a text is avoided, above `high` it is recited; both are as conspicuous."""

    kind: Literal["reference", "paper"]
    low: float
    high: float

    def are_high(self, accuracy: np.ndarray) -> np.ndarray:
        """Which are high outliers, shape (n,). The paper counts from its bound on, the reference beyond it."""
        return accuracy >= self.high if self.kind == "paper" else accuracy > self.high

    def are_low(self, accuracy: np.ndarray) -> np.ndarray:
        """Which are low outliers, shape (n,)."""
        return accuracy <= self.low if self.kind == "paper" else accuracy < self.low


PAPER = Bounds("paper", 0.15, 0.60)
"""Barbulescu & Triantafillou (2024), read off GPT-Neo and the Pile."""


def reference_bounds(accuracy: np.ndarray) -> Bounds:
    """The 5 % and 95 % quantiles of the reference set's memorization accuracy under the base, shape (n,)."""
    low, high = np.nanquantile(accuracy, [0.05, 0.95])
    return Bounds("reference", float(low), float(high))


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


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Probability that a member's score exceeds another's, ties counting half: the area under the ROC curve.

    Args:
        members: higher means more memorized, shape (n,); NaN is left out.
        others: the same for never-seen sequences, shape (m,).
    """
    members, others = members[~np.isnan(members)], np.sort(others[~np.isnan(others)])
    if not len(members) or not len(others):
        return float("nan")
    below = np.searchsorted(others, members, side="left")
    not_above = np.searchsorted(others, members, side="right")
    return float((below + not_above).mean() / 2 / len(others))
