"""The reference model: the same model without the adapter that is trained. Training does not change its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer

from adapter_unlearn import models, scoring

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


class Reference:
    """What the losses on one set take from the reference model.

    A divergence to the reference model needs its last hidden states in every step. They are computed once per sequence
    and cached in host memory up to `limit` bytes; beyond that they are computed again whenever they are needed.
    """

    def __init__(self, frozen: Sequence[str] = (), log_p: np.ndarray | None = None, limit: int = CACHE_BYTES) -> None:
        """Start with an empty cache.

        Args:
            frozen: the frozen adapters of the reference model; none makes it the base.
            log_p: the log-likelihood of each of the set's sequences under it, in nats; for losses over sequences.
            limit: of the cache, in bytes.
        """
        self.frozen = frozen
        self.log_p = log_p
        self.free = limit
        self.cache: dict[int, torch.Tensor] = {}
        self.batches: list[list[int]] = []
        """The rows of each forward whose hidden states were cached; their last bits depend on the batch."""

    def hidden_states(self, model: torch.nn.Module, sequences: Dataset, rows: Sequence[int]) -> torch.Tensor:
        """The features (see scoring.hidden_states) of some rows of the set.

        Args:
            model: with the adapter that is trained active.
            sequences: the set, the same in every call.
            rows: which of its sequences.

        Returns:
            Shape (their predicted tokens, hidden), row after row, on the CPU.
        """
        states = {row: self.cache[row] for row in rows if row in self.cache}
        if missing := [row for row in rows if row not in states]:
            chosen = sequences[missing]
            with as_reference(model, self.frozen):
                features, _, _ = scoring.hidden_states(model, chosen["input_ids"], chosen["scored_from"])
            states |= zip(missing, features.cpu().split(scoring.predicted_tokens(sequences, missing)))
        cached = len(self.cache)
        for row in missing:
            if states[row].nbytes <= self.free:
                self.cache[row] = states[row].clone()  # a view would keep the whole batch
                self.free -= states[row].nbytes
        if len(self.cache) > cached:
            self.batches.append(missing)
        return torch.cat([states[row] for row in rows])

    def compute(self, model: torch.nn.Module, sequences: Dataset, batches: Sequence[Sequence[int]]) -> None:
        """Fill the cache as the forwards of these batches did."""
        for rows in batches:
            self.hidden_states(model, sequences, rows)

    def logits(self, model: torch.nn.Module, states: torch.Tensor, head: scoring.Head) -> torch.Tensor:
        """The reference model's logits, shape (n, vocabulary), from its hidden states, shape (n, hidden).

        Where the output layer `head` has an adapter, that is disabled.
        """
        adapted = isinstance(head, torch.nn.Module) and any(isinstance(m, BaseTunerLayer) for m in head.modules())
        with as_reference(model, self.frozen) if adapted else torch.no_grad():
            return head(states).float()
