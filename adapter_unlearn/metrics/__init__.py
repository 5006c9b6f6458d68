"""Memorization metrics: pure functions from the predictions or continuations of a sequence to one number."""

from adapter_unlearn.metrics.continuations import Continuations
from adapter_unlearn.metrics.predictions import NotScorableError, Predictions
from adapter_unlearn.metrics.sampling import Sampling
from adapter_unlearn.metrics.table import FORWARD, GENERATED, GROUPS, METRICS, Metric, columns_of, resolve

__all__ = [
    "FORWARD",
    "GENERATED",
    "GROUPS",
    "METRICS",
    "Continuations",
    "Metric",
    "NotScorableError",
    "Predictions",
    "Sampling",
    "columns_of",
    "resolve",
]
