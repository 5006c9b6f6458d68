"""What is to be unlearned, and the figures that say how far it is: records of train_log.jsonl."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_unlearn import models, scoring
from adapter_unlearn.evaluation import criteria
from adapter_unlearn.metrics import set_level

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from accelerate import Accelerator
    from datasets import Dataset

    from adapter_unlearn.evaluation.criteria import Bounds

METRICS = ("memorization_accuracy", "extractable", "longest_verbatim_run", "loss")
"""Of every forget sequence, after every epoch."""


@dataclass(frozen=True)
class Task:
    """What is to be unlearned, and what it is measured against.

    Attributes:
        forget: the sequences to unlearn.
        before: them, scored under the base.
        bounds: what makes an outlier.
        retain: sequences whose behaviour stays, or None.
        validation: general unseen sequences, or None: then nothing guards the perplexity.
        validation_perplexity: theirs under the base.
        holdout: never-seen sequences of the forget set's kind, scored under the base, or None.
        holdout_sequences: them; needed by a loss with twins only.
    """

    forget: Dataset
    before: pd.DataFrame
    bounds: Bounds
    retain: Dataset | None = None
    validation: Dataset | None = None
    validation_perplexity: float | None = None
    holdout: pd.DataFrame | None = None
    holdout_sequences: Dataset | None = None


@dataclass
class Outcome:
    """How a stage went, or a run; the model holds the adapter of `kept_epoch`.

    Attributes:
        log: one record an epoch; epoch 0 is the base.
        kept_epoch: whose adapter is kept.
        scored: the forget set's scores with that adapter.
        stopped_because: one sentence.
        goal_reached: the stop rule held.
        sequences_ascended: how many times a forget sequence was stepped on, over all epochs.
    """

    log: list[dict[str, Any]]
    kept_epoch: int
    scored: pd.DataFrame
    stopped_because: str = ""
    goal_reached: bool = False
    sequences_ascended: int = 0


def base_outcome(task: Task) -> Outcome:
    """Where every run starts: nothing trained, epoch 0."""
    first = record_of(0, task.before, task, task.validation_perplexity, started=time.monotonic())
    return Outcome([first], 0, task.before)


def measured_at(
    scale: float, model: torch.nn.Module, adapter: str, task: Task, batch_size: int, accelerator: Accelerator
) -> tuple[dict[str, Any], pd.DataFrame]:
    """A record and the forget set's scores with one adapter at another scale; nothing is trained."""
    started = time.monotonic()
    with models.scaled(model, adapter, scale):
        scored = scores(model, task, batch_size, accelerator)
        perplexity = validation_perplexity(model, task, batch_size, accelerator)
    return {"scale": scale} | _figures(scored, task) | ending(perplexity, started), scored


def record_of(
    epoch: int, scored: pd.DataFrame, task: Task, perplexity: float | None, started: float, **rest: Any
) -> dict[str, Any]:
    """One line of train_log.jsonl."""
    record = {"epoch": epoch, "stage": None, "n_selected": None, "loss": None, "gradient_norm": None} | rest
    return record | _figures(scored, task) | ending(perplexity, started)


def _figures(scored: pd.DataFrame, task: Task) -> dict[str, Any]:
    """What the stop rules and the choice of an epoch look at."""
    accuracy = scored["memorization_accuracy"].to_numpy(dtype=float)
    before = task.before["memorization_accuracy"].to_numpy(dtype=float)
    return {
        "memorization_accuracy_mean": float(np.nanmean(accuracy)),
        "memorization_accuracy_max": float(np.nanmax(accuracy)),
        "extractable": int(scored["extractable"].sum()),
        "longest_verbatim_run_max": int(scored["longest_verbatim_run"].max()),
        "membership_auc_loss": None if task.holdout is None else _auc(scored["loss"], task.holdout["loss"]),
    } | criteria.count(accuracy, before, task.bounds)


def _auc(forget: pd.Series, holdout: pd.Series) -> float:
    """How well a loss tells what was learnt from what was never seen; the holdout set's is the base's."""
    return set_level.auc(-forget.to_numpy(dtype=float), -holdout.to_numpy(dtype=float))


def ending(perplexity: float | None, started: float) -> dict[str, Any]:
    """What every record ends with; `started` is a time.monotonic()."""
    return {"validation_perplexity": perplexity, "seconds": round(time.monotonic() - started, 3)}


def scores(model: torch.nn.Module, task: Task, batch_size: int, accelerator: Accelerator) -> pd.DataFrame:
    """The forget set's scores, as selections and records need them."""
    return scoring.score(model, task.forget, METRICS, batch_size, accelerator)


def validation_perplexity(
    model: torch.nn.Module, task: Task, batch_size: int, accelerator: Accelerator
) -> float | None:
    """The perplexity that guards the run, or None where nothing does."""
    if task.validation is None:
        return None
    scored = scoring.score(model, task.validation, ("loss",), batch_size, accelerator)
    return scoring.perplexity(scored, task.validation)


def extraction_likelihood(model: torch.nn.Module, task: Task, batch_size: int, accelerator: Accelerator) -> float:
    """The forget set's mean; it generates, so it is had only when a stop rule waits for nothing else."""
    names = ("extraction_likelihood",)
    return float(scoring.score(model, task.forget, names, batch_size, accelerator)["extraction_likelihood"].mean())
