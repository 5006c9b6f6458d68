"""The training loop: score all, select, step, score again, until the stop rules hold or the budget is exceeded.

`train` trains one adapter, a stage; stages.py runs one stage after the other. An epoch is `select`, in which each term
selects its rows, and `take`, which passes over them once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from adapter_unlearn import models, scoring, signals
from adapter_unlearn.recipe import Training
from adapter_unlearn.unlearning import records, stopping, targets
from adapter_unlearn.unlearning.context import RunContext
from adapter_unlearn.unlearning.plan import Stage
from adapter_unlearn.unlearning.records import Outcome, Task
from adapter_unlearn.unlearning.reference import Reference
from adapter_unlearn.unlearning.run_state import Position
from adapter_unlearn.unlearning.selection import Known
from adapter_unlearn.unlearning.step import Part, restore, snapshot, take_step, trainable

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.0),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr),
}


Selected = list[tuple[Part, np.ndarray]]
"""Each term on the forget set with its rows of an epoch."""


def prepare(
    model: Any, stage: Stage, context: RunContext, adapter: str, scored: pd.DataFrame, typical: bool = False
) -> list[Part]:
    """The terms of a stage with what their losses need, before the first step; terms on a missing set are left out.

    Args:
        model: with the stage's adapter and the frozen ones active.
        stage, context: of the run.
        adapter: the adapter that the stage trains.
        scored: the forget set's scores as the stage begins.
        typical: as for targets.prepare.
    """
    task = context.task
    tokens = np.array(scoring.predicted_tokens(task.forget))
    frozen = [name for name in model.active_adapters if name != adapter]
    forget = Reference(frozen, -scored["loss"].to_numpy(dtype=float) * tokens)
    sets = {"forget": (task.forget, forget), "retain": (task.retain, Reference(frozen))}
    parts = []
    for term in stage.terms:
        sequences, reference = sets[term.rows]
        if sequences is not None:
            state = targets.prepare(model, term, task, context.training.batch_size, frozen, typical)
            parts.append(Part(term, sequences, reference, state))
    return parts


def select(parts: list[Part], task: Task, scored: pd.DataFrame, generator: np.random.Generator) -> Selected:
    """The epoch's selection: each term on the forget set with its rows."""
    known = Known(generator, scored, task.before, task.holdout_scores)
    return [(part, part.term.select(known)) for part in parts if part.term.rows == "forget"]


def step_batches(
    parts: list[Part], selected: Selected, context: RunContext, generator: np.random.Generator
) -> Iterator[list[tuple[Part, list[int]]]]:
    """The terms and rows of each optimizer step of one pass over the epoch's selection."""
    training = context.training
    largest = max((len(rows) for _, rows in selected), default=0)
    steps = math.ceil(largest / (training.sequences_per_step or max(largest, 1))) or 1
    shares = [(part, np.array_split(generator.permutation(rows), steps)) for part, rows in selected]
    unscored = pd.DataFrame(index=range(len(context.task.retain or [])))
    for step in range(steps):
        batches = [(part, split[step].tolist()) for part, split in shares]
        for part in parts:
            if part.term.rows == "retain":
                batches.append((part, part.term.select(Known(generator, unscored, unscored)).tolist()))
        yield batches


@signals.deferred()
def train(
    model: torch.nn.Module, stage: Stage, context: RunContext, adapter: str = "default", start: Outcome | None = None
) -> Outcome:
    """Train the model's trainable parameters until the goal holds.

    Args:
        model: with the adapter to train active.
        stage: the terms of the loss, and the adapter's scale whenever it is measured.
        context: of the run. Its goal and `stop.early` are this stage's: with `early` training stops as soon as the goal
            holds, otherwise all epochs are trained and the best of those in which it holds is kept. Its checkpoint, if
            it was written in this stage, is continued.
        adapter: name of the adapter that is trained.
        start: the outcome of the stage before, whose epochs are counted on; None starts from the base.

    Returns:
        The outcome, with the log of the stages before. Where the goal is not reached, the best epoch within the budget
        is kept; see stopping.merit.

    Raises:
        Interrupted: the process was asked to end; a checkpoint is written.
    """
    task, training, goal = context.task, context.training, context.goal
    budget = context.stop.max_perplexity_increase
    before = start or records.base_outcome(task)
    outcome = replace(before, log=list(before.log), goal_reached=False)
    if start is None:
        context.on_epoch(outcome.log[0])
    if stopping.reached(goal, outcome.log[outcome.kept_epoch]):
        outcome.goal_reached = True
        outcome.stopped_because = "The stop rule held before training; nothing was changed."
        return outcome
    learning_rate = stage.learning_rate or training.learning_rate
    assert learning_rate != "auto", "stages.run replaces it"
    generator = np.random.default_rng(context.seed)
    optimizer = OPTIMIZERS[training.optimizer](trainable(model), learning_rate)
    parts = prepare(model, stage, context, adapter, outcome.scored)
    first = outcome.log[-1]["epoch"] + 1
    position = context.checkpoints.restore_stage(model, optimizer, parts) or Position(
        outcome=outcome,
        scored=outcome.scored,
        draws=dict(generator.bit_generator.state),
        best_merit=(True, *stopping.merit(outcome.log[outcome.kept_epoch])),
        best=snapshot(model),
        epoch=first,
    )
    outcome, base = position.outcome, position.outcome.log[0]
    generator.bit_generator.state = position.draws
    context.on_start()
    for epoch in range(position.epoch, first + training.max_epochs):
        started = time.monotonic()
        # --- select and step ---
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * decay(epoch - first, training)
        selections = select(parts, task, position.scored, generator)
        selected = sum(len(rows) for _, rows in selections)
        if selections and not selected:
            outcome.stopped_because = f"After epoch {epoch - 1} no sequence was left to select."
            break
        model.train()
        for step, batches in enumerate(step_batches(parts, selections, context, generator)):
            if step < position.steps:  # taken before the checkpoint
                continue
            losses, norm = take_step(model, optimizer, batches, training.batch_size, context.accelerator)
            position.losses, position.norm, position.steps = losses, norm, step + 1
            if not math.isfinite(norm):
                break
            context.checkpoints.after_step(model, optimizer, parts, position)
        outcome.sequences_ascended += selected
        # --- score ---
        with models.scaled(model, adapter, stage.scale):
            scored = records.scores(model, task, training.batch_size, context.accelerator)
            finite = [position.norm, *position.losses.values(), *scored["loss"][task.before["loss"].notna()]]
            if not all(map(math.isfinite, finite)):
                outcome.stopped_because = f"Loss or weights were not finite in epoch {epoch}; lower the learning rate."
                break
            perplexity = records.validation_perplexity(model, task, training.batch_size, context.accelerator)
        for part in parts:
            part.state.after_epoch(scored)
        rest = {"stage": stage.name, "n_selected": selected, "loss": position.losses, "gradient_norm": position.norm}
        record = records.record_of(epoch, scored, task, perplexity, started, **rest)
        if stopping.only_extraction_likelihood_is_open(goal, record):
            with models.scaled(model, adapter, stage.scale):
                record["extraction_likelihood_mean"] = records.extraction_likelihood(
                    model, task, training.batch_size, context.accelerator
                )
        outcome.log.append(record)
        context.on_epoch(record)
        # --- stop, or keep the best epoch within the budget ---
        within = stopping.within(budget, record, base)
        position.over = 0 if within else position.over + 1
        if position.over >= context.stop.patience:
            outcome.stopped_because = f"In epoch {epoch} {stopping.excess(budget, record, base)}."
            break
        holds = stopping.reached(goal, record)
        if within and holds and context.stop.early:
            outcome.goal_reached, outcome.kept_epoch, outcome.scored = True, epoch, scored
            outcome.stopped_because = f"The stop rule held in epoch {epoch}."
            return outcome
        if within and (not holds, *stopping.merit(record)) < position.best_merit:
            position.best_merit, position.best = (not holds, *stopping.merit(record)), snapshot(model)
            outcome.kept_epoch, outcome.scored, outcome.goal_reached = epoch, scored, holds
        # --- checkpoint ---
        position.epoch, position.steps, position.scored = epoch + 1, 0, scored
        position.draws = dict(generator.bit_generator.state)
        context.checkpoints.after_step(model, optimizer, parts, position)
    else:
        end = ", all were to be trained" if outcome.goal_reached else " before the stop rule held"
        outcome.stopped_because = f"{training.max_epochs} epochs passed{end}."
    restore(model, position.best)
    outcome.stopped_because += f" The adapter of epoch {outcome.kept_epoch} was kept: {stopping.ORDER}."
    return outcome


def decay(epoch: int, training: Training) -> float:
    """The factor of the learning rate in epoch 0, 1, …: 1, then linearly towards 0, which it does not reach."""
    falling = training.learning_rate_decay * training.max_epochs
    return 1.0 if not falling else min(1.0, (training.max_epochs - epoch) / falling)
