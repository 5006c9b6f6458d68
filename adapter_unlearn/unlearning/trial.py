"""Some steps at a learning rate, taken to see where they lead, and taken back: what rate_search.py measures by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adapter_unlearn import models
from adapter_unlearn.unlearning import passes, rate_search, records, targets
from adapter_unlearn.unlearning.step import restore, snapshot, take_step, trainable

if TYPE_CHECKING:
    from accelerate import Accelerator

    from adapter_unlearn.recipe import Training
    from adapter_unlearn.unlearning.methods import Stage
    from adapter_unlearn.unlearning.records import Outcome, Task


def probing(
    model: torch.nn.Module,
    stage: Stage,
    task: Task,
    training: Training,
    accelerator: Accelerator,
    seed: int = 0,
    adapter: str = "default",
    start: Outcome | None = None,
) -> Callable[[float], dict[str, Any]]:
    """What some steps of a stage at a learning rate lead to, for rate_search.search; all is then as it was.

    Args:
        model, stage, task, training, accelerator, seed, adapter, start: as for loop.train.

    Returns:
        Learning rate -> a record: the objective (coefficient x loss, over the stage's terms) on rows that are the same
        at every rate, and the validation perplexity, after `rate_search.STEPS` steps as `loop.train` takes them; after
        none at rate 0. The objective is NaN if a step was not finite. Every call starts from the same adapter, the
        same draws and a fresh optimizer. The twins' levels stay what they are at first, but count as much as they come
        to count in a run: at first a large retain weight speaks for a rate that hardly moves anything.
    """
    standing = start or records.base_outcome(task)
    with _taken_back(model):
        reference = passes.reference_of(
            model, adapter, stage, task, standing.scored, training.batch_size, targets.TYPICAL
        )
    fixed = np.random.default_rng(seed)
    found = [(term, _some(rows, fixed)) for term, rows in passes.select(stage, task, standing.scored, fixed)]
    found += [(term, _some(np.arange(len(task.retain or [])), fixed)) for term in passes.retain_terms(stage, task)]
    judged = [passes.part_of(term, rows.tolist(), task, reference) for term, rows in found]

    @_taken_back(model)
    def measure(learning_rate: float) -> dict[str, Any]:
        started = time.monotonic()
        scored, taken, norm = standing.scored, 0, 0.0
        generator = np.random.default_rng(seed)
        optimizer = passes.OPTIMIZERS[training.optimizer](trainable(model), learning_rate)
        while learning_rate and taken < rate_search.STEPS and math.isfinite(norm):
            selections = passes.select(stage, task, scored, generator)
            if selections and not any(len(rows) for _, rows in selections):
                break
            most = rate_search.STEPS - taken
            _, norm, steps = passes.take(
                model, optimizer, stage, task, selections, reference, training, generator, accelerator, most
            )
            taken += steps
            if taken < rate_search.STEPS and selections:
                with models.scaled(model, adapter, stage.scale):
                    scored = records.scores(model, task, training.batch_size, accelerator)
        model.train()  # or nothing would be checkpointed, and this step need more memory than those of training
        still = torch.optim.SGD(trainable(model), 0.0)  # a step that goes nowhere tells the losses, added up as ever
        with _without_dropout(model):
            losses, _ = take_step(model, still, judged, training.batch_size, accelerator, reference.adapters)
        with models.scaled(model, adapter, stage.scale):
            perplexity = records.validation_perplexity(model, task, training.batch_size, accelerator)
        objective = sum(part.term.coefficient * losses[part.term.name] for part in judged)
        objective = objective if math.isfinite(norm) else math.nan
        return {"steps": taken, "objective": objective, "loss": losses} | records.ending(perplexity, started)

    return measure


def _some(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """So many of the rows as a probe is judged by."""
    return np.sort(generator.choice(rows, min(len(rows), rate_search.ROWS), replace=False))


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
def _taken_back(model: torch.nn.Module) -> Iterator[None]:
    """On leaving, the adapter, its gradients, every module's mode and torch's random numbers are as they were."""
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
