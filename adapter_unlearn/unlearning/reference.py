"""The reference model: the same model without the adapter that is trained. Training does not change its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from adapter_unlearn import models, scoring

if TYPE_CHECKING:
    from datasets import Dataset

CACHE_BYTES = 2**30
"""Host memory that a set's hidden states may take."""


@contextmanager
def as_reference(model: torch.nn.Module, frozen: Sequence[str]) -> Iterator[None]:
    """Make the model its own reference inside the block: in evaluation mode, without gradients.

    Args:
        model: with the adapter that is trained active.
        frozen: the frozen adapters that stay active; none makes it the base.
    """
    with models.evaluating(model), torch.no_grad(), models.active(model, frozen):
        yield


class HiddenStates:
    """The reference model's last hidden states of a set's sequences, computed once and cached.

    A divergence to the reference model needs them in every step. They are cached in host memory up to `limit` bytes;
    a sequence beyond that is computed again whenever it is needed.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.free = limit
        self.cache: dict[int, torch.Tensor] = {}

    def of(
        self, model: torch.nn.Module, sequences: Dataset, rows: Sequence[int], frozen: Sequence[str]
    ) -> torch.Tensor:
        """The features (see scoring.hidden_states) of some rows of the set.

        Args:
            model, frozen: as for as_reference; the same in every call, as is the set.
            sequences: the set.
            rows: which of its sequences.

        Returns:
            Shape (their predicted tokens, hidden), row after row, on the CPU.
        """
        states = {row: self.cache[row] for row in rows if row in self.cache}
        if missing := [row for row in rows if row not in states]:
            chosen = sequences.select(missing)
            with as_reference(model, frozen):
                features, _, _ = scoring.hidden_states(model, chosen["input_ids"], chosen["scored_from"])
            states |= zip(missing, features.cpu().split(scoring.predicted_tokens(chosen)))
        for row in missing:
            if states[row].nbytes <= self.free:
                self.cache[row] = states[row].clone()  # a view would keep the whole batch
                self.free -= states[row].nbytes
        return torch.cat([states[row] for row in rows])
