"""Which rows a term trains on. Pure functions of the epoch's scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Selection = Callable[["pd.DataFrame", np.random.Generator], np.ndarray]
"""(the set's scores, a row a sequence, NaN where unknown; the run's generator) -> row indices."""


def at_least(threshold: float, run_threshold: int | None = None) -> Selection:
    """Rows with memorization accuracy >= threshold, or the single most memorized one when there are none.

    Selective gradient ascent (Barbulescu & Triantafillou, 2024). With threshold 0 it is all rows: gradient ascent.
    Beyond the paper, `run_threshold` also selects rows with a verbatim run of at least so many tokens: a text of low
    accuracy may still be recited in part.
    """

    def select(scores: pd.DataFrame, _: np.random.Generator) -> np.ndarray:
        accuracy = scores["memorization_accuracy"].fillna(-1.0).to_numpy(dtype=float)
        wanted = accuracy >= threshold
        if run_threshold is not None:
            wanted |= scores["longest_verbatim_run"].to_numpy(dtype=float) >= run_threshold
        selected = np.flatnonzero(wanted)
        return selected if len(selected) else np.array([int(accuracy.argmax())])

    return select


def sample(number: int) -> Selection:
    """That many rows drawn without replacement, whatever their scores; all of them when there are fewer."""

    def select(scores: pd.DataFrame, generator: np.random.Generator) -> np.ndarray:
        rows = len(scores)
        return np.sort(generator.choice(rows, size=min(number, rows), replace=False))

    return select
