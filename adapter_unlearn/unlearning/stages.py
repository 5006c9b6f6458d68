"""A method's stages, one after the other. Each trains an adapter of its own; what ships is their exact sum."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from adapter_unlearn import models
from adapter_unlearn.unlearning import learning_rate_search, loop, records, scale_search, stopping
from adapter_unlearn.unlearning.context import RunContext
from adapter_unlearn.unlearning.plan import Stages
from adapter_unlearn.unlearning.records import Outcome
from adapter_unlearn.unlearning.stopping import Goal
from adapter_unlearn.weights import arithmetic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        folder: the adapter that ships, plain PEFT.
        outcome: of all stages together.
        parts: each stage's name, adapter, scale, learning rate (None where the goal held before training), whether that
            was searched, and why it ended.
        scales: one record for each scale of the last adapter that was measured; empty where none was searched.
        rates: one record for each stage and learning rate that was tried; empty where none was searched.
    """

    folder: Path
    outcome: Outcome
    parts: list[dict[str, Any]]
    scales: list[dict[str, Any]]
    rates: list[dict[str, Any]] = field(default_factory=list)


def run(model: Any, plan: Stages, context: RunContext, folder: Path) -> Trained:
    """Train a method's adapters and add them up.

    Args:
        model: with a fresh adapter named `default` on it, active; see models.attach.
        plan: from methods.stages.
        context: of the run. Its goal and `stop.early` are those of the last stage; the stages before end early.
        folder: an empty folder for the adapters.
    """
    budget = context.stop.max_perplexity_increase
    outcome: Outcome | None = None
    parts: list[dict[str, Any]] = []
    scales: list[dict[str, Any]] = []
    rates: list[dict[str, Any]] = []
    for i, stage in enumerate(plan):
        name = "default" if i == 0 else f"stage_{i}"
        if i > 0:
            models.attach_next(model, name)
        goal = context.goal if stage.mean_below is None else Goal(mean_below=stage.mean_below)
        early = context.stop.early or i < len(plan) - 1
        own = replace(context, goal=goal, stop=replace(context.stop, early=early))
        current = outcome or records.base_outcome(context.task)
        rate: float | Literal["auto"] | None = stage.learning_rate or context.training.learning_rate
        searched = rate == "auto" and not stopping.reached(goal, current.log[current.kept_epoch])
        if searched:
            measure = learning_rate_search.trials(model, stage, own, name, outcome)
            rate, rows = learning_rate_search.search(measure, current.log[0], budget, stage.ranks_rates)
            rates += [{"stage": stage.name} | row for row in rows]
            stage = replace(stage, learning_rate=rate)
            log.info(learning_rate_search.describe(rate, rows))
        outcome = loop.train(model, stage, own, name, outcome)
        scale = stage.scale
        if stage.search_scale:
            scale, scales = _search_scale(model, name, own, outcome)
        parts.append({
            "stage": stage.name, "adapter": name, "scale": scale, "learning_rate": None if rate == "auto" else rate,
            "learning_rate_searched": searched, "ended": outcome.stopped_because,
        })  # fmt: skip
        models.set_scale(model, name, scale)  # the next stage starts from the model that this one leaves
    assert outcome is not None
    return Trained(_sum(model, parts, folder), outcome, parts, scales, rates)


def _search_scale(
    model: Any, adapter: str, context: RunContext, outcome: Outcome
) -> tuple[float, list[dict[str, Any]]]:
    """The trained adapter's best scale, and all that were measured; the best one's record is added to the outcome."""
    measured = (model, adapter, context.task, context.training.batch_size, context.accelerator)
    scored: dict[float, pd.DataFrame] = {}

    def measure(scale: float) -> dict[str, Any]:
        record, scored[scale] = records.measured_at(scale, *measured)
        return record

    best, rows = scale_search.search(measure, outcome.log[0], context.stop.max_perplexity_increase)
    epoch = outcome.log[-1]["epoch"] + 1
    chosen = next(row for row in rows if row["scale"] == best)
    record = {**outcome.log[0], **chosen, "epoch": epoch, "stage": "scale search"}
    outcome.log.append(record)
    outcome.kept_epoch, outcome.scored = epoch, scored[best]
    outcome.goal_reached = stopping.reached(context.goal, record)
    outcome.stopped_because += f" Of {len(rows)} scales {best:g} was taken: fewest failing sequences within the budget."
    return best, rows


def _sum(model: Any, parts: list[dict[str, Any]], folder: Path) -> Path:
    """Write the adapters and the sum of their scaled deltas; return the folder of the sum."""
    folders = [models.save_adapter(model, part["adapter"], folder / f"part_{i}") for i, part in enumerate(parts)]
    scales = [part["scale"] for part in parts]
    if scales == [1.0]:
        return folders[0]
    if len(scales) == 1:
        return arithmetic.negate(folders[0], folder / "sum", scales[0])
    return arithmetic.combine(folders, scales, folder / "sum")
