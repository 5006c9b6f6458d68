"""When a run is done, when it has gone too far, and which epoch is worth keeping. Pure functions of log records."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from adapter_unlearn.recipe import Stop


@dataclass(frozen=True)
class Goal:
    """Levels that must all hold for a run to be done; None is not asked for. Meanings as in recipe.Stop."""

    mean_below: float | None = None
    max_below: float | None = None
    extractable: int | None = None
    longest_run: int | None = None
    extraction_likelihood_below: float | None = None


def resolve(stop: Stop, holdout: pd.DataFrame | None) -> Goal:
    """Put numbers in the place of `holdout`.

    Args:
        stop: the recipe's rules.
        holdout: the holdout set scored under the base; may be None if no rule asks for it, and needs extraction
            likelihoods only if the rule of that name does.
    """
    levels: dict[str, Any] = {}
    if holdout is not None:
        levels["mean_below"] = float(holdout["memorization_accuracy"].mean())
        levels["max_below"] = float(holdout["memorization_accuracy"].quantile(0.95))
        if "extraction_likelihood" in holdout:
            levels["extraction_likelihood_below"] = float(holdout["extraction_likelihood"].mean())
        levels["longest_run"] = int(holdout["longest_verbatim_run"].max())
    rules = {field.name: getattr(stop, field.name) for field in fields(Goal)}
    return Goal(**{key: levels[key] if value == "holdout" else value for key, value in rules.items()})


def reached(goal: Goal, record: dict[str, Any]) -> bool:
    """Whether every level of the goal holds; never, if the goal asks for nothing."""
    asked = [
        (goal.mean_below, lambda level: record["memorization_accuracy_mean"] < level),
        (goal.max_below, lambda level: record["memorization_accuracy_max"] < level),
        (goal.extractable, lambda level: record["extractable"] <= level),
        (goal.longest_run, lambda level: record["longest_verbatim_run_max"] <= level),
        (goal.extraction_likelihood_below, lambda level: record.get("extraction_likelihood_mean", math.inf) < level),
    ]
    rules = [(level, holds) for level, holds in asked if level is not None]
    return bool(rules) and all(holds(level) for level, holds in rules)


def only_extraction_likelihood_is_open(goal: Goal, record: dict[str, Any]) -> bool:
    """Whether the goal asks for a level of extraction likelihood, and all else that it asks for holds."""
    others = replace(goal, extraction_likelihood_below=None)
    return goal.extraction_likelihood_below is not None and (others == Goal() or reached(others, record))


def within(budget: float | None, record: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether the validation perplexity has kept to its budget; yes, where there is no budget or no set."""
    if budget is None or before["validation_perplexity"] is None:
        return True
    return bool(record["validation_perplexity"] <= before["validation_perplexity"] * (1 + budget))


def too_far(budget: float | None, record: dict[str, Any], before: dict[str, Any]) -> str:
    """What there is to say when `within` is false, without a full stop."""
    assert budget is not None, "else all is within"
    factor = record["validation_perplexity"] / before["validation_perplexity"]
    shown = f"{factor - 1:+.1%}" if factor < 10 else f"{factor:.3g} times the base's"
    return f"validation perplexity was {shown}, past its budget of {budget:+.1%}"


ORDER = "fewest outliers, then likest to never-seen text, then lowest perplexity, then shortest run"
"""What `merit` goes by, for the user."""

TOLERANCE = 0.1
"""How far from 0.5 the AUC of loss may be, and forget and holdout set still count as alike."""


def merit(record: dict[str, Any]) -> tuple[float, ...]:
    """Sorts epochs, best first: fewest outliers, fewest extractable, least told apart, lowest perplexity, shortest run,
    lowest mean accuracy.

    Told apart from the holdout set by loss, that is, and only by more than TOLERANCE; without one it does not count.
    Without a validation set the run decides: the lowest mean accuracy of all is where most damage was done.
    """
    outliers = record["outliers_high"] + record["outliers_low_new"]
    told_apart = record.get("membership_auc_loss")
    excess = 0.0 if told_apart is None else max(abs(told_apart - 0.5) - TOLERANCE, 0.0)
    perplexity = record["validation_perplexity"]
    perplexity = math.inf if perplexity is None else perplexity
    run, mean = record["longest_verbatim_run_max"], record["memorization_accuracy_mean"]
    return (outliers, record["extractable"], excess, perplexity, run, mean)
