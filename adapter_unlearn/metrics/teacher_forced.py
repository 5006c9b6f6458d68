"""Metrics of one sequence from one teacher-forced forward pass.

A token is a hit if it is the argmax given the true text before it. Greedy decoding from a prefix recites the rest
exactly if all tokens of the rest are hits, so no metric here generates. The argmax is raw: no generation config, end
tokens included, padding excluded.
"""

from __future__ import annotations

import numpy as np

from adapter_unlearn.metrics.predictions import NotScorableError, Predictions


def memorization_accuracy(predictions: Predictions) -> float:
    """Share of tokens that are hits (Tirumala et al., 2022)."""
    return float(predictions.scored_hits.mean())


def exact_memorization(predictions: Predictions) -> float:
    """Share of the tokens after the prefix that are hits (Tirumala et al., 2022)."""
    return float(predictions.suffix_hits.mean())


def extractable(predictions: Predictions) -> float:
    """1 if greedy decoding from the prefix recites all the rest, else 0 (Carlini et al., 2023)."""
    return float(predictions.suffix_hits.all())


def extractable_50(predictions: Predictions) -> float:
    """1 if greedy decoding from the prefix recites the next 50 tokens, else 0 (Carlini et al., 2023)."""
    suffix = predictions.suffix_hits
    if len(suffix) < 50:
        raise NotScorableError(f"{len(suffix)} tokens after the prefix, 50 needed")
    return float(suffix[:50].all())


def longest_verbatim_run(predictions: Predictions) -> float:
    """Length of the longest run of hits anywhere in the text, in tokens."""
    misses = np.flatnonzero(~predictions.scored_hits)
    edges = np.concatenate(([-1], misses, [len(predictions.scored_hits)]))
    return float(np.diff(edges).max() - 1)


def extraction_strength(predictions: Predictions) -> float:
    """1 - k/L, where greedy decoding recites the rest once the first k of the L tokens are given (Wang et al., 2025).

    k is the smallest such number. If even the last token is a miss, k is L and the strength 0.
    """
    return _recited_end(predictions.scored_hits) / len(predictions.scored_hits)


def extraction_strength_openunlearning(predictions: Predictions) -> float:
    """Extraction strength as in OpenUnlearning: k is at most L - 1, so the strength is at least 1/L.

    OpenUnlearning leaves out the last token of each text, which it takes for an appended end token; this does not.
    """
    return max(1, _recited_end(predictions.scored_hits)) / len(predictions.scored_hits)


def _recited_end(hits: np.ndarray) -> int:
    """The number of tokens after the last miss."""
    misses = np.flatnonzero(~hits)
    return len(hits) - 1 - int(misses[-1]) if len(misses) else len(hits)


def loss(predictions: Predictions) -> float:
    """Mean negative log-likelihood, in nats per token."""
    return float(predictions.scored(predictions.nll).mean(dtype=np.float64))
