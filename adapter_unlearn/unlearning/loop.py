"""The one training loop: score all, select, step, score again; stop when it is done or has gone too far.

`train` trains one adapter, a stage; `stages.py` runs one stage after the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adapter_unlearn import models
from adapter_unlearn.unlearning import passes, records, stopping, targets
from adapter_unlearn.unlearning.step import restore, snapshot, trainable

if TYPE_CHECKING:
    from accelerate import Accelerator

    from adapter_unlearn.recipe import Training
    from adapter_unlearn.unlearning.methods import Stage
    from adapter_unlearn.unlearning.records import Outcome, Task
    from adapter_unlearn.unlearning.stopping import Goal


def train(
    model: torch.nn.Module,
    stage: Stage,
    task: Task,
    training: Training,
    goal: Goal,
    budget: float | None,
    accelerator: Accelerator,
    patience: int = 1,
    seed: int = 0,
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    adapter: str = "default",
    start: Outcome | None = None,
    early: bool = True,
) -> Outcome:
    """Train the model's trainable parameters until the goal holds.

    Args:
        model: with the adapter to train active.
        stage: the terms of the loss, and the adapter's factor whenever it is measured.
        task: the sets and their scores under the base.
        training: how to step.
        goal: stops when it holds.
        budget: largest share by which the validation perplexity may grow; None for no limit.
        accelerator: this process's place among the others; all get the same adapter.
        patience: epochs in a row past the budget before the run stops.
        seed: of every draw.
        on_epoch: called with each new record of the log.
        adapter: name of the adapter that is trained.
        start: the stage before; its epochs go on counting. None starts from the base.
        early: stop as soon as the goal holds; else train all epochs, and keep the best of those in which it holds.

    Returns:
        The outcome, with the log of the stages before. When the goal is not reached the best epoch within the budget is
        kept: see stopping.merit.
    """
    before = start or records.base_outcome(task)
    outcome = replace(before, log=list(before.log), goal_reached=False)
    base, standing, scored = outcome.log[0], outcome.log[outcome.kept_epoch], outcome.scored
    if start is None:
        on_epoch(base)
    best = ((True, *stopping.merit(standing)), snapshot(model))
    if stopping.reached(goal, standing):
        outcome.goal_reached = True
        outcome.stopped_because = "The stop rule held before training; nothing was changed."
        return outcome
    learning_rate = stage.learning_rate or training.learning_rate
    assert learning_rate != "auto", "a probe put a number in its place"
    generator = np.random.default_rng(seed)
    optimizer = passes.OPTIMIZERS[training.optimizer](trainable(model), learning_rate)
    reference = passes.reference_of(model, adapter, stage, task, scored, training.batch_size)
    lent = [twin.levels for twin in reference.twins or []]
    pressure = targets.no_pressure(len(task.forget))
    past, first = 0, outcome.log[-1]["epoch"] + 1
    for epoch in range(first, first + training.max_epochs):
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * remaining(epoch - first, training)
        selections = passes.select(stage, task, scored, generator)
        selected = sum(len(rows) for _, rows in selections)
        if selections and not selected:
            outcome.stopped_because = f"After epoch {epoch - 1} no sequence was left to select."
            break
        losses, norm, _ = passes.take(
            model, optimizer, stage, task, selections, reference, training, generator, accelerator
        )
        outcome.sequences_ascended += selected
        with models.scaled(model, adapter, stage.scale):
            scored = records.scores(model, task, training.batch_size, accelerator)
            finite = [norm, *losses.values(), *scored["loss"][task.before["loss"].notna()]]
            if not all(map(math.isfinite, finite)):
                outcome.stopped_because = f"Loss or weights were not finite in epoch {epoch}; lower the learning rate."
                break
            perplexity = records.validation_perplexity(model, task, training.batch_size, accelerator)
        if lent:
            pressure = targets.pressed(pressure, scored, lent)
            reference = replace(reference, twins=targets.asked(lent, pressure))
        rest = {"stage": stage.name, "n_selected": selected, "loss": losses, "gradient_norm": norm}
        record = records.record_of(epoch, scored, task, perplexity, started, **rest)
        if stopping.only_extraction_likelihood_is_open(goal, record):
            with models.scaled(model, adapter, stage.scale):
                record["extraction_likelihood_mean"] = records.extraction_likelihood(
                    model, task, training.batch_size, accelerator
                )
        outcome.log.append(record)
        on_epoch(record)
        past = 0 if stopping.within(budget, record, base) else past + 1
        if past >= patience:
            outcome.stopped_because = f"In epoch {epoch} {stopping.too_far(budget, record, base)}."
            break
        if past:
            continue
        holds = stopping.reached(goal, record)
        if holds and early:
            outcome.goal_reached, outcome.kept_epoch, outcome.scored = True, epoch, scored
            outcome.stopped_because = f"The stop rule held in epoch {epoch}."
            return outcome
        if (not holds, *stopping.merit(record)) < best[0]:
            best = ((not holds, *stopping.merit(record)), snapshot(model))
            outcome.kept_epoch, outcome.scored, outcome.goal_reached = epoch, scored, holds
    else:
        held = "all were to be trained" if outcome.goal_reached else "before the stop rule held"
        outcome.stopped_because = f"{training.max_epochs} epochs passed{', ' if outcome.goal_reached else ' '}{held}."
    restore(model, best[1])
    outcome.stopped_because += f" The adapter of epoch {outcome.kept_epoch} was kept: {stopping.ORDER}."
    return outcome


def remaining(epoch: int, training: Training) -> float:
    """The share of the learning rate that epoch 0, 1, … trains with: 1, then in a line towards 0, never at it."""
    falling = training.learning_rate_decay * training.max_epochs
    return 1.0 if not falling else min(1.0, (training.max_epochs - epoch) / falling)
