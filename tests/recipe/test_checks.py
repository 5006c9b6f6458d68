"""Values out of range."""

from __future__ import annotations

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
