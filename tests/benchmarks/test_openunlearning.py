"""Compare our metrics with the values of OpenUnlearning's own code that benchmarks/openunlearning recorded."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "openunlearning" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare, score_theirs = script("compare"), script("score_theirs")


@pytest.fixture(scope="module")
def ours():
    return script("ours").run()


@pytest.fixture(scope="module")
def theirs():
    return json.loads((RESULTS / "openunlearning_theirs.json").read_text(encoding="utf-8"))


def test_values_are_equal_where_the_definitions_are(ours, theirs):
    result = compare.compare(ours, theirs)
    assert compare.disagreements(result) == []
    same = [line for lines in result["tables"].values() for line in lines if line["same_definition"]]
    assert len(same) == 22 and all(line["n"] == 96 for line in same)


def change_value(metric):
    def change(result):
        result["forms"]["prompt"]["scores"]["forget"][metric][3] += 1e-3

    return change


def change_auc(result):
    result["forms"]["prompt"]["auc"]["min_k_40"] -= 1e-3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change_value("extraction_strength_openunlearning"), id="value of extraction strength"),
        pytest.param(change_value("exact_memorization"), id="value of exact memorization"),
        pytest.param(change_value("min_k"), id="value of min_k"),
        pytest.param(change_value("zlib"), id="value of zlib"),
        pytest.param(change_auc, id="AUC of min_k_40"),
    ],
)
def test_one_wrong_figure_is_a_disagreement(ours, theirs, change):
    changed = copy.deepcopy(ours)
    change(changed)
    assert len(compare.disagreements(compare.compare(changed, theirs))) == 1


def test_the_page_is_made_from_the_recorded_result():
    result = json.loads((RESULTS / "openunlearning.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "openunlearning.md").read_text(encoding="utf-8") == compare.page(result)


def checkpoint(high, low_new, validation, holdout=1.0):
    return {
        "outliers_high": high,
        "outliers_low_new": low_new,
        "validation_perplexity_ratio": validation,
        "holdout_perplexity_ratio": holdout,
    }


IN_BUDGET = [
    checkpoint(9, 0, 1.01),
    checkpoint(3, 4, 1.03),
    checkpoint(6, 0, 1.05),
    checkpoint(6, 0, 1.04),
    checkpoint(0, 0, 1.06),
]
OVER_BUDGET = [checkpoint(0, 0, 1.06, holdout=2.0), checkpoint(5, 0, 1.2, holdout=1.1)]


@pytest.mark.parametrize(
    ("rows", "best", "rule", "fewest"),
    [
        pytest.param(IN_BUDGET, 3, score_theirs.WITHIN_BUDGET, 4, id="fewest outliers within the budget"),
        pytest.param(OVER_BUDGET, 1, score_theirs.OVER_BUDGET, 0, id="smallest perplexity product over the budget"),
    ],
)
def test_the_best_checkpoint(rows, best, rule, fewest):
    assert score_theirs.best(rows) == rows[best] | {"rule": rule}
    assert score_theirs.fewest_outliers(rows) == rows[fewest]


def test_a_checkpoint_must_contain_every_weight_that_is_not_tied(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes))
    weights = {name: 2 * value for name, value in model.state_dict().items()}
    tied = set(model._tied_weights_keys or ())
    save_file({name: value for name, value in weights.items() if name not in tied}, tmp_path / "model.safetensors")
    score_theirs.load_weights(model, tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    del weights["model.norm.weight"]
    save_file({name: value for name, value in weights.items() if name not in tied}, tmp_path / "model.safetensors")
    with pytest.raises(AssertionError):
        score_theirs.load_weights(model, tmp_path)


def test_the_recorded_choices_follow_from_the_recorded_checkpoints():
    recorded = json.loads((RESULTS / "openunlearning_trainers.json").read_text(encoding="utf-8"))
    assert set(recorded["best"]) == {"GradAscent", "GradDiff", "NPO", "SimNPO"}
    for trainer, best in recorded["best"].items():
        runs = [run for run in recorded["runs"] if run["trainer"] == trainer]
        assert [run["learning_rate"] for run in runs] == [1e-4, 3e-4, 1e-3]
        rows = [{"learning_rate": run["learning_rate"]} | row for run in runs for row in run["checkpoints"]]
        assert len(rows) == 60
        assert best.items() >= score_theirs.best(rows).items()
        assert recorded["at_any_price"][trainer].items() >= score_theirs.fewest_outliers(rows).items()
