"""The training loop: score all, select, step, score again, until the stop rules hold or the budget is exceeded.

`train` trains one adapter, a stage; stages.py runs one stage after the other.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from adapter_unlearn import models
from adapter_unlearn.unlearning import passes, records, stopping
from adapter_unlearn.unlearning.step import restore, snapshot, trainable

if TYPE_CHECKING:
    from adapter_unlearn.recipe import Training
    from adapter_unlearn.unlearning.context import RunContext
    from adapter_unlearn.unlearning.plan import Stage
    from adapter_unlearn.unlearning.records import Outcome


def train(
    model: torch.nn.Module, stage: Stage, context: RunContext, adapter: str = "default", start: Outcome | None = None
) -> Outcome:
    """Train the model's trainable parameters until the goal holds.

    Args:
        model: with the adapter to train active.
        stage: the terms of the loss, and the adapter's scale whenever it is measured.
        context: of the run. Its goal and `stop.early` are this stage's: with `early` training stops as soon as the goal
            holds, otherwise all epochs are trained and the best of those in which it holds is kept.
        adapter: name of the adapter that is trained.
        start: the outcome of the stage before, whose epochs are counted on; None starts from the base.

    Returns:
        The outcome, with the log of the stages before. Where the goal is not reached, the best epoch within the budget
        is kept; see stopping.merit.
    """
    task, training, stop, goal = context.task, context.training, context.stop, context.goal
    budget = stop.max_perplexity_increase
    before = start or records.base_outcome(task)
    outcome = replace(before, log=list(before.log), goal_reached=False)
    base, current, scored = outcome.log[0], outcome.log[outcome.kept_epoch], outcome.scored
    if start is None:
        context.on_epoch(base)
    best = ((True, *stopping.merit(current)), snapshot(model))
    if stopping.reached(goal, current):
        outcome.goal_reached = True
        outcome.stopped_because = "The stop rule held before training; nothing was changed."
        return outcome
    learning_rate = stage.learning_rate or training.learning_rate
    assert learning_rate != "auto", "stages.run replaces it"
    generator = np.random.default_rng(context.seed)
    optimizer = passes.OPTIMIZERS[training.optimizer](trainable(model), learning_rate)
    inputs = passes.prepare(model, stage, context, adapter, scored)
    over, first = 0, outcome.log[-1]["epoch"] + 1  # over: epochs in a row past the budget
    for epoch in range(first, first + training.max_epochs):
        started = time.monotonic()
        # --- select and step ---
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * decay(epoch - first, training)
        selections = passes.select(inputs, scored, generator)
        selected = sum(len(rows) for _, rows in selections)
        if selections and not selected:
            outcome.stopped_because = f"After epoch {epoch - 1} no sequence was left to select."
            break
        losses, norm, _ = passes.take(model, optimizer, inputs, selections, generator)
        outcome.sequences_ascended += selected
        # --- score ---
        with models.scaled(model, adapter, stage.scale):
            scored = records.scores(model, task, training.batch_size, context.accelerator)
            finite = [norm, *losses.values(), *scored["loss"][task.before["loss"].notna()]]
            if not all(map(math.isfinite, finite)):
                outcome.stopped_because = f"Loss or weights were not finite in epoch {epoch}; lower the learning rate."
                break
            perplexity = records.validation_perplexity(model, task, training.batch_size, context.accelerator)
        for state in inputs.states.values():
            state.after_epoch(scored)
        rest = {"stage": stage.name, "n_selected": selected, "loss": losses, "gradient_norm": norm}
        record = records.record_of(epoch, scored, task, perplexity, started, **rest)
        if stopping.only_extraction_likelihood_is_open(goal, record):
            with models.scaled(model, adapter, stage.scale):
                record["extraction_likelihood_mean"] = records.extraction_likelihood(
                    model, task, training.batch_size, context.accelerator
                )
        outcome.log.append(record)
        context.on_epoch(record)
        # --- stop, or keep the best epoch within the budget ---
        over = 0 if stopping.within(budget, record, base) else over + 1
        if over >= stop.patience:
            outcome.stopped_because = f"In epoch {epoch} {stopping.excess(budget, record, base)}."
            break
        if over:
            continue
        holds = stopping.reached(goal, record)
        if holds and stop.early:
            outcome.goal_reached, outcome.kept_epoch, outcome.scored = True, epoch, scored
            outcome.stopped_because = f"The stop rule held in epoch {epoch}."
            return outcome
        if (not holds, *stopping.merit(record)) < best[0]:
            best = ((not holds, *stopping.merit(record)), snapshot(model))
            outcome.kept_epoch, outcome.scored, outcome.goal_reached = epoch, scored, holds
    else:
        end = ", all were to be trained" if outcome.goal_reached else " before the stop rule held"
        outcome.stopped_because = f"{training.max_epochs} epochs passed{end}."
    restore(model, best[1])
    outcome.stopped_because += f" The adapter of epoch {outcome.kept_epoch} was kept: {stopping.ORDER}."
    return outcome


def decay(epoch: int, training: Training) -> float:
    """The factor of the learning rate in epoch 0, 1, …: 1, then linearly towards 0, which it does not reach."""
    falling = training.learning_rate_decay * training.max_epochs
    return 1.0 if not falling else min(1.0, (training.max_epochs - epoch) / falling)
