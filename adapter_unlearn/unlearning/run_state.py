"""Where a run stands between two optimizer steps, and its form as JSON values and tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd
import torch

from adapter_unlearn.unlearning.records import Outcome


@dataclass
class Position:
    """Where the training of a stage stands.

    Attributes:
        outcome: of the run so far.
        scored: the forget set's scores after the last complete epoch.
        draws: the state of the NumPy generator as the present epoch begins.
        best_merit: the sort key of the best epoch so far.
        best: the adapter of that epoch; see step.snapshot.
        epoch: the present epoch.
        steps: optimizer steps taken in it.
        losses: of the last step.
        norm: of its gradient.
        over: epochs in a row past the perplexity budget.
    """

    outcome: Outcome
    scored: pd.DataFrame
    draws: dict[str, Any]
    best_merit: tuple[Any, ...]
    best: list[torch.Tensor]
    epoch: int
    steps: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    norm: float = 0.0
    over: int = 0


@dataclass
class RunState:
    """Where a run stands. It has one part for each complete stage.

    Attributes:
        outcome: of the complete stages; None if there are none.
        parts: as in stages.Trained; so are scales and rates.
        adapters: number of adapters on the model, that of the present stage included.
        rate: the learning rate that was searched for the present stage, if any.
        position: in the present stage; None before its first step.
    """

    outcome: Outcome | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    scales: list[dict[str, Any]] = field(default_factory=list)
    rates: list[dict[str, Any]] = field(default_factory=list)
    adapters: int = 1
    rate: float | None = None
    position: Position | None = None

    @property
    def epochs(self) -> int:
        """Complete epochs."""
        outcome = self.position.outcome if self.position else self.outcome
        return 0 if outcome is None else int(outcome.log[-1]["epoch"])


_PLAIN = ("parts", "scales", "rates", "adapters", "rate")
"""Attributes of RunState that are JSON values."""


def values_of(run: RunState) -> dict[str, Any]:
    """The JSON values of a run's state: everything but tensors."""
    position = run.position
    values = {key: getattr(run, key) for key in _PLAIN}
    values["outcome"] = None if run.outcome is None else _outcome_values(run.outcome)
    values["position"] = None if position is None else {
        "outcome": _outcome_values(position.outcome), "scored": _frame_values(position.scored),
        "draws": position.draws, "best_merit": position.best_merit, "epoch": position.epoch, "steps": position.steps,
        "losses": position.losses, "norm": position.norm, "over": position.over,
    }  # fmt: skip
    return values


def run_state(values: dict[str, Any], best: list[torch.Tensor]) -> RunState:
    """The state with these values; `best` is that of its position, if it has one."""
    run = RunState(**{key: values[key] for key in _PLAIN})
    if values["outcome"] is not None:
        run.outcome = _outcome(values["outcome"])
    if values["position"] is not None:
        own = values["position"] | {"best": best, "best_merit": tuple(values["position"]["best_merit"])}
        own |= {"outcome": _outcome(own["outcome"]), "scored": _frame(own["scored"])}
        run.position = Position(**own)
    return run


def checked(run: RunState) -> RunState:
    """The state itself, if it is one that a run can be in.

    Raises:
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError: it is not.
    """
    scales = [float(part["scale"]) for part in run.parts]
    possible = run.adapters in (len(scales), len(scales) + 1) and run.epochs >= 0 and all(map(math.isfinite, scales))
    if not possible or not (run.rate is None or run.rate > 0):
        raise ValueError("state")
    return run


def _outcome_values(outcome: Outcome) -> dict[str, Any]:
    return asdict(replace(outcome, scored=pd.DataFrame())) | {"scored": _frame_values(outcome.scored)}


def _outcome(values: dict[str, Any]) -> Outcome:
    return Outcome(**values | {"scored": _frame(values["scored"])})


def _frame_values(frame: pd.DataFrame) -> dict[str, Any]:
    return {str(name): [str(column.dtype), column.tolist()] for name, column in frame.items()}


def _frame(values: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(column, dtype=kind) for name, (kind, column) in values.items()})
