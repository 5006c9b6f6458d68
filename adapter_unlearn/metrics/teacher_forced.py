"""Metrics of one sequence from one teacher-forced forward.

The forward says, for every position, whether the argmax is the text's next token and how likely that token was. Greedy
decoding from a prefix repeats the rest exactly when every argmax in the rest is right, so no metric here generates.
Raw argmax: no generation config, end token included, padding excluded.
"""

from __future__ import annotations

import numpy as np

from adapter_unlearn.metrics.predictions import NotScorableError, Predictions


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
