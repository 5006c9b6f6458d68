"""The table of metrics. To add one: write its function, add its row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.memorization import teacher_forced
from adapter_unlearn.memorization.teacher_forced import Predictions


@dataclass(frozen=True)
class Metric:
    """One number a sequence.

    Attributes:
        function: Predictions -> float; raises NotScorableError with the reason where it says nothing.
        lower: the least it can be.
        upper: the most it can be.
        means: one line for tables and reports.
    """

    function: Callable[[Predictions], float]
    lower: float
    upper: float
    means: str


METRICS: dict[str, Metric] = {
    "memorization_accuracy": Metric(
        teacher_forced.memorization_accuracy, 0, 1, "share of tokens that are the model's first choice"
    ),
    "extractable": Metric(teacher_forced.extractable, 0, 1, "greedy decoding from the prefix recites all the rest"),
    "extractable_50": Metric(
        teacher_forced.extractable_50, 0, 1, "greedy decoding from the prefix recites the next 50 tokens"
    ),
    "longest_verbatim_run": Metric(
        teacher_forced.longest_verbatim_run, 0, float("inf"), "most consecutive tokens that are the first choice"
    ),
    "loss": Metric(teacher_forced.loss, 0, float("inf"), "mean negative log-likelihood of a token, in nats"),
}


def chosen(names: Sequence[str]) -> dict[str, Metric]:
    """The rows of these names, in that order.

    Raises:
        RecipeError: a name is no row of the table.
    """
    for name in names:
        if name not in METRICS:
            raise RecipeError(f"unknown metric {name!r}; choose from {', '.join(METRICS)}")
    return {name: METRICS[name] for name in names}
