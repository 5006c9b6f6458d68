"""Measures of one sequence from one teacher-forced forward.

One forward tells, for every position, whether the model's first choice is the text's next token, and how likely that
token was. Greedy decoding from a prefix repeats the rest exactly when every first choice in the rest is right, so
nothing here ever generates. Raw argmax: no generation config, the end token included, padding never seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class NotScorableError(Exception):
    """This measure says nothing about this sequence; the message is the reason, for the row's note."""


@dataclass(frozen=True)
class Predictions:
    """What the model predicted for one sequence of T tokens.

    Attributes:
        hits: bool, shape (T-1,): hits[t] says that the argmax after tokens 0..t is token t+1.
        nll: float32, shape (T-1,), in nats: nll[t] is -log p(token t+1 | tokens 0..t).
        prefix_tokens: tokens given before the rest must be recited; 1 or more.
        scored_from: index of the first token whose prediction counts; 1 or more.
    """

    hits: np.ndarray
    nll: np.ndarray
    prefix_tokens: int
    scored_from: int

    @property
    def scored_hits(self) -> np.ndarray:
        """The hits that count: without those inside a prompt."""
        return _some(self.hits[self.scored_from - 1 :], "nothing to predict: it has fewer than 2 tokens")

    @property
    def suffix_hits(self) -> np.ndarray:
        """The hits after the prefix."""
        return _some(self.hits[max(self.prefix_tokens, 1) - 1 :], "nothing after the prefix")


def _some(values: np.ndarray, otherwise: str) -> np.ndarray:
    if len(values) == 0:
        raise NotScorableError(otherwise)
    return values


def memorization_accuracy(predictions: Predictions) -> float:
    """Share of tokens that are the model's first choice given the true text before (Tirumala et al., 2022)."""
    return float(predictions.scored_hits.mean())


def extractable(predictions: Predictions) -> float:
    """1 when greedy decoding from the prefix recites all the rest, else 0 (Carlini et al., 2023)."""
    return float(predictions.suffix_hits.all())


def extractable_50(predictions: Predictions) -> float:
    """1 when greedy decoding from the prefix recites the next 50 tokens, else 0: the field's usual 50 + 50."""
    suffix = predictions.suffix_hits
    if len(suffix) < 50:
        raise NotScorableError(f"{len(suffix)} tokens after the prefix, 50 needed")
    return float(suffix[:50].all())


def longest_verbatim_run(predictions: Predictions) -> float:
    """Most consecutive tokens that are the model's first choice, anywhere in the text."""
    misses = np.flatnonzero(~predictions.scored_hits)
    edges = np.concatenate(([-1], misses, [len(predictions.scored_hits)]))
    return float(np.diff(edges).max() - 1)


def loss(predictions: Predictions) -> float:
    """Mean negative log-likelihood of a token, in nats."""
    counted = len(predictions.scored_hits)
    return float(predictions.nll[-counted:].mean(dtype=np.float64))
