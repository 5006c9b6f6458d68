"""Choose a stage's learning rate: take a few steps at each rate of a grid, and undo them.

The criterion depends on what the stage minimizes. If a usable model minimizes the objective, as that of `match`, the
rate with the lowest objective after those steps is taken. A ruined model minimizes an ascent's objective, so there the
validation perplexity decides: of the rates that keep it within its budget the second largest is taken, because a trial
of a few steps does only a small part of the damage of a run.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from adapter_unlearn import models, progress
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.unlearning import loop, records, stopping
from adapter_unlearn.unlearning.context import RunContext
from adapter_unlearn.unlearning.plan import Stage
from adapter_unlearn.unlearning.records import Outcome
from adapter_unlearn.unlearning.step import losses as step_losses
from adapter_unlearn.unlearning.step import restore, snapshot, take_step, trainable

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""The learning rates that are tried."""

STEPS = 8
"""Steps taken at each rate."""

ROWS = 64
"""Rows of a set on which the objective is computed, at most."""

DIVERGED = 2.0
"""The multiple of the objective before any step above which no larger rate is tried."""


def search(
    measure: Callable[[float], dict[str, Any]],
    base: dict[str, Any],
    budget: float | None,
    by_objective: bool,
    rates: Sequence[float] = GRID,
) -> tuple[float, list[dict[str, Any]]]:
    """Try the rates in ascending order until one diverges or exceeds the budget, and take the best of those before.

    Args:
        measure: rate -> a record with `objective` and `validation_perplexity` after some steps; at 0, after none.
        base: the record of the base, for the budget.
        budget: largest share by which the validation perplexity may grow over the base's; only used if the objective
            does not decide. None for no limit.
        by_objective: take the rate with the lowest objective, the smallest of equals; otherwise the second largest rate
            within the budget, or the only one.
        rates: the grid.

    Returns:
        The rate, and the records of 0 and of each rate that was tried; each says whether that rate was `usable`,
        `because` of what not, and whether it was `taken`. Where none was usable the smallest is taken, and the run's
        own perplexity budget limits the damage.

    Raises:
        RecipeError: no rates, or one that is not finite and above 0.
    """
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise RecipeError(f"learning rates {list(rates)}: give finite numbers above 0, at least one")
    grid = sorted(map(float, rates))
    start = measure(0.0) | {"learning_rate": 0.0, "usable": False, "because": "no step was taken; this is the start"}
    rows = [start]
    for rate in grid:
        record = measure(rate)
        fault = _fault(record, start, base, budget, by_objective)
        rows.append(record | {"learning_rate": rate, "usable": fault is None, "because": fault})
        bearable = by_objective and -math.inf < record["objective"] <= DIVERGED * start["objective"]
        if fault and not bearable:
            break
    usable = [row for row in rows if row["usable"]]
    if not usable:
        rate = grid[0]
    elif by_objective:
        rate = min(usable, key=lambda row: row["objective"])["learning_rate"]
    else:
        rate = usable[max(len(usable) - 2, 0)]["learning_rate"]
    return rate, [row | {"taken": row["learning_rate"] == rate} for row in rows]


def describe(rate: float, rows: Sequence[dict[str, Any]]) -> str:
    """One sentence for the user about what `search` returned."""
    tried = f"{sum(row['learning_rate'] > 0 for row in rows)} were tried, {rows[-1]['seconds']:.0f} s each"
    if any(row["usable"] for row in rows):
        return f"Learning rate {rate:g} was taken: {tried}."
    return f"Learning rate {rate:g}, the smallest, was taken, but no rate was usable: {rows[1]['because']}."


def _fault(
    record: dict[str, Any], start: dict[str, Any], base: dict[str, Any], budget: float | None, by_objective: bool
) -> str | None:
    """Why a rate can't be used, or None."""
    before, after = start["objective"], record["objective"]
    if not math.isfinite(after):
        return "loss or weights were not finite"
    if by_objective:
        return None if after < before else f"the objective did not fall: {before:.4g} before, {after:.4g} after"
    if stopping.within(budget, record, base):
        return None
    return stopping.excess(budget, record, base)


def trials(
    model: torch.nn.Module, stage: Stage, context: RunContext, adapter: str = "default", start: Outcome | None = None
) -> Callable[[float], dict[str, Any]]:
    """The function that `search` measures with. Everything is left as it was.

    Args:
        model, stage, context, adapter, start: as for loop.train.

    Returns:
        Learning rate -> a record: the objective (coefficient x loss, summed over the stage's terms) on the same rows
        for every rate, and the validation perplexity, after STEPS steps as `loop.train` takes
        them; at rate 0, after none. The objective is NaN if a step was not finite. Every call starts from the same
        adapter, the same draws and a fresh optimizer. The losses' states are typical ones and are not adapted: at
        first a large retain weight would favour a rate that changes hardly anything.
    """
    task, training, accelerator = context.task, context.training, context.accelerator
    current = start or records.base_outcome(task)
    with _undone(model):
        parts = loop.prepare(model, stage, context, adapter, current.scored, typical=True)
    fixed = np.random.default_rng(context.seed)
    drawn = [(part, _some(rows, fixed)) for part, rows in loop.select(parts, task, current.scored, fixed)]
    drawn += [(part, _some(np.arange(len(part.sequences)), fixed)) for part in parts if part.term.rows == "retain"]

    @_undone(model)
    def measure(learning_rate: float) -> dict[str, Any]:
        started = time.monotonic()
        scored, taken, norm = current.scored, 0, 0.0
        generator = np.random.default_rng(context.seed)
        optimizer = loop.OPTIMIZERS[training.optimizer](trainable(model), learning_rate)
        with progress.bar(f"try learning rate {learning_rate:g}", STEPS, "step") as bar:
            while learning_rate and taken < STEPS and math.isfinite(norm):
                selections = loop.select(parts, task, scored, generator)
                if selections and not any(len(rows) for _, rows in selections):
                    break
                model.train()
                steps = loop.step_batches(parts, selections, context, generator)
                for batches in itertools.islice(steps, STEPS - taken):
                    _, norm = take_step(model, optimizer, batches, training.batch_size, accelerator)
                    taken += 1
                    bar.update()
                    if not math.isfinite(norm):
                        break
                if taken < STEPS and selections:
                    with models.scaled(model, adapter, stage.scale):
                        scored = records.scores(model, task, training.batch_size, accelerator)
        with models.evaluating(model):  # without dropout
            losses = step_losses(model, drawn, training.batch_size, accelerator)
        with models.scaled(model, adapter, stage.scale):
            perplexity = records.validation_perplexity(model, task, training.batch_size, accelerator)
        objective = sum(part.term.coefficient * losses[part.term.name] for part, _ in drawn)
        objective = objective if math.isfinite(norm) else math.nan
        return {"steps": taken, "objective": objective, "loss": losses} | records.ending(perplexity, started)

    return measure


def _some(rows: np.ndarray, generator: np.random.Generator) -> list[int]:
    """At most ROWS of the rows."""
    return np.sort(generator.choice(rows, min(len(rows), ROWS), replace=False)).tolist()


@contextmanager
def _undone(model: torch.nn.Module) -> Iterator[None]:
    """On exit, restore the adapter, its gradients, every module's mode and torch's random state."""
    modes, before = [(module, module.training) for module in model.modules()], snapshot(model)
    devices = {parameter.device for parameter in trainable(model) if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            restore(model, before)
            for parameter in trainable(model):
                parameter.grad = None
            for module, mode in modes:
                module.training = mode
