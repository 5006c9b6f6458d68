"""The table of methods. To add one: write the function that names its terms, add its row, ship a recipe.

A function's parameters are the method's parameters in a recipe; their types and defaults are read from here.
No torch in this room: a recipe is checked before anything heavy is loaded.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.unlearning.selection import Selection, at_least, sample


@dataclass(frozen=True)
class Term:
    """One part of a step's loss: coefficient x mean token loss over the selected rows.

    Attributes:
        rows: the set that rows are selected from; terms on a set that is not given are left out.
        select: which of them.
        loss: row of the losses table.
        coefficient: -1 ascends, +1 descends.
    """

    rows: Literal["forget", "retain"]
    select: Selection
    loss: str
    coefficient: float


@dataclass(frozen=True)
class Stage:
    """What one adapter is trained on."""

    terms: tuple[Term, ...]


def sga(
    threshold: float = 0.7,
    run_threshold: int | None = None,
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
) -> Stage:
    """Selective gradient ascent (Barbulescu & Triantafillou, 2024): ascend on what is still memorized.

    Args:
        threshold: memorization accuracy from which on a sequence is selected, 0..1.
        run_threshold: length of a verbatim run, in tokens, from which on a sequence is selected too; null is the paper.
        retain_weight: weight of the retain set's loss beside the ascent; 0 leaves it out.
        retain_sequences: retain rows drawn for each step.
    """
    _in_range("threshold", threshold, 0, 1)
    _in_range("run_threshold", 1 if run_threshold is None else run_threshold, 1, float("inf"))
    _in_range("retain_weight", retain_weight, 0, float("inf"))
    _in_range("retain_sequences", retain_sequences, 1, float("inf"))
    ascent = Term("forget", at_least(threshold, run_threshold), "cross_entropy", -1.0)
    if retain_weight == 0:
        return Stage((ascent,))
    return Stage((ascent, Term("retain", sample(retain_sequences), "cross_entropy", retain_weight)))


def ga(retain_weight: float = 0.0, retain_sequences: int = 32) -> Stage:
    """Gradient ascent on every sequence, every epoch (Jang et al., 2022).

    Args:
        retain_weight: weight of the retain set's loss beside the ascent; 0 leaves it out.
        retain_sequences: retain rows drawn for each step.
    """
    return sga(0.0, retain_weight=retain_weight, retain_sequences=retain_sequences)


METHODS: dict[str, Callable[..., Stage]] = {"ga": ga, "sga": sga}


def resolve(method: dict[str, Any]) -> dict[str, Any]:
    """The method with every parameter written out, as it goes into the resolved recipe.

    Args:
        method: `name`, and any of that method's parameters.

    Raises:
        RecipeError: unknown method, unknown parameter, wrong type or range.
    """
    name = method.get("name")
    if not isinstance(name, str) or name not in METHODS:
        raise RecipeError(f"recipe key method.name: unknown method {name!r}; choose from {', '.join(METHODS)}")
    parameters = inspect.signature(METHODS[name]).parameters
    for key, value in method.items():
        if key != "name" and key not in parameters:
            raise RecipeError(f"recipe key method.{key}: {name} takes no such parameter, only {', '.join(parameters)}")
        if key != "name" and not _fits(value, str(parameters[key].annotation)):
            kind = "a whole number" if "int" in str(parameters[key].annotation) else "a number"
            raise RecipeError(f"recipe key method.{key}: expected {kind}, got {value!r}")
    resolved = {"name": name} | {key: method.get(key, parameter.default) for key, parameter in parameters.items()}
    stage(resolved)
    return resolved


def stage(method: dict[str, Any]) -> Stage:
    """What a method trains, from its name and parameters. Raises RecipeError as resolve does."""
    parameters = {key: value for key, value in method.items() if key != "name"}
    return METHODS[method["name"]](**parameters)


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value is of a parameter's type: int, float, or one of them or None."""
    if value is None:
        return "None" in annotation
    kinds = int if "int" in annotation else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        allowed = f"{low} to {high}" if high != float("inf") else f"{low} or more"
        raise RecipeError(f"recipe key method.{key}: {value} is out of range; it must be {allowed}")
