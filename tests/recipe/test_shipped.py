"""The shipped model and method files: each one, and each pair."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adapter_unlearn import RecipeError, load_recipe
from adapter_unlearn.recipe import shipped
from adapter_unlearn.unlearning import methods

MODELS, METHODS = (shipped.names(kind) for kind in shipped.KINDS)
SETS = ["--data.retain", "r", "--data.holdout", "u"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_pair_resolves_in_both_orders(model, method):
    pair = [f"models/{model}", f"methods/{method}"]
    run = load_recipe(pair)
    assert load_recipe(pair[::-1]) == run
    assert methods.resolve(run.method)["name"] == method
    stages = methods.stages(methods.resolve(run.method))
    trained = any(term.rows == "retain" for stage in stages for term in stage.terms)
    assert run.data.retain is not None or not trained
    assert run.data.holdout is not None or not any(stage.needs_holdout for stage in stages)
    assert run.output_dir == f"runs/{model}-{method}"


@pytest.mark.parametrize("model", MODELS)
def test_a_model_without_a_method_is_the_model_with_match(model):
    """The learning rate of a model file yields to the default recipe's, which is searched."""
    assert load_recipe(f"models/{model}", SETS) == load_recipe([f"models/{model}", "methods/match"], SETS)


def test_every_method_has_a_file():
    assert set(METHODS) == set(methods.METHODS)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in shipped.KINDS for name in shipped.names(kind)])
def test_a_header_says_what_the_file_is_and_what_was_measured(kind, name):
    title, measured, *_ = shipped.header(kind, name)
    assert title and "Measured: " in measured and measured.endswith(".")


@pytest.mark.parametrize("by_name", ["models/tiny-cpu.yaml", "models/tiny-cpu"])
def test_a_name_is_looked_up_among_the_shipped_files(by_name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find(by_name) == shipped.folder() / "models" / "tiny-cpu.yaml"
    own = tmp_path / by_name
    own.parent.mkdir()
    own.write_text(yaml.safe_dump({"model": {"name": "m"}}))
    assert shipped.find(by_name) == Path(by_name), "the working directory wins"


@pytest.mark.parametrize(
    "name", ["tiny-cpu", "models/none", "methods/tiny-cpu", "accelerate/ddp.yaml", "models/../default"]
)
def test_an_unknown_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"recipes list"):
        shipped.find(name)
