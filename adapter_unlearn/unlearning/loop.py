"""The one training loop: score all, select, step, score again; stop when it is done or has gone too far.

`train` trains one adapter, a stage; `stages.py` runs one stage after the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from adapter_unlearn import measuring, models, scoring
from adapter_unlearn.memorization import outliers
from adapter_unlearn.unlearning import rate_probe, stopping, twins
from adapter_unlearn.unlearning.losses import LOSSES
from adapter_unlearn.unlearning.reference import States
from adapter_unlearn.unlearning.selection import Known
from adapter_unlearn.unlearning.step import Part, take_step, token_levels, trainable

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from adapter_unlearn.memorization.outliers import Bounds
    from adapter_unlearn.recipe import Training
    from adapter_unlearn.unlearning.methods import Stage, Term
    from adapter_unlearn.unlearning.stopping import Goal
    from adapter_unlearn.unlearning.twins import Twin

METRICS = ("memorization_accuracy", "extractable", "longest_verbatim_run", "loss")

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.0),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr),
}


@dataclass(frozen=True)
class Task:
    """What is to be unlearned, and what it is measured against.

    Attributes:
        forget: the sequences to unlearn.
        before: them, scored under the base.
        bounds: what makes an outlier.
        retain: sequences whose behaviour stays, or None.
        validation: general unseen sequences, or None: then nothing guards the perplexity.
        validation_perplexity: theirs under the base.
        reference: never-seen sequences of the forget set's kind, scored under the base, or None.
        reference_sequences: them; needed by a loss with twins only.
    """

    forget: Dataset
    before: pd.DataFrame
    bounds: Bounds
    retain: Dataset | None = None
    validation: Dataset | None = None
    validation_perplexity: float | None = None
    reference: pd.DataFrame | None = None
    reference_sequences: Dataset | None = None


@dataclass
class Outcome:
    """How a stage went, or a run; the model holds the adapter of `kept_epoch`.

    Attributes:
        log: one record an epoch; epoch 0 is the base.
        kept_epoch: whose adapter is kept.
        scored: the forget set's scores with that adapter.
        stopped_because: one sentence.
        goal_reached: the stop rule held.
        sequences_ascended: how many times a forget sequence was stepped on, over all epochs.
    """

    log: list[dict[str, Any]]
    kept_epoch: int
    scored: pd.DataFrame
    stopped_because: str = ""
    goal_reached: bool = False
    sequences_ascended: int = 0


@dataclass(frozen=True)
class Reference:
    """The model as it was before this stage's adapter: that adapter is off, those beneath act.

    Attributes:
        adapters: the names of those beneath; with none it is the base.
        log_p: the log-likelihood it gives each forget sequence, in nats; it never changes, so it is had only once.
        twins: what each forget sequence shall come to; None where no loss asks for it.
        states: the hidden states it gives the sequences of each set, kept for the losses that ask for them.
    """

    adapters: list[str]
    log_p: np.ndarray
    twins: list[Twin] | None = None
    states: dict[str, States] = field(default_factory=lambda: {"forget": States(), "retain": States()})


def base_outcome(task: Task) -> Outcome:
    """Where every run starts: nothing trained, epoch 0."""
    first = _record(0, task.before, task, task.validation_perplexity, started=time.monotonic())
    return Outcome([first], 0, task.before)


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
    before = start or base_outcome(task)
    outcome = replace(before, log=list(before.log), goal_reached=False)
    base, standing, scored = outcome.log[0], outcome.log[outcome.kept_epoch], outcome.scored
    if start is None:
        on_epoch(base)
    best = ((True, *stopping.merit(standing)), _snapshot(model))
    if stopping.reached(goal, standing):
        outcome.goal_reached = True
        outcome.stopped_because = "The stop rule held before training; nothing was changed."
        return outcome
    learning_rate = stage.learning_rate or training.learning_rate
    assert learning_rate != "auto", "a probe put a number in its place"
    generator = np.random.default_rng(seed)
    optimizer = OPTIMIZERS[training.optimizer](trainable(model), learning_rate)
    reference = _reference(model, adapter, stage, task, scored, training.batch_size)
    lent = [twin.levels for twin in reference.twins or []]
    pressure = twins.no_pressure(len(task.forget))
    past, first = 0, outcome.log[-1]["epoch"] + 1
    for epoch in range(first, first + training.max_epochs):
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * remaining(epoch - first, training)
        selections = _select(stage, task, scored, generator)
        selected = sum(len(rows) for _, rows in selections)
        if selections and not selected:
            outcome.stopped_because = f"After epoch {epoch - 1} no sequence was left to select."
            break
        losses, norm, _ = _pass(model, optimizer, stage, task, selections, reference, training, generator, accelerator)
        outcome.sequences_ascended += selected
        with models.scaled(model, adapter, stage.scale):
            scored = scoring.score(model, task.forget, METRICS, training.batch_size, accelerator)
            finite = [norm, *losses.values(), *scored["loss"][task.before["loss"].notna()]]
            if not all(map(math.isfinite, finite)):
                outcome.stopped_because = f"Loss or weights were not finite in epoch {epoch}; lower the learning rate."
                break
            perplexity = _perplexity(model, task.validation, training.batch_size, accelerator)
        if lent:
            pressure = twins.pressed(pressure, scored, lent)
            reference = replace(reference, twins=twins.asked(lent, pressure))
        rest = {"stage": stage.name, "n_selected": selected, "loss": losses, "gradient_norm": norm}
        record = _record(epoch, scored, task, perplexity, started, **rest)
        if stopping.only_extraction_likelihood_is_open(goal, record):
            with models.scaled(model, adapter, stage.scale):
                record["extraction_likelihood_mean"] = _extraction_likelihood(
                    model, task.forget, training.batch_size, accelerator
                )
        outcome.log.append(record)
        on_epoch(record)
        past = 0 if stopping.within(budget, record, base) else past + 1
        if past >= patience:
            increase = stopping.perplexity_increase(record, base)
            outcome.stopped_because = (
                f"Validation perplexity was {increase:+.1%} in epoch {epoch}, past its budget of {budget:+.1%}."
            )
            break
        if past:
            continue
        holds = stopping.reached(goal, record)
        if holds and early:
            outcome.goal_reached, outcome.kept_epoch, outcome.scored = True, epoch, scored
            outcome.stopped_because = f"The stop rule held in epoch {epoch}."
            return outcome
        if (not holds, *stopping.merit(record)) < best[0]:
            best = ((not holds, *stopping.merit(record)), _snapshot(model))
            outcome.kept_epoch, outcome.scored, outcome.goal_reached = epoch, scored, holds
    else:
        held = "all were to be trained" if outcome.goal_reached else "before the stop rule held"
        outcome.stopped_because = f"{training.max_epochs} epochs passed{', ' if outcome.goal_reached else ' '}{held}."
    _restore(model, best[1])
    outcome.stopped_because += f" The adapter of epoch {outcome.kept_epoch} was kept: {stopping.ORDER}."
    return outcome


def remaining(epoch: int, training: Training) -> float:
    """The share of the learning rate that epoch 0, 1, … trains with: 1, then in a line towards 0, never at it."""
    falling = training.learning_rate_decay * training.max_epochs
    return 1.0 if not falling else min(1.0, (training.max_epochs - epoch) / falling)


def measured_at(
    scale: float, model: torch.nn.Module, adapter: str, task: Task, batch_size: int, accelerator: Accelerator
) -> tuple[dict[str, Any], pd.DataFrame]:
    """A record and the forget set's scores with one adapter at another scale; nothing is trained."""
    started = time.monotonic()
    with models.scaled(model, adapter, scale):
        scored = scoring.score(model, task.forget, METRICS, batch_size, accelerator)
        perplexity = _perplexity(model, task.validation, batch_size, accelerator)
    return {"scale": scale} | _figures(scored, task) | _ending(perplexity, started), scored


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
    """What some steps of a stage at a learning rate lead to, for rate_probe.search; all is then as it was.

    Args:
        model, stage, task, training, accelerator, seed, adapter, start: as for train.

    Returns:
        Learning rate -> a record: the objective (coefficient x loss, over the stage's terms) on rows that are the same
        at every rate, and the validation perplexity, after `rate_probe.STEPS` steps as `train` would take them; after
        none at rate 0. The objective is NaN if a step was not finite. Every call starts from the same adapter, the
        same draws and a fresh optimizer. The twins' levels stay what they are at first.
    """
    standing = start or base_outcome(task)
    with _taken_back(model):
        reference = _reference(model, adapter, stage, task, standing.scored, training.batch_size)
    fixed = np.random.default_rng(seed)
    found = [(term, _some(rows, fixed)) for term, rows in _select(stage, task, standing.scored, fixed)]
    found += [(term, _some(np.arange(len(task.retain or [])), fixed)) for term in _retain_terms(stage, task)]
    judged = [_part(term, rows.tolist(), task, reference) for term, rows in found]

    @_taken_back(model)
    def measure(learning_rate: float) -> dict[str, Any]:
        started = time.monotonic()
        scored, taken, norm = standing.scored, 0, 0.0
        generator = np.random.default_rng(seed)
        optimizer = OPTIMIZERS[training.optimizer](trainable(model), learning_rate)
        while learning_rate and taken < rate_probe.STEPS and math.isfinite(norm):
            selections = _select(stage, task, scored, generator)
            if selections and not any(len(rows) for _, rows in selections):
                break
            most = rate_probe.STEPS - taken
            _, norm, steps = _pass(
                model, optimizer, stage, task, selections, reference, training, generator, accelerator, most
            )
            taken += steps
            if taken < rate_probe.STEPS and selections:
                with models.scaled(model, adapter, stage.scale):
                    scored = scoring.score(model, task.forget, METRICS, training.batch_size, accelerator)
        model.train()  # or nothing would be checkpointed, and this step need more memory than those of training
        still = torch.optim.SGD(trainable(model), 0.0)  # a step that goes nowhere tells the losses, added up as ever
        with _without_dropout(model):
            losses, _ = take_step(model, still, judged, training.batch_size, accelerator, reference.adapters)
        with models.scaled(model, adapter, stage.scale):
            perplexity = _perplexity(model, task.validation, training.batch_size, accelerator)
        objective = sum(part.term.coefficient * losses[part.term.name] for part in judged)
        objective = objective if math.isfinite(norm) else math.nan
        return {"steps": taken, "objective": objective, "loss": losses} | _ending(perplexity, started)

    return measure


def _some(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """So many of the rows as a probe is judged by."""
    return np.sort(generator.choice(rows, min(len(rows), rate_probe.ROWS), replace=False))


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
    modes, before = [(module, module.training) for module in model.modules()], _snapshot(model)
    devices = {parameter.device for parameter in trainable(model) if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            _restore(model, before)
            for parameter in trainable(model):
                parameter.grad = None
            for module, mode in modes:
                module.training = mode


def _reference(model: Any, adapter: str, stage: Stage, task: Task, scored: pd.DataFrame, batch_size: int) -> Reference:
    """The reference of the stage that trains this adapter; `scored` is the forget set as that stage finds it."""
    tokens = np.array(scoring.predicted_tokens(task.forget))
    beneath = [name for name in model.active_adapters if name != adapter]
    wanted = None
    if any(LOSSES[term.loss].twin for term in stage.terms):
        assert task.reference is not None and task.reference_sequences is not None, "checked with the recipe"
        never_seen = token_levels(model, task.reference_sequences, batch_size, beneath)
        lent = twins.levels(twins.pair(task.before, task.reference), tokens.tolist(), never_seen)
        wanted = twins.asked(lent, twins.no_pressure(len(lent)))
    return Reference(beneath, -scored["loss"].to_numpy(dtype=float) * tokens, wanted)


def _select(
    stage: Stage, task: Task, scored: pd.DataFrame, generator: np.random.Generator
) -> list[tuple[Term, np.ndarray]]:
    """The epoch's selection: each term on the forget set with its rows."""
    known = Known(scored, task.before, task.reference)
    return [(term, term.select(known, generator)) for term in stage.terms if term.rows == "forget"]


def _pass(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    task: Task,
    selections: list[tuple[Term, np.ndarray]],
    reference: Reference,
    training: Training,
    generator: np.random.Generator,
    accelerator: Accelerator,
    most: int | None = None,
) -> tuple[dict[str, float], float, int]:
    """Pass once over the epoch's selection, `most` steps if so many there are; the last step's losses, its gradient
    norm, and the number of steps."""
    model.train()
    largest = max((len(rows) for _, rows in selections), default=0)
    steps = math.ceil(largest / (training.sequences_per_step or max(largest, 1))) or 1
    shares = [(term, np.array_split(generator.permutation(rows), steps)) for term, rows in selections]
    unscored = pd.DataFrame(index=range(len(task.retain or [])))
    losses: dict[str, float] = {}
    norm, taken = 0.0, 0
    for step in range(steps if most is None else min(most, steps)):
        parts = [_part(term, split[step].tolist(), task, reference) for term, split in shares]
        for term in _retain_terms(stage, task):
            parts.append(_part(term, term.select(Known(unscored, unscored), generator).tolist(), task, reference))
        losses, norm = take_step(model, optimizer, parts, training.batch_size, accelerator, reference.adapters)
        taken += 1
        if not math.isfinite(norm):
            break
    return losses, norm, taken


def _retain_terms(stage: Stage, task: Task) -> list[Term]:
    return [term for term in stage.terms if term.rows == "retain" and task.retain is not None]


def _part(term: Term, rows: list[int], task: Task, reference: Reference) -> Part:
    """What a term trains on in a step, with what its loss may ask for."""
    states = reference.states[term.rows]
    if term.rows == "forget":
        return Part(term, task.forget, rows, reference.log_p, reference.twins, states)
    assert task.retain is not None
    return Part(term, task.retain, rows, states=states)


def _record(
    epoch: int, scored: pd.DataFrame, task: Task, perplexity: float | None, started: float, **rest: Any
) -> dict[str, Any]:
    """One line of train_log.jsonl."""
    record = {"epoch": epoch, "stage": None, "n_selected": None, "loss": None, "gradient_norm": None} | rest
    return record | _figures(scored, task) | _ending(perplexity, started)


def _figures(scored: pd.DataFrame, task: Task) -> dict[str, Any]:
    """What the stop rules and the choice of an epoch look at."""
    accuracy = scored["memorization_accuracy"].to_numpy(dtype=float)
    before = task.before["memorization_accuracy"].to_numpy(dtype=float)
    return {
        "memorization_accuracy_mean": float(np.nanmean(accuracy)),
        "memorization_accuracy_max": float(np.nanmax(accuracy)),
        "extractable": int(scored["extractable"].sum()),
        "longest_verbatim_run_max": int(scored["longest_verbatim_run"].max()),
        "membership_auc_loss": None if task.reference is None else _auc(scored["loss"], task.reference["loss"]),
    } | outliers.count(accuracy, before, task.bounds)


def _auc(forget: pd.Series, reference: pd.Series) -> float:
    """How well a loss tells what was learnt from what was never seen; the reference set's is the base's."""
    return outliers.auc(-forget.to_numpy(dtype=float), -reference.to_numpy(dtype=float))


def _ending(perplexity: float | None, started: float) -> dict[str, Any]:
    return {"validation_perplexity": perplexity, "seconds": round(time.monotonic() - started, 3)}


def _perplexity(
    model: torch.nn.Module, sequences: Dataset | None, batch_size: int, accelerator: Accelerator
) -> float | None:
    if sequences is None:
        return None
    return scoring.perplexity(scoring.score(model, sequences, ("loss",), batch_size, accelerator), sequences)


def _extraction_likelihood(
    model: torch.nn.Module, sequences: Dataset, batch_size: int, accelerator: Accelerator
) -> float:
    names = ("extraction_likelihood",)
    return float(measuring.score(model, sequences, names, batch_size, accelerator)["extraction_likelihood"].mean())


def _snapshot(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().cpu().clone() for parameter in trainable(model)]


def _restore(model: torch.nn.Module, snapshot: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, kept in zip(trainable(model), snapshot):
            parameter.copy_(kept)
