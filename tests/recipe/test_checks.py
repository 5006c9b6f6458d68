"""Values out of range."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapter_unlearn import RecipeError, recipe
from adapter_unlearn.recipe import Data, Model, Recipe


def test_a_recipe_can_be_built_in_python():
    run = Recipe(model=Model("m"), data=Data("f.jsonl"))
    assert recipe.checked(run) is run


@pytest.mark.parametrize(
    "key", ["training.learning_rate", "training.batch_size", "evaluation.forms", "seed", "tracking"]
)
def test_null_is_refused_where_there_is_no_default_to_take(key):
    values = {"model": {"name": "x"}, "data": {"forget": "f"}, "method": {"name": "sga"}}
    *sections, name = key.split(".")
    inner = values
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = None
    with pytest.raises(RecipeError, match=rf"recipe key {key}"):
        recipe.checked(recipe.from_mapping(values))


def test_null_is_a_value_where_the_key_says_so():
    values = {"model": {"name": "x", "adapter": None}, "data": {"forget": "f", "retain": None}}
    values["method"] = {"name": "sga"}
    recipe.checked(
        recipe.from_mapping(values | {"training": {"sequences_per_step": None}, "stop": {"max_below": None}})
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapter.r", 100_000), ("adapter.r", 0), ("adapter.r", 10**5000), ("adapter.alpha", float("nan")),
        ("adapter.alpha", float("inf")), ("adapter.alpha", 1e10), ("training.learning_rate", 1e300),
        ("training.learning_rate", float("nan")), ("training.max_epochs", 10**12), ("training.batch_size", 10**12),
        ("data.synthetic", 10**12), ("data.max_tokens", 10**12), ("stop.max_perplexity_increase", float("inf")),
        ("seed", 2**40),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, int) or value < 10**30 else "digits",
)  # fmt: skip
def test_absurd_numbers_are_refused(key, value):
    with pytest.raises(RecipeError, match=rf"recipe key {key}: .* is out of range"):
        recipe.checked(with_value(key, value))


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("model.quantization", "nf3", "nf4, int8, none"), ("model.dtype", "float64", "bfloat16, float16, float32"),
        ("evaluation.forms", ["stacked", "x"], "stacked, merged"), ("evaluation.bounds", "x", "holdout, paper"),
        ("training.optimizer", "adam", "adamw, sgd"), ("training.learning_rate", "fast", "auto"),
        ("stop.max_below", "members", "holdout"), ("stop.longest_run", "x", "holdout"),
    ],
    ids=str,
)  # fmt: skip
def test_python_values_are_those_of_the_schema(key, value, allowed):
    with pytest.raises(RecipeError, match=rf"{key}: .*{allowed}"):
        recipe.checked(with_value(key, value))


def with_value(key, value):
    """A recipe made in Python, with one value replaced."""
    run = Recipe(model=Model("m"), data=Data("f.jsonl", holdout="h.jsonl"))
    *sections, name = key.split(".")
    if not sections:
        return replace(run, **{name: value})
    return replace(run, **{sections[0]: replace(getattr(run, sections[0]), **{name: value})})
