"""Score sequences: one row per sequence, one column per metric, for forward and generated metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from adapter_unlearn import progress
from adapter_unlearn.errors import InputError, ModelError, RecipeError, word
from adapter_unlearn.metrics import FORWARD, GENERATED, METRICS, Predictions, Sampling, columns_of, compute, resolve
from adapter_unlearn.models import gathered, share_of
from adapter_unlearn.scoring import greedy
from adapter_unlearn.scoring.forward import DEFAULT_SAMPLING, predict_batches, predicted_tokens
from adapter_unlearn.scoring.greedy import NOT_FINITE

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from datasets import Dataset

DEFAULT_METRICS = (
    "memorization_accuracy", "extractable", "extractable_50", "extractable_any_prefix", "longest_verbatim_run", "loss",
)  # fmt: skip
"""The default metrics of `score`: accuracy, extractability, longest run and loss."""


def score(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = DEFAULT_METRICS,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    observe: Callable[[int, Predictions], None] | None = None,
) -> pd.DataFrame:
    """Score every sequence: forward metrics from one teacher-forced forward pass, the others from generation.

    Args:
        model: a causal language model, with or without adapters; it is scored with the adapters that are active.
        sequences: rows of id, input_ids, prefix_tokens, scored_from (see data.load_sequences).
        metrics: names from docs/metrics.md; `forward` stands for all that need no generation, `all` for all.
        batch_size: sequences in one forward pass; the numbers do not depend on it.
        accelerator: with several processes, each scores its share and all get the whole table.
        sampling: how tokens would be drawn, for p_z and the metrics based on it.
        observe: called with the index and the predictions of each sequence of this process's share.

    Returns:
        One row per sequence, in the given order: id, n_tokens, one column per metric, and note (why a value is NaN).

    Raises:
        RecipeError: a metric is unknown, or batch_size is no number from 1.
        ModelError: the model is not a loaded one.
        InputError: the sequences are no Dataset of load_sequences, or none can be scored by any metric.
    """
    frame = _table(model, sequences, metrics, batch_size, accelerator, sampling, observe)
    check_scorable(_any_known(frame), frame["note"])
    return frame


PART = 1024
"""Rows in a part of `score_parts`: enough for batches of similar length; a row takes some KiB."""


def score_parts(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = DEFAULT_METRICS,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Iterator[pd.DataFrame]:
    """Yield the table of `score` in parts of PART consecutive rows, in the given order.

    No part is kept, so a set may be larger than memory. A part without any score is yielded like any other; `Overview`
    checks the whole.

    Args:
        model: as for `score`.
        sequences: as for `score`.
        metrics: as for `score`.
        batch_size: as for `score`.
        accelerator: with several processes, each scores its share of every part and all get the whole part.
        sampling: as for `score`.

    Raises:
        RecipeError: a metric is unknown; raised with the first part.
    """
    for start in range(0, len(sequences), PART):
        part = sequences.select(range(start, min(start + PART, len(sequences))))
        yield _table(model, part, metrics, batch_size, accelerator, sampling)


class Overview:
    """Running summary of the parts that `score_parts` yields.

    Attributes:
        n: number of rows so far.
        top: the most memorized rows by memorization accuracy, or else by the first metric; a frame like a part.
    """

    def __init__(self, max_rows: int = 50):
        """Keep at most `max_rows` rows in `top`."""
        self.n = 0
        self.top: pd.DataFrame | None = None
        self._max_rows = max_rows
        self._sums: pd.Series[float] | None = None
        self._counts: pd.Series[int] | None = None
        self._notes: dict[str, None] = {}  # each different note once; there are few
        self._any_known = self._any_sound = False

    def add(self, part: pd.DataFrame) -> None:
        """Add the next part."""
        names = columns_of(part.columns)
        numbers = part[names]
        self.n += len(part)
        self._sums = numbers.sum() if self._sums is None else self._sums + numbers.sum()
        self._counts = numbers.count() if self._counts is None else self._counts + numbers.count()
        self._notes |= dict.fromkeys(part["note"])
        self._any_known |= _any_known(part)
        self._any_sound |= any_sound(part)
        rows = pd.concat([self.top, part], ignore_index=True)
        if names:
            by = "memorization_accuracy" if "memorization_accuracy" in names else names[0]
            low = METRICS[by].memorized == "low"
            rows = rows.sort_values(by, ascending=low, kind="stable", ignore_index=True)
        self.top = rows.head(self._max_rows).copy()

    @property
    def means(self) -> pd.Series[float]:
        """The mean of each metric over the rows where it is defined."""
        assert self._sums is not None and self._counts is not None
        return self._sums / self._counts

    def check(self) -> None:
        """Check that the table has a score.

        Raises:
            InputError: no sequence can be scored by any metric.
            ModelError: the model's output was not finite on any sequence.
        """
        check_scorable(self._any_known, self._notes)
        check_finite(self._any_sound, self._notes)


def _any_known(frame: pd.DataFrame) -> bool:
    """Whether any forward metric has a value; a generated metric may be undefined for a whole set."""
    columns = [name for name in columns_of(frame.columns) if METRICS[name].kind == "forward"]
    return not columns or bool(frame[columns].notna().any(axis=None))


def check_scorable(known: bool, notes: Iterable[str]) -> None:
    """Check that a sequence could be scored. A broken model is left to `check_finite`.

    Args:
        known: whether any value is not NaN.
        notes: the column note, or each different note once.

    Raises:
        InputError: no sequence can be scored; gives the reason for the first one.
    """
    reasons = [] if known else list(notes)
    if reasons and all(note and NOT_FINITE not in note for note in reasons):
        raise InputError(f"no sequence can be scored: {reasons[0]}")


def any_sound(frame: pd.DataFrame) -> bool:
    """Whether there is a value for a sequence on which the model's output was finite."""
    return bool(frame[frame["note"] != NOT_FINITE][columns_of(frame.columns)].notna().to_numpy().any())


def check_finite(sound: bool, notes: Iterable[str]) -> None:
    """Check that the model is not broken.

    Args:
        sound: the result of `any_sound`.
        notes: as for `check_scorable`.

    Raises:
        ModelError: there is no sound value, and the model's output was not finite on a sequence.
    """
    if not sound and NOT_FINITE in set(notes):
        raise ModelError(f"{NOT_FINITE} on any sequence; the adapter is broken, or dtype float32 is needed")


def perplexity(scored: pd.DataFrame, sequences: Dataset) -> float:
    """exp(total NLL / total predicted tokens) over the whole set; NaN if no token is predicted.

    Args:
        scored: a frame of `score` with the column loss.
        sequences: the sequences that were scored, in the same order.
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
    """The table of `score`, also where no sequence can be scored."""
    _check_types(model, sequences, batch_size)
    names = resolve(metrics)
    forward = [name for name in names if name in FORWARD]
    generated = [name for name in names if name in GENERATED]
    needs = {need for name in forward for need in METRICS[name].needs}
    share = share_of(list(range(len(sequences))), accelerator)
    rows: dict[int, dict[str, Any]] = {}
    with progress.bar("score", len(share), "seq") as bar:
        for batch, columns, predictions in predict_batches(model, sequences, share, batch_size, needs, sampling):
            for i, row_id, tokens, predicted in zip(batch, columns["id"], columns["input_ids"], predictions):
                if observe is not None:
                    observe(i, predicted)
                sound = bool(np.isfinite(predicted.nll).all())  # the argmax of NaN logits is a token like any other
                values = compute(forward, predicted) if sound else dict.fromkeys(forward, NOT_FINITE)
                rows[i] = {"id": row_id, "n_tokens": len(tokens), "note": "" if sound else NOT_FINITE, **values}
            bar.update(len(batch))
    if generated:
        for i, values in greedy.measure(model, sequences, generated, batch_size, share).items():
            rows[i] |= values
    rows = gathered({i: _with_note(row, names) for i, row in rows.items()}, accelerator)
    return pd.DataFrame([rows[i] for i in range(len(sequences))], columns=["id", "n_tokens", *names, "note"])


def _check_types(model: Any, sequences: Any, batch_size: Any) -> None:
    if not callable(getattr(model, "forward", None)):
        raise ModelError(f"model: a {type(model).__name__} is no loaded model; load it with load_base")
    columns = getattr(sequences, "column_names", [])
    if not {"id", "input_ids", "prefix_tokens", "scored_from"} <= set(columns):
        raise InputError(f"sequences: a {type(sequences).__name__} without the columns; read it with load_sequences")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise RecipeError(f"batch_size: '{word(batch_size)}' is out of range; give a whole number from 1")


def _with_note(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The row with NaN for each metric that has a reason in place of a number; the note gets the reasons."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        if isinstance(row[name], str):
            reasons.setdefault(row[name], []).append(name)
    note = row["note"] or "; ".join(f"{', '.join(metrics)}: {reason}" for reason, metrics in reasons.items())
    return row | {name: math.nan for metrics in reasons.values() for name in metrics} | {"note": note}
