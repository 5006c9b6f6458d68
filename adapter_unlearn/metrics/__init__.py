"""Memorization metrics: pure functions of the predictions or continuations of a sequence that return one number."""

from adapter_unlearn.metrics.continuations import Continuations
from adapter_unlearn.metrics.predictions import NotScorableError, Predictions
from adapter_unlearn.metrics.sampling import Sampling
from adapter_unlearn.metrics.table import FORWARD, GENERATED, GROUPS, METRICS, Metric, columns_of, compute, resolve

__all__ = [
    "FORWARD", "GENERATED", "GROUPS", "METRICS", "Continuations", "Metric", "NotScorableError", "Predictions",
    "Sampling", "columns_of", "compute", "resolve",
]  # fmt: skip
