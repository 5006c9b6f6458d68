"""One epoch: each term selects, and steps pass over what was selected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from adapter_unlearn import scoring
from adapter_unlearn.unlearning import targets
from adapter_unlearn.unlearning.losses import LOSSES
from adapter_unlearn.unlearning.reference import States
from adapter_unlearn.unlearning.selection import Known
from adapter_unlearn.unlearning.step import Part, take_step, token_levels

if TYPE_CHECKING:
    from accelerate import Accelerator

    from adapter_unlearn.recipe import Training
    from adapter_unlearn.unlearning.methods import Stage, Term
    from adapter_unlearn.unlearning.records import Task
    from adapter_unlearn.unlearning.targets import Twin

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.0),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr),
}


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


def reference_of(
    model: Any, adapter: str, stage: Stage, task: Task, scored: pd.DataFrame, batch_size: int, weight: float = 1.0
) -> Reference:
    """The reference of the stage that trains this adapter; `scored` is the forget set as that stage finds it, `weight`
    what distances to twins count."""
    tokens = np.array(scoring.predicted_tokens(task.forget))
    beneath = [name for name in model.active_adapters if name != adapter]
    wanted = None
    if any(LOSSES[term.loss].twin for term in stage.terms):
        assert task.holdout is not None and task.holdout_sequences is not None, "checked with the recipe"
        never_seen = token_levels(model, task.holdout_sequences, batch_size, beneath)
        lent = targets.levels(targets.pair(task.before, task.holdout), tokens.tolist(), never_seen)
        wanted = targets.asked(lent, targets.no_pressure(len(lent), weight))
    return Reference(beneath, -scored["loss"].to_numpy(dtype=float) * tokens, wanted)


def select(
    stage: Stage, task: Task, scored: pd.DataFrame, generator: np.random.Generator
) -> list[tuple[Term, np.ndarray]]:
    """The epoch's selection: each term on the forget set with its rows."""
    known = Known(scored, task.before, task.holdout)
    return [(term, term.select(known, generator)) for term in stage.terms if term.rows == "forget"]


def take(
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
        parts = [part_of(term, split[step].tolist(), task, reference) for term, split in shares]
        for term in retain_terms(stage, task):
            parts.append(part_of(term, term.select(Known(unscored, unscored), generator).tolist(), task, reference))
        losses, norm = take_step(model, optimizer, parts, training.batch_size, accelerator, reference.adapters)
        taken += 1
        if not math.isfinite(norm):
            break
    return losses, norm, taken


def retain_terms(stage: Stage, task: Task) -> list[Term]:
    """The stage's terms on the retain set; none where there is no such set."""
    return [term for term in stage.terms if term.rows == "retain" and task.retain is not None]


def part_of(term: Term, rows: list[int], task: Task, reference: Reference) -> Part:
    """What a term trains on in a step, with what its loss may ask for."""
    states = reference.states[term.rows]
    if term.rows == "forget":
        return Part(term, task.forget, rows, reference.log_p, reference.twins, states)
    assert task.retain is not None
    return Part(term, task.retain, rows, states=states)
