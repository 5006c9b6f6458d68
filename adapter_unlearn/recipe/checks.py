"""Check that every value of a recipe is in range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe.schema import Recipe

RANGES: list[tuple[str, Callable[[float], bool], str]] = [
    ("adapter.r", lambda value: 0 < value <= 2**16, "above 0 and at most 65536"),
    ("adapter.alpha", lambda value: 0 < value <= 10**9, "above 0 and at most 10**9"),
    ("training.learning_rate", lambda value: 0 < value <= 1000, "above 0 and at most 1000"),
    ("training.max_epochs training.batch_size training.sequences_per_step stop.patience evaluation.batch_size"
     " data.stride data.prefix_tokens training.validation_tokens", lambda value: 0 < value <= 10**9,
     "above 0 and at most 10**9"),
    ("stop.mean_below stop.max_below", lambda value: 0 < value <= 1, "above 0 and at most 1, or `holdout`"),
    ("stop.extractable stop.longest_run stop.max_perplexity_increase data.synthetic training.checkpoint_minutes",
     lambda value: 0 <= value <= 10**9, "0 or more, and at most 10**9"),
    ("seed", lambda value: 0 <= value < 2**32, "0 or more, and below 2**32"),
    ("training.learning_rate_decay", lambda value: 0 <= value <= 1, "0 to 1"),
    ("adapter.dropout", lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ("data.max_tokens", lambda value: 2 <= value <= 10**9, "2 or more, and at most 10**9"),
]  # fmt: skip
"""Keys, the test that their numbers must pass, and the range in words."""


def check_choice(key: str, value: Any, choices: Any) -> None:
    """Refuse a value that a Literal of the schema does not name. Raises RecipeError."""
    allowed = get_args(choices)
    if value not in allowed:
        raise RecipeError(f"{key}: {str(value)!r:.60} is not allowed; choose from {', '.join(map(str, allowed))}")


def _check_choices(key: str, value: Any, hint: Any) -> None:
    """Apply check_choice to a field's Literal, to the items of a list of them, or to a text beside one."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        check_choice(f"recipe key {key}", value, hint)
    elif origin is list and isinstance(value, list | tuple):
        for item in value:
            _check_choices(key, item, parts[0])
    elif origin in (Union, UnionType) and isinstance(value, str) and str not in parts:
        for part in parts:
            _check_choices(key, value, part)


def checked(recipe: Recipe) -> Recipe:
    """The recipe itself, if every value is in range.

    Raises:
        RecipeError: names the key, the value and the range.
    """
    _check_kinds(recipe)
    for keys, is_valid, allowed in RANGES:
        for key in keys.split():
            value: Any = recipe
            for part in key.split("."):
                value = getattr(value, part)
            number = not isinstance(value, str) and value is not None
            if number and not is_valid(value):  # no range holds NaN or infinity
                raise RecipeError(f"recipe key {key}: {_shown(value)} is out of range; it must be {allowed}")
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


def _shown(value: Any) -> str:
    """A number for a message. Python refuses to print whole numbers of more than 4300 digits."""
    return "a whole number of many digits" if isinstance(value, int) and abs(value) >= 10**30 else str(value)


def _check_kinds(section: Any, place: str = "") -> None:
    """Refuse null and text where the schema does not name them; jsonargparse accepts null for every type."""
    for name, hint in get_type_hints(type(section)).items():
        value, key = getattr(section, name), place + name
        if value is None and type(None) not in get_args(hint):
            raise RecipeError(f"recipe key {key}: null is not allowed; give a value or leave the key out")
        _check_choices(key, value, hint)
        if is_dataclass(value):
            _check_kinds(value, f"{key}.")
