"""Recipes from files, flags and mappings, and the default recipe."""

from __future__ import annotations

import jsonargparse
import pytest
import yaml

from adapter_unlearn import RecipeError, load_recipe, recipe
from adapter_unlearn.recipe import Data, Model, Recipe, shipped

SMALLEST = "model: {name: m}\ndata: {forget: f.jsonl}\n"  # and no method: see DEFAULT
SGA = SMALLEST + "method: {name: sga}\n"
DEFAULT = {"model": {"name": "m"}, "data": {"forget": "f", "retain": "r", "holdout": "u"}}


def test_a_number_without_a_point_is_a_number(write):
    assert load_recipe(write(SGA + "training: {learning_rate: 2e-5}\n")).training.learning_rate == 2e-5
    assert load_recipe(write(SMALLEST + "method: {name: sga, threshold: 2e-1}")).method["threshold"] == 0.2


def test_flags_win_over_the_file(write):
    path = write(SMALLEST + "method: {name: sga, threshold: 0.7, retain_weight: 1.0}\n")
    run = load_recipe(path, ["--method.threshold", "0.5", "--data.max_tokens", "180", "--stop.mean_below", "null"])
    assert run.method == {"name": "sga", "threshold": 0.5, "retain_weight": 1.0}
    assert run.data.max_tokens == 180 and run.stop.mean_below is None


def test_flags_win_wherever_they_stand(write):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    recipe.add_recipe_arguments(parser)
    path = write(SGA + "seed: 1\n")
    for words in (["--config", path, "--seed", "2"], ["--seed", "2", f"--config={path}"]):
        assert recipe.parse_recipe(parser, words).seed == 2


def test_a_recipe_that_names_no_method_is_the_default_one(write):
    whole = yaml.safe_load((shipped.folder() / "default.yaml").read_text())
    run = recipe.as_dict(recipe.from_mapping(DEFAULT))
    for section, keys in whole.items():
        assert {key: run[section][key] for key in keys} == keys
    assert run["data"]["forget"] == "f" and run["model"]["quantization"] == "nf4"
    flags = ["--model.name", "m", "--data.forget", "f", "--data.retain", "r", "--data.holdout", "u"]
    assert recipe.as_dict(load_recipe(overrides=flags)) == run
    assert recipe.as_dict(load_recipe(write(yaml.safe_dump(DEFAULT)))) == run
    assert recipe.as_dict(recipe.from_mapping(DEFAULT | {"method": None})) == run


def test_own_keys_and_flags_win_over_the_default_recipe(write):
    own = DEFAULT | {"method": {"retain_weight": 7}, "stop": {"early": True}}
    run = load_recipe(write(yaml.safe_dump(own)), ["--training.max_epochs", "3", "--method.others", "2"])
    assert run.method == {"name": "match", "retain_weight": 7, "retain_sequences": 24, "others": 2}
    assert run.stop.early and run.stop.patience == 50 and run.training.max_epochs == 3
    assert recipe.from_mapping(own).method == {"name": "match", "retain_weight": 7, "retain_sequences": 24}


def test_a_named_method_takes_nothing_from_the_default_recipe(write):
    run = load_recipe(write(SMALLEST), ["--method.name", "sga"])
    assert run == load_recipe(write(SGA)) == Recipe(Model("m"), Data("f.jsonl"), method={"name": "sga"})


@pytest.mark.parametrize(
    ("given", "missing", "there"),
    [
        ({}, "data.retain", "\0"),
        ({}, "data.holdout", "\0"),
        ({"retain": "r"}, "data.holdout", "data.retain"),
        ({"holdout": "u"}, "data.retain", "data.holdout"),
    ],
)
def test_the_default_recipe_says_which_files_it_needs(given, missing, there):
    with pytest.raises(RecipeError, match=f"none is named.*{missing}.*--method.name sga") as caught:
        recipe.from_mapping({"model": {"name": "m"}, "data": {"forget": "f", **given}})
    assert there not in str(caught.value)


def test_the_default_recipe_needs_no_retain_set_where_nothing_is_retained():
    data = {"forget": "f", "holdout": "u", "synthetic": 0}
    run = recipe.from_mapping({"model": {"name": "m"}, "data": data, "method": {"retain_weight": 0}})
    assert run.method["name"] == "match" and run.data.retain is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("training: {lerning_rate: 1}", "lerning_rate"),
        ("trainin: {batch_size: 1}", "trainin"),
        ("seed: soon", "seed"),
        ("seed: -1", "seed"),
        ("model: {name: m, quantization: nf5}", "model.quantization"),
        ("training: {learning_rate: 0}", "training.learning_rate"),
        ("training: {learning_rate: .nan}", "training.learning_rate"),
        ("training: {batch_size: 0}", "training.batch_size"),
        ("training: {learning_rate_decay: 1.5}", "training.learning_rate_decay"),
        ("training: {learning_rate_decay: -0.1}", "training.learning_rate_decay"),
        ("training: {learning_rate_decay: .nan}", "training.learning_rate_decay"),
        ("stop: {early: sometimes}", "stop.early"),
        ("stop: {mean_below: 1.5}", "stop.mean_below"),
        ("stop: {mean_below: refernce}", "stop.mean_below"),
        ("stop: {max_below: holdout}", "data.holdout"),
        ("data: {forget: f, max_tokens: 1}", "data.max_tokens"),
        ("data: {forget: f, stride: 0}", "data.stride"),
        ("adapter: {dropout: 1.0}", "adapter.dropout"),
        ("evaluation: {forms: [melted]}", "evaluation.forms"),
        ("model: [", "recipe"),
        ("- a list", "recipe"),
    ],
)
def test_a_bad_recipe_is_one_line_that_names_the_key(write, text, named):
    key = text.split(":")[0]
    rest = "".join(line + "\n" for line in SGA.splitlines() if not line.startswith(f"{key}:"))
    with pytest.raises(RecipeError, match=named) as caught:
        load_recipe(write(rest + text + "\n"))
    assert "\n" not in str(caught.value) and "class" not in str(caught.value)


def test_a_recipe_without_data_or_file(write, tmp_path):
    with pytest.raises(RecipeError, match=r"data\.forget"):
        load_recipe(write("model: {name: m}\n"))
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_a_value_that_yaml_cannot_hold_is_refused():
    with pytest.raises(RecipeError):
        recipe.from_mapping({"model": {"name": object()}, "data": {"forget": "f"}, "method": {"name": "sga"}})


def test_a_flag_that_fails_leaves_nothing_for_the_next_recipe(write):
    path = write(SGA)
    before = load_recipe(path)
    for flags in (["--print_config"], ["--training.max_epochs", "x"], ["--training.max_epochs", "7"]):
        try:
            changed = load_recipe(path, flags)
        except RecipeError:
            continue
        assert changed.training.max_epochs == 7
    assert load_recipe(path) == before
