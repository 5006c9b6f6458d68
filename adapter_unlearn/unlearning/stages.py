"""A method's stages, one after the other, each an adapter of its own; what ships is their exact sum."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapter_unlearn import models
from adapter_unlearn.unlearning import loop, rate_search, records, scale_search, stopping, trial
from adapter_unlearn.unlearning.stopping import Goal
from adapter_unlearn.weights import arithmetic

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

    from adapter_unlearn.recipe import Training
    from adapter_unlearn.unlearning.methods import Stages
    from adapter_unlearn.unlearning.records import Outcome, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        folder: the adapter that ships, plain PEFT.
        outcome: of all stages together.
        parts: each stage's name, the scale its adapter counts with, its learning rate (None where the goal held
            before a probe), whether a probe chose that, and why it ended.
        scales: a record for each scale of the last adapter that was measured; empty where none was searched.
        rates: a record for each stage and learning rate that was measured; empty where none was probed.
    """

    folder: Path
    outcome: Outcome
    parts: list[dict[str, Any]]
    scales: list[dict[str, Any]]
    rates: list[dict[str, Any]] = field(default_factory=list)


def run(
    model: Any,
    stages: Stages,
    task: Task,
    training: Training,
    goal: Goal,
    budget: float | None,
    accelerator: Accelerator,
    place: Path,
    patience: int = 1,
    seed: int = 0,
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    early: bool = True,
) -> Trained:
    """Train a method's adapters and add them up.

    Args:
        model: with a fresh adapter named `default` on it, active; see models.attach.
        stages: from methods.stages.
        task, training, goal, budget, accelerator, patience, seed, on_epoch, early: as for loop.train; the goal is the
            last stage's, and so is `early`.
        place: an empty folder for the adapters.
    """
    outcome: Outcome | None = None
    parts: list[dict[str, Any]] = []
    scales: list[dict[str, Any]] = []
    rates: list[dict[str, Any]] = []
    for i, stage in enumerate(stages):
        name = "default" if i == 0 else f"stage_{i}"
        if i > 0:
            models.attach_next(model, name)
        levels = goal if stage.mean_below is None else Goal(mean_below=stage.mean_below)
        standing = outcome or records.base_outcome(task)
        rate: float | Literal["auto"] | None = stage.learning_rate or training.learning_rate
        probed = rate == "auto" and not stopping.reached(levels, standing.log[standing.kept_epoch])
        if probed:
            measure = trial.probing(model, stage, task, training, accelerator, seed, name, outcome)
            rate, rows = rate_search.search(measure, standing.log[0], budget, rate_search.by_objective(stage))
            rates += [{"stage": stage.name} | row for row in rows]
            stage = replace(stage, learning_rate=rate)
            log.info(rate_search.told(rate, rows))
        outcome = loop.train(
            model,
            stage,
            task,
            training,
            levels,
            budget,
            accelerator,
            patience,
            seed,
            on_epoch,
            name,
            outcome,
            early or i < len(stages) - 1,
        )
        scale = stage.scale
        if stage.search_scale:
            measuring = (model, name, task, training.batch_size, accelerator)
            scale, scales, outcome = _with_best_scale(measuring, outcome, goal, budget)
        parts.append(
            {
                "stage": stage.name,
                "adapter": name,
                "scale": scale,
                "learning_rate": None if rate == "auto" else rate,
                "learning_rate_searched": probed,
                "ended": outcome.stopped_because,
            }
        )
        models.set_scale(model, name, scale)  # the next stage is trained on the model that this one leaves
    assert outcome is not None
    return Trained(_sum(model, parts, place), outcome, parts, scales, rates)


def _with_best_scale(
    measuring: tuple[Any, str, Task, int, Accelerator], outcome: Outcome, goal: Goal, budget: float | None
) -> tuple[float, list[dict[str, Any]], Outcome]:
    """A trained adapter's best scale, all that were measured, and the outcome with one more record: that scale's."""
    scored: dict[float, pd.DataFrame] = {}

    def measure(scale: float) -> dict[str, Any]:
        record, scored[scale] = records.measured_at(scale, *measuring)
        return record

    best, rows = scale_search.search(measure, outcome.log[0], budget)
    epoch = outcome.log[-1]["epoch"] + 1
    chosen = next(row for row in rows if row["scale"] == best)
    record = {**outcome.log[0], **chosen, "epoch": epoch, "stage": "scale search"}
    ended = f" Of {len(rows)} scales {best:g} was taken: fewest outliers within the perplexity budget."
    return (
        best,
        rows,
        replace(
            outcome,
            log=[*outcome.log, record],
            kept_epoch=epoch,
            scored=scored[best],
            goal_reached=stopping.reached(goal, record),
            stopped_because=outcome.stopped_because + ended,
        ),
    )


def _sum(model: Any, parts: list[dict[str, Any]], place: Path) -> Path:
    """Write the adapters, and the sum of their deltas, each times its scale; return where the sum lies."""
    folders = [models.save_adapter(model, part["adapter"], place / f"part_{i}") for i, part in enumerate(parts)]
    scales = [part["scale"] for part in parts]
    if scales == [1.0]:
        return folders[0]
    if len(scales) == 1:
        return arithmetic.negate(folders[0], place / "sum", scales[0])
    return arithmetic.combine(folders, scales, place / "sum")
