"""The table of selections: which rows of a set a term trains on. Pure functions of the set's scores in this epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from adapter_unlearn.evaluation import criteria
from adapter_unlearn.unlearning.options import Option

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Known:
    """What is known of a set when its rows are selected: frames with one row per sequence, NaN where unknown.

    Attributes:
        now: its scores; of a set that is not scored, only the number of rows counts.
        before: its scores under the base, the same rows.
        holdout: the holdout set's scores under the base, or None.
    """

    now: pd.DataFrame
    before: pd.DataFrame
    holdout: pd.DataFrame | None = None


Selection = Callable[[Known, np.random.Generator], np.ndarray]
"""(what is known of the set, the run's generator) -> row indices, ascending."""

Level = float | Literal["holdout"]
"""A memorization accuracy, or `holdout`: the holdout set's 95 % (high) or 5 % (low) quantile under the base."""

RunLevel = int | Literal["holdout"] | None
"""The verbatim run, in tokens, from which on a row is selected; `holdout`: any longer than that set's longest run under
the base; None: no limit."""


def at_least(threshold: float, run_threshold: RunLevel = None) -> Selection:
    """Rows with memorization accuracy >= threshold, or the single most memorized row where there are none.

    Selective gradient ascent (Barbulescu & Triantafillou, 2024). Threshold 0 selects all rows. Beyond the paper,
    `run_threshold` also selects rows with a verbatim run of at least that length, since a text of low accuracy may
    still be extractable in part.
    """

    def select(known: Known, _: np.random.Generator) -> np.ndarray:
        accuracy = known.now["memorization_accuracy"].fillna(-1.0).to_numpy(dtype=float)
        selected = np.flatnonzero((accuracy >= threshold) | _long_runs(known, run_threshold))
        return selected if len(selected) else np.array([int(accuracy.argmax())])

    return select


def above(high: Level, run_threshold: RunLevel = None) -> Selection:
    """Rows with memorization accuracy > high, or with a verbatim run from `run_threshold` on."""

    def select(known: Known, _: np.random.Generator) -> np.ndarray:
        return np.flatnonzero(_too_high(known, high, run_threshold))

    return select


def below(low: Level, high: Level, run_threshold: RunLevel = None) -> Selection:
    """Rows with memorization accuracy < low and < what it was under the base, unless `above` selects them.

    A row that was low under the base is not to be raised.
    """

    def select(known: Known, _: np.random.Generator) -> np.ndarray:
        accuracy = known.now["memorization_accuracy"].to_numpy(dtype=float)
        before = known.before["memorization_accuracy"].to_numpy(dtype=float)
        fallen = (accuracy < _accuracy(known, low, "low")) & (accuracy < before)
        return np.flatnonzero(fallen & ~_too_high(known, high, run_threshold))

    return select


def most_memorized(top_k: int) -> Selection:
    """The `top_k` rows with the highest memorization accuracy; among equals, the earlier ones."""

    def select(known: Known, _: np.random.Generator) -> np.ndarray:
        accuracy = known.now["memorization_accuracy"].to_numpy(dtype=float)
        order = np.argsort(-accuracy, kind="stable")  # NaN last
        return np.sort(order[: min(top_k, int((~np.isnan(accuracy)).sum()))])

    return select


def sample(number: int) -> Selection:
    """`number` rows drawn without replacement, whatever their scores; all of them where there are fewer."""

    def select(known: Known, generator: np.random.Generator) -> np.ndarray:
        rows = len(known.now)
        return np.sort(generator.choice(rows, size=min(number, rows), replace=False))

    return select


@dataclass(frozen=True)
class SelectionRow:
    """A row of the table.

    Attributes:
        text: which rows are selected.
        forget: builds the selection that the forget loss acts on, from the options.
        restore: builds the selection whose cross-entropy is minimized again, from the options; None for none.
        options: the keyword parameters of both.
    """

    text: str
    forget: Callable[..., Selection]
    restore: Callable[..., Selection] | None = None
    options: Mapping[str, Option] = field(default_factory=dict)


RUN_THRESHOLD = Option(
    None, 1, kind="whole number", words=("holdout",), null=True,
    text="verbatim run, in tokens, from which on a sequence is selected too; holdout: beyond the holdout set's longest",
)  # fmt: skip

SELECTIONS: dict[str, SelectionRow] = {
    "all": SelectionRow("every sequence", lambda: at_least(0.0)),
    "threshold": SelectionRow(
        "what is still memorized, or the single most memorized sequence",
        at_least,
        options={
            "threshold": Option(0.7, 0, 1, text="memorization accuracy from which on a sequence is selected"),
            "run_threshold": RUN_THRESHOLD,
        },
    ),
    "band": SelectionRow(
        "what is above the band; cross-entropy raises again what fell below it",
        lambda high, low, run_threshold: above(high, run_threshold),
        lambda high, low, run_threshold: below(low, high, run_threshold),
        options={
            "high": Option("holdout", 0, 1, words=("holdout",), text="memorization accuracy above which the forget loss"
                           " acts; holdout: the holdout set's 95 % quantile under the base"),
            "low": Option("holdout", 0, 1, words=("holdout",), text="memorization accuracy below which a sequence that"
                          " was higher under the base is raised again; holdout: the 5 % quantile"),
            "run_threshold": RUN_THRESHOLD,
        },
    ),
    "top_k": SelectionRow(
        "the most memorized sequences",
        most_memorized,
        options={"top_k": Option(8, 1, kind="whole number", text="how many sequences are selected")},
    ),
}  # fmt: skip


def _too_high(known: Known, high: Level, run_threshold: RunLevel) -> np.ndarray:
    accuracy = known.now["memorization_accuracy"].to_numpy(dtype=float)
    return (accuracy > _accuracy(known, high, "high")) | _long_runs(known, run_threshold)


def _accuracy(known: Known, level: Level, end: Literal["low", "high"]) -> float:
    if level != "holdout":
        return level
    assert known.holdout is not None, "methods.check_sets refuses the recipe otherwise"
    bounds = criteria.holdout_bounds(known.holdout["memorization_accuracy"].to_numpy(dtype=float))
    return float(getattr(bounds, end))


def _long_runs(known: Known, run_threshold: RunLevel) -> np.ndarray:
    if run_threshold is None:
        return np.zeros(len(known.now), dtype=bool)
    runs = known.now["longest_verbatim_run"].to_numpy(dtype=float)
    if run_threshold != "holdout":
        return runs >= run_threshold
    assert known.holdout is not None, "methods.check_sets refuses the recipe otherwise"
    return runs > known.holdout["longest_verbatim_run"].max()
