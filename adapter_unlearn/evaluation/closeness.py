"""Closeness: when two methods are the same within noise, and which methods are on the Pareto front. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapter_unlearn.metrics import set_level
from adapter_unlearn.metrics.set_level import Estimate

SAME_SHARE = 0.1
"""Two methods are close if their scores differ by at most this share of what unlearning changed …"""
SAME_AS_SEEDS = 1.25
"""… or by at most this factor times the distance between two seeds of one method."""


@dataclass(frozen=True)
class Closeness:
    """How far apart two methods are in one measure.

    Attributes:
        difference: mean over sequences of first less second, with its paired interval.
        distance: mean absolute difference over sequences; large differences may have a mean of 0.
        tolerance: the largest distance that counts as close.
        alike: identical within noise in this measure.
    """

    difference: Estimate
    distance: float
    tolerance: float
    alike: bool


def closeness(
    first: np.ndarray,
    second: np.ndarray,
    before: np.ndarray,
    at_least: float,
    first_seeds: Sequence[int | None] = (None,),
    second_seeds: Sequence[int | None] = (None,),
) -> Closeness:
    """Whether two methods are identical within noise, in one measure.

    Two conditions must hold:

    1. No direction. The paired 95 % interval of the mean difference over sequences contains 0, or one method has
       several seeds and the ranges of the seeds' means overlap. Alone this may be a lack of evidence: with three
       sequences almost any interval contains 0.
    2. Closeness per sequence. The mean absolute difference is at most the largest of `at_least`, SAME_SHARE times the
       smaller of the two methods' mean absolute changes against the base, and, with several seeds, SAME_AS_SEEDS times
       the mean distance between two seeds of one method.

    Seeds are compared with other seeds only: a seed that both methods used may make them look closer than they are.

    Args:
        first: scores of one method, shape (seeds, n); NaN is left out.
        second: scores of the other method, shape (other seeds, n).
        before: scores of the base, shape (n,).
        at_least: a distance that always counts as close, in the measure's unit.
        first_seeds: the seeds of the rows of `first`.
        second_seeds: the seeds of the rows of `second`.
    """
    known = ~np.isnan(np.vstack([first, second, before])).any(axis=0)
    first, second, before = first[:, known], second[:, known], before[known]
    if not known.any():
        return Closeness(Estimate(math.nan, math.nan, math.nan), math.nan, math.nan, False)
    a, b = first.mean(axis=0), second.mean(axis=0)
    difference = set_level.mean_interval(a - b)
    within = [np.abs(x[i] - x[j]).mean() for x in (first, second) for i in range(len(x)) for j in range(i)]
    across = [
        np.abs(first[i] - second[j]).mean()
        for i in range(len(first))
        for j in range(len(second))
        if not within or first_seeds[i] is None or first_seeds[i] != second_seeds[j]
    ]
    distance = float(np.mean(across)) if across else float(np.abs(a - b).mean())
    effect = min(np.abs(a - before).mean(), np.abs(b - before).mean())
    tolerance = max(at_least, SAME_SHARE * effect, SAME_AS_SEEDS * np.mean(within) if within else 0.0)
    undecided = not (difference.low > 0 or difference.high < 0)
    if within:
        means, others = first.mean(axis=1), second.mean(axis=1)
        undecided |= bool(means.min() <= others.max() and others.min() <= means.max())
    return Closeness(difference, distance, float(tolerance), bool(undecided and distance <= tolerance))


def pareto_front(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The Pareto front: points for which no other is at most as high in both and lower in one. Shape (n,), bool.

    A point with a NaN is never on the front.
    """
    at_most = (first[:, None] <= first) & (second[:, None] <= second)
    lower = (first[:, None] < first) | (second[:, None] < second)
    return ~(at_most & lower).any(axis=0) & ~np.isnan(first) & ~np.isnan(second)
