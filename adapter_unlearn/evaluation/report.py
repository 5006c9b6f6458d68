"""From measurements of single sequences to a report: the rows of all forms, and aggregates a form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from adapter_unlearn.evaluation import criteria, utility
from adapter_unlearn.evaluation.criteria import PAPER, Bounds
from adapter_unlearn.metrics import set_level
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import rounding

if TYPE_CHECKING:
    from adapter_unlearn.data import Sets
    from adapter_unlearn.evaluation.forms import Measurement


# What a summary tells in figures of its own; of every other metric it gives the mean.
_SUMMARIZED = ("memorization_accuracy", "extractable", "extractable_50", "longest_verbatim_run", "loss")


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        sequences: the forget set, one row a (sequence, form); the columns of `score`, and form.
        holdout: the same for the holdout set; empty without one.
        summary: {"schema_version": …, "forms": {form: aggregates}}, as in summary.json.
        membership: whether one can tell by each metric that the forget set was trained on, a row a (metric, form); see
            set_level.membership. Empty without a holdout set.
        curves: what greedy decoding recites from every prefix length, a row a (length, form); see prefixes.worst_of.
        utility: downstream tasks and replies, a row a (task, metric, sample, form); empty where none were asked for.
        deltas: what of the adapters' deltas arrives in each form's weights, one row a (module, form); empty where
            nothing was merged.
    """

    sequences: pd.DataFrame
    holdout: pd.DataFrame
    summary: dict[str, Any]
    membership: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    utility: pd.DataFrame = field(default_factory=pd.DataFrame)
    deltas: pd.DataFrame = field(default_factory=pd.DataFrame)


def bounds_of(kind: str, base: Measurement) -> Bounds:
    """The bounds a run decides by: the holdout set's under the base, or the paper's where there is no such set."""
    if kind == "paper" or base.holdout is None:
        return PAPER
    return criteria.holdout_bounds(base.holdout["memorization_accuracy"].to_numpy(dtype=float))


def report(measurements: Sequence[Measurement], sets: Sets, bounds: Bounds) -> Report:
    """Put measurements side by side.

    Args:
        measurements: the base first: what is new is new against it.
        sets: the sets that were measured.
        bounds: what makes an outlier.
    """
    base = measurements[0]
    documents = sets.forget["document"]
    return Report(
        sequences=_side_by_side([(m.form, m.forget) for m in measurements]),
        holdout=_side_by_side([(m.form, m.holdout) for m in measurements if m.holdout is not None]),
        summary={
            "schema_version": run_folder.SCHEMA_VERSION,
            "forms": {m.form: _of_form(m, base, list(documents), bounds) for m in measurements},
        },
        membership=_joined([_membership(m) for m in measurements if m.holdout is not None]),
        curves=_joined([m.curves.assign(form=m.form) for m in measurements if m.curves is not None]),
        utility=_joined([m.utility.assign(form=m.form) for m in measurements if m.utility is not None]),
        deltas=_joined([m.deltas.assign(form=m.form) for m in measurements if m.deltas is not None]),
    )


def _of_form(m: Measurement, base: Measurement, documents: list[str], bounds: Bounds) -> dict[str, Any]:
    """A form's aggregates, those of its own base where that is another one, and what of the delta is in its weights."""
    before = m.before or base
    found = _aggregates(m, before, documents, bounds)
    for name, losses in m.losses.items():
        found[f"{name}_perplexity_interval"] = _ends(set_level.perplexity_interval(losses, m.tokens[name]))
        if m is not base:
            change = set_level.perplexity_change_interval(before.losses[name], losses, m.tokens[name])
            found[f"{name}_perplexity_change"] = change.value
            found[f"{name}_perplexity_change_interval"] = _ends(change)
    if m.utility is not None and before.utility is not None:
        table = utility.aggregate(m.utility) if m is base else utility.compare(before.utility, m.utility)
        found["utility"] = table.to_dict("records")
    if m.before is not None:
        found["before"] = _aggregates(m.before, m.before, documents, bounds) | {"loaded_as": m.loaded_as}
    if m.deltas is not None:
        found["delta"] = rounding.overall(m.deltas)
    return found


def _ends(estimate: set_level.Estimate) -> list[float]:
    return [estimate.low, estimate.high]


def _membership(m: Measurement) -> pd.DataFrame:
    assert m.holdout is not None
    return set_level.membership(m.forget, m.holdout).assign(form=m.form)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _side_by_side(frames: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    columns = ["id", "form", "n_tokens", *(frames[0][1].columns[2:] if frames else [])]
    parts = [frame.assign(form=form)[columns] for form, frame in frames]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _aggregates(m: Measurement, base: Measurement, documents: list[str], bounds: Bounds) -> dict[str, Any]:
    accuracy = m.forget["memorization_accuracy"].to_numpy(dtype=float)
    before = base.forget["memorization_accuracy"].to_numpy(dtype=float)
    extractable = m.forget["extractable"]
    found: dict[str, Any] = {
        "n_sequences": len(m.forget),
        "n_documents": len(set(documents)),
        "memorization_accuracy_mean": float(np.nanmean(accuracy)),
        "memorization_accuracy_max": float(np.nanmax(accuracy)),
        "longest_verbatim_run_max": int(m.forget["longest_verbatim_run"].max()),
        "extractable": int(extractable.sum()),
        "extractable_documents": int(extractable.groupby(documents).max().sum()),
        "extractable_50": int(m.forget["extractable_50"].sum()),
        "loss_mean": float(m.forget["loss"].mean()),
        "memorization_accuracy_mean_interval": _ends(set_level.mean_interval(accuracy)),
        "bounds": {"kind": bounds.kind, "low": bounds.low, "high": bounds.high},
        "paper_bounds": {"low": PAPER.low, "high": PAPER.high} | criteria.count(accuracy, before, PAPER),
    }
    found |= criteria.count(accuracy, before, bounds)
    found |= {f"{name}_mean": float(m.forget[name].mean()) for name in _further(m.forget)}
    if m.holdout is not None:
        found |= _against(m.forget, m.holdout)
    return found | {f"{name}_perplexity": value for name, value in m.perplexities.items()}


def _further(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns[2:-1] if name not in _SUMMARIZED]


def _against(forget: pd.DataFrame, holdout: pd.DataFrame) -> dict[str, Any]:
    """The never-seen sequences, and whether the forget set can be told from them; 0.5 is a coin."""
    unseen = holdout["memorization_accuracy"].to_numpy(dtype=float)
    return {f"holdout_{name}_mean": float(holdout[name].mean()) for name in _further(holdout)} | {
        "holdout_memorization_accuracy_mean": float(np.nanmean(unseen)),
        "holdout_memorization_accuracy_max": float(np.nanmax(unseen)),
        "holdout_longest_verbatim_run_max": int(holdout["longest_verbatim_run"].max()),
        "holdout_extractable": int(holdout["extractable"].sum()),
        "membership_auc_memorization_accuracy": set_level.auc(
            forget["memorization_accuracy"].to_numpy(dtype=float), unseen
        ),
        "membership_auc_loss": set_level.auc(
            -forget["loss"].to_numpy(dtype=float), -holdout["loss"].to_numpy(dtype=float)
        ),
    }
