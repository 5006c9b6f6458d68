"""A method's stages, one after the other. Each trains an adapter of its own; what ships is their exact sum."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

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


def run(model: Any, plan: Stages, context: RunContext, folder: Path, dtype: str = "float32") -> Trained:
    """Train a method's adapters and add them up.

    Args:
        model: with a fresh adapter named `default` on it, active; see models.attach.
        plan: from methods.stages.
        context: of the run. Its goal and `stop.early` are those of the last stage; the stages before end early. Its
            checkpoint, if it has one, is continued.
        folder: an empty folder for the adapters.
        dtype: name of the dtype of the adapter that ships.
    """
    budget, checkpoints = context.stop.max_perplexity_increase, context.checkpoints
    state = checkpoints.run
    for i in range(1, state.adapters):
        models.attach_next(model, _name(i))
    checkpoints.restore_adapters(model)
    for i, part in enumerate(state.parts):
        models.set_scale(model, _name(i), part["scale"])
    for i, stage in enumerate(plan[len(state.parts) :], start=len(state.parts)):
        name = _name(i)
        if i == state.adapters:
            models.attach_next(model, name)
            state.adapters += 1
        goal = context.goal if stage.mean_below is None else Goal(mean_below=stage.mean_below)
        early = context.stop.early or i < len(plan) - 1
        own = replace(context, goal=goal, stop=replace(context.stop, early=early))
        current = state.outcome or records.base_outcome(context.task)
        rate: float | Literal["auto"] | None = state.rate or stage.learning_rate or context.training.learning_rate
        if rate == "auto" and not stopping.reached(goal, current.log[current.kept_epoch]):
            measure = learning_rate_search.trials(model, stage, own, name, state.outcome)
            state.rate, rows = learning_rate_search.search(measure, current.log[0], budget, stage.ranks_rates)
            rate = state.rate
            state.rates += [{"stage": stage.name} | row for row in rows]
            log.info(learning_rate_search.describe(rate, rows))
            checkpoints.write(model)
        if state.rate:
            stage = replace(stage, learning_rate=state.rate)
        outcome = loop.train(model, stage, own, name, state.outcome)
        scale = stage.scale
        if stage.search_scale:
            scale, state.scales = _search_scale(model, name, own, outcome)
        state.parts.append({
            "stage": stage.name, "adapter": name, "scale": scale, "learning_rate": None if rate == "auto" else rate,
            "learning_rate_searched": state.rate is not None, "ended": outcome.stopped_because,
        })  # fmt: skip
        models.set_scale(model, name, scale)  # the next stage starts from the model that this one leaves
        state.outcome, state.rate, state.position = outcome, None, None
        checkpoints.write(model)
    assert state.outcome is not None
    shipped = _sum(model, state.parts, folder)
    arithmetic.cast(shipped, getattr(torch, dtype))
    return Trained(shipped, state.outcome, state.parts, state.scales, state.rates)


def _name(stage: int) -> str:
    """The name on the model of a stage's adapter."""
    return "default" if stage == 0 else f"stage_{stage}"


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
