"""What a run needs from its first stage to its last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from adapter_unlearn.recipe import Stop, Training
from adapter_unlearn.unlearning.checkpoint import Checkpoints
from adapter_unlearn.unlearning.records import Task
from adapter_unlearn.unlearning.stopping import Goal


@dataclass(frozen=True)
class RunContext:
    """What a run needs throughout.

    Attributes:
        task: the sets and their scores under the base.
        training: how to step.
        stop: the perplexity budget, the patience, and whether to stop early; its other levels are in `goal`.
        goal: the stop rules of the last stage, as numbers; see stopping.resolve.
        accelerator: this process among the others; all get the same adapter.
        checkpoints: of the run.
        seed: of every draw.
        on_start: called when the steps of a stage begin.
        on_epoch: called with each new record of the log.
    """

    task: Task
    training: Training
    stop: Stop
    goal: Goal
    accelerator: Accelerator
    checkpoints: Checkpoints
    seed: int = 0
    on_start: Callable[[], None] = lambda: None
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None
