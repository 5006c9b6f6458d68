"""Figures of a set from one number per sequence: means, perplexity and membership, with intervals.

All intervals come from one percentile bootstrap over sequences. They do not cover the variance between training seeds,
and they can not show tails that the set does not contain: the interval of a TPR at 1 % FPR is too narrow when there are
few non-members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from adapter_unlearn.metrics.table import METRICS, resolve

LEVEL = 0.95
RESAMPLES = 2000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_BLOCK = 2**21
"""Indices drawn at once: 16 MiB."""


class Estimate(NamedTuple):
    """A number with its interval. All are NaN for an empty set; `low` and `high` are NaN for a single sequence."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the interval."""
        return self.low, self.high


def mean_interval(values: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean over sequences. For a paired change, pass the differences.

    Args:
        values: shape (n,); NaN is left out.
        level: nominal coverage of the interval.
        resamples: number of bootstrap samples.
        seed: of the random draws; the same seed gives the same interval.
    """
    values = values[~np.isnan(values)]
    return _bootstrap(lambda drawn: values[drawn[0]].mean(axis=-1), [len(values)], level, resamples, seed)


def summarize(values: np.ndarray, seed: int = 0) -> dict[str, float]:
    """A set in a few numbers; the average hides what matters, so maximum and quantiles stand beside it.

    Args:
        values: shape (n,); NaN is left out, and counted.
        seed: of the interval.

    Returns:
        n, n_nan, mean, mean_low, mean_high, min, max, and quantile_05, … for QUANTILES.
    """
    known = values[~np.isnan(values)]
    mean = mean_interval(known, seed=seed)
    found: dict[str, float] = {"n": len(known), "n_nan": len(values) - len(known)}
    found |= {"mean": mean.value, "mean_low": mean.low, "mean_high": mean.high}
    ends = [known.min(), known.max()] if len(known) else [math.nan, math.nan]
    quantiles = np.quantile(known, QUANTILES) if len(known) else [math.nan] * len(QUANTILES)
    found |= dict(zip(["min", "max"], map(float, ends)))
    return found | {f"quantile_{100 * q:02.0f}": float(value) for q, value in zip(QUANTILES, quantiles)}


def perplexity_interval(
    losses: np.ndarray, tokens: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """exp(total NLL / total predicted tokens); whole sequences are resampled.

    Args:
        losses: mean negative log-likelihood of each sequence's tokens, in nats, shape (n,).
        tokens: number of tokens that the mean is over, shape (n,); sequences with 0 are left out.
        level: as in mean_interval.
        resamples: as in mean_interval.
        seed: as in mean_interval.
    """
    losses, tokens = losses[tokens > 0], tokens[tokens > 0]
    return _bootstrap(
        lambda drawn: _perplexity(losses, tokens, drawn[0]), [len(losses)], level, resamples, seed
    )  # fmt: skip


def perplexity_change_interval(
    before: np.ndarray,
    after: np.ndarray,
    tokens: np.ndarray,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Relative change of the perplexity: 0.02 is 2 % more. Paired: each bootstrap sample is used before and after.

    Args:
        before: losses of the sequences under one model, shape (n,), as in perplexity_interval.
        after: losses of the same sequences under the other model, shape (n,).
        tokens: as in perplexity_interval.
        level: as in mean_interval.
        resamples: as in mean_interval.
        seed: as in mean_interval.
    """
    difference, tokens = (after - before)[tokens > 0], tokens[tokens > 0]
    return _bootstrap(
        lambda drawn: _perplexity(difference, tokens, drawn[0]) - 1, [len(difference)], level, resamples, seed
    )


def _perplexity(losses: np.ndarray, tokens: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a broken model's perplexity is infinite
        return np.exp((losses * tokens)[drawn].sum(axis=-1) / tokens[drawn].sum(axis=-1))


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


def auc_interval(
    members: np.ndarray, others: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Probability that a member's score exceeds another's, ties counting half.

    Args:
        members: higher means more memorized, shape (n,); NaN is left out.
        others: the same for never-seen sequences, shape (m,).
        level: as in mean_interval.
        resamples: number of bootstrap samples; members and others are resampled independently.
        seed: as in mean_interval.
    """
    members, others, size = _ranks(members, others)

    def statistic(drawn: Sequence[np.ndarray]) -> np.ndarray:
        row = np.arange(len(drawn[0]))[:, None] * size
        at = np.bincount((others[drawn[1]] + row).ravel(), minlength=len(row) * size).reshape(-1, size)
        below = at.cumsum(axis=1) - at / 2
        return np.take_along_axis(below, members[drawn[0]], axis=1).mean(axis=1) / drawn[1].shape[1]

    return _bootstrap(statistic, [len(members), len(others)], level, resamples, seed)


def tpr_at_fpr_interval(
    members: np.ndarray,
    others: np.ndarray,
    fpr: float = 0.01,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Largest share of members found by a threshold that takes at most the share `fpr` of the others for members.

    A score at the threshold or above is taken for a member's. At most ⌊fpr · m⌋ others may be, and nothing is
    interpolated: members that tie with one other too many are not found. With fewer than 1/fpr others, none may be.

    Args:
        members: as in auc_interval, like the arguments that follow fpr.
        others: shape (m,).
        fpr: false positive rate that is allowed; below 1.
        level: as in mean_interval.
        resamples: as in auc_interval.
        seed: as in mean_interval.
    """
    members, others, _ = _ranks(members, others)
    # Only scores above this many-th largest of the others are taken for members'.
    first_refused = math.floor(fpr * len(others) + 1e-9) + 1

    def statistic(drawn: Sequence[np.ndarray]) -> np.ndarray:
        place = drawn[1].shape[1] - first_refused
        threshold = np.partition(others[drawn[1]], place, axis=1)[:, [place]]
        return (members[drawn[0]] > threshold).mean(axis=1)

    return _bootstrap(statistic, [len(members), len(others)], level, resamples, seed)


def membership(forget: pd.DataFrame, holdout: pd.DataFrame, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """How well each metric distinguishes the forget set from never-seen sequences.

    Args:
        forget: scores of the forget set, as `score` gives them.
        holdout: scores of never-seen sequences of its kind, by the same model.
        metrics: names of columns; None takes every metric that both frames have. METRICS says whether memorized text
            has high or low values.

    Returns:
        One row per metric: metric, n_forget, n_holdout, auc, auc_low, auc_high, tpr_at_1_fpr, tpr_at_1_fpr_low,
        tpr_at_1_fpr_high. At an AUC of 0.5 the two sets are indistinguishable; below, the forget set looks less
        memorized than the holdout set.

    Raises:
        RecipeError: a metric is unknown.
    """
    common = [name for name in METRICS if name in forget and name in holdout]
    rows = []
    for name in resolve(common if metrics is None else metrics):
        sign = 1 if METRICS[name].memorized == "high" else -1
        members, others = (sign * frame[name].to_numpy(dtype=float) for frame in (forget, holdout))
        area, rate = auc_interval(members, others), tpr_at_fpr_interval(members, others)
        counts = [int((~np.isnan(values)).sum()) for values in (members, others)]
        rows.append([name, *counts, *area, *rate])
    names = [f"{what}{end}" for what in ("auc", "tpr_at_1_fpr") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["metric", "n_forget", "n_holdout", *names])


def _ranks(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Both arrays as ranks among all their values, without NaN, and the number of ranks. Equal values share a rank."""
    members, others = members[~np.isnan(members)], others[~np.isnan(others)]
    values, ranks = np.unique(np.concatenate([members, others]), return_inverse=True)
    return ranks[: len(members)], ranks[len(members) :], len(values)


def _bootstrap(
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    sizes: Sequence[int],
    level: float,
    resamples: int,
    seed: int,
) -> Estimate:
    """Percentile interval of a statistic of one or two sets.

    Args:
        statistic: indices into each set, shape (b, size) each -> the statistic of each bootstrap sample, shape (b,).
        sizes: of the sets.
        level: nominal coverage.
        resamples: number of bootstrap samples.
        seed: of the random draws.
    """
    if min(sizes) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(statistic([np.arange(size)[None] for size in sizes])[0])
    if max(sizes) == 1:
        return Estimate(value, math.nan, math.nan)
    drawn = np.concatenate([statistic(draw) for draw in _draws(sizes, resamples, seed)])
    # "lower" and "higher" take sampled values: between minus infinity and a number nothing can be interpolated.
    low = np.quantile(drawn, (1 - level) / 2, method="lower")
    high = np.quantile(drawn, (1 + level) / 2, method="higher")
    return Estimate(value, float(low), float(high))


def _draws(sizes: Sequence[int], resamples: int, seed: int) -> Iterator[list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    step = max(1, _BLOCK // sum(sizes))
    for start in range(0, resamples, step):  # in blocks, to bound the memory
        number = min(step, resamples - start)
        yield [generator.integers(size, size=(number, size)) for size in sizes]
