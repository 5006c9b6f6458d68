"""Scores of one sequence by which it is guessed whether a model was trained on it.

All on the tokens that count; a prompt is given, not scored.
"""

from __future__ import annotations

import numpy as np

from adapter_unlearn.metrics import teacher_forced
from adapter_unlearn.metrics.predictions import NotScorableError, Predictions

LEAST_DEVIATION = 1e-3
"""In nats; where the model is certain the deviation is 0, and its inverse would drown all other positions."""


def zlib_ratio(predictions: Predictions) -> float:
    """Mean negative log-likelihood of a token, in nats, by the bytes zlib makes of the text (Carlini et al., 2021).

    A text that is likely only because it is simple compresses well, too.
    """
    if predictions.zlib_bytes is None:
        raise NotScorableError("no text at hand to compress; load the sequences with a tokenizer")
    return teacher_forced.loss(predictions) / predictions.zlib_bytes


def min_k(predictions: Predictions, k: float = 0.2) -> float:
    """Mean log-probability, in nats, of the share k of tokens that are least likely (Min-K% Prob: Shi et al., 2024)."""
    return _mean_of_lowest(-predictions.scored(predictions.nll), k)


def min_k_plus_plus(predictions: Predictions, k: float = 0.2) -> float:
    """The same of log-probabilities standardized by what the model expected of any token (Zhang et al., 2025)."""
    assert predictions.log_p_mean is not None and predictions.log_p_deviation is not None
    deviation = np.maximum(predictions.log_p_deviation, LEAST_DEVIATION)
    return _mean_of_lowest(predictions.scored((-predictions.nll - predictions.log_p_mean) / deviation), k)


def reference_loss_difference(predictions: Predictions) -> float:
    """Loss less the loss with every adapter off, in nats: what the adapters changed (after Carlini et al., 2021)."""
    if predictions.reference_nll is None:
        raise NotScorableError("the model has no adapters to switch off")
    if not np.isfinite(predictions.reference_nll).all():
        raise NotScorableError("without its adapters the model's output is not finite")
    before = predictions.scored(predictions.reference_nll).mean(dtype=np.float64)
    return teacher_forced.loss(predictions) - float(before)


def _mean_of_lowest(values: np.ndarray, share: float) -> float:
    number = max(1, int(len(values) * share))
    return float(np.sort(values)[:number].mean(dtype=np.float64))
