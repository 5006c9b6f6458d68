"""How several files become one recipe."""

from __future__ import annotations

import pytest

from adapter_unlearn import RecipeError, load_recipe, recipe

BASE = "model: {name: m}\ndata: {forget: f, retain: r, holdout: u}\n"


@pytest.fixture
def load(write):
    """Write each text to a file, and load them in this order."""

    def files(*texts: str, flags=()):
        return load_recipe([write(text, f"{i}.yaml") for i, text in enumerate(texts)], flags)

    return files


def test_later_files_win_key_by_key(load):
    run = load(
        BASE + "method: {name: sga, threshold: 0.5, retain_weight: 2}\ntraining: {max_epochs: 3, batch_size: 2}\n",
        "method: {threshold: 0.6}\ntraining: {batch_size: 4}\nseed: 7\n",
    )
    assert run.method == {"name": "sga", "threshold": 0.6, "retain_weight": 2}
    assert (run.training.max_epochs, run.training.batch_size, run.seed) == (3, 4, 7)


@pytest.mark.parametrize("flags", [(), ("--method.name", "npo")], ids=["file", "flag"])
def test_another_method_drops_the_parameters_of_the_earlier_one(load, flags):
    other = () if flags else ("method: {name: npo}",)
    run = load(BASE + "method: {name: sga, threshold: 0.5}\ntraining: {max_epochs: 3}\n", *other, flags=flags)
    assert run.method == {"name": "npo"} and run.training.max_epochs == 3


def test_parameters_before_any_name_belong_to_the_method(load):
    assert load(BASE + "method: {retain_weight: 2}", "method: {name: sga}").method == {
        "name": "sga", "retain_weight": 2,
    }  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True], ids=["model first", "method first"])
def test_precedence(load, reverse):
    """`defaults` without a method < `defaults` with one < `by_method` < keys < flags."""
    model = (
        BASE + "defaults: {training: {learning_rate: 1, max_epochs: 1, batch_size: 1, sequences_per_step: 1}}\n"
        "by_method: {sga: {training: {batch_size: 3, sequences_per_step: 3}, method: {threshold: 0.3}}}\n"
    )
    method = (
        "method: {name: sga, retain_weight: 4}\ntraining: {sequences_per_step: 4}\n"
        "defaults:\n  training: {max_epochs: 2, batch_size: 2}\n"
        "  method: {threshold: 0.2, retain_weight: 2, run_threshold: 2}\n"
    )
    run = load(*([method, model] if reverse else [model, method]), flags=["--seed", "5"])
    keys = ("learning_rate", "max_epochs", "batch_size", "sequences_per_step")
    assert [getattr(run.training, key) for key in keys] == [1, 2, 3, 4]
    assert run.method == {"name": "sga", "threshold": 0.3, "retain_weight": 4, "run_threshold": 2}
    assert run.seed == 5


def test_by_method_follows_the_method_of_the_flags(load):
    model = BASE + "by_method: {npo: {method: {beta: 0.3}, seed: 3}, sga: {seed: 4}}\n"
    method = "method: {name: sga, threshold: 0.5}\ndefaults: {method: {retain_weight: 1}}\n"
    run = load(model, method, flags=["--method.name", "npo"])
    assert run.method == {"name": "npo", "beta": 0.3} and run.seed == 3


def test_the_default_recipe_lies_between_defaults_and_keys(load):
    run = load(
        BASE + "defaults: {training: {learning_rate: 1, batch_size: 2}}\nby_method: {match: {stop: {patience: 3}}}\n"
        "stop: {early: true}\n"
    )
    assert run.method["name"] == "match" and run.training.learning_rate == "auto" and run.training.batch_size == 2
    assert run.stop.patience == 3 and run.stop.early


def test_an_empty_section_changes_nothing(load):
    assert load(BASE + "method: {name: sga}\n", "data:\nmethod:\nseed: 3\n") == load(
        BASE + "method: {name: sga}\nseed: 3\n"
    )


def test_the_output_folder_may_name_the_method(load):
    text = BASE + "method: {name: sga}\noutput_dir: 'runs/{method}'\n"
    assert load(text).output_dir == "runs/sga"
    assert load(text, flags=["--method.name", "npo"]).output_dir == "runs/npo"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("seed: 1\nseed: 2\n", "line 3: 'seed'", id="key twice"),
        pytest.param("method: {name: sga, name: npo}\n", "'name'", id="inner key twice"),
        pytest.param("training: {lerning_rate: 1}\n", r"training\.lerning_rate", id="key"),
        pytest.param("trainin: {batch_size: 1}\n", "'trainin'", id="section"),
        pytest.param("defaults: {trainin: {batch_size: 1}}\n", "defaults: .*'trainin'", id="default"),
        pytest.param("defaults: 3\n", "defaults: ", id="no defaults"),
        pytest.param("by_method: {sga: {stop: {erly: 1}}}\n", r"by_method\.sga: .*stop\.erly", id="by method"),
        pytest.param("by_method: [sga]\n", "by_method: ", id="list"),
        pytest.param("model: [", "line ", id="no yaml"),
        pytest.param("stop: 3\n", "stop: ", id="number"),
        pytest.param("method: sga\n", "method: ", id="text"),
    ],
)
def test_a_bad_file_is_named(load, tmp_path, text, named):
    with pytest.raises(RecipeError, match=named) as caught:
        load(BASE, BASE.splitlines()[0] + "\n" + text if "seed: 1" not in text else "model: {name: m}\n" + text)
    assert str(tmp_path / "1.yaml") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("old", "new"), [("reference", "holdout"), ("written", "synthetic")])
def test_a_renamed_key(load, old, new):
    expected = rf"data\.{old}.*data\.{new}.*rename"
    with pytest.raises(RecipeError, match=expected):
        load(f"model: {{name: m}}\ndata: {{forget: f, {old}: 5}}\n")
    with pytest.raises(RecipeError, match=expected):
        recipe.from_mapping({"model": {"name": "m"}, "data": {"forget": "f", old: 5}})
    for flags in ([f"--data.{old}", "5"], [f"--data.{old}=5"]):
        with pytest.raises(RecipeError, match=expected):
            load(BASE, flags=flags)


def test_merged_changes_nothing_that_it_is_given():
    values, changes = (
        {"method": {"name": "sga", "threshold": 0.5}},
        {"method": {"name": "npo"}, "stop": {"early": True}},
    )
    assert recipe.merged(values, changes) == changes
    assert values == {"method": {"name": "sga", "threshold": 0.5}}
