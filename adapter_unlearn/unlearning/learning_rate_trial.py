"""A trial of learning_rate_search: some steps at a learning rate, measured, and undone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adapter_unlearn import models
from adapter_unlearn.unlearning import learning_rate_search, passes, records
from adapter_unlearn.unlearning.step import restore, snapshot, take_step, trainable

if TYPE_CHECKING:
    from adapter_unlearn.unlearning.context import RunContext
    from adapter_unlearn.unlearning.plan import Stage
    from adapter_unlearn.unlearning.records import Outcome


def trials(
    model: torch.nn.Module, stage: Stage, context: RunContext, adapter: str = "default", start: Outcome | None = None
) -> Callable[[float], dict[str, Any]]:
    """The function that learning_rate_search.search measures with. Everything is left as it was.

    Args:
        model, stage, context, adapter, start: as for loop.train.

    Returns:
        Learning rate -> a record: the objective (coefficient x loss, summed over the stage's terms) on the same rows
        for every rate, and the validation perplexity, after `learning_rate_search.STEPS` steps as `loop.train` takes
        them; at rate 0, after none. The objective is NaN if a step was not finite. Every call starts from the same
        adapter, the same draws and a fresh optimizer. The losses' states are typical ones and are not adapted: at
        first a large retain weight would favour a rate that changes hardly anything.
    """
    task, training, accelerator = context.task, context.training, context.accelerator
    current = start or records.base_outcome(task)
    with _undone(model):
        inputs = passes.prepare(model, stage, context, adapter, current.scored, typical=True)
    fixed = np.random.default_rng(context.seed)
    drawn = [(term, _some(rows, fixed)) for term, rows in passes.select(inputs, current.scored, fixed)]
    drawn += [(term, _some(np.arange(len(task.retain or [])), fixed)) for term in inputs.retain_terms()]
    measured = [inputs.part(term, rows.tolist()) for term, rows in drawn]

    @_undone(model)
    def measure(learning_rate: float) -> dict[str, Any]:
        started = time.monotonic()
        scored, taken, norm = current.scored, 0, 0.0
        generator = np.random.default_rng(context.seed)
        optimizer = passes.OPTIMIZERS[training.optimizer](trainable(model), learning_rate)
        while learning_rate and taken < learning_rate_search.STEPS and math.isfinite(norm):
            selections = passes.select(inputs, scored, generator)
            if selections and not any(len(rows) for _, rows in selections):
                break
            left = learning_rate_search.STEPS - taken
            _, norm, steps = passes.take(model, optimizer, inputs, selections, generator, left)
            taken += steps
            if taken < learning_rate_search.STEPS and selections:
                with models.scaled(model, adapter, stage.scale):
                    scored = records.scores(model, task, training.batch_size, accelerator)
        model.train()  # in evaluation mode nothing is checkpointed, and the next step would need more memory
        zero_step = torch.optim.SGD(trainable(model), 0.0)  # computes the losses over all processes
        with _without_dropout(model):
            losses, _ = take_step(model, zero_step, measured, training.batch_size, accelerator, inputs.frozen)
        with models.scaled(model, adapter, stage.scale):
            perplexity = records.validation_perplexity(model, task, training.batch_size, accelerator)
        objective = sum(part.term.coefficient * losses[part.term.name] for part in measured)
        objective = objective if math.isfinite(norm) else math.nan
        return {"steps": taken, "objective": objective, "loss": losses} | records.ending(perplexity, started)

    return measure


def _some(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """At most learning_rate_search.ROWS of the rows."""
    return np.sort(generator.choice(rows, min(len(rows), learning_rate_search.ROWS), replace=False))


@contextmanager
def _without_dropout(model: torch.nn.Module) -> Iterator[None]:
    before = [(layer, layer.p) for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]
    for layer, _ in before:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, share in before:
            layer.p = share


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
