"""One epoch: each term selects its rows, and steps pass over them."""

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
from adapter_unlearn.unlearning.reference import HiddenStates
from adapter_unlearn.unlearning.selection import Known
from adapter_unlearn.unlearning.step import Part, take_step

if TYPE_CHECKING:
    from adapter_unlearn.unlearning.context import RunContext
    from adapter_unlearn.unlearning.plan import Stage, Term
    from adapter_unlearn.unlearning.targets import LossState

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.0),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr),
}


@dataclass(frozen=True)
class Inputs:
    """What a stage's steps need: the sets, the reference model, and the states of the losses.

    Attributes:
        stage: its terms.
        context: of the run.
        frozen: names of the reference model's adapters, frozen and active; none makes it the base.
        log_p: the log-likelihood of each forget sequence under the reference model, in nats.
        states: of each term's loss, by the term's name.
        hidden: the reference model's hidden states of each set.
    """

    stage: Stage
    context: RunContext
    frozen: list[str]
    log_p: np.ndarray
    states: dict[str, LossState]
    hidden: dict[str, HiddenStates] = field(
        default_factory=lambda: {"forget": HiddenStates(), "retain": HiddenStates()}
    )

    def retain_terms(self) -> list[Term]:
        """The stage's terms on the retain set; none without a retain set."""
        return [term for term in self.stage.terms if term.rows == "retain" and self.context.task.retain is not None]

    def part(self, term: Term, rows: list[int]) -> Part:
        """What a term trains on in a step."""
        task, state, hidden = self.context.task, self.states[term.name], self.hidden[term.rows]
        if term.rows == "forget":
            return Part(term, task.forget, rows, self.log_p, state, hidden)
        assert task.retain is not None
        return Part(term, task.retain, rows, None, state, hidden)


def prepare(
    model: Any, stage: Stage, context: RunContext, adapter: str, scored: pd.DataFrame, typical: bool = False
) -> Inputs:
    """The inputs of a stage before its first step.

    Args:
        model: with the stage's adapter and the frozen ones active.
        stage, context: of the run.
        adapter: the adapter that the stage trains.
        scored: the forget set's scores as the stage begins.
        typical: as for targets.prepare.
    """
    tokens = np.array(scoring.predicted_tokens(context.task.forget))
    frozen = [name for name in model.active_adapters if name != adapter]
    states = targets.prepare(model, stage, context.task, context.training.batch_size, frozen, typical)
    return Inputs(stage, context, frozen, -scored["loss"].to_numpy(dtype=float) * tokens, states)


def select(inputs: Inputs, scored: pd.DataFrame, generator: np.random.Generator) -> list[tuple[Term, np.ndarray]]:
    """The epoch's selection: each term on the forget set with its rows."""
    task = inputs.context.task
    known = Known(scored, task.before, task.holdout_scores)
    return [(term, term.select(known, generator)) for term in inputs.stage.terms if term.rows == "forget"]


def take(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    selections: list[tuple[Term, np.ndarray]],
    generator: np.random.Generator,
    max_steps: int | None = None,
) -> tuple[dict[str, float], float, int]:
    """Pass once over the epoch's selection, in at most `max_steps` steps.

    Returns:
        The last step's losses, its gradient norm, and the number of steps. It stops at a norm that is not finite.
    """
    model.train()
    training = inputs.context.training
    largest = max((len(rows) for _, rows in selections), default=0)
    steps = math.ceil(largest / (training.sequences_per_step or max(largest, 1))) or 1
    shares = [(term, np.array_split(generator.permutation(rows), steps)) for term, rows in selections]
    unscored = pd.DataFrame(index=range(len(inputs.context.task.retain or [])))
    losses: dict[str, float] = {}
    norm, taken = 0.0, 0
    for step in range(steps if max_steps is None else min(max_steps, steps)):
        parts = [inputs.part(term, split[step].tolist()) for term, split in shares]
        for term in inputs.retain_terms():
            parts.append(inputs.part(term, term.select(Known(unscored, unscored), generator).tolist()))
        losses, norm = take_step(
            model, optimizer, parts, training.batch_size, inputs.context.accelerator, inputs.frozen
        )
        taken += 1
        if not math.isfinite(norm):
            break
    return losses, norm, taken
