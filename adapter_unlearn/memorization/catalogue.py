"""All metrics by name: those of the one forward (table.py) and those of what the model writes (generated.py)."""

from __future__ import annotations

from collections.abc import Sequence

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.memorization.generated import GENERATED_METRICS, GeneratedMetric
from adapter_unlearn.memorization.table import METRICS, Metric

CATALOGUE: dict[str, Metric | GeneratedMetric] = {**METRICS, **GENERATED_METRICS}
GROUPS = {"forward": tuple(METRICS), "all": tuple(CATALOGUE)}
"""Words that stand for several: what one forward gives, and everything."""


def chosen(names: Sequence[str]) -> list[str]:
    """The names in that order, each once, with the words for several spelled out.

    Raises:
        RecipeError: a name is no metric's.
    """
    for name in names:
        if name not in CATALOGUE and name not in GROUPS:
            raise RecipeError(f"unknown metric {name!r}; choose from {', '.join([*GROUPS, *CATALOGUE])}")
    return list(dict.fromkeys(single for name in names for single in GROUPS.get(name, (name,))))
