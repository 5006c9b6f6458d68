"""Checkpoints of a run: when one is written, what is in it, and how a run continues from it.

A checkpoint holds what can't be computed again: adapters, optimizer, random states, scores, log, the states of the
losses, and the results of searches. What depends only on the base and the texts (targets, hidden states of the
reference model, synthetic texts) is computed again. It holds no text and no token of the sets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from adapter_unlearn import models, signals
from adapter_unlearn.errors import RecipeError, RunError
from adapter_unlearn.runs import checkpoint_file
from adapter_unlearn.runs.checkpoint_file import Saved
from adapter_unlearn.unlearning.run_state import Position, RunState, checked, run_state, values_of

if TYPE_CHECKING:
    from adapter_unlearn.unlearning.step import Part


class Checkpoints:
    """Writes the checkpoints of a run, and restores the one that the run continues from."""

    def __init__(
        self,
        accelerator: Accelerator,
        path: Path | None = None,
        minutes: float | None = None,
        identity: dict[str, Any] | None = None,
        saved: Saved | None = None,
    ) -> None:
        """Write nothing yet.

        Args:
            accelerator: the first process writes.
            path: of the file; None writes none.
            minutes: the least time between two checkpoints, which are written after a step; None writes one after
                every epoch.
            identity: JSON values that are written with every checkpoint.
            saved: the checkpoint that the run continues from.
        """
        self.accelerator, self.path, self.minutes = accelerator, path, minutes
        self.identity = identity or {}
        self.saved = saved
        self.run = RunState() if saved is None else self._read_run(saved)
        self.written_at = time.monotonic()

    @property
    def epochs(self) -> int:
        """Complete epochs of the run."""
        return self.run.epochs

    def restore_adapters(self, model: torch.nn.Module) -> None:
        """Set the trained adapters and torch's random state; nothing in a run that starts from the beginning.

        Args:
            model: with the adapters of the complete stages and, if it has begun, of the present one.
        """
        if self.saved is None:
            return
        tensors, rank = self.saved.tensors, self.accelerator.process_index
        with reading(self.path), torch.no_grad():
            for name, parameter in _adapter_tensors(model).items():
                parameter.copy_(tensors[f"adapter.{name}"].view(parameter.shape))
            states = _below(tensors, f"random.{rank}")
            if states:  # none for this process if the run had fewer
                torch.set_rng_state(states.pop("cpu"))
            for device, state in states.items():
                torch.cuda.set_rng_state(state, int(device))

    def restore_stage(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Part]
    ) -> Position | None:
        """Set the optimizer and the losses' states. Returns the position, or None at the beginning of a stage.

        Args:
            model, optimizer, parts: of the present stage, as before its first step.
        """
        saved, self.saved = self.saved, None
        if saved is None or self.run.position is None:
            return None
        with reading(self.path):
            content, moments = optimizer.state_dict(), _below(saved.tensors, "optimizer")
            for name, tensor in moments.items():
                index, key = name.split(".", 1)
                content["state"].setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict(content)
            batches = dict(saved.values["batches"]).get(self.accelerator.process_index, [[]] * len(parts))
            for i, part in enumerate(parts):
                part.state.load({key: array.numpy() for key, array in _below(saved.tensors, f"loss.{i}").items()})
                part.reference.compute(model, part.sequences, batches[i])
        return self.run.position

    def after_step(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Part], position: Position
    ) -> None:
        """Write a checkpoint if one is due, or if the process was asked to end.

        Args:
            model, optimizer, parts: of the present stage.
            position: after a step; with `steps` 0, after an epoch.

        Raises:
            Interrupted: the process was asked to end; the checkpoint is written.
            OutputError: it can't be written.
        """
        minutes = (time.monotonic() - self.written_at) / 60
        due = position.steps == 0 if self.minutes is None else minutes >= self.minutes
        number, due = self._agreed(signals.received() or 0, due)
        if number or due:
            self.run.position = position
            self.write(model, optimizer, parts)
        if number:
            raise signals.Interrupted(number)

    def write(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None, parts: Sequence[Part] = ()
    ) -> None:
        """Write a checkpoint of `run`, with the present stage's optimizer and terms if it has begun.

        Raises:
            OutputError: it can't be written.
        """
        if self.path is None:
            return
        own = {self.accelerator.process_index: (_random_states(), [part.reference.batches for part in parts])}
        processes = models.gathered(own, self.accelerator)
        failure: Exception | None = None
        if self.accelerator.is_main_process:
            tensors = {f"adapter.{name}": parameter for name, parameter in _adapter_tensors(model).items()}
            tensors |= {
                f"best.{i}": tensor for i, tensor in enumerate(self.run.position.best if self.run.position else [])
            }
            for index, moments in (optimizer.state_dict()["state"] if optimizer else {}).items():
                tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in moments.items()}
            for i, part in enumerate(parts):
                tensors |= {f"loss.{i}.{key}": torch.from_numpy(array) for key, array in part.state.arrays().items()}
            for rank, (states, _) in processes.items():
                tensors |= {f"random.{rank}.{device}": state for device, state in states.items()}
            values = values_of(self.run) | {
                "identity": self.identity,
                "batches": [(rank, batches) for rank, (_, batches) in processes.items()],
            }
            try:
                checkpoint_file.write(self.path, Saved(values, tensors))
            except Exception as error:
                failure = error
        failure = models.broadcast(failure, self.accelerator)
        if failure is not None:
            raise failure
        self.written_at = time.monotonic()

    def _read_run(self, saved: Saved) -> RunState:
        with reading(self.path):
            best = _below(saved.tensors, "best")
            run = run_state(saved.values, [best[str(i)] for i in range(len(best))])
            return checked(run)

    def _agreed(self, number: int, due: bool) -> tuple[int, bool]:
        """The largest signal number of all processes, and whether a checkpoint is due on the first one."""
        if self.accelerator.num_processes == 1:
            return number, due
        flags = self.accelerator.gather(torch.tensor([[number, int(due)]], device=self.accelerator.device))
        return int(flags[:, 0].max()), bool(flags[0, 1])


def _adapter_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the adapters that the run trains or has trained; not those of a frozen base adapter."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if ".lora_" in name and f".{models.adapters.FROZEN}." not in name
    }


def _random_states() -> dict[str, torch.Tensor]:
    """Torch's random state on every device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {str(device): state for device, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix.`, by the rest of their names."""
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


@contextmanager
def reading(path: Path | None) -> Iterator[None]:
    """Turn the errors that the values of a checkpoint raise inside the block into one that names it.

    Raises:
        RunError: a value is missing, or of another kind.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, RecipeError) as error:
        raise RunError(f"{path}: does not fit this run; start again with --overwrite") from error
