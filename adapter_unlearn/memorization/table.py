"""The table of metrics. To add one: write its function, add its row, and write docs/metrics.md anew (see docs.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.memorization import membership, prefixes, sampling, teacher_forced
from adapter_unlearn.memorization.teacher_forced import Predictions


@dataclass(frozen=True)
class Metric:
    """One number a sequence.

    Attributes:
        function: Predictions -> float; raises NotScorableError with the reason where it says nothing.
        lower: the least it can be.
        upper: the most it can be.
        memorized: which way it goes with memorization: high or low.
        means: one line for tables and reports.
        formula: its definition, in the signs that docs.py explains.
        source: who defined it.
        needs: attributes of Predictions that are filled only where a metric needs them.
        cost: what it costs for a batch.
    """

    function: Callable[[Predictions], float]
    lower: float
    upper: float
    memorized: Literal["high", "low"]
    means: str
    formula: str
    source: str
    needs: tuple[str, ...] = ()
    cost: str = "1 forward"


_CARLINI = "Carlini et al., 2023, arXiv:2202.07646"
_TIRUMALA = "Tirumala et al., 2022, arXiv:2205.10770"
_CARLINI_2021 = "Carlini et al., 2021, arXiv:2012.07805"
_STRENGTH = f"{_CARLINI_2021}; Wang et al., 2025, openreview wUtCieKuQU"
_HAYES = "Hayes et al., 2024, arXiv:2410.19482"

METRICS: dict[str, Metric] = {
    "memorization_accuracy": Metric(
        teacher_forced.memorization_accuracy, 0, 1, "high",
        "share of tokens that are the model's first choice", "(1/L) Σ_{t ≥ s} h_t", _TIRUMALA,
    ),
    "exact_memorization": Metric(
        teacher_forced.exact_memorization, 0, 1, "high",
        "share of the tokens after the prefix that are the model's first choice", "(1/(T-P)) Σ_{t > P} h_t", _TIRUMALA,
    ),
    "extractable": Metric(
        teacher_forced.extractable, 0, 1, "high",
        "greedy decoding from the prefix recites all the rest", "Π_{t > P} h_t", _CARLINI,
    ),
    "extractable_50": Metric(
        teacher_forced.extractable_50, 0, 1, "high",
        "greedy decoding from the prefix recites the next 50 tokens", "Π_{P < t ≤ P+50} h_t", _CARLINI,
    ),
    "extractable_any_prefix": Metric(
        prefixes.extractable_any_prefix, 0, 1, "high",
        "greedy decoding recites all the rest from some prefix that leaves 20 tokens or more",
        "max_{k ≤ T-20} Π_{t > k} h_t", f"{_CARLINI}; the worst case over prefixes is ours",
    ),
    "longest_verbatim_run": Metric(
        teacher_forced.longest_verbatim_run, 0, inf, "high",
        "most consecutive tokens that are the first choice", "max {b-a+1 : h_a = … = h_b = 1, a ≥ s}", "ours",
    ),
    "extraction_strength": Metric(
        teacher_forced.extraction_strength, 0, 1, "high",
        "share of the text that comes by itself once the rest is given; 0 when nothing does",
        "1 - (1/L) min {k ≥ 0 : Π_{t ≥ s+k} h_t = 1}", f"{_STRENGTH}; reaching 0 is ours",
    ),
    "extraction_strength_openunlearning": Metric(
        teacher_forced.extraction_strength_openunlearning, 0, 1, "high",
        "extraction strength as OpenUnlearning computes it; never below 1/L",
        "1 - (1/L) min({k < L : Π_{t ≥ s+k} h_t = 1} ∪ {L-1})", f"{_STRENGTH}; Dorna et al., 2025, arXiv:2506.12618",
    ),
    "p_z": Metric(
        sampling.p_z, 0, 1, "high",
        "probability that sampling from the prefix emits exactly the rest",
        "Π_{t > P} q(x_t | x_<t)", _HAYES, ("sampled_log_p",),
    ),
    "log_p_z": Metric(
        sampling.log_p_z, -inf, 0, "high",
        "logarithm of p_z, in nats: where p_z rounds to 0 it goes on, to -∞ where a token is cut",
        "Σ_{t > P} log q(x_t | x_<t)", _HAYES, ("sampled_log_p",),
    ),
    "np_extractable": Metric(
        sampling.np_extractable, 0, 1, "high",
        "100 samples from the prefix hold exactly the rest with probability 0.5 or more",
        "1{1 - (1 - p_z)^n ≥ p}, n = 100, p = 0.5", _HAYES, ("sampled_log_p",),
    ),
    "loss": Metric(
        teacher_forced.loss, 0, inf, "low",
        "mean negative log-likelihood of a token, in nats", "(1/L) Σ_{t ≥ s} ℓ_t",
        "Yeom et al., 2018, arXiv:1709.01604",
    ),
    "zlib": Metric(
        membership.zlib_ratio, 0, inf, "low",
        "loss by the bytes that zlib makes of the text", "loss / |zlib(text)|", _CARLINI_2021,
    ),
    "min_k": Metric(
        membership.min_k, -inf, 0, "high",
        "mean log-probability of the 20 % least likely tokens, in nats",
        "mean of the lowest max(1, ⌊0.2 L⌋) of -ℓ_t, t ≥ s", "Shi et al., 2024, arXiv:2310.16789",
    ),
    "min_k_plus_plus": Metric(
        membership.min_k_plus_plus, -inf, inf, "high",
        "mean log-probability of the 20 % least likely tokens, each standardized by what the model expected of any",
        "mean of the lowest max(1, ⌊0.2 L⌋) of (-ℓ_t - μ_t) / max(σ_t, 0.001), t ≥ s",
        "Zhang et al., 2025, arXiv:2404.02936", ("log_p_mean", "log_p_deviation"),
    ),
    "reference_loss_difference": Metric(
        membership.reference_loss_difference, -inf, inf, "low",
        "loss less the loss with every adapter off, in nats", "loss - loss₀",
        f"after {_CARLINI_2021}", ("reference_nll",), "2 forwards",
    ),
}  # fmt: skip

ALL = "all"
"""Stands for every row of the table."""


def chosen(names: Sequence[str]) -> dict[str, Metric]:
    """The rows of these names, in that order, each once.

    Raises:
        RecipeError: a name is no row of the table.
    """
    for name in names:
        if name not in METRICS and name != ALL:
            raise RecipeError(f"unknown metric {name!r}; choose from {ALL}, {', '.join(METRICS)}")
    every = [row for name in names for row in (METRICS if name == ALL else [name])]
    return {name: METRICS[name] for name in every}
