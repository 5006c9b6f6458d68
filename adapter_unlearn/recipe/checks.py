"""Check that every value of a recipe is in range."""

from __future__ import annotations

import math
from dataclasses import asdict, is_dataclass
from typing import Any, get_args, get_type_hints

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe.schema import Recipe


def checked(recipe: Recipe) -> Recipe:
    """The recipe itself, once every value is in range.

    Raises:
        RecipeError: names the key, the value and the range.
    """
    _refuse_nulls(recipe)
    positive = ["adapter.r", "adapter.alpha", "training.learning_rate", "training.max_epochs", "training.batch_size"]
    positive += [
        "training.sequences_per_step",
        "stop.patience",
        "evaluation.batch_size",
        "data.stride",
        "data.prefix_tokens",
    ]
    for key in positive:
        _require(recipe, key, lambda value: value > 0, "above 0")
    for key in ("stop.mean_below", "stop.max_below"):
        _require(recipe, key, lambda value: 0 < value <= 1, "above 0 and at most 1, or `holdout`")
    for key in ("stop.extractable", "stop.longest_run", "stop.max_perplexity_increase"):
        _require(recipe, key, lambda value: value >= 0, "0 or more")
    _require(recipe, "data.synthetic", lambda value: value >= 0, "0 or more")
    if recipe.data.synthetic and recipe.data.retain is None:
        raise RecipeError(
            "recipe key data.synthetic: the base continues texts of data.retain; give that file or set it to 0"
        )
    _require(recipe, "seed", lambda value: 0 <= value < 2**32, "0 or more, and below 2**32")
    if not recipe.evaluation.forms or len(set(recipe.evaluation.forms)) < len(recipe.evaluation.forms):
        raise RecipeError(
            "recipe key evaluation.forms: name one form or more, each once; there are: stacked, merged, requantized"
        )
    if [] in asdict(recipe.data).values():
        raise RecipeError("recipe key data: an empty list names no file; give a file or null")
    _require(recipe, "training.learning_rate_decay", lambda value: 0 <= value <= 1, "0 to 1")
    _require(recipe, "adapter.dropout", lambda value: 0 <= value < 1, "at least 0 and below 1")
    _require(recipe, "data.max_tokens", lambda value: value >= 2, "2 or more")
    for key in ("mean_below", "max_below", "longest_run", "extraction_likelihood_below"):
        if getattr(recipe.stop, key) == "holdout" and recipe.data.holdout is None:
            raise RecipeError(f"recipe key stop.{key}: `holdout` needs data.holdout; give that file or a number")
    return recipe


def _refuse_nulls(section: Any, place: str = "") -> None:
    """jsonargparse lets null stand for anything."""
    for name, hint in get_type_hints(type(section)).items():
        value = getattr(section, name)
        if value is None and type(None) not in get_args(hint):
            raise RecipeError(f"recipe key {place}{name}: null is no value; give one or leave the key out")
        if is_dataclass(value):
            _refuse_nulls(value, f"{place}{name}.")


def _require(recipe: Recipe, key: str, holds: Any, wanted: str) -> None:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    if isinstance(value, str) or value is None:
        return
    if not math.isfinite(value) or not holds(value):
        raise RecipeError(f"recipe key {key}: {value} is out of range; it must be {wanted}")
