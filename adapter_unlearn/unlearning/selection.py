"""Which rows a term trains on. Pure functions of the epoch's memorization accuracies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Selection = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(memorization accuracy of every row, shape (n,), NaN where unknown; the run's generator) -> row indices."""


def at_least(threshold: float) -> Selection:
    """Rows with memorization accuracy >= threshold, or the single most memorized one when there are none.

    Selective gradient ascent (Barbulescu & Triantafillou, 2024). With threshold 0 it is all rows: gradient ascent.
    """

    def select(accuracy: np.ndarray, _: np.random.Generator) -> np.ndarray:
        known = np.where(np.isnan(accuracy), -1.0, accuracy)
        selected = np.flatnonzero(known >= threshold)
        return selected if len(selected) else np.array([int(known.argmax())])

    return select


def sample(number: int) -> Selection:
    """That many rows drawn without replacement, whatever their scores; all of them when there are fewer."""

    def select(accuracy: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        rows = len(accuracy)
        return np.sort(generator.choice(rows, size=min(number, rows), replace=False))

    return select
