"""The table of metrics: one row per metric, forward and generated metrics alike.

To add a metric, write its function in this folder, add its row here, and regenerate docs/metrics.md (see docs.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from adapter_unlearn.errors import RecipeError, word
from adapter_unlearn.metrics import generated, membership, prefixes, sampling, teacher_forced
from adapter_unlearn.metrics.continuations import Continuations
from adapter_unlearn.metrics.predictions import NotScorableError, Predictions


@dataclass(frozen=True)
class Metric:
    """One number per sequence.

    Attributes:
        function: Predictions -> float, or Continuations -> float for a generated metric. It raises NotScorableError
            with the reason where the metric is undefined.
        lower: smallest possible value.
        upper: largest possible value.
        memorized: whether memorized text has high or low values.
        means: one line of description for tables and reports.
        formula: its definition, in the notation of docs/metrics.md.
        source: who defined it.
        needs: attributes of Predictions that are computed only where a metric needs them.
        cost: forward passes and continuations per batch.
        starts: (T, prefix_tokens, scored_from) -> lengths of the prefixes to continue. None for a forward metric.
    """

    function: Callable[[Any], float]
    lower: float
    upper: float
    memorized: Literal["high", "low"]
    means: str
    formula: str
    source: str
    needs: tuple[str, ...] = ()
    cost: str = "1 forward"
    starts: Callable[[int, int, int], range] | None = None

    @property
    def kind(self) -> Literal["forward", "generated"]:
        """What the metric is computed from: one teacher-forced forward pass, or greedy continuations."""
        return "forward" if self.starts is None else "generated"


_CARLINI = "Carlini et al., 2023, arXiv:2202.07646"
_TIRUMALA = "Tirumala et al., 2022, arXiv:2205.10770"
_CARLINI_2021 = "Carlini et al., 2021, arXiv:2012.07805"
_STRENGTH = f"{_CARLINI_2021}; Wang et al., 2025, openreview wUtCieKuQU"
_CONTINUED = "1 forward, 1 continuation"
_HAYES = "Hayes et al., 2024, arXiv:2410.19482"

METRICS: dict[str, Metric] = {
    "memorization_accuracy": Metric(teacher_forced.memorization_accuracy, 0, 1, "high",
        "share of tokens that are the model's first choice", "(1/L) Σ_{t ≥ s} h_t", _TIRUMALA),
    "exact_memorization": Metric(teacher_forced.exact_memorization, 0, 1, "high",
        "share of the tokens after the prefix that are the model's first choice", "(1/(T-P)) Σ_{t > P} h_t", _TIRUMALA),
    "extractable": Metric(teacher_forced.extractable, 0, 1, "high",
        "greedy decoding from the prefix recites all the rest", "Π_{t > P} h_t", _CARLINI),
    "extractable_50": Metric(teacher_forced.extractable_50, 0, 1, "high",
        "greedy decoding from the prefix recites the next 50 tokens", "Π_{P < t ≤ P+50} h_t", _CARLINI),
    "extractable_any_prefix": Metric(prefixes.extractable_any_prefix, 0, 1, "high",
        "greedy decoding recites all the rest from some prefix that leaves 20 tokens or more",
        "max_{k ≤ T-20} Π_{t > k} h_t", f"{_CARLINI}; the worst case over prefixes is ours"),
    "longest_verbatim_run": Metric(teacher_forced.longest_verbatim_run, 0, inf, "high",
        "length of the longest run of tokens that are the model's first choice",
        "max {b-a+1 : h_a = … = h_b = 1, a ≥ s}", "ours"),
    "extraction_strength": Metric(teacher_forced.extraction_strength, 0, 1, "high",
        "share of the text that greedy decoding recites once the tokens before it are given; 0 if none",
        "1 - (1/L) min {k ≥ 0 : Π_{t ≥ s+k} h_t = 1}", f"{_STRENGTH}; reaching 0 is ours"),
    "extraction_strength_openunlearning": Metric(teacher_forced.extraction_strength_openunlearning, 0, 1, "high",
        "extraction strength as OpenUnlearning computes it; never below 1/L",
        "1 - (1/L) min({k < L : Π_{t ≥ s+k} h_t = 1} ∪ {L-1})", f"{_STRENGTH}; Dorna et al., 2025, arXiv:2506.12618"),
    "p_z": Metric(sampling.p_z, 0, 1, "high", "probability that sampling from the prefix emits exactly the rest",
        "Π_{t > P} q(x_t | x_<t)", _HAYES, ("sampled_log_p",)),
    "log_p_z": Metric(sampling.log_p_z, -inf, 0, "high",
        "logarithm of p_z, in nats; -∞ where the sampling scheme cuts a token", "Σ_{t > P} log q(x_t | x_<t)", _HAYES,
        ("sampled_log_p",)),
    "np_extractable": Metric(sampling.np_extractable, 0, 1, "high",
        "100 samples from the prefix include exactly the rest with probability 0.5 or more",
        "1{1 - (1 - p_z)^n ≥ p}, n = 100, p = 0.5", _HAYES, ("sampled_log_p",)),
    "loss": Metric(teacher_forced.loss, 0, inf, "low", "mean negative log-likelihood, in nats per token",
        "(1/L) Σ_{t ≥ s} ℓ_t", "Yeom et al., 2018, arXiv:1709.01604"),
    "zlib": Metric(membership.zlib_ratio, 0, inf, "low", "loss divided by the size of the text in bytes under zlib",
        "loss / |zlib(text)|", _CARLINI_2021),
    "min_k": Metric(membership.min_k, -inf, 0, "high", "mean log-probability of the 20 % least likely tokens, in nats",
        "mean of the lowest max(1, ⌊0.2 L⌋) of -ℓ_t, t ≥ s", "Shi et al., 2024, arXiv:2310.16789"),
    "min_k_plus_plus": Metric(membership.min_k_plus_plus, -inf, inf, "high",
        "mean log-probability of the 20 % least likely tokens, standardized over the vocabulary",
        "mean of the lowest max(1, ⌊0.2 L⌋) of (-ℓ_t - μ_t) / max(σ_t, 0.001), t ≥ s",
        "Zhang et al., 2025, arXiv:2404.02936", ("log_p_mean", "log_p_deviation")),
    "reference_loss_difference": Metric(membership.reference_loss_difference, -inf, inf, "low",
        "loss minus the loss with all adapters disabled, in nats per token", "loss - loss₀", f"after {_CARLINI_2021}",
        ("reference_nll",), "2 forwards"),
    "extraction_likelihood": Metric(generated.extraction_likelihood, 0, 1, "high",
        "EL_10: overlap of the greedy continuations of all prefixes with the rest of the text",
        "mean over t ≤ T-10 of overlap_10(f(x_1 … x_t), x_{t+1} … x_T)", "Jang et al., 2022, arXiv:2210.01504", (),
        f"{_CONTINUED} per miss", generated.el_starts),
    "rouge_l": Metric(generated.after_prefix(generated.rouge_l), 0, 1, "high",
        "ROUGE-L of the prefix's greedy continuation, on tokens", "F1 of the longest common subsequence",
        "Lin, 2004; library rouge-score", (), _CONTINUED, generated.prefix_start),
    "bleu": Metric(generated.after_prefix(generated.bleu), 0, 1, "high",
        "BLEU of the prefix's greedy continuation, on tokens", "sentence BLEU-4, effective order",
        "Papineni et al., 2002; library sacrebleu", (), _CONTINUED, generated.prefix_start),
    "edit_similarity": Metric(generated.after_prefix(generated.edit_similarity), 0, 1, "high",
        "edit similarity of the prefix's greedy continuation and the rest, on tokens",
        "1 - Levenshtein distance / longer length", "library rapidfuzz", (), _CONTINUED, generated.prefix_start),
    "longest_common_substring": Metric(generated.after_prefix(generated.longest_common_substring), 0, inf, "high",
        "length of the longest run of tokens that is in both the greedy continuation and the rest",
        "longest common substring of f(x_1 … x_P) and x_{P+1} … x_T", "ours", (), _CONTINUED, generated.prefix_start),
}  # fmt: skip

FORWARD = tuple(name for name, metric in METRICS.items() if metric.kind == "forward")
GENERATED = tuple(name for name, metric in METRICS.items() if metric.kind == "generated")
GROUPS = {"forward": FORWARD, "all": tuple(METRICS)}
"""Names that stand for several metrics."""


def resolve(names: Sequence[str]) -> list[str]:
    """Metric names in the given order, each once, with groups replaced by their members; a string is one name.

    Args:
        names: rows of METRICS, `forward` (all that need no generation) or `all`.

    Raises:
        RecipeError: a name is unknown.
    """
    names = [names] if isinstance(names, str) else names
    for name in names:
        if not isinstance(name, str) or (name not in METRICS and name not in GROUPS):
            raise RecipeError(f"unknown metric '{word(name)}'; choose from {', '.join([*GROUPS, *METRICS])}")
    return list(dict.fromkeys(member for name in names for member in GROUPS.get(name, (name,))))


def compute(names: Iterable[str], measured: Predictions | Continuations) -> dict[str, float | str]:
    """Metrics of one kind for one sequence: each one's number, or the reason why it has none."""
    values: dict[str, float | str] = {}
    for name in names:
        try:
            value = METRICS[name].function(measured)
            values[name] = "not a number" if math.isnan(value) else value
        except NotScorableError as reason:
            values[name] = str(reason)
    return values


def columns_of(names: Iterable[str]) -> list[str]:
    """The names that are metrics, in the given order."""
    return [name for name in names if name in METRICS]
