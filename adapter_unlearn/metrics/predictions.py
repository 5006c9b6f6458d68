"""What one teacher-forced forward says about a sequence: the input of the forward metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class NotScorableError(Exception):
    """This measure says nothing about this sequence; the message is the reason, for the row's note."""


@dataclass(frozen=True)
class Predictions:
    """What the model predicted for one sequence of T tokens.

    The attributes from log_p_mean on are None unless a metric that was asked for needs them.

    Attributes:
        hits: bool, shape (T-1,): hits[t] says that the argmax after tokens 0..t is token t+1.
        nll: float32, shape (T-1,), in nats: nll[t] is -log p(token t+1 | tokens 0..t).
        prefix_tokens: tokens given before the rest must be recited; 1 or more.
        scored_from: index of the first token whose prediction counts; 1 or more.
        zlib_bytes: what zlib makes of the text, in bytes; None where no text was at hand.
        log_p_mean: shape (T-1,), in nats: the mean of log p over the vocabulary, weighed by p.
        log_p_deviation: shape (T-1,), in nats: its standard deviation, weighed by p.
        sampled_log_p: shape (T-1,), in nats: log-probability that the sampling scheme draws token t+1, or -inf.
        reference_nll: nll with every adapter off; None also on a model that has no adapters.
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
        """The hits that count: without those inside a prompt."""
        return self.scored(self.hits)

    @property
    def suffix_hits(self) -> np.ndarray:
        """The hits after the prefix."""
        return self.suffix(self.hits)

    def scored(self, values: np.ndarray) -> np.ndarray:
        """Those of one value a prediction, shape (T-1,), that count."""
        return _some(values[self.scored_from - 1 :], "nothing to predict: it has fewer than 2 tokens")

    def suffix(self, values: np.ndarray) -> np.ndarray:
        """Those of one value a prediction, shape (T-1,), that lie after the prefix."""
        return _some(values[max(self.prefix_tokens, 1) - 1 :], "nothing after the prefix")


def _some(values: np.ndarray, otherwise: str) -> np.ndarray:
    if len(values) == 0:
        raise NotScorableError(otherwise)
    return values
