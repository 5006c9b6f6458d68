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


def memorization_accuracy(predictions: Predictions) -> float:
    """Share of tokens that are the model's first choice given the true text before (Tirumala et al., 2022)."""
    return float(predictions.scored_hits.mean())


def exact_memorization(predictions: Predictions) -> float:
    """Share of the tokens after the prefix that are the model's first choice (Tirumala et al., 2022)."""
    return float(predictions.suffix_hits.mean())


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


def extraction_strength(predictions: Predictions) -> float:
    """1 - k/L: how little of the text must be given until greedy decoding recites the rest (Wang et al., 2025).

    L tokens count, and k of them is the least that must be given before all the others come by themselves. Where even
    the last token does not come, k is L and the strength 0.
    """
    return _recited_end(predictions.scored_hits) / len(predictions.scored_hits)


def extraction_strength_openunlearning(predictions: Predictions) -> float:
    """The extraction strength as OpenUnlearning computes it: at most L - 1 tokens are given, so it never is below 1/L.

    Its code leaves out each text's last token, taking it for an end token that was appended; this does not.
    """
    return max(1, _recited_end(predictions.scored_hits)) / len(predictions.scored_hits)


def _recited_end(hits: np.ndarray) -> int:
    """How many tokens at the end follow the last miss."""
    misses = np.flatnonzero(~hits)
    return len(hits) - 1 - int(misses[-1]) if len(misses) else len(hits)


def loss(predictions: Predictions) -> float:
    """Mean negative log-likelihood of a token, in nats."""
    return float(predictions.scored(predictions.nll).mean(dtype=np.float64))
