"""Recipes: the schema, what is refused, and every shipped YAML."""

from __future__ import annotations

import math

import pytest
import yaml

from adapter_unlearn import RecipeError, load_recipe, recipe
from adapter_unlearn.recipe import Data, Model, Recipe, shipped
from adapter_unlearn.unlearning import methods

COMMON = ("sga", "ga", "match", "ta", "tau", "band", "graddiff", "npo")
SMALLEST = "model: {name: m}\ndata: {forget: f.jsonl}\n"  # and no method: see DEFAULT
SGA = SMALLEST + "method: {name: sga}\n"
DEFAULT = {"model": {"name": "m"}, "data": {"forget": "f", "retain": "r", "holdout": "u"}}
LARGE = ("gpt-neo-125m", "gpt-neo-1.3b", "gpt-neo-2.7b", "pythia-1.4b", "llama-3.1-8b")


@pytest.fixture
def write(tmp_path):
    def to(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return to


@pytest.mark.parametrize("name", shipped.names())
def test_every_shipped_recipe_parses(name):
    run = load_recipe(shipped.path(name))
    resolved = methods.resolve(run.method)
    assert name.endswith(f"/{resolved['name']}.yaml")
    stages = methods.stages(resolved)
    trained = any(term.rows == "retain" for stage in stages for term in stage.terms)
    assert run.data.retain is not None or not trained
    assert run.data.holdout is not None or not any(stage.needs_holdout for stage in stages)
    assert run.output_dir == f"runs/{name.replace('/', '-').removesuffix('.yaml')}"
    assert shipped.path(name).read_text().splitlines()[1].startswith("# Hardware: ")


def test_there_is_a_recipe_for_each_model_and_method():
    models = {name.split("/")[0] for name in shipped.names()}
    assert models >= {"tiny-cpu", "gpt-neo-125m", "gpt-neo-1.3b", "gpt-neo-2.7b", "pythia-1.4b", "llama-3.1-8b"}
    wanted = {f"{model}/{method}.yaml" for model in models for method in COMMON}
    wanted |= {f"tiny-cpu/{method}.yaml" for method in methods.METHODS}  # the one model on which we can run them all
    assert set(shipped.names()) == wanted


def test_resolved_recipe_loads_as_itself(write):
    run = load_recipe(write(SGA + "training: {learning_rate: 2e-5}\nstop: {extractable: 0}\n"))
    assert run.training.learning_rate == 2e-5
    assert load_recipe(write(recipe.to_yaml(run))) == run
    assert recipe.from_mapping(recipe.as_dict(run)) == run


def test_flags_win_over_the_file(write):
    path = write(SMALLEST + "method: {name: sga, threshold: 0.7, retain_weight: 1.0}\n")
    run = load_recipe(path, ["--method.threshold", "0.5", "--data.max_tokens", "180", "--stop.mean_below", "null"])
    assert run.method == {"name": "sga", "threshold": 0.5, "retain_weight": 1.0}
    assert run.data.max_tokens == 180 and run.stop.mean_below is None


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


@pytest.mark.parametrize("model", LARGE)
def test_match_on_a_larger_model_is_the_default_recipe(model):
    run = recipe.as_dict(load_recipe(shipped.path(f"{model}/match.yaml")))
    plain = recipe.as_dict(recipe.from_mapping(DEFAULT))
    free = {"model": {"name"}, "data": {"forget", "retain", "holdout", "validation"}}
    free["training"] = {"batch_size", "gradient_checkpointing"}  # what fits into its memory
    for section in ("model", "data", "adapter", "method", "training", "stop", "evaluation"):
        own = {key: value for key, value in run[section].items() if key not in free.get(section, ())}
        assert own == {key: plain[section][key] for key in own}


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


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"name": "sgb"}, "unknown method 'sgb'"),
        ({}, "method.name: missing"),
        ({"name": 3}, "unknown method 3"),
        ({"name": "sga", "threshold": 1.5}, "method.threshold"),
        ({"name": "sga", "threshold": "high"}, "method.threshold"),
        ({"name": "sga", "threshold": None}, "method.threshold"),
        ({"name": "sga", "run_threshold": 0}, "method.run_threshold"),
        ({"name": "sga", "threshold": math.nan}, "method.threshold"),
        ({"name": "ga", "threshold": 0.5}, "ga takes no such parameter"),
        ({"name": "sga", "retain_weight": -1}, "method.retain_weight"),
        ({"name": "sga", "retain_sequences": 0}, "method.retain_sequences"),
        ({"name": "sga", "retain_loss": "mse"}, "expected nll or kl, got 'mse'"),
        ({"name": "sga", "run_threshold": 2.5}, "a whole number or holdout or null"),
        ({"name": "npo", "beta": 0}, "method.beta"),
        ({"name": "npo", "beta": True}, "expected a number"),
        ({"name": "wga", "alpha": -0.5}, "method.alpha"),
        ({"name": "undial", "strength": 0.0}, "method.strength"),
        ({"name": "match", "others": -0.1}, "method.others"),
        ({"name": "band", "high": 1.5}, "method.high"),
        ({"name": "band", "high": "paper"}, "a number or holdout"),
        ({"name": "band", "high": 0.2, "low": 0.3}, "not below method.high"),
        ({"name": "compose", "select": "some"}, "all or threshold or band or top_k"),
        ({"name": "compose", "select": "top_k", "top_k": 0}, "method.top_k"),
        ({"name": "compose", "select": "all", "threshold": 0.5}, "select all has no such parameter"),
        ({"name": "compose", "loss": "ihl", "beta": 0.5}, "loss ihl has no such parameter"),
        ({"name": "compose", "loss": "npo", "others": 0.5}, "loss npo has no such parameter"),
        ({"name": "control", "retain_weight": 1.0}, "control takes no such parameter"),
    ],
)
def test_a_bad_method(method, named):
    with pytest.raises(RecipeError, match=named):
        methods.resolve(method)


def test_defaults_are_written_out():
    assert methods.resolve({"name": "sga"}) == {
        "name": "sga", "threshold": 0.7, "run_threshold": None, "retain_weight": 0.0, "retain_sequences": 32,
        "retain_loss": "nll",
    }  # fmt: skip


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
