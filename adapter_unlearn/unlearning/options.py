"""A parameter of a method, a selection or a loss: its default, the values it accepts, and its documentation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from adapter_unlearn.errors import RecipeError, word

ABOVE_ZERO = 1e-12
"""The smallest value of an option that must be positive."""


@dataclass(frozen=True)
class Option:
    """A key of a recipe's `method`.

    Attributes:
        default: its value where a recipe does not give one.
        text: its documentation.
        low: the smallest number allowed.
        high: the largest number allowed.
        kind: the type of number allowed, besides `words`; None allows words only.
        words: the strings allowed.
        null: whether null is allowed.
    """

    default: Any
    text: str
    low: float = 0.0
    high: float = math.inf
    kind: type[int] | type[float] | None = float
    words: tuple[str, ...] = ()
    null: bool = False

    def check(self, key: str, value: Any) -> None:
        """Raise RecipeError unless `value` has an allowed type and lies in the range; `key` is named in the message."""
        if (value is None and self.null) or (isinstance(value, str) and value in self.words):
            return
        number = isinstance(value, int if self.kind is int else int | float) and type(value) is not bool
        if self.kind is None or not number or not abs(value) < math.inf:
            raise RecipeError(f"recipe key method.{key}: expected {self.allowed()}, got '{word(value)}'")
        if not self.low <= value <= self.high:
            bounds = f"{self.low:g} or more" if self.high == math.inf else f"{self.low:g} to {self.high:g}"
            raise RecipeError(f"recipe key method.{key}: {value} is out of range; it must be {bounds}")

    def allowed(self) -> str:
        """The allowed types and words, for example `a number or holdout`."""
        kind = ["a whole number" if self.kind is int else "a number"] if self.kind else []
        return " or ".join([*kind, *self.words, *(["null"] if self.null else [])])
