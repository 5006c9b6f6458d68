"""When a run is done, when it has exceeded its budget, and which epoch is best. Pure functions of log records."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd

from adapter_unlearn.evaluation import criteria
from adapter_unlearn.recipe import Stop


@dataclass(frozen=True)
class Goal:
    """Levels that must all hold for a run to be done; None is not required. Meanings as in recipe.Stop."""

    mean_below: float | None = None
    max_below: float | None = None
    extractable: int | None = None
    longest_run: int | None = None
    extraction_likelihood_below: float | None = None


def resolve(stop: Stop, holdout_scores: pd.DataFrame | None) -> Goal:
    """The stop rules with `holdout` replaced by numbers.

    Args:
        stop: the recipe's rules.
        holdout_scores: the holdout set scored under the base. It may be None if no rule takes a level from it, and
            needs extraction likelihoods only for the rule of that name.
    """
    levels: dict[str, Any] = {}
    if holdout_scores is not None:
        accuracy = holdout_scores["memorization_accuracy"].to_numpy(dtype=float)
        levels["mean_below"] = float(holdout_scores["memorization_accuracy"].mean())
        levels["max_below"] = criteria.holdout_quantile(accuracy, criteria.QUANTILES[1])
        if "extraction_likelihood" in holdout_scores:
            levels["extraction_likelihood_below"] = float(holdout_scores["extraction_likelihood"].mean())
        levels["longest_run"] = int(holdout_scores["longest_verbatim_run"].max())
    rules = {field.name: getattr(stop, field.name) for field in fields(Goal)}
    return Goal(**{key: levels[key] if value == "holdout" else value for key, value in rules.items()})


def reached(goal: Goal, record: dict[str, Any]) -> bool:
    """Whether every level of the goal holds; never for a goal without levels.

    The means must be below their levels. The maximum may be equal to `max_below`, as an accuracy that is equal to the
    holdout set's quantile is no outlier.
    """
    rules = [
        (goal.mean_below, lambda level: record["memorization_accuracy_mean"] < level),
        (goal.max_below, lambda level: record["memorization_accuracy_max"] <= level),
        (goal.extractable, lambda level: record["extractable"] <= level),
        (goal.longest_run, lambda level: record["longest_verbatim_run_max"] <= level),
        (goal.extraction_likelihood_below, lambda level: record.get("extraction_likelihood_mean", math.inf) < level),
    ]
    required = [(level, holds) for level, holds in rules if level is not None]
    return bool(required) and all(holds(level) for level, holds in required)


def only_extraction_likelihood_is_open(goal: Goal, record: dict[str, Any]) -> bool:
    """Whether the goal has a level of extraction likelihood, and all its other levels hold."""
    others = replace(goal, extraction_likelihood_below=None)
    return goal.extraction_likelihood_below is not None and (others == Goal() or reached(others, record))


def within(budget: float | None, record: dict[str, Any], base: dict[str, Any]) -> bool:
    """Whether the validation perplexity is within its budget; always without a budget or a validation set."""
    if budget is None or base["validation_perplexity"] is None:
        return True
    return bool(record["validation_perplexity"] <= base["validation_perplexity"] * (1 + budget))


def excess(budget: float | None, record: dict[str, Any], base: dict[str, Any]) -> str:
    """A clause that says by how much the budget is exceeded, for a record that is not `within` it."""
    assert budget is not None, "without a budget every record is within it"
    factor = record["validation_perplexity"] / base["validation_perplexity"]
    growth = f"{factor - 1:+.1%}" if factor < 10 else f"{factor:.3g} times the base's"
    return f"validation perplexity was {growth}, past its budget of {budget:+.1%}"


ORDER = "fewest failing sequences, then most like the holdout set, then lowest perplexity, then shortest verbatim run"
"""The order of `merit`, for the user."""

TOLERANCE = 0.1
"""How far the membership AUC of loss may be from 0.5 before an epoch counts as distinguishable."""


def merit(record: dict[str, Any]) -> tuple[float, ...]:
    """The sort key of epochs and scales, best first.

    Fewest failing sequences, fewest extractable ones, least distinguishable from the holdout set, lowest validation
    perplexity, shortest verbatim run, lowest mean accuracy. Distinguishable means a membership AUC of loss that differs
    from 0.5 by more than TOLERANCE; without a holdout set it does not count. Without a validation set the verbatim run
    comes before the mean accuracy, since the lowest mean is where the model is damaged most.
    """
    auc = record.get("membership_auc_loss")
    distinguishable = 0.0 if auc is None else max(abs(auc - 0.5) - TOLERANCE, 0.0)
    perplexity = record["validation_perplexity"]
    perplexity = math.inf if perplexity is None else perplexity
    run, mean = record["longest_verbatim_run_max"], record["memorization_accuracy_mean"]
    return (record["failing"], record["extractable"], distinguishable, perplexity, run, mean)
