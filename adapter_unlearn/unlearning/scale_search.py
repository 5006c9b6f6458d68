"""The best scale of a finished adapter: measured on a grid that is refined around the best; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.unlearning import stopping

SCALES = (-0.25, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The first grid: around TAU's -1 and TA's -3 (Barbulescu & Triantafillou, 2024)."""

REFINEMENTS = 2


def search(
    measure: Callable[[float], dict[str, Any]],
    base: dict[str, Any],
    budget: float | None,
    scales: Sequence[float] = SCALES,
    refinements: int = REFINEMENTS,
) -> tuple[float, list[dict[str, Any]]]:
    """Find the scale with the fewest failing sequences within the budget; among equals, see stopping.merit.

    Args:
        measure: scale -> a record of the model with the adapter at that scale (see stopping.merit).
        base: the record of the base, for the budget.
        budget: largest share by which the validation perplexity may grow over the base's; None for no limit.
        scales: the first grid, besides 0. If no other scale is within the budget, 0 is returned.
        refinements: rounds in which the midpoints between the best scale and its neighbours are measured too.

    Returns:
        The scale, and a record for each scale that was measured, sorted by scale; each says whether it was
        `within_budget`.

    Raises:
        RecipeError: no scales, or one that is not finite.
    """
    if not scales or not all(map(math.isfinite, scales)):
        raise RecipeError(f"scales {list(scales)}: give finite numbers, at least one")
    records: dict[float, dict[str, Any]] = {}
    grid = [0.0, *map(float, scales)]
    for _ in range(1 + refinements):
        for scale in dict.fromkeys(grid):
            if scale not in records:
                records[scale] = measure(scale) | {"scale": scale}
        allowed = [scale for scale in records if stopping.within(budget, records[scale], base)]
        best = min(allowed, key=lambda scale: stopping.merit(records[scale]), default=0.0)
        known = sorted(records)
        place = known.index(best)
        grid = [(best + neighbour) / 2 for neighbour in known[max(place - 1, 0) : place + 2] if neighbour != best]
    rows = [records[scale] | {"within_budget": stopping.within(budget, records[scale], base)} for scale in known]
    return best, rows
