"""Score sequences with a model. `score` is the entry point for all metrics."""

from adapter_unlearn.scoring.forward import (
    DEFAULT_SAMPLING,
    Head,
    batches,
    chunks,
    device_of,
    hidden_states,
    plain,
    predicted_tokens,
    rows_per_forward,
    vocabulary_of,
)
from adapter_unlearn.scoring.scores import (
    DEFAULT_METRICS,
    Overview,
    any_sound,
    check_finite,
    perplexity,
    score,
    score_parts,
)

__all__ = [
    "DEFAULT_METRICS", "DEFAULT_SAMPLING", "Head", "Overview", "any_sound", "batches", "check_finite", "chunks",
    "device_of", "hidden_states", "perplexity", "plain", "predicted_tokens", "rows_per_forward", "score", "score_parts",
    "vocabulary_of",
]  # fmt: skip
