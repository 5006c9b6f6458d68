"""When two methods are the same within noise, and which of several none beats: arithmetic on arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapter_unlearn.metrics import set_level
from adapter_unlearn.metrics.set_level import Estimate

SAME_SHARE = 0.1
"""Two methods hardly differ in a measure while their scores are apart by at most this share of what unlearning did."""
SAME_AS_SEEDS = 1.25
"""… or by this many times what two seeds of one method are apart."""


@dataclass(frozen=True)
class Closeness:
    """How far apart two methods are in one measure.

    Attributes:
        difference: mean over sequences of the first less the second, with its paired interval.
        distance: mean over sequences of the absolute difference: a mean of 0 may be of large differences.
        tolerance: up to this distance they hardly differ.
        alike: identical within noise, in this measure.
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

    Two things must hold. (1) No direction: the paired 95 % interval of the mean difference over sequences holds 0, or,
    where one of them has several seeds, the ranges of the seeds' means overlap. That alone would be lack of evidence:
    with three sequences any interval holds 0. So also (2) closeness, sequence by sequence: the mean absolute difference
    is at most the largest of: SAME_SHARE of what the method that did less did to the sequences (mean absolute change
    against the base); `at_least`; and, where seeds are known, SAME_AS_SEEDS times what two seeds of one method are
    apart. Seeds are compared with other seeds only: those that two methods share may make them look closer.

    Args:
        first: scores of one method, shape (seeds, n); NaN is left out.
        second: of the other, shape (other seeds, n).
        before: of the base, shape (n,).
        at_least: a distance that never counts, in the measure's unit.
        first_seeds: the seeds of the rows of `first`.
        second_seeds: and of `second`.
    """
    known = ~np.isnan(np.vstack([first, second, before])).any(axis=0)
    first, second, before = first[:, known], second[:, known], before[known]
    if not known.any():
        return Closeness(Estimate(math.nan, math.nan, math.nan), math.nan, math.nan, False)
    a, b = first.mean(axis=0), second.mean(axis=0)
    difference = set_level.mean_interval(a - b)
    within = [
        np.abs(scores[i] - scores[j]).mean() for scores in (first, second) for i in range(len(scores)) for j in range(i)
    ]
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
    """Which points no other one is at least as low as in both and lower in one; shape (n,), a NaN is never on it."""
    at_most = (first[:, None] <= first) & (second[:, None] <= second)
    lower = (first[:, None] < first) | (second[:, None] < second)
    return ~(at_most & lower).any(axis=0) & ~np.isnan(first) & ~np.isnan(second)
