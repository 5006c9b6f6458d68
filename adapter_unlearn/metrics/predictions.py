"""The predictions of one teacher-forced forward pass for a sequence: the input of forward metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class NotScorableError(Exception):
    """A metric is undefined for a sequence. The message is the reason; it becomes the note of the row."""


@dataclass(frozen=True)
class Predictions:
    """The model's predictions for one sequence of T tokens.

    The attributes from log_p_mean on are None unless a requested metric needs them.

    Attributes:
        hits: bool, shape (T - 1,): whether the argmax after tokens 0..t is token t+1.
        nll: float32, shape (T - 1,), in nats: -log p(token t+1 | tokens 0..t).
        prefix_tokens: length of the sequence's prefix; 1 or more.
        scored_from: index of the first token whose prediction counts; 1 or more.
        zlib_bytes: size of the text in bytes under zlib; None if there is no text.
        log_p_mean: shape (T - 1,), in nats: mean of log p over the vocabulary, weighted by p.
        log_p_deviation: shape (T - 1,), in nats: standard deviation of log p over the vocabulary, weighted by p.
        sampled_log_p: shape (T - 1,), in nats: log-probability that the sampling scheme draws token t+1, or -inf.
        reference_nll: nll with all adapters disabled; None also for a model without adapters.
    """

    hits: np.ndarray
    nll: np.ndarray
    prefix_tokens: int
    scored_from: int
    zlib_bytes: int | None = None
    log_p_mean: np.ndarray | None = None
    log_p_deviation: np.ndarray | None = None
    sampled_log_p: np.ndarray | None = None
    reference_nll: np.ndarray | None = None

    @property
    def scored_hits(self) -> np.ndarray:
        """The hits that count: those after the prompt, if there is one."""
        return self.scored(self.hits)

    @property
    def suffix_hits(self) -> np.ndarray:
        """The hits after the prefix."""
        return self.suffix(self.hits)

    def scored(self, values: np.ndarray) -> np.ndarray:
        """The part that counts of one value per prediction, shape (T - 1,)."""
        return _not_empty(values[self.scored_from - 1 :], "nothing to predict: it has fewer than 2 tokens")

    def suffix(self, values: np.ndarray) -> np.ndarray:
        """The part after the prefix of one value per prediction, shape (T - 1,)."""
        return _not_empty(values[max(self.prefix_tokens, 1) - 1 :], "nothing after the prefix")


def _not_empty(values: np.ndarray, reason: str) -> np.ndarray:
    if len(values) == 0:
        raise NotScorableError(reason)
    return values
