"""What is to be unlearned, and the figures of an epoch: records of train_log.jsonl."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from datasets import Dataset

from adapter_unlearn import models, scoring
from adapter_unlearn.evaluation import criteria
from adapter_unlearn.evaluation.criteria import Criteria
from adapter_unlearn.metrics import set_level

METRICS = ("memorization_accuracy", "extractable", "extractable_any_prefix", "longest_verbatim_run", "loss")
"""Measured for every forget sequence after every epoch."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be unlearned, and what it is measured against.

    Attributes:
        forget: the sequences to unlearn.
        before: their scores under the base, at least METRICS.
        criteria: what makes a sequence an outlier or failing.
        retain: sequences whose behaviour is preserved, or None.
        validation: general unseen sequences, or None: then nothing guards the perplexity.
        validation_perplexity: theirs under the base.
        holdout: never-seen sequences of the forget set's kind, or None.
        holdout_scores: their scores under the base, or None.
    """

    forget: Dataset
    before: pd.DataFrame
    criteria: Criteria
    retain: Dataset | None = None
    validation: Dataset | None = None
    validation_perplexity: float | None = None
    holdout: Dataset | None = None
    holdout_scores: pd.DataFrame | None = None


@dataclass
class Outcome:
    """The result of a stage, or of a run; the model holds the adapter of `kept_epoch`.

    Attributes:
        log: one record per epoch; epoch 0 is the base.
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
    """The start of every run: nothing trained, epoch 0."""
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
    """What the stop rules and the choice of an epoch use."""
    accuracy = scored["memorization_accuracy"].to_numpy(dtype=float)
    before = task.before["memorization_accuracy"].to_numpy(dtype=float)
    outliers = criteria.count_outliers(accuracy, before, task.criteria.bounds)
    auc = None  # of loss: the forget set now against the holdout set under the base
    if task.holdout_scores is not None:
        auc = set_level.auc(*(-frame["loss"].to_numpy(dtype=float) for frame in (scored, task.holdout_scores)))
    return {
        "memorization_accuracy_mean": float(np.nanmean(accuracy)),
        "memorization_accuracy_max": float(np.nanmax(accuracy)),
        "extractable": int(scored["extractable"].sum()),
        "longest_verbatim_run_max": int(scored["longest_verbatim_run"].max()),
        "membership_auc_loss": auc,
        "failing": criteria.count_failing(scored, task.before, task.criteria),
    } | {f"outliers_{kind}": number for kind, number in asdict(outliers).items()}


def ending(perplexity: float | None, started: float) -> dict[str, Any]:
    """The last keys of every record; `started` is a time.monotonic()."""
    return {"validation_perplexity": perplexity, "seconds": round(time.monotonic() - started, 3)}


def scores(model: torch.nn.Module, task: Task, batch_size: int, accelerator: Accelerator) -> pd.DataFrame:
    """The forget set's scores, as selections and records need them."""
    return scoring.score(model, task.forget, METRICS, batch_size, accelerator)


def validation_perplexity(
    model: torch.nn.Module, task: Task, batch_size: int, accelerator: Accelerator
) -> float | None:
    """The perplexity that guards the run, or None without a validation set."""
    if task.validation is None:
        return None
    scored = scoring.score(model, task.validation, ("loss",), batch_size, accelerator)
    return scoring.perplexity(scored, task.validation)


def drawn(tokens: np.ndarray, limit: int | None) -> np.ndarray:
    """The rows of a set that stay within a number of predicted tokens: a fixed draw, in ascending order, at least one.

    Args:
        tokens: predicted tokens of each row, shape (rows,).
        limit: of their sum; None takes all rows.
    """
    order = np.random.default_rng(0).permutation(len(tokens))
    within = len(order) if limit is None else int((tokens[order].cumsum() <= limit).sum())
    return np.sort(order[: max(within, 1)])


def extraction_likelihood(model: torch.nn.Module, task: Task, batch_size: int, accelerator: Accelerator) -> float:
    """The forget set's mean. It needs generation, so it is measured only when all other stop rules hold."""
    names = ("extraction_likelihood",)
    return float(scoring.score(model, task.forget, names, batch_size, accelerator)["extraction_likelihood"].mean())
