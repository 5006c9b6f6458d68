"""Recipes as plain values and as YAML."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
import yaml

from adapter_unlearn import load_recipe, recipe
from adapter_unlearn.recipe import Data, Model, Recipe

RUNS = {
    "pair": load_recipe(["models/tiny-cpu", "methods/sga"]),
    "lists and odd text": Recipe(
        Model("a: b # c"), Data(["f.jsonl", "g.jsonl"], holdout="ä.jsonl"), method={"name": "sga", "threshold": 2e-5}
    ),
}


@pytest.mark.parametrize("to_text", [recipe.to_yaml, recipe.commented_yaml])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_what_is_written_loads_as_the_same_recipe(run, to_text, write):
    assert load_recipe(write(to_text(run))) == run
    assert yaml.safe_load(to_text(run)) == recipe.as_dict(run)
    assert recipe.from_mapping(recipe.as_dict(run)) == run


def test_every_key_has_a_comment():
    values = vars(RUNS["pair"]).values()
    keys = sum(len(fields(value)) if is_dataclass(value) else not isinstance(value, dict) for value in values)
    lines = recipe.commented_yaml(RUNS["pair"]).splitlines()
    assert sum(len(line.partition(" # ")[2]) > 2 for line in lines) == keys
