"""Put the measurements of several forms together: the rows of all forms, and a summary of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from adapter_unlearn.evaluation import utility
from adapter_unlearn.evaluation.criteria import PAPER, Criteria, count_failing, count_outliers
from adapter_unlearn.evaluation.summary import (
    SUMMARIZED,
    DeltaSummary,
    FormSummary,
    HoldoutSummary,
    Perplexity,
    Summary,
)
from adapter_unlearn.metrics import columns_of, set_level
from adapter_unlearn.weights import rounding

if TYPE_CHECKING:
    from adapter_unlearn.data import Sets
    from adapter_unlearn.evaluation.forms import Measurement


@dataclass(frozen=True)
class Report:
    """The results of an evaluation.

    Attributes:
        sequences: the forget set, one row per (sequence, form); the columns of `score`, and form.
        holdout: the same for the holdout set; empty without one.
        summary: the aggregates of each form.
        membership: how distinguishable forget and holdout set are, one row per (metric, form); see
            set_level.membership. Empty without a holdout set.
        curves: what is extractable from every prefix length, one row per (length, form); see prefixes.worst_of.
        utility: downstream tasks and replies, one row per (task, metric, sample, form); empty where none were measured.
        deltas: how much of the adapters' deltas is in each form's weights, one row per (module, form); empty where
            nothing was merged.
    """

    sequences: pd.DataFrame
    holdout: pd.DataFrame
    summary: Summary
    membership: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    utility: pd.DataFrame = field(default_factory=pd.DataFrame)
    deltas: pd.DataFrame = field(default_factory=pd.DataFrame)


def build_report(measurements: Sequence[Measurement], sets: Sets, criteria: Criteria) -> Report:
    """Put measurements side by side.

    Args:
        measurements: one per form, the base first.
        sets: the sets that were measured.
        criteria: bounds and longest run of the run's base; they apply to every form.
    """
    base, documents = measurements[0], list(sets.forget["document"])
    return Report(
        sequences=_scores((m.form, m.forget) for m in measurements),
        holdout=_scores((m.form, m.holdout) for m in measurements),
        summary=Summary({m.form: _summarize(m, m.before or base, documents, criteria) for m in measurements}),
        membership=_concatenate(
            (m.form, None if m.holdout is None else set_level.membership(m.forget, m.holdout)) for m in measurements
        ),
        curves=_concatenate((m.form, m.curves) for m in measurements),
        utility=_concatenate((m.form, m.utility) for m in measurements),
        deltas=_concatenate((m.form, m.deltas) for m in measurements),
    )


def _scores(tables: Iterable[tuple[str, pd.DataFrame | None]]) -> pd.DataFrame:
    """The tables of `score` below each other, with the form as second column."""
    rows = _concatenate(tables)
    front = ["id", "form", "n_tokens"]
    return rows[front + [name for name in rows if name not in front]] if len(rows) else pd.DataFrame(columns=front)


def _concatenate(tables: Iterable[tuple[str, pd.DataFrame | None]]) -> pd.DataFrame:
    """The tables of all forms that have one."""
    frames = [table.assign(form=form) for form, table in tables if table is not None]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _summarize(m: Measurement, before: Measurement, documents: list[str], criteria: Criteria) -> FormSummary:
    """The summary of one form; `before` is the base in the form's own precision, and the measurement itself for it."""
    accuracy, base_accuracy = (_values(one.forget, "memorization_accuracy") for one in (m, before))
    extractable = m.forget["extractable"]
    return FormSummary(
        form=m.form,
        n_sequences=len(m.forget),
        n_documents=len(set(documents)),
        failing=count_failing(m.forget, before.forget, criteria),
        extractable=int(extractable.sum()),
        extractable_documents=int(extractable.groupby(documents).max().sum()),
        extractable_50=int(m.forget["extractable_50"].sum()),
        memorization_accuracy_mean=float(np.nanmean(accuracy)),
        memorization_accuracy_mean_interval=set_level.mean_interval(accuracy).interval,
        memorization_accuracy_max=float(np.nanmax(accuracy)),
        longest_verbatim_run_max=int(m.forget["longest_verbatim_run"].max()),
        loss_mean=float(m.forget["loss"].mean()),
        bounds=criteria.bounds,
        outliers=count_outliers(accuracy, base_accuracy, criteria.bounds),
        paper_outliers=count_outliers(accuracy, base_accuracy, PAPER),
        means=_further_means(m.forget),
        holdout=None if m.holdout is None else _summarize_holdout(m.forget, m.holdout),
        perplexities={name: _perplexity(m, before, name) for name in m.losses},
        tasks=_task_scores(m, before),
        delta=None if m.deltas is None else DeltaSummary(**rounding.overall(m.deltas)),
        before=None if m.before is None else _summarize(m.before, m.before, documents, criteria),
        loaded_as="" if m.before is None else m.loaded_as,
    )


def _values(frame: pd.DataFrame, metric: str) -> np.ndarray:
    return frame[metric].to_numpy(dtype=float)


def _further_means(frame: pd.DataFrame) -> dict[str, float]:
    return {name: float(frame[name].mean()) for name in columns_of(frame.columns) if name not in SUMMARIZED}


def _summarize_holdout(forget: pd.DataFrame, holdout: pd.DataFrame) -> HoldoutSummary:
    members, accuracy = (_values(frame, "memorization_accuracy") for frame in (forget, holdout))
    return HoldoutSummary(
        extractable=int(holdout["extractable"].sum()),
        memorization_accuracy_mean=float(np.nanmean(accuracy)),
        memorization_accuracy_max=float(np.nanmax(accuracy)),
        longest_verbatim_run_max=int(holdout["longest_verbatim_run"].max()),
        membership_auc_memorization_accuracy=set_level.auc(members, accuracy),
        membership_auc_loss=set_level.auc(-_values(forget, "loss"), -_values(holdout, "loss")),
        means=_further_means(holdout),
    )


def _perplexity(m: Measurement, before: Measurement, name: str) -> Perplexity:
    losses, tokens = m.losses[name], m.tokens[name]
    value, interval = m.perplexities[name], set_level.perplexity_interval(losses, tokens).interval
    if m is before:
        return Perplexity(value, interval)
    change = set_level.perplexity_change_interval(before.losses[name], losses, tokens)
    return Perplexity(value, interval, change.value, change.interval)


def _task_scores(m: Measurement, before: Measurement) -> tuple[utility.TaskScore, ...]:
    if m.utility is None or before.utility is None:
        return ()
    return utility.aggregate(m.utility) if m is before else utility.compare(before.utility, m.utility)
