"""Score sequences: one row per sequence, one column per metric, forward and generated metrics alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from adapter_unlearn.errors import InputError, ModelError
from adapter_unlearn.metrics import (
    FORWARD,
    GENERATED,
    METRICS,
    NotScorableError,
    Predictions,
    Sampling,
    columns_of,
    resolve,
)
from adapter_unlearn.models import gathered, share_of
from adapter_unlearn.scoring import greedy
from adapter_unlearn.scoring.forward import DEFAULT_SAMPLING, predicted_tokens, predictions_by_batch
from adapter_unlearn.scoring.greedy import NOT_FINITE

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from datasets import Dataset

DEFAULT_METRICS = (
    "memorization_accuracy", "extractable", "extractable_50", "extractable_any_prefix", "longest_verbatim_run", "loss",
)  # fmt: skip
"""Which sequences can be extracted, and how likely they are."""


def score(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = DEFAULT_METRICS,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    observe: Callable[[int, Predictions], None] | None = None,
) -> pd.DataFrame:
    """Score every sequence: all forward metrics from one teacher-forced forward, the others from what is generated.

    Args:
        model: a causal language model, with or without adapters; it is scored as its adapters are set.
        sequences: rows of id, input_ids, prefix_tokens, scored_from (see data.load_sequences).
        metrics: names of rows in docs/metrics.md; `forward` stands for all that need no generation, `all` for all.
        batch_size: sequences in one forward; the numbers do not depend on it.
        accelerator: with several processes, each scores its share and all get the whole table.
        sampling: how tokens would be drawn, for p_z and what is made of it.
        observe: called with the index and the predictions of each sequence of this process's share.

    Returns:
        A row a sequence, in the order given: id, n_tokens, a column a metric, and note (why a value is NaN).

    Raises:
        RecipeError: a metric is unknown.
        InputError: not one sequence can be scored by any metric.
    """
    frame = _table(model, sequences, metrics, batch_size, accelerator, sampling, observe)
    check_scorable(_any_known(frame), frame["note"])
    return frame


PART = 1024
"""Rows of a table that exist at once where it is made in parts: many batches of each length, yet some KiB a row."""


def score_parts(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = DEFAULT_METRICS,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Iterator[pd.DataFrame]:
    """Yield the table of `score` in parts of PART consecutive rows, in the order given.

    Nothing of a part is kept, so that a set may be larger than its table; write the rows away to keep it so. Within a
    part the longest sequences go first.

    Args:
        model: as for `score`, like the arguments that follow.
        sequences: the rows to score.
        metrics: what to score.
        batch_size: sequences in one forward.
        accelerator: with several processes, each scores its share of every part and all get the whole part.
        sampling: how tokens would be drawn.

    Raises:
        RecipeError: a metric is unknown; it is raised with the first part. A part of which nothing can be scored is
            yielded like any other: see Overview.
    """
    for start in range(0, len(sequences), PART):
        part = sequences.select(range(start, min(start + PART, len(sequences))))
        yield _table(model, part, metrics, batch_size, accelerator, sampling)


class Overview:
    """What is left of a table of `score_parts` once its rows are written away.

    Attributes:
        n: rows seen.
        top: the most memorized of them by MA, or else by the first metric there is; a frame like any part's.
    """

    def __init__(self, shown: int = 50):
        """Keep that many rows."""
        self.n = 0
        self.top: pd.DataFrame | None = None
        self._shown = shown
        self._sums: pd.Series[float] | None = None
        self._counts: pd.Series[int] | None = None
        self._notes: dict[str, None] = {}  # each different one once: they are reasons, and few
        self._known = self._sound = False

    def add(self, part: pd.DataFrame) -> None:
        """See the next rows."""
        names = columns_of(part.columns)
        numbers = part[names]
        self.n += len(part)
        self._sums = numbers.sum() if self._sums is None else self._sums + numbers.sum()
        self._counts = numbers.count() if self._counts is None else self._counts + numbers.count()
        self._notes |= dict.fromkeys(part["note"])
        self._known |= _any_known(part)
        self._sound |= any_sound(part)
        rows = pd.concat([self.top, part], ignore_index=True)
        if names:
            by = "memorization_accuracy" if "memorization_accuracy" in names else names[0]
            low = METRICS[by].memorized == "low"
            rows = rows.sort_values(by, ascending=low, kind="stable", ignore_index=True)
        self.top = rows.head(self._shown).copy()

    @property
    def means(self) -> pd.Series[float]:
        """Of every metric, over the rows of which it says something."""
        assert self._sums is not None and self._counts is not None
        return self._sums / self._counts

    def check(self) -> None:
        """Refuse a table that says nothing.

        Raises:
            InputError: not one sequence can be scored by any metric.
            ModelError: the model's output was not finite on any sequence.
        """
        check_scorable(self._known, self._notes)
        check_finite(self._sound, self._notes)


def _any_known(frame: pd.DataFrame) -> bool:
    """Whether any forward metric has a value; a generated metric may be undefined for a whole set."""
    columns = [name for name in columns_of(frame.columns) if METRICS[name].kind == "forward"]
    return not columns or bool(frame[columns].notna().any(axis=None))


def check_scorable(known: bool, notes: Iterable[str]) -> None:
    """Refuse a set of which nothing could be scored; that a model is broken is told by check_finite.

    Args:
        known: whether there is a single number that is not NaN.
        notes: the column of that name, or each different note once.

    Raises:
        InputError: no sequence can be scored, and why the first one can't.
    """
    reasons = [] if known else list(notes)
    if reasons and all(note and NOT_FINITE not in note for note in reasons):
        raise InputError(f"no sequence can be scored: {reasons[0]}")


def any_sound(frame: pd.DataFrame) -> bool:
    """Whether there is a number at all of a sequence on which the model's output was finite."""
    return bool(frame[frame["note"] != NOT_FINITE][columns_of(frame.columns)].notna().to_numpy().any())


def check_finite(sound: bool, notes: Iterable[str]) -> None:
    """Refuse a table that says nothing because the model is broken; rows may be there that were too short anyway.

    Args:
        sound: from any_sound.
        notes: as for check_scorable.

    Raises:
        ModelError: nothing is sound, and the model's output was not finite on a sequence.
    """
    if not sound and NOT_FINITE in set(notes):
        raise ModelError(f"{NOT_FINITE} on any sequence; the adapter is broken, or dtype float32 is needed")


def perplexity(scored: pd.DataFrame, sequences: Dataset) -> float:
    """exp(total NLL / total predicted tokens) over the whole set.

    Args:
        scored: a frame of `score` with the loss column, its rows those of `sequences`.
        sequences: the rows that were scored.
    """
    tokens = np.array(predicted_tokens(sequences))
    losses = scored["loss"].to_numpy(dtype=float)
    known = tokens > 0
    if not known.any():
        return float("nan")
    return float(np.exp((losses[known] * tokens[known]).sum() / tokens[known].sum()))


def _table(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str],
    batch_size: int,
    accelerator: Accelerator | None,
    sampling: Sampling,
    observe: Callable[[int, Predictions], None] | None = None,
) -> pd.DataFrame:
    """The table of `score`; a set of which nothing can be scored is not refused."""
    names = resolve(metrics)
    forward = [name for name in names if name in FORWARD]
    generated = [name for name in names if name in GENERATED]
    share = share_of(list(range(len(sequences))), accelerator)
    rows = dict(_forward_rows(model, sequences, forward, batch_size, sampling, share, observe))
    if generated:
        for i, values in greedy.measure(model, sequences, generated, batch_size, share).items():
            rows[i] = _joined(rows[i], values)
    rows = gathered(rows, accelerator)
    columns = ["id", "n_tokens", *names, "note"]
    return pd.DataFrame([rows[i] for i in range(len(sequences))], columns=columns)


def _forward_rows(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str],
    batch_size: int,
    sampling: Sampling,
    indices: Sequence[int],
    observe: Callable[[int, Predictions], None] | None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each sequence's index and row, longest sequences first; metrics must be forward metrics."""
    needs = {need for name in metrics for need in METRICS[name].needs}
    for batch, columns, seen in predictions_by_batch(model, sequences, indices, batch_size, needs, sampling):
        for i, name, ids, predictions in zip(batch, columns["id"], columns["input_ids"], seen):
            if observe is not None:
                observe(i, predictions)
            yield i, {"id": name, "n_tokens": len(ids), **_row(predictions, metrics)}


def _row(predictions: Predictions, metrics: Sequence[str]) -> dict[str, Any]:
    if not np.isfinite(predictions.nll).all():  # the argmax of NaN is a token like any other
        return dict.fromkeys(metrics, float("nan")) | {"note": NOT_FINITE}
    row: dict[str, Any] = {}
    notes: dict[str, list[str]] = {}
    for name in metrics:
        try:
            row[name] = METRICS[name].function(predictions)
            if math.isnan(row[name]):
                raise NotScorableError("not a number")
        except NotScorableError as reason:
            row[name] = float("nan")
            notes.setdefault(str(reason), []).append(name)
    return row | {"note": _note(notes)}


def _joined(row: dict[str, Any], generated: dict[str, float | str]) -> dict[str, Any]:
    """A row of forward metrics with the generated metrics added; a reason in place of a number goes to the note."""
    notes: dict[str, list[str]] = {}
    for name, value in generated.items():
        if isinstance(value, str):
            notes.setdefault(value, []).append(name)
    numbers = {name: float("nan") if isinstance(value, str) else value for name, value in generated.items()}
    note = row["note"] if row["note"] == NOT_FINITE else "; ".join(filter(None, [row["note"], _note(notes)]))
    return row | numbers | {"note": note}


def _note(notes: dict[str, list[str]]) -> str:
    """Each reason once, after the names of the metrics it applies to."""
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in notes.items())
