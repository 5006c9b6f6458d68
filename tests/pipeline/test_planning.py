"""The plan of a run against the run itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import as_sequences, random_rows, tiny_run, write_rows
from safetensors.torch import load_file

from adapter_unlearn import RecipeError, load_base, recipe, score, scoring, unlearn
from adapter_unlearn.cli.main import main
from adapter_unlearn.pipeline import planning
from adapter_unlearn.unlearning import learning_rate_search, records

METHOD = {"name": "sga", "threshold": 0.0, "retain_weight": 1.0, "retain_sequences": 2}


@pytest.fixture
def run(memorizers, tmp_path):
    given = tiny_run(memorizers("llama"), tmp_path, "run", METHOD, max_epochs=2, sequences_per_step=3)
    given["data"]["validation"] = write_rows(tmp_path, "validation.jsonl", random_rows(8, (30, 20, 25, 22)))
    return given | {"stop": {"mean_below": 0.001, "max_perplexity_increase": None}}


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_run_does_what_was_planned(run, dtype):
    run["adapter"] |= {"dtype": dtype}
    run["training"] |= {"validation_tokens": 50}
    planned = planning.plan(recipe.from_mapping(run))
    folder = unlearn(run)
    manifest, log = json.loads((folder / "unlearning.json").read_text()), (folder / "train_log.jsonl").read_text()
    tensors = load_file(folder / "adapter_model.safetensors")
    assert planned.adapter_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert planned.adapter_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    assert planned.max_epochs == len(log.splitlines()) - 1 == 2
    assert planned.sequences == {"forget": 8, "retain": 3, "validation": 4}
    assert planned.sequences["forget"] == manifest["data"]["forget"]["n_sequences"]
    lengths = [len(row) - 1 for row in random_rows(0)[:8]]
    assert planned.forget_tokens == planned.tokens["forget"] == sum(lengths)
    assert planned.steps_per_epoch == 3 and planned.retain_tokens == 3 * 2 * (29 + 19 + 24) / 3
    assert planned.scored_tokens == sum(lengths) + planned.validation_tokens
    assert 0 < planned.validation_tokens <= 50 < planned.tokens["validation"]
    assert planned.trials == (0, 0)


def test_the_plan_of_a_search_and_of_two_stages(run, memorizers):
    method = {"name": "tau", "threshold": 0.5, "ascent_mean_below": 0.4}
    run["training"] |= {"learning_rate": "auto"}
    run["stop"] |= {"max_perplexity_increase": 0.1}
    two, one = (planning.plan(recipe.from_mapping(run | {"method": given})) for given in (method, METHOD))
    assert two.stages == ["ascend", "fit"] and two.max_epochs == 2 * one.max_epochs
    assert two.adapter_parameters == 2 * one.adapter_parameters
    assert one.trials == (2 * learning_rate_search.STEPS, len(learning_rate_search.GRID) * learning_rate_search.STEPS)


def test_a_method_without_a_forget_term_takes_one_step(run):
    planned = planning.plan(recipe.from_mapping(run | {"method": {"name": "control", "retain_sequences": 2}}))
    assert planned.steps_per_epoch == 1 and planned.forget_tokens == 0
    assert planned.retain_tokens == 2 * (29 + 19 + 24) / 3


def test_without_sets_that_are_not_given(run):
    run["data"] = {"forget": run["data"]["forget"]}
    planned = planning.plan(recipe.from_mapping(run | {"method": {"name": "ga"}}))
    assert planned.retain_tokens == planned.validation_tokens == planned.synthetic == 0


UNDIAL = {"name": "undial", "retain_loss": "kl", "retain_weight": 1.0}


@pytest.mark.parametrize("method", [METHOD, UNDIAL])
def test_a_measured_plan_writes_nothing(run, tmp_path, capsys, method):
    (tmp_path / "run.json").write_text(json.dumps(run | {"method": method}))
    before = sorted(tmp_path.iterdir())
    assert main(["plan", "--config", str(tmp_path / "run.json"), "--measure"]) == 0
    printed = capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before
    assert "forward and backward" in printed and "about" in printed and "validation set" in printed
    assert main(["plan", "--config", str(tmp_path / "run.json")]) == 0
    assert "about" not in capsys.readouterr().out


def test_the_duration_is_that_of_its_parts(run, monkeypatch):
    """With one second for every batch that is scored, and two for every batch that is stepped on."""
    planned = planning.plan(recipe.from_mapping(run))
    seconds = iter([1.0, 2.0])
    monkeypatch.setattr(planning, "_seconds", lambda action: next(seconds))
    found = planning.measure(recipe.from_mapping(run), planned)
    batch = sum(sorted((len(row) - 1 for row in random_rows(0)[:8]), reverse=True)[:4])
    trained = planned.forget_tokens + planned.retain_tokens
    assert found.step == 2.0 and found.search == 0.0
    assert found.scoring == pytest.approx(2 * planned.measured_tokens / batch)
    assert found.training == pytest.approx(2 * (trained * 2 + planned.scored_tokens) / batch)


def test_what_unlearn_would_refuse(run):
    with pytest.raises(RecipeError, match="holdout"):
        planning.plan(recipe.from_mapping(run | {"method": {"name": "match"}}))


@pytest.mark.usefixtures("without_figures")
def test_some_validation_rows_steer_and_all_are_reported(run):
    """The log has the perplexity of the drawn rows from epoch 0 on, the summary that of the whole set."""
    run["training"] |= {"validation_tokens": 50}
    folder = unlearn(run)
    model = load_base(run["model"]["name"], "none", "float32")
    rows = random_rows(8, (30, 20, 25, 22))
    drawn = records.drawn(np.array([len(row) - 1 for row in rows]), 50)
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    forms = json.loads((folder / "summary.json").read_text())["forms"]
    for chosen, found in (
        ([rows[i] for i in drawn], log[0]["validation_perplexity"]),
        (rows, forms["base"]["validation_perplexity"]),
    ):
        sequences = as_sequences(chosen)
        expected = scoring.perplexity(score(model, sequences, ["loss"]), sequences)
        assert found == pytest.approx(expected, rel=1e-5)
    assert log[0]["validation_perplexity"] != pytest.approx(forms["base"]["validation_perplexity"], rel=1e-3)
