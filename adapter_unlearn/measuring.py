"""Every metric of a set, a row a sequence: those of the one forward, and those of what the model writes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from adapter_unlearn import continuation, scoring
from adapter_unlearn.memorization import catalogue
from adapter_unlearn.memorization.generated import GENERATED_METRICS
from adapter_unlearn.memorization.sampling import Sampling
from adapter_unlearn.memorization.teacher_forced import Predictions

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from datasets import Dataset


def score(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = scoring.DEFAULT_METRICS,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    sampling: Sampling = scoring.DEFAULT_SAMPLING,
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
    frame = _rows_of(model, sequences, metrics, batch_size, accelerator, sampling, observe)
    scoring.check_scorable(_any_known(frame), frame["note"])
    return frame


PART = 1024
"""Rows of a table that exist at once where it is made in parts: many batches of each length, yet some KiB a row."""


def parts(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = scoring.DEFAULT_METRICS,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    sampling: Sampling = scoring.DEFAULT_SAMPLING,
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
        yield _rows_of(model, part, metrics, batch_size, accelerator, sampling)


class Overview:
    """What is left of a table of `parts` once its rows are written away.

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
        names = list(part.columns[2:-1])
        numbers = part[names]
        self.n += len(part)
        self._sums = numbers.sum() if self._sums is None else self._sums + numbers.sum()
        self._counts = numbers.count() if self._counts is None else self._counts + numbers.count()
        self._notes |= dict.fromkeys(part["note"])
        self._known |= _any_known(part)
        self._sound |= scoring.any_sound(part)
        rows = pd.concat([self.top, part], ignore_index=True)
        if names:
            by = "memorization_accuracy" if "memorization_accuracy" in names else names[0]
            low = catalogue.CATALOGUE[by].memorized == "low"
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
        scoring.check_scorable(self._known, self._notes)
        scoring.check_finite(self._sound, self._notes)


def _any_known(frame: pd.DataFrame) -> bool:
    """Whether there is a number at all, of the metrics of one forward; of the others none may be what is found."""
    columns = [name for name in frame.columns[2:-1] if name not in GENERATED_METRICS]
    return not columns or bool(frame[columns].notna().any(axis=None))


def _rows_of(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str],
    batch_size: int,
    accelerator: Accelerator | None,
    sampling: Sampling,
    observe: Callable[[int, Predictions], None] | None = None,
) -> pd.DataFrame:
    names = catalogue.chosen(metrics)
    generated = [name for name in names if name in GENERATED_METRICS]
    forward = [name for name in names if name not in generated]
    frame = scoring.rows_of(model, sequences, forward, batch_size, accelerator, sampling, observe)
    if not generated:
        return frame
    share = list(range(len(sequences)))
    if accelerator is not None:
        share = share[accelerator.process_index :: accelerator.num_processes]
    by_index = continuation.measure(model, sequences, generated, batch_size, share)
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        by_index = dict(gather_object(list(by_index.items())))
    found = [by_index[i] for i in range(len(sequences))]
    for name in generated:
        frame[name] = [float("nan") if isinstance(row[name], str) else float(row[name]) for row in found]
    frame["note"] = [
        note if note == scoring.NOT_FINITE else "; ".join(filter(None, [note, _reasons(row)]))
        for note, row in zip(frame["note"], found)
    ]
    return frame[["id", "n_tokens", *names, "note"]]


def _reasons(row: dict[str, float | str]) -> str:
    """Why there are no numbers, each reason once, behind the names it is for."""
    by_reason: dict[str, list[str]] = {}
    for name, value in row.items():
        if isinstance(value, str):
            by_reason.setdefault(value, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
