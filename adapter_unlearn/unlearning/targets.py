"""What each forget sequence shall look like: a never-seen one, its twin, token by token.

A twin lends its levels: how probable the model finds its tokens, and by how much each beats its best rival, in order of
size. Which token of the forget sequence takes which level is left to training (see losses.match): the order that the
tokens have, so that the least is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapter_unlearn.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

CENTRAL = (0.20, 0.80)
"""Quantiles of the holdout set's memorization accuracy between which a row may be a twin: nobody shall end as an
outlier because its twin was one."""

NEAR = np.array([1.0, 0.2])
"""How far a row's loss (nats) and accuracy may miss its twin's to be near it. A distance that is linear beyond a nat
pulls no harder for being longer, so what is farther off is made to count more, and only what is near is aimed beyond:
anything else would pile up in vain, to be undone afterwards."""

GAIN, STEP, MOST = np.array([0.4, 2.0]), 0.05, 1.0
"""How much of a near miss is added to what is asked for, each epoch, in nats: of one nat of loss, and of an accuracy of
one; the most that is added in an epoch, and ever."""

MET, RATE, HEAVIEST = NEAR / 4, np.array([0.1, 0.5]), 20.0
"""The miss that is let pass; how much of what is missed beyond it is added to what the distances count, each epoch; the
most they count."""

TYPICAL = 3.0
"""What the distances come to count in a run, over all rows: 2.1 to 3.9 on average from epoch 10 on, on two models."""


class Twin(NamedTuple):
    """What a sequence shall come to: levels, shape (its tokens, 2), columns ascending; what each distance counts."""

    levels: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Pressure:
    """How hard each forget row is drawn to its twin; columns are for log-probabilities and for margins.

    Attributes:
        more: what is asked for beyond the twin's levels, shape (rows, 2), in nats.
        weights: what the distances count, shape (rows, 2).
    """

    more: np.ndarray
    weights: np.ndarray


def no_pressure(rows: int, weight: float = 1.0) -> Pressure:
    """Where every run starts: the twins' levels, each counting once, or `weight` times."""
    return Pressure(np.zeros((rows, 2)), np.full((rows, 2), weight))


def pair(forget: pd.DataFrame, holdout: pd.DataFrame) -> dict[int, int]:
    """Give every forget row a twin among the ordinary holdout rows: the easier to predict, the easier its twin.

    Args:
        forget, holdout: scores under the base, with memorization_accuracy and loss; rows that could not be scored
            are NaN, and have or are no twins.

    Returns:
        Forget row -> holdout row. Ranks of loss are kept, so that the forget set takes on the holdout set's
        spread, not only its mean.

    Raises:
        InputError: no holdout row could be scored.
    """
    scores = holdout[["memorization_accuracy", "loss"]].to_numpy(dtype=float)
    known = np.flatnonzero(~np.isnan(scores).any(axis=1))
    if not len(known):
        raise InputError("data.holdout: no row could be scored, so none can be a twin; give longer texts")
    accuracy = scores[known, 0]
    low, high = np.quantile(accuracy, CENTRAL, method="lower")  # values of the set: some row is always within
    ordinary = known[(accuracy >= low) & (accuracy <= high)]
    ordinary = ordinary[scores[ordinary, 1].argsort(kind="stable")]
    losses = forget["loss"].to_numpy(dtype=float)
    order = losses.argsort(kind="stable")[: int((~np.isnan(losses)).sum())]  # NaN last
    return {int(row): int(ordinary[int((rank + 0.5) / len(order) * len(ordinary))]) for rank, row in enumerate(order)}


def levels(
    pairs: dict[int, int], forget_lengths: Sequence[int], holdout_levels: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Each forget row's levels: its twin's, sorted, as many as it has tokens to predict.

    Args:
        pairs: from `pair`.
        forget_lengths: tokens to predict of each forget row.
        holdout_levels: of each holdout row, any number of levels a token, shape (its tokens, levels).

    Returns:
        For each forget row, shape (its tokens, levels), every column ascending: quantiles of the twin's, in the middle
        of each token's share, so that a short row does not consist of a long twin's extremes. Without a twin the shape
        is (0, levels).
    """
    return [
        np.quantile(holdout_levels[pairs[row]], (np.arange(length) + 0.5) / length, axis=0, method="hazen")
        if row in pairs and length
        else np.zeros((0, holdout_levels[0].shape[1]))
        for row, length in enumerate(forget_lengths)
    ]


def assigned(now: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Give the k-th smallest of what a sequence has now the k-th of what is wanted, column by column.

    Args:
        now: shape (tokens, levels).
        wanted: the same shape, every column ascending.

    Returns:
        The same shape, in the tokens' order. The mean distance to `now` is the Wasserstein distance of the two.
    """
    found = np.empty_like(wanted)
    np.put_along_axis(found, now.argsort(axis=0, kind="stable"), wanted, axis=0)
    return found


def asked(lent: Sequence[np.ndarray], pressure: Pressure) -> list[Twin]:
    """Each forget row's twin, from the levels that `levels` found."""
    return [Twin(rows - more, weights) for rows, more, weights in zip(lent, pressure.more, pressure.weights)]


def pressed(pressure: Pressure, now: pd.DataFrame, lent: Sequence[np.ndarray]) -> Pressure:
    """Draw harder where a row still misses its twin, so that it gets there although the retain set holds against it.

    A weighted sum of two losses comes to rest where neither is content. So this is dual ascent on the constraint that
    a row's loss and accuracy are its twin's: while a row misses it its distances count more from epoch to epoch, and
    less again once it is met; and what is nearly reached is aimed beyond.

    Args:
        pressure: the last epoch's.
        now: the forget set's scores, with loss and memorization_accuracy.
        lent: the twins' levels, from `levels`: log-probabilities and margins.

    Returns:
        `more` within STEP of what it was and MOST of 0, `weights` from 1 to HEAVIEST. Rows without a twin stay as in
        `no_pressure`.
    """
    known = np.array([len(rows) > 0 for rows in lent])[:, None]
    twin = np.array([[-rows[:, 0].mean(), (rows[:, 1] > 0).mean()] if len(rows) else [0.0, 0.0] for rows in lent])
    miss = np.stack([twin[:, 0] - now["loss"], now["memorization_accuracy"] - twin[:, 1]], axis=1)
    step = np.where(np.abs(miss) < NEAR, np.clip(GAIN * miss, -STEP, STEP), 0.0)
    more = np.clip(pressure.more + step, -MOST, MOST)
    weights = np.clip(pressure.weights + RATE * (np.abs(miss) - MET), 1.0, HEAVIEST)
    return Pressure(np.where(known, more, 0.0), np.where(known, weights, 1.0))
