"""Deployment forms: each is measured on the model that a user would load, beside the base in the same precision."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import as_sequences, random_rows

from adapter_unlearn import ModelError, UserError, evaluate, load_base, models, score, scoring, unlearn
from adapter_unlearn.data import Sets
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.recipe import Data, Evaluation, Model
from adapter_unlearn.weights import merging

FORMS = ["stacked", "merged", "requantized", "requantized_int8"]


def recipe(model, files, output_dir, frozen=None, **more):
    return {
        "model": {"name": model, "quantization": "nf4", "dtype": "float32", "adapter": frozen},
        "data": files,
        "output_dir": str(output_dir),
        "adapter": {"r": 4, "alpha": 8},
        "method": {"name": "sga", "threshold": 0.3},
        "training": {"learning_rate": 5e-3, "max_epochs": 60},
        "stop": {"mean_below": 0.2, "max_perplexity_increase": None},
        "evaluation": {"forms": FORMS},
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    result = {}
    for name, seed in (("forget", 0), ("holdout", 7), ("test", 8)):
        rows = random_rows(seed)
        lines = [json.dumps({"id": f"{name}-{i}", "input_ids": row}) for i, row in enumerate(rows)]
        result[name] = str(folder / f"{name}.jsonl")
        Path(result[name]).write_text("\n".join(lines) + "\n")
    return result


@pytest.fixture(scope="module")
def run(memorizers, files, tmp_path_factory):
    return unlearn(recipe(str(memorizers("llama")), files, tmp_path_factory.mktemp("runs") / "sga"))


def test_a_measurement_that_is_completed_is_the_whole_one(memorizers):
    rows = {name: as_sequences(random_rows(seed)) for seed, name in enumerate(("forget", "retain", "holdout", "test"))}
    model = load_base(str(memorizers("llama")), "none", "float32")
    measuring = deployment.Measuring(Sets(**rows))
    whole = deployment.measure(model, "base", [], measuring)
    part = deployment.measure(model, "base", [], measuring, only=("forget", "holdout"))
    assert list(part.perplexities) == list(part.losses) == list(part.tokens) == ["holdout"]
    done = deployment.completed(part, model, [], measuring)
    assert done.forget is part.forget and done.curves is part.curves
    for key in ("perplexities", "losses", "tokens"):
        one, other = getattr(whole, key), getattr(done, key)
        assert list(one) == list(other) == ["retain", "holdout", "test"]
        assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def summary_of(run):
    return json.loads((run / "summary.json").read_text())["forms"]


def test_every_form_forgets(run):
    forms = summary_of(run)
    assert list(forms) == ["base", *FORMS]
    assert forms["base"]["extractable"] > 0
    for form in FORMS:
        assert forms[form]["extractable"] == 0 and forms[form]["memorization_accuracy_mean"] < 0.3, form
    rows = pd.read_parquet(run / "sequences.parquet")
    assert rows.groupby("form").size().to_dict() == dict.fromkeys(["base", *FORMS], 10)


def test_merged_is_peft_s_own_merge_into_the_unquantized_base(run, memorizers):
    plain = models.stack(load_base(str(memorizers("llama")), "none", "float32"), [run]).merge_and_unload()
    expected = score(plain, as_sequences(random_rows(0)))
    rows = pd.read_parquet(run / "sequences.parquet").query("form == 'merged'")
    assert np.allclose(rows["loss"], expected["loss"], atol=1e-4)
    assert list(rows["memorization_accuracy"]) == list(expected["memorization_accuracy"])


@pytest.mark.parametrize(("form", "quantization"), [("requantized", "nf4"), ("requantized_int8", "int8")])
def test_requantized_is_the_merged_model_loaded_quantized(run, memorizers, tmp_path, form, quantization):
    plain = models.stack(load_base(str(memorizers("llama")), "none", "float32"), [run]).merge_and_unload()
    plain.save_pretrained(tmp_path / "merged")
    expected = score(load_base(str(tmp_path / "merged"), quantization, "float32"), as_sequences(random_rows(0)))
    rows = pd.read_parquet(run / "sequences.parquet").query("form == @form")
    assert np.allclose(rows["loss"], expected["loss"], atol=2e-2)  # sums in another order may round to another code


def test_each_form_is_compared_with_the_base_in_its_own_precision(run, memorizers, files):
    forms = summary_of(run)
    assert "before" not in forms["stacked"] and "before" not in forms["requantized"], "their base is the run's"
    test = as_sequences(random_rows(8))
    for form, quantization in (("merged", "none"), ("requantized_int8", "int8")):
        before = forms[form]["before"]
        base = load_base(str(memorizers("llama")), quantization, "float32")
        assert before["test_perplexity"] == pytest.approx(scoring.perplexity(score(base, test), test), rel=1e-4)
        assert before["test_perplexity"] != forms["base"]["test_perplexity"]
        assert quantization in before["loaded_as"] or before["loaded_as"] == "float32, not quantized"


def test_the_delta_in_each_form_s_weights(run):
    deltas = pd.read_parquet(run / "deltas.parquet")
    assert set(deltas["form"]) == {"merged", "requantized", "requantized_int8"}
    assert deltas.groupby("form").size().nunique() == 1
    merged = deltas.query("form == 'merged'")
    assert np.allclose(merged["projection"], 1, atol=1e-4) and (merged["relative_error"] < 1e-3).all()
    assert (merged["relative_size"] > 0).all()
    forms = summary_of(run)
    assert forms["merged"]["delta"]["projection"] == pytest.approx(1, abs=1e-4)
    assert forms["requantized"]["delta"]["relative_error"] > forms["requantized_int8"]["delta"]["relative_error"]


def test_evaluate_gives_the_run_s_own_forms(run, memorizers, files):
    result = evaluate(Model(str(memorizers("llama")), dtype="float32"), run, Data(**files), Evaluation(FORMS))
    for form, figures in summary_of(run).items():
        assert result.summary.forms[form].loss_mean == pytest.approx(figures["loss_mean"], rel=1e-3), form
    assert len(result.deltas) == len(pd.read_parquet(run / "deltas.parquet"))


def test_a_frozen_base_adapter_is_part_of_every_form_and_of_its_base(run, memorizers, files, tmp_path):
    """The base is model plus frozen adapter: what is merged, and what a form is compared with."""
    model = str(memorizers("llama"))
    again = recipe(model, files, tmp_path / "again", str(run), stop={"mean_below": 0.1})
    forms = summary_of(unlearn(again | {"evaluation": {"forms": ["stacked", "merged"]}}))
    first = summary_of(run)
    assert forms["base"]["loss_mean"] == pytest.approx(first["stacked"]["loss_mean"], rel=1e-4)
    assert forms["merged"]["before"]["loss_mean"] == pytest.approx(first["merged"]["loss_mean"], rel=1e-3)
    assert forms["merged"]["memorization_accuracy_mean"] < 0.15


def test_merged_weights_leave_no_trace(run):
    assert {path.name for path in run.parent.iterdir()} == {run.name}


def test_forms_that_cannot_be_made_are_refused_before_training(memorizers, files, tmp_path):
    stored = tmp_path / "nf4"
    load_base(str(memorizers("llama")), "nf4", "float32").save_pretrained(stored)
    with pytest.raises(ModelError, match=r"stored as nf4.*full-precision model"):
        unlearn(recipe(str(stored), files, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    only_stacked = recipe(str(stored), files, tmp_path / "out") | {"evaluation": {"forms": ["stacked"]}}
    assert summary_of(unlearn(only_stacked | {"stop": {"mean_below": 0.6}}))["stacked"]


def test_an_adapter_is_not_lost_when_a_form_fails_after_training(memorizers, files, tmp_path, monkeypatch, caplog):
    def fails(*_, **__):
        raise UserError("the disk is full")

    monkeypatch.setattr(merging, "merge", fails)
    short = {"stop": {"mean_below": 0.6}}
    with caplog.at_level(logging.ERROR):
        run = unlearn(recipe(str(memorizers("llama")), files, tmp_path / "out") | short)
    assert list(summary_of(run)) == ["base", "stacked"]
    assert "the disk is full" in caplog.text
    manifest = json.loads((run / "unlearning.json").read_text())
    assert any("the disk is full" in note for note in manifest["data"]["notes"])
    assert (run / "adapter_model.safetensors").is_file()


def test_quantization_of_a_form():
    assert deployment.quantization_of("requantized", "none") == "nf4"
    assert deployment.quantization_of("requantized", "int8") == "int8"
    assert deployment.quantization_of("requantized_nf4", "int8") == "nf4"
    assert deployment.quantization_of("merged", "nf4") == "none"
