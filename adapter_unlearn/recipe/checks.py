"""Check that every value of a recipe is in range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any, get_args, get_type_hints

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe.schema import Recipe

RANGES: list[tuple[str, Callable[[float], bool], str]] = [
    ("adapter.r adapter.alpha training.learning_rate training.max_epochs training.batch_size"
     " training.sequences_per_step stop.patience evaluation.batch_size data.stride data.prefix_tokens",
     lambda value: value > 0, "above 0"),
    ("stop.mean_below stop.max_below", lambda value: 0 < value <= 1, "above 0 and at most 1, or `holdout`"),
    ("stop.extractable stop.longest_run stop.max_perplexity_increase data.synthetic training.checkpoint_minutes",
     lambda value: value >= 0, "0 or more"),
    ("seed", lambda value: 0 <= value < 2**32, "0 or more, and below 2**32"),
    ("training.learning_rate_decay", lambda value: 0 <= value <= 1, "0 to 1"),
    ("adapter.dropout", lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ("data.max_tokens", lambda value: value >= 2, "2 or more"),
]  # fmt: skip
"""Keys, the test that their numbers must pass, and the range in words."""


def checked(recipe: Recipe) -> Recipe:
    """The recipe itself, if every value is in range.

    Raises:
        RecipeError: names the key, the value and the range.
    """
    _refuse_nulls(recipe)
    for keys, is_valid, allowed in RANGES:
        for key in keys.split():
            value: Any = recipe
            for part in key.split("."):
                value = getattr(value, part)
            number = not isinstance(value, str) and value is not None
            if number and not (math.isfinite(value) and is_valid(value)):
                raise RecipeError(f"recipe key {key}: {value} is out of range; it must be {allowed}")
    if recipe.data.synthetic and recipe.data.retain is None:
        raise RecipeError("recipe key data.synthetic: the base continues texts of data.retain; give that file or set 0")
    forms = recipe.evaluation.forms
    if not forms or len(set(forms)) < len(forms):
        raise RecipeError(
            "recipe key evaluation.forms: give one form or more of stacked, merged, requantized, each once"
        )
    if [] in asdict(recipe.data).values():
        raise RecipeError("recipe key data: an empty list names no file; give a file or null")
    for key in ("mean_below", "max_below", "longest_run", "extraction_likelihood_below"):
        if getattr(recipe.stop, key) == "holdout" and recipe.data.holdout is None:
            raise RecipeError(f"recipe key stop.{key}: `holdout` needs data.holdout; give that file or a number")
    return recipe


def _refuse_nulls(section: Any, place: str = "") -> None:
    """Refuse null where the schema does not name it; jsonargparse accepts null for every type."""
    for name, hint in get_type_hints(type(section)).items():
        value = getattr(section, name)
        if value is None and type(None) not in get_args(hint):
            raise RecipeError(f"recipe key {place}{name}: null is not allowed; give a value or leave the key out")
        if is_dataclass(value):
            _refuse_nulls(value, f"{place}{name}.")
