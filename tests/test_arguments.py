"""The arguments of the public functions: paths of every kind, single names, and wrong types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import random_rows

import adapter_unlearn
from adapter_unlearn import (
    Data,
    Evaluation,
    InputError,
    Model,
    Recipe,
    RecipeError,
    UserError,
    Utility,
    load_base,
    load_recipe,
    load_sequences,
    score,
)
from adapter_unlearn.pipeline import evaluate_interference, negate_searched, score_files
from adapter_unlearn.pipeline.unlearning_run import resolved


@dataclass
class Folder:
    """A path that is neither a string nor a Path."""

    name: str

    def __fspath__(self) -> str:
        return self.name


@pytest.mark.parametrize("kind", [Path, Folder], ids=["Path", "PathLike"])
def test_paths_are_strings_in_recipes(kind):
    sets = Data(kind("a/f"), retain=[kind("a/r"), "b"], holdout=kind("h"))
    assert (sets.forget, sets.retain, sets.holdout) == ("a/f", ["a/r", "b"], "h")
    model = Model(kind("a/m"), adapter=kind("a"))
    assert (model.name, model.adapter) == ("a/m", "a") and Model.of(kind("a/m")) == Model("a/m")
    assert Recipe(model, sets, output_dir=kind("out")).output_dir == "out"
    assert Utility(tasks=(kind("t.yaml"),), replies=kind("r")) == Utility(("t.yaml",), "r")
    assert Data.of(kind("f")) == Data("f") and Data.of([kind("f")]) == Data(["f"])
    run = resolved({"model": {"name": kind("m")}, "data": {"forget": kind("f")}, "method": {"name": "sga"}})
    assert (run.model.name, run.data.forget) == ("m", "f")


@pytest.mark.parametrize("kind", [str, Path, Folder], ids=["str", "Path", "PathLike"])
def test_a_path_works_everywhere(kind, memorizers, write_rows, tmp_path):
    model, forget = kind(str(memorizers("llama"))), kind(str(write_rows("forget.jsonl", random_rows(0))))
    assert len(load_sequences(forget)) == len(load_sequences([forget])) == 10
    base = Model(model, quantization="none", dtype="float32")
    overview = score_files(base, forget, evaluation=Evaluation(metrics="loss"), output_dir=kind(str(tmp_path / "o")))
    assert overview.n == 10 and list(overview.means.index) == ["loss"]
    (tmp_path / "r.yaml").write_text("model: {name: m}\ndata: {forget: f}\nmethod: {name: sga}\n")
    assert load_recipe(kind(str(tmp_path / "r.yaml"))) == Recipe(Model("m"), Data("f"), method={"name": "sga"})


def test_score_takes_one_name(memorizers, write_rows):
    sequences = load_sequences(write_rows("forget.jsonl", random_rows(0)))
    model = load_base(memorizers("llama"), "none", "float32")
    assert list(score(model, sequences, "loss")) == ["id", "n_tokens", "loss", "note"]
    for batch_size in (0, -1, "4", None):
        with pytest.raises(RecipeError, match="batch_size"):
            score(model, sequences, batch_size=batch_size)
    with pytest.raises(RecipeError, match="lozz"):
        score(model, sequences, "lozz")
    for wrong in (["a text"], "forget.jsonl", None):
        with pytest.raises(InputError, match="load_sequences"):
            score(model, wrong)


WRONG = {
    "unlearn None": (lambda: adapter_unlearn.unlearn(None), "recipe"),
    "unlearn number": (lambda: adapter_unlearn.unlearn(3), "recipe"),
    "load_recipe number": (lambda: load_recipe(3), "recipe"),
    "load_recipe numbers": (lambda: load_recipe([3]), "recipe"),
    "score with a name": (lambda: score("m", load_sequences([{"input_ids": [1, 2]}])), "load_base"),
    "score_files model": (lambda: score_files(None, Data("f")), "model"),
    "score_files data": (lambda: score_files("m", 3), "data"),
    "evaluate no adapter": (lambda: adapter_unlearn.evaluate(Model("m"), [], Data("f")), "adapter"),
    "evaluate None": (lambda: adapter_unlearn.evaluate(Model("m"), None, Data("f")), "adapter"),
    "evaluate empty name": (lambda: adapter_unlearn.evaluate(Model("m"), [""], Data("f")), "adapter"),
    "evaluate model": (lambda: adapter_unlearn.evaluate(3, "a", Data("f")), "model"),
    "evaluate data": (lambda: adapter_unlearn.evaluate("m", "a", None), "data"),
    "interference": (lambda: evaluate_interference("m", [], "f"), "adapter"),
    "negate_searched": (lambda: negate_searched("a", "o", None, None), "model"),
    "load_sequences": (lambda: load_sequences(None), "source"),
    "batch size": (lambda: score_files("m", "f", evaluation=Evaluation(batch_size=0)), "evaluation.batch_size"),
    "metric": (lambda: score_files("m", "f", evaluation=Evaluation(metrics="lozz")), "lozz"),
    "compare": (lambda: adapter_unlearn.compare("nothing"), "nothing"),
}


@pytest.mark.parametrize(("call", "named"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_a_users_error(call, named):
    with pytest.raises(UserError, match=named):
        call()


def test_a_base_that_is_no_name():
    with pytest.raises(UserError, match="NoneType"):
        load_base(None)
