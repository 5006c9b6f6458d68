"""The probability that sampling, instead of greedy decoding, emits the exact rest of a text (Hayes et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.metrics.predictions import Predictions


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature, then top-k, then top-p, as in transformers.

    Tokens as likely as the last one kept are kept too, by top-k and by top-p.

    Attributes:
        temperature: divisor of the logits; above 0.
        top_k: number of likeliest tokens to keep; None keeps all.
        top_p: keep the likeliest of these tokens until their share reaches top_p; above 0, 1 keeps all. Without top_k
            this sorts the vocabulary at every position, which is slow.
    """

    temperature: float = 1.0
    top_k: int | None = 40
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise RecipeError(f"sampling temperature is {self.temperature}; give a number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"sampling top_k is {self.top_k}; give 1 or more, or None to keep all tokens")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"sampling top_p is {self.top_p}; give a number above 0 and at most 1")


def log_p_z(predictions: Predictions) -> float:
    """Logarithm of p_z, in nats; -inf if the sampling scheme cuts a token of the rest."""
    assert predictions.sampled_log_p is not None
    return float(predictions.suffix(predictions.sampled_log_p).sum(dtype=np.float64))


def p_z(predictions: Predictions) -> float:
    """Probability that sampling from the prefix emits exactly the rest; 0 below about 1e-323, see log_p_z."""
    return math.exp(log_p_z(predictions))


def np_extractable(predictions: Predictions, n: int = 100, p: float = 0.5) -> float:
    """1 if, with probability p or more, at least one of n samples from the prefix is exactly the rest, else 0."""
    once = p_z(predictions)
    if once == 1:
        return 1.0
    return float(-math.expm1(n * math.log1p(-once)) >= p)
