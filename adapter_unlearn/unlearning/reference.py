"""The reference model: this very model without the adapter that is trained. Nothing trained changes what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from adapter_unlearn import models, scoring

if TYPE_CHECKING:
    from datasets import Dataset

KEPT_BYTES = 2**30
"""How much of the host's memory a set's states may take."""


@contextmanager
def as_reference(model: torch.nn.Module, beneath: Sequence[str]) -> Iterator[None]:
    """Within, the model is what it was before the adapter that is trained: without dropout, without gradients.

    Args:
        model: with the adapter that is trained active.
        beneath: the adapters that stay; none is the base.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), models.active(model, beneath):
            yield
    finally:
        model.train(was_training)


class States:
    """The reference model's last hidden states of a set's sequences, each computed once and kept.

    A divergence to the reference asks for them in every step. They are kept in the host's memory up to `most` bytes;
    a sequence beyond that is computed anew whenever it is asked for.
    """

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self.room = most
        self.kept: dict[int, torch.Tensor] = {}

    def of(
        self, model: torch.nn.Module, sequences: Dataset, rows: Sequence[int], beneath: Sequence[str]
    ) -> torch.Tensor:
        """What scoring.forward calls features, of some rows of the set.

        Args:
            model, beneath: as for as_reference; the same in every call, as the set is.
            sequences: the set.
            rows: which of it.

        Returns:
            Shape (their tokens to predict, hidden), row after row, on the CPU.
        """
        found = {row: self.kept[row] for row in rows if row in self.kept}
        if missing := [row for row in rows if row not in found]:
            chosen = sequences.select(missing)
            with as_reference(model, beneath):
                features, _, _ = scoring.hidden_states(model, chosen["input_ids"], chosen["scored_from"])
            found |= zip(missing, features.cpu().split(scoring.predicted_tokens(chosen)))
        for row in missing:
            if found[row].nbytes <= self.room:
                self.kept[row] = found[row].clone()  # a view would keep the whole batch
                self.room -= found[row].nbytes
        return torch.cat([found[row] for row in rows])
