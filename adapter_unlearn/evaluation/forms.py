"""Measure a model in the forms in which it may be deployed: its base, and with adapters stacked on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapter_unlearn import models, scoring
from adapter_unlearn.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from accelerate import Accelerator
    from datasets import Dataset

    from adapter_unlearn.sets import Sets

NEEDED = ("memorization_accuracy", "extractable", "extractable_50", "longest_verbatim_run", "loss")
"""What every summary holds; further metrics are columns beside them."""


@dataclass(frozen=True)
class Measurement:
    """One form, measured.

    Attributes:
        form: base, stacked, …
        forget: the forget set's scores, a row a sequence.
        reference: the same for the reference set, or None.
        perplexities: name of a set -> its perplexity, over the whole set.
    """

    form: str
    forget: pd.DataFrame
    reference: pd.DataFrame | None
    perplexities: dict[str, float]


@dataclass(frozen=True)
class Measuring:
    """What to measure, and how.

    Attributes:
        sets: what to score.
        metrics: rows of the metrics table, beside NEEDED.
        batch_size: sequences in one forward.
        accelerator: shares the work among processes.
    """

    sets: Sets
    metrics: Sequence[str] = NEEDED
    batch_size: int = 16
    accelerator: Accelerator | None = None


def measure(model: torch.nn.Module, form: str, adapters: Sequence[str], how: Measuring) -> Measurement:
    """Score every set with exactly these adapters active.

    Args:
        model: a base model, or one with adapters on it.
        form: its name in the report.
        adapters: names of adapters on the model; none is the base.
        how: the sets, metrics and batch size.

    Raises:
        InputError: no sequence of a set can be scored; ModelError: the model's output is not finite on any.
    """
    wanted = list(dict.fromkeys([*NEEDED, *how.metrics]))

    def scored(name: str, sequences: Dataset) -> pd.DataFrame:
        chosen = wanted if name in ("forget", "reference") else ("loss",)
        try:
            frame = scoring.score(model, sequences, chosen, how.batch_size, how.accelerator)
        except InputError as error:
            raise InputError(f"data.{name}: {error}") from error
        scoring.check_finite(frame)
        return frame

    with models.active(model, adapters):
        frames = {name: scored(name, sequences) for name, sequences in how.sets.given().items()}
    perplexities = {
        name: scoring.perplexity(frames[name], sequences)
        for name, sequences in how.sets.given().items()
        if name != "forget"
    }
    return Measurement(form, frames["forget"], frames.get("reference"), perplexities)
