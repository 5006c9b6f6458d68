"""Choose a stage's learning rate: take a few steps at each rate of a grid, and undo them.

The criterion depends on what the stage minimizes. If a wanted model minimizes the objective, as that of `match`, the
rate with the lowest objective after those steps is taken. A ruined model minimizes an ascent's objective, so there the
validation perplexity decides: of the rates that keep it within its budget the second largest is taken, because a trial
of a few steps does only a small part of the damage of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.unlearning import stopping
from adapter_unlearn.unlearning.loss_table import LOSSES

if TYPE_CHECKING:
    from adapter_unlearn.unlearning.plan import Stage

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""The learning rates that are tried."""

STEPS = 8
"""Steps taken at each rate."""

ROWS = 64
"""Rows of a set on which the objective is computed, at most."""

DIVERGED = 2.0
"""The multiple of the objective before any step above which no larger rate is tried."""


def search(
    measure: Callable[[float], dict[str, Any]],
    base: dict[str, Any],
    budget: float | None,
    by_objective: bool,
    rates: Sequence[float] = GRID,
) -> tuple[float, list[dict[str, Any]]]:
    """Try the rates in ascending order until one diverges or exceeds the budget, and take the best of those before.

    Args:
        measure: rate -> a record with `objective` and `validation_perplexity` after some steps; at 0, after none.
        base: the record of the base, for the budget.
        budget: largest share by which the validation perplexity may grow over the base's; only used if the objective
            does not decide. None for no limit.
        by_objective: take the rate with the lowest objective, the smallest of equals; otherwise the second largest rate
            within the budget, or the only one.
        rates: the grid.

    Returns:
        The rate, and the records of 0 and of each rate that was tried; each says whether that rate was `usable`,
        `because` of what not, and whether it was `taken`. Where none was usable the smallest is taken, and the run's
        own perplexity budget limits the damage.

    Raises:
        RecipeError: no rates, or one that is not finite and above 0.
    """
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise RecipeError(f"learning rates {list(rates)}: give finite numbers above 0, at least one")
    grid = sorted(map(float, rates))
    start = measure(0.0) | {"learning_rate": 0.0, "usable": False, "because": "no step was taken; this is the start"}
    rows = [start]
    for rate in grid:
        record = measure(rate)
        fault = _fault(record, start, base, budget, by_objective)
        rows.append(record | {"learning_rate": rate, "usable": fault is None, "because": fault})
        bearable = by_objective and -math.inf < record["objective"] <= DIVERGED * start["objective"]
        if fault and not bearable:
            break
    usable = [row for row in rows if row["usable"]]
    if not usable:
        rate = grid[0]
    elif by_objective:
        rate = min(usable, key=lambda row: row["objective"])["learning_rate"]
    else:
        rate = usable[max(len(usable) - 2, 0)]["learning_rate"]
    return rate, [row | {"taken": row["learning_rate"] == rate} for row in rows]


def describe(rate: float, rows: Sequence[dict[str, Any]]) -> str:
    """One sentence for the user about what `search` returned."""
    tried = f"{sum(row['learning_rate'] > 0 for row in rows)} were tried, {rows[-1]['seconds']:.0f} s each"
    if any(row["usable"] for row in rows):
        return f"Learning rate {rate:g} was taken: {tried}."
    return f"Learning rate {rate:g}, the smallest, was taken, but no rate was usable: {rows[1]['because']}."


def _fault(
    record: dict[str, Any], start: dict[str, Any], base: dict[str, Any], budget: float | None, by_objective: bool
) -> str | None:
    """Why a rate can't be used, or None."""
    before, after = start["objective"], record["objective"]
    if not math.isfinite(after):
        return "loss or weights were not finite"
    if by_objective:
        return None if after < before else f"the objective did not fall: {before:.4g} before, {after:.4g} after"
    if stopping.within(budget, record, base):
        return None
    return stopping.excess(budget, record, base)


def by_objective(stage: Stage) -> bool:
    """Whether a wanted model minimizes the stage's objective, so that the objective can rank learning rates.

    Every term's loss must have a wanted minimum, and one term must be on the retain set: without it, damage elsewhere
    would not count. A retain loss of nll does not qualify, since it falls as the retain rows are memorized. Nor does an
    adapter with a negative scale, which is an ascent on what it is fitted to.
    """
    wanted = [term.coefficient * stage.scale > 0 and LOSSES[term.loss].wanted_minimum for term in stage.terms]
    return all(wanted) and any(term.rows == "retain" for term in stage.terms)
