"""Membership scores: they are used to infer whether a model was trained on a sequence.

All of them use only the tokens that count, so not the tokens of a prompt.
"""

from __future__ import annotations

import numpy as np

from adapter_unlearn.metrics import teacher_forced
from adapter_unlearn.metrics.predictions import NotScorableError, Predictions

LEAST_DEVIATION = 1e-3
"""Lower limit of the deviation in Min-K%++, in nats: where the model is certain, its inverse would dominate."""


def zlib_ratio(predictions: Predictions) -> float:
    """Loss, in nats per token, divided by the size of the text in bytes under zlib (Carlini et al., 2021).

    It separates memorized text from text that is likely because it is simple, which compresses well.
    """
    if predictions.zlib_bytes is None:
        raise NotScorableError("no text to compress; load the sequences with a tokenizer")
    return teacher_forced.loss(predictions) / predictions.zlib_bytes


def min_k(predictions: Predictions, k: float = 0.2) -> float:
    """Min-K% Prob: mean log-probability, in nats, of the share k of least likely tokens (Shi et al., 2024)."""
    return _mean_of_lowest(-predictions.scored(predictions.nll), k)


def min_k_plus_plus(predictions: Predictions, k: float = 0.2) -> float:
    """Min-K%++: Min-K% of log-probabilities standardized by their mean and deviation over the vocabulary.

    Zhang et al., 2025.
    """
    assert predictions.log_p_mean is not None and predictions.log_p_deviation is not None
    deviation = np.maximum(predictions.log_p_deviation, LEAST_DEVIATION)
    return _mean_of_lowest(predictions.scored((-predictions.nll - predictions.log_p_mean) / deviation), k)


def reference_loss_difference(predictions: Predictions) -> float:
    """Loss minus the loss with all adapters disabled, in nats per token (after Carlini et al., 2021)."""
    if predictions.reference_nll is None:
        raise NotScorableError("the model has no adapters to disable")
    if not np.isfinite(predictions.reference_nll).all():
        raise NotScorableError("the model's output without adapters is not finite")
    before = predictions.scored(predictions.reference_nll).mean(dtype=np.float64)
    return teacher_forced.loss(predictions) - float(before)


def _mean_of_lowest(values: np.ndarray, share: float) -> float:
    number = max(1, int(len(values) * share))
    return float(np.sort(values)[:number].mean(dtype=np.float64))
