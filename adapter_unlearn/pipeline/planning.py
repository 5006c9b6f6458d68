"""What a run will do and write, before it does it: from its recipe, texts and config, and from one measured batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from adapter_unlearn import models, scoring
from adapter_unlearn.pipeline import loading, unlearning_run
from adapter_unlearn.pipeline.resuming import COPIES
from adapter_unlearn.recipe import Permissions, Recipe
from adapter_unlearn.unlearning import learning_rate_search, methods, records, step
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.plan import Term
from adapter_unlearn.unlearning.selection import at_least


@dataclass(frozen=True)
class Plan:
    """The work of a run. Tokens are predicted tokens.

    Attributes:
        sequences: set -> its number of sequences.
        tokens: set -> its tokens.
        stages: each stage's name.
        steps_per_epoch: optimizer steps in the first epoch, in which most rows are selected.
        forget_tokens: trained in an epoch, at most.
        retain_tokens: trained in an epoch, on average.
        scored_tokens: scored after an epoch: the forget set and the drawn validation rows.
        validation_tokens: of the latter.
        max_epochs: of all stages.
        trials: smallest and largest number of optimizer steps of the learning-rate search; 0 and 0 without one.
        synthetic: texts to generate.
        forms: forms that are measured, beside the base.
        measured_tokens: scored for each of them and for the base.
        adapter_parameters: of the adapter that ships, as trained.
        adapter_bytes: of its file.
        checkpoint_bytes: of a checkpoint; there are two while one is written.
    """

    sequences: dict[str, int]
    tokens: dict[str, int]
    stages: list[str]
    steps_per_epoch: int
    forget_tokens: int
    retain_tokens: int
    scored_tokens: int
    validation_tokens: int
    max_epochs: int
    trials: tuple[int, int]
    synthetic: int
    forms: list[str]
    measured_tokens: int
    adapter_parameters: int
    adapter_bytes: int
    checkpoint_bytes: int


def plan(run: Recipe, permissions: Permissions = Permissions()) -> Plan:
    """Plan a run.

    Args:
        run: a recipe.
        permissions: as in unlearn.

    Raises:
        UserError: what `unlearn` would raise for this recipe, these texts or this model's config.
    """
    run = unlearning_run.resolved(run)
    sets = loading.load(run.model, run.data, permissions).sets
    tokens = {name: scoring.predicted_tokens(sequences) for name, sequences in sets.given().items()}
    stages = methods.stages(run.method)
    rows = len(sets.forget)
    ascends = any(term.rows == "forget" for stage in stages for term in stage.terms)
    steps = math.ceil(rows / min(run.training.sequences_per_step or rows, rows)) if ascends else 1
    drawn = 0
    if sets.validation is not None:
        lengths = np.array(tokens["validation"])
        drawn = int(lengths[records.drawn(lengths, run.training.validation_tokens)].sum())
    searched = run.training.learning_rate == "auto" and any(stage.learning_rate is None for stage in stages)
    parameters = _parameters(run, permissions)
    size = {"bfloat16": 2, "float32": 4}[run.adapter.dtype]
    return Plan(
        sequences={name: len(numbers) for name, numbers in tokens.items()},
        tokens={name: sum(numbers) for name, numbers in tokens.items()},
        stages=[stage.name for stage in stages],
        steps_per_epoch=steps,
        forget_tokens=sum(tokens["forget"]) if ascends else 0,
        retain_tokens=round(steps * _retain_rows(run) * float(np.mean(tokens["retain"])))
        if sets.retain is not None
        else 0,
        scored_tokens=sum(tokens["forget"]) + drawn,
        validation_tokens=drawn,
        max_epochs=len(stages) * run.training.max_epochs,
        trials=(2 * learning_rate_search.STEPS, len(learning_rate_search.GRID) * learning_rate_search.STEPS)
        if searched
        else (0, 0),
        synthetic=run.data.synthetic if sets.retain is not None else 0,
        forms=list(run.evaluation.forms),
        measured_tokens=sum(map(sum, tokens.values())),
        adapter_parameters=parameters * len(stages),
        adapter_bytes=parameters * len(stages) * size,
        checkpoint_bytes=parameters * len(stages) * 4 * COPIES,
    )


@dataclass(frozen=True)
class Duration:
    """How long a run takes, in seconds, extrapolated from one batch.

    Attributes:
        scoring: before and after training, in all forms.
        search: of the learning rate, with three rates tried; 0 without one.
        training: all epochs, with the scoring after each.
        step: the measured batch: one forward and backward pass.
    """

    scoring: float
    search: float
    training: float
    step: float


def measure(run: Recipe, planned: Plan, permissions: Permissions = Permissions()) -> Duration:
    """Load the model, score one batch of the forget set and step on it, and extrapolate. Nothing is kept.

    Synthetic texts and the stop rules are left out: a run that stops early takes less.

    Args:
        run: the recipe.
        planned: from `plan`.
        permissions: as in unlearn.

    Raises:
        UserError: as `plan`, or the model can't be loaded.
    """
    run = unlearning_run.resolved(run)
    forget = loading.load(run.model, run.data, permissions).sets.forget
    model = unlearning_run.load_model(run, permissions)
    rows = scoring.batches(forget, range(len(forget)), run.training.batch_size)[0]
    batch = forget.select(rows)
    tokens = max(1, sum(scoring.predicted_tokens(batch)))
    terms = [term for stage in methods.stages(run.method) for term in stage.terms]
    loss = "kl" if any(LOSSES[term.loss].reference for term in terms) else "nll"
    part = step.Part(Term("batch", "retain", at_least, loss), forget)
    score_seconds = _seconds(lambda: scoring.score(model, batch, records.METRICS, run.training.batch_size))
    model.train()
    step_seconds = _seconds(lambda: step.backward(model, part, rows, 1.0))
    per_scored, per_trained = score_seconds / tokens, step_seconds / tokens
    epoch = (planned.forget_tokens + planned.retain_tokens) * per_trained + planned.scored_tokens * per_scored
    sets = (planned.forget_tokens > 0) + (planned.retain_tokens > 0)
    row = planned.tokens["forget"] / max(1, planned.sequences["forget"])
    trial = learning_rate_search.STEPS * learning_rate_search.ROWS * sets * row * per_trained
    judged = learning_rate_search.JUDGED * sets * row * per_scored
    return Duration(
        scoring=planned.measured_tokens * per_scored * (1 + len(planned.forms)),
        search=3 * (trial + judged) if planned.trials[1] else 0.0,
        training=planned.max_epochs * epoch,
        step=step_seconds,
    )


def _seconds(action: Callable[[], object]) -> float:
    """What the second of two calls takes; the first one allocates."""
    action()
    started = time.monotonic()
    action()
    return time.monotonic() - started


def _retain_rows(run: Recipe) -> int:
    """Retain rows of a step."""
    weighted = run.method.get("retain_weight", 1.0) != 0  # `control` has no weight
    return int(run.method.get("retain_sequences", 0)) if weighted else 0


def _parameters(run: Recipe, permissions: Permissions) -> int:
    """Trainable parameters of one stage's adapter, counted on a model without weights."""
    place = (run.model.name, run.model.revision, permissions.trust_remote_code)
    skeleton = models.skeleton(models.load_config(*place), run.model.name, permissions.trust_remote_code)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in step.trainable(models.attach(skeleton, run.adapter)))
