"""The learning rate of a stage, from a few steps at each rate of a ladder; the run then starts as if nothing had been.

Which figure tells rates apart depends on what the stage descends on. Where the objective has its lowest value at the
model that is wanted, as that of `match` has, the rate with the lowest objective after those steps is taken. An ascent
has its lowest value at a ruined model; there the largest rate that keeps the validation perplexity within its budget is
looked for, and the one below it is taken, for the steps of a probe do a small part of a run's damage. (On the embedded
default `sga` at 3e-3 is within its budget after 8 steps, at -1.1 %, and past it in epoch 33, at +6.6 % and not done; at
the rung below it the stop rule holds in epoch 60, at +3.9 %. On tiny models of random tokens the rule is a rung low.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.unlearning import stopping
from adapter_unlearn.unlearning.losses import LOSSES

if TYPE_CHECKING:
    from adapter_unlearn.unlearning.methods import Stage

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""The ladder. A step between two rungs is about what the choice of a rate is worth; finer ones would be noise."""

STEPS = 8
"""How many steps are taken at each rate."""

ROWS = 64
"""By how many rows of a set the objective is judged, at most."""

FAR = 2.0
"""How many times the objective of where it started ends the climb."""


def search(
    measure: Callable[[float], dict[str, Any]],
    base: dict[str, Any],
    budget: float | None,
    by_objective: bool,
    rates: Sequence[float] = RATES,
) -> tuple[float, list[dict[str, Any]]]:
    """Climb the ladder until a rate has broken things, and take the best of those below.

    Args:
        measure: rate -> a record with `objective` and `validation_perplexity` after some steps; at 0, after none.
        base: the record of the base, for the budget.
        budget: largest share by which the validation perplexity may grow over the base's; only looked at if the
            objective does not decide. None for no limit.
        by_objective: take the rate with the lowest objective, of equals the smallest; else the rung below the largest
            rate within the budget, or the smallest rate.
        rates: the ladder; measured in ascending order.

    Returns:
        The rate, and the records of 0 and of each rate that was measured; each says whether that rate was `usable`, why
        not, and whether it was `taken`. Where none was usable the smallest is taken: the guard of the run itself is
        then what is left.

    Raises:
        RecipeError: no rates, or one that is not finite and above 0.
    """
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise RecipeError(f"learning rates {list(rates)}: give finite numbers above 0, at least one")
    ladder = sorted(map(float, rates))
    start = measure(0.0) | {"learning_rate": 0.0, "usable": False, "because": "no step was taken; this is the start"}
    rows = [start]
    for rate in ladder:
        record = measure(rate)
        fault = _fault(record, start, base, budget, by_objective)
        rows.append(record | {"learning_rate": rate, "usable": fault is None, "because": fault})
        bearable = by_objective and -math.inf < record["objective"] <= FAR * start["objective"]
        if fault and not bearable:
            break
    usable = [row for row in rows if row["usable"]]
    if not usable:
        rate = ladder[0]
    elif by_objective:
        rate = min(usable, key=lambda row: row["objective"])["learning_rate"]
    else:
        rate = usable[max(len(usable) - 2, 0)]["learning_rate"]
    return rate, [row | {"taken": row["learning_rate"] == rate} for row in rows]


def told(rate: float, rows: Sequence[dict[str, Any]]) -> str:
    """One sentence for who waits, from what `search` returned."""
    tried = f"{sum(row['learning_rate'] > 0 for row in rows)} were tried, {rows[-1]['seconds']:.0f} s each"
    if any(row["usable"] for row in rows):
        return f"Learning rate {rate:g} was taken: {tried}."
    return f"Learning rate {rate:g}, the smallest, was taken though none was found usable, for {rows[1]['because']}."


def _fault(
    record: dict[str, Any], start: dict[str, Any], base: dict[str, Any], budget: float | None, by_objective: bool
) -> str | None:
    """Why a rate can't be used."""
    before, after = start["objective"], record["objective"]
    if not math.isfinite(after):
        return "loss or weights were not finite"
    if by_objective:
        return None if after < before else f"the objective did not fall: {before:.4g} before, {after:.4g} after"
    if stopping.within(budget, record, base):
        return None
    return stopping.too_far(budget, record, base)


def by_objective(stage: Stage) -> bool:
    """Whether the stage's objective has its lowest value at the model that is wanted, so that it tells rates apart.

    Every term must, and one must hold what the model says elsewhere: without it no damage there would count. A retain
    loss of cross-entropy is none of that kind, for it falls the more the faster the retain rows are learned by heart.
    An adapter that counts with a negative scale ascends on what it is fitted to.
    """
    settled = [term.coefficient * stage.scale > 0 and LOSSES[term.loss].rests for term in stage.terms]
    return all(settled) and any(term.rows == "retain" for term in stage.terms)
