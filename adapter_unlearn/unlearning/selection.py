"""The table of selections: which rows of a set a term trains on. Pure functions of the set's scores in this epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from adapter_unlearn.evaluation import criteria
from adapter_unlearn.unlearning.options import Option


@dataclass(frozen=True)
class Known:
    """What is known of a set when its rows are selected: frames with one row per sequence, NaN where unknown.

    Attributes:
        generator: of the run.
        now: its scores; of a set that is not scored, only the number of rows counts.
        before: its scores under the base, the same rows.
        holdout: the holdout set's scores under the base, or None.
    """

    generator: np.random.Generator
    now: pd.DataFrame
    before: pd.DataFrame
    holdout: pd.DataFrame | None = None


Selection = Callable[[Known], np.ndarray]
"""What is known of the set -> row indices, ascending: one of the functions below with its options set."""

LOW_QUANTILE, HIGH_QUANTILE = criteria.QUANTILES

Level = float | Literal["holdout"]
"""A memorization accuracy, or `holdout`: the holdout set's 95 % (high) or 5 % (low) quantile under the base."""

RunLevel = int | Literal["holdout"] | None
"""The verbatim run, in tokens, from which on a row is selected; `holdout`: any longer than that set's longest run under
the base; None: no limit."""


def at_least(known: Known, threshold: float = 0.0, run_threshold: RunLevel = None) -> np.ndarray:
    """Rows with memorization accuracy >= threshold, or the single most memorized row where there are none.

    Selective gradient ascent (Barbulescu & Triantafillou, 2024). Threshold 0 selects all rows. Beyond the paper,
    `run_threshold` also selects rows with a verbatim run of at least that length, since a text of low accuracy may
    still be extractable in part.
    """
    accuracy = known.now["memorization_accuracy"].fillna(-1.0).to_numpy(dtype=float)
    selected = np.flatnonzero((accuracy >= threshold) | _long_runs(known, run_threshold))
    return selected if len(selected) else np.array([int(accuracy.argmax())])


def above(known: Known, high: Level, low: Level = 0.0, run_threshold: RunLevel = None) -> np.ndarray:
    """Rows above the band from low to high: with memorization accuracy > high, or a run from `run_threshold` on."""
    accuracy = known.now["memorization_accuracy"].to_numpy(dtype=float)
    return np.flatnonzero((accuracy > _accuracy(known, high, HIGH_QUANTILE)) | _long_runs(known, run_threshold))


def below(known: Known, high: Level, low: Level, run_threshold: RunLevel = None) -> np.ndarray:
    """Rows below the band: with memorization accuracy < low and < what it was under the base, unless `above` has them.

    A row that was low under the base is not to be raised.
    """
    accuracy = known.now["memorization_accuracy"].to_numpy(dtype=float)
    before = known.before["memorization_accuracy"].to_numpy(dtype=float)
    fallen = np.flatnonzero((accuracy < _accuracy(known, low, LOW_QUANTILE)) & (accuracy < before))
    return np.setdiff1d(fallen, above(known, high, low, run_threshold))


def most_memorized(known: Known, top_k: int) -> np.ndarray:
    """The `top_k` rows with the highest memorization accuracy; among equals, the earlier ones."""
    accuracy = known.now["memorization_accuracy"].to_numpy(dtype=float)
    order = np.argsort(-accuracy, kind="stable")  # NaN last
    return np.sort(order[: min(top_k, int((~np.isnan(accuracy)).sum()))])


def sample(known: Known, number: int) -> np.ndarray:
    """`number` rows drawn without replacement, whatever their scores; all of them where there are fewer."""
    rows = len(known.now)
    return np.sort(known.generator.choice(rows, size=min(number, rows), replace=False))


def _accuracy(known: Known, level: Level, quantile: float) -> float:
    if level != "holdout":
        return level
    assert known.holdout is not None, "methods.check_sets refuses the recipe otherwise"
    return criteria.holdout_quantile(known.holdout["memorization_accuracy"].to_numpy(dtype=float), quantile)


def _long_runs(known: Known, run_threshold: RunLevel) -> np.ndarray:
    if run_threshold is None:
        return np.zeros(len(known.now), dtype=bool)
    runs = known.now["longest_verbatim_run"].to_numpy(dtype=float)
    if run_threshold != "holdout":
        return runs >= run_threshold
    assert known.holdout is not None, "methods.check_sets refuses the recipe otherwise"
    return runs > known.holdout["longest_verbatim_run"].max()


@dataclass(frozen=True)
class SelectionRow:
    """A row of the table.

    Attributes:
        forget: the selection that the forget loss acts on.
        restore: the selection whose cross-entropy is minimized again; None for none.
        options: keyword parameters of both.
    """

    forget: Callable[..., np.ndarray]
    restore: Callable[..., np.ndarray] | None = None
    options: Mapping[str, Option] = field(default_factory=dict)


THRESHOLD = Option(0.7, "memorization accuracy from which on a sequence is selected", 0, 1)
RUN_THRESHOLD = Option(None, "verbatim run, in tokens, from which on a sequence is selected too; holdout: longer than"
                       " the holdout set's longest", 1, kind=int, words=("holdout",), null=True)  # fmt: skip
HIGH = Option("holdout", "memorization accuracy above which the forget loss acts; holdout: the holdout set's 95 %"
              " quantile under the base", 0, 1, words=("holdout",))  # fmt: skip
LOW = Option("holdout", "memorization accuracy below which a sequence that was higher under the base is raised again;"
             " holdout: the 5 % quantile", 0, 1, words=("holdout",))  # fmt: skip

SELECTIONS: dict[str, SelectionRow] = {
    "all": SelectionRow(at_least),
    "threshold": SelectionRow(at_least, options={"threshold": THRESHOLD, "run_threshold": RUN_THRESHOLD}),
    "band": SelectionRow(above, below, {"high": HIGH, "low": LOW, "run_threshold": RUN_THRESHOLD}),
    "top_k": SelectionRow(most_memorized, options={"top_k": Option(8, "how many sequences are selected", 1, kind=int)}),
}
