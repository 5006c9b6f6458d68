"""Choose a stage's learning rate: take a few steps on a few rows at several rates of a grid, and undo them.

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
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from adapter_unlearn import models, progress
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.unlearning import loop, records, stopping
from adapter_unlearn.unlearning.context import RunContext
from adapter_unlearn.unlearning.plan import Stage
from adapter_unlearn.unlearning.records import Outcome
from adapter_unlearn.unlearning.step import Part, restore, snapshot, take_step, trainable
from adapter_unlearn.unlearning.step import losses as step_losses

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""The learning rates that may be tried; the search starts in the middle."""

STEPS = 5
"""Steps taken at each rate."""

ROWS = 8
"""Rows of each set in such a step, at most. Steps on fewer retain rows cost more on the others than a run's steps do,
which favours small rates."""

JUDGED = 8
"""Rows of each set on which the objective is computed, at most."""


def search(
    measure: Callable[[float], dict[str, Any]],
    base: dict[str, Any],
    budget: float | None,
    by_objective: bool,
    rates: Sequence[float] = GRID,
) -> tuple[float, list[dict[str, Any]]]:
    """Try the middle rate, then larger ones as long as they are better, or else smaller ones, and take the best.

    Args:
        measure: rate -> a record with `objective` and `validation_perplexity` after some steps; at 0, after none.
        base: the record of the base, for the budget.
        budget: largest share by which the validation perplexity may grow over the base's; only used if the objective
            does not decide. None for no limit.
        by_objective: take the rate with the lowest objective, the smallest of equals; otherwise the second largest rate
            within the budget, or the only one.
        rates: the grid.

    Returns:
        The rate, and the records of 0 and of each rate, in the order in which they were tried; each says whether that
        rate was `usable`, `because` of what not, and whether it was `taken`. Where none was usable the smallest is
        taken, and the run's own perplexity budget limits the damage.

    Raises:
        RecipeError: no rates, or one that is not finite and above 0.
    """
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise RecipeError(f"learning rates {list(rates)}: give finite numbers above 0, at least one")
    grid = sorted(map(float, rates))
    start = measure(0.0) | {"learning_rate": 0.0, "usable": False, "because": "no step was taken; this is the start"}
    tried: dict[float, dict[str, Any]] = {}

    def cost(rate: float) -> float:
        """The objective, or 0 within the budget; infinite where the rate can't be used."""
        if rate not in tried:
            record = measure(rate)
            fault = _fault(record, start, base, budget, by_objective)
            tried[rate] = record | {"learning_rate": rate, "usable": fault is None, "because": fault}
        if not tried[rate]["usable"]:
            return math.inf
        return float(tried[rate]["objective"]) if by_objective else 0.0

    taken = _lowest(cost, grid) if by_objective else _second_largest(cost, grid)
    return taken, [row | {"taken": row["learning_rate"] == taken} for row in (start, *tried.values())]


def _lowest(cost: Callable[[float], float], grid: Sequence[float]) -> float:
    """The rate of lowest cost, from the middle upwards, or else downwards; the smallest of equals."""
    middle = best = len(grid) // 2
    while math.isfinite(cost(grid[best])) and best + 1 < len(grid) and cost(grid[best + 1]) < cost(grid[best]):
        best += 1
    while best <= middle and best > 0 and cost(grid[best - 1]) <= cost(grid[best]):
        best -= 1
    return grid[best]


def _second_largest(cost: Callable[[float], float], grid: Sequence[float]) -> float:
    """The second largest rate of finite cost, or the only one, or the smallest rate. The cost grows with the rate."""
    largest = len(grid) // 2
    while math.isfinite(cost(grid[largest])) and largest + 1 < len(grid) and math.isfinite(cost(grid[largest + 1])):
        largest += 1
    while not math.isfinite(cost(grid[largest])) and largest > 0:
        largest -= 1
    return grid[largest - 1] if largest > 0 and math.isfinite(cost(grid[largest - 1])) else grid[largest]


def describe(rate: float, rows: Sequence[dict[str, Any]]) -> str:
    """One sentence for the user about what `search` returned."""
    tried = f"{len(rows) - 1} were tried, {rows[-1]['seconds']:.0f} s each"
    if any(row["usable"] for row in rows):
        return f"Learning rate {rate:g} was taken: {tried}."
    because = next(row["because"] for row in rows if row["taken"])
    return f"Learning rate {rate:g}, the smallest, was taken, but no rate was usable: {because}."


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
        Learning rate -> a record after STEPS steps, or none at rate 0: the objective (coefficient x loss, summed over
        the stage's terms) on the same rows for every rate, or, where it can't rank rates, the validation perplexity
        (otherwise None). The steps are those of `loop.train` with at most ROWS rows of a set, all from one selection.
        The objective is NaN if a step was not finite. Every call starts from the same adapter, the same draws and a
        fresh optimizer. The losses' states are typical ones and are not adapted: at first a large retain weight would
        favour a rate that changes hardly anything.
    """
    task, accelerator = context.task, context.accelerator
    training = replace(context.training, sequences_per_step=min(context.training.sequences_per_step or ROWS, ROWS))
    current = start or records.base_outcome(task)
    with _undone(model):
        parts = loop.prepare(model, stage, context, adapter, current.scored, typical=True)
    fixed = np.random.default_rng(context.seed)
    drawn = [(part, _some(rows, fixed)) for part, rows in loop.select(parts, task, current.scored, fixed)]
    drawn += [(part, _some(np.arange(len(part.sequences)), fixed)) for part in parts if part.term.rows == "retain"]

    @_undone(model)
    def measure(learning_rate: float) -> dict[str, Any]:
        started, norm = time.monotonic(), 0.0
        generator = np.random.default_rng(context.seed)
        optimizer = loop.OPTIMIZERS[training.optimizer](trainable(model), learning_rate)
        batches = _batches(parts, replace(context, training=training), current, generator)
        taken = 0
        model.train()
        with progress.bar(f"try learning rate {learning_rate:g}", STEPS, "step") as bar:
            for batch in itertools.islice(batches, STEPS if learning_rate else 0):
                _, norm = take_step(model, optimizer, batch, training.batch_size, accelerator)
                taken += 1
                bar.update()
                if not math.isfinite(norm):
                    break
        perplexity = None
        with models.evaluating(model):  # without dropout
            losses = step_losses(model, drawn, training.batch_size, accelerator)
        if not stage.ranks_rates:
            with models.scaled(model, adapter, stage.scale):
                perplexity = records.validation_perplexity(model, task, training.batch_size, accelerator)
        objective = sum(part.term.coefficient * losses[part.term.name] for part, _ in drawn)
        objective = objective if math.isfinite(norm) else math.nan
        return {"steps": taken, "objective": objective, "loss": losses} | records.ending(perplexity, started)

    return measure


def _batches(
    parts: list[Part], context: RunContext, current: Outcome, generator: np.random.Generator
) -> Iterator[list[tuple[Part, list[int]]]]:
    """The terms and rows of each step of a trial, pass after pass over one selection."""
    selected = loop.select(parts, context.task, current.scored, generator)
    while not selected or any(len(rows) for _, rows in selected):
        for batches in loop.step_batches(parts, selected, context, generator):
            yield [(part, rows[:ROWS]) for part, rows in batches]


def _some(rows: np.ndarray, generator: np.random.Generator) -> list[int]:
    """At most JUDGED of the rows."""
    return np.sort(generator.choice(rows, min(len(rows), JUDGED), replace=False)).tolist()


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
