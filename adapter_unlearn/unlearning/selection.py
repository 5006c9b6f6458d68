"""Which rows a term trains on. Pure functions of what is known of a set in this epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from adapter_unlearn.evaluation import criteria

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Known:
    """What is known of a set when its rows are selected: frames with a row a sequence, NaN where unknown.

    Attributes:
        now: its scores; of a set that is not scored, only the number of rows counts.
        before: its scores under the base, the same rows.
        holdout: the holdout set's scores under the base: never-seen text; None where there is none.
    """

    now: pd.DataFrame
    before: pd.DataFrame
    holdout: pd.DataFrame | None = None


Selection = Callable[[Known, np.random.Generator], np.ndarray]
"""(what is known of the set, the run's generator) -> row indices, ascending."""

Level = float | Literal["holdout"]
"""A memorization accuracy, or the holdout set's 95 % (high) or 5 % (low) quantile under the base."""

RunLevel = int | Literal["holdout"] | None
"""Verbatim run from which on a row counts as memorized; holdout: beyond that set's longest; None: no limit."""


def at_least(threshold: float, run_threshold: RunLevel = None) -> Selection:
    """Rows with memorization accuracy >= threshold, or the single most memorized one when there are none.

    Selective gradient ascent (Barbulescu & Triantafillou, 2024). With threshold 0 it is all rows: gradient ascent.
    Beyond the paper, `run_threshold` also selects rows with a verbatim run of at least so many tokens: a text of low
    accuracy may still be recited in part.
    """

    def select(known: Known, _: np.random.Generator) -> np.ndarray:
        accuracy = known.now["memorization_accuracy"].fillna(-1.0).to_numpy(dtype=float)
        selected = np.flatnonzero((accuracy >= threshold) | _long_runs(known, run_threshold))
        return selected if len(selected) else np.array([int(accuracy.argmax())])

    return select


def above(high: Level, run_threshold: RunLevel = None) -> Selection:
    """Rows with memorization accuracy > high, or too long a verbatim run; none when there are none."""

    def select(known: Known, _: np.random.Generator) -> np.ndarray:
        return np.flatnonzero(_too_high(known, high, run_threshold))

    return select


def below(low: Level, high: Level, run_threshold: RunLevel = None) -> Selection:
    """Rows with memorization accuracy < low and < what it was under the base, unless `above` selects them.

    What was low before is not to be raised: nothing but the training made the others low.
    """

    def select(known: Known, _: np.random.Generator) -> np.ndarray:
        accuracy = known.now["memorization_accuracy"].to_numpy(dtype=float)
        before = known.before["memorization_accuracy"].to_numpy(dtype=float)
        fallen = (accuracy < _accuracy(known, low, "low")) & (accuracy < before)
        return np.flatnonzero(fallen & ~_too_high(known, high, run_threshold))

    return select


def most_memorized(number: int) -> Selection:
    """That many rows of the highest memorization accuracy, the earlier ones among equals."""

    def select(known: Known, _: np.random.Generator) -> np.ndarray:
        accuracy = known.now["memorization_accuracy"].to_numpy(dtype=float)
        order = np.argsort(-accuracy, kind="stable")  # NaN last
        return np.sort(order[: min(number, int((~np.isnan(accuracy)).sum()))])

    return select


def sample(number: int) -> Selection:
    """That many rows drawn without replacement, whatever their scores; all of them when there are fewer."""

    def select(known: Known, generator: np.random.Generator) -> np.ndarray:
        rows = len(known.now)
        return np.sort(generator.choice(rows, size=min(number, rows), replace=False))

    return select


def _too_high(known: Known, high: Level, run_threshold: RunLevel) -> np.ndarray:
    accuracy = known.now["memorization_accuracy"].to_numpy(dtype=float)
    return (accuracy > _accuracy(known, high, "high")) | _long_runs(known, run_threshold)


def _accuracy(known: Known, level: Level, end: Literal["low", "high"]) -> float:
    if level != "holdout":
        return level
    assert known.holdout is not None, "a recipe that asks for the holdout has one"
    bounds = criteria.holdout_bounds(known.holdout["memorization_accuracy"].to_numpy(dtype=float))
    return float(getattr(bounds, end))


def _long_runs(known: Known, run_threshold: RunLevel) -> np.ndarray:
    if run_threshold is None:
        return np.zeros(len(known.now), dtype=bool)
    runs = known.now["longest_verbatim_run"].to_numpy(dtype=float)
    if run_threshold != "holdout":
        return runs >= run_threshold
    assert known.holdout is not None, "a recipe that asks for the holdout has one"
    return runs > known.holdout["longest_verbatim_run"].max()
