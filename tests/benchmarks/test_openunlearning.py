"""Our metrics beside the values that OpenUnlearning's own code gave, recorded by benchmarks/openunlearning."""

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


compare, scoring = script("compare"), script("score_theirs")


@pytest.fixture(scope="module")
def ours():
    return script("ours").run()


@pytest.fixture(scope="module")
def theirs():
    return json.loads((RESULTS / "openunlearning_theirs.json").read_text(encoding="utf-8"))


def test_where_the_definitions_are_the_same_the_values_are(ours, theirs):
    result = compare.compare(ours, theirs)
    assert compare.disagreements(result) == []
    same = [line for lines in result["tables"].values() for line in lines if line["same_definition"]]
    assert len(same) == 22 and all(line["n"] == 96 for line in same)


@pytest.mark.parametrize("metric", ["extraction_strength_openunlearning", "exact_memorization", "min_k", "zlib"])
def test_one_value_that_is_off_is_found(ours, theirs, metric):
    changed = copy.deepcopy(ours)
    changed["forms"]["prompt"]["scores"]["forget"][metric][3] += 1e-3
    assert len(compare.disagreements(compare.compare(changed, theirs))) == 1


def test_an_auc_that_is_off_is_found(ours, theirs):
    changed = copy.deepcopy(ours)
    changed["forms"]["prompt"]["auc"]["min_k_40"] -= 1e-3
    assert len(compare.disagreements(compare.compare(changed, theirs))) == 1


def test_the_page_is_made_of_the_recorded_result():
    result = json.loads((RESULTS / "openunlearning.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "openunlearning.md").read_text(encoding="utf-8") == compare.page(result)


def point(high, low_new, validation, neighbourhood=1.0):
    return {
        "outliers_high": high,
        "outliers_low_new": low_new,
        "validation_perplexity_ratio": validation,
        "holdout_perplexity_ratio": neighbourhood,
    }


def test_the_best_of_a_trainer_is_least_conspicuous_within_the_budget():
    rows = [point(9, 0, 1.01), point(3, 4, 1.03), point(6, 0, 1.05), point(6, 0, 1.04), point(0, 0, 1.06)]
    chosen = scoring.best(rows)
    assert chosen.pop("rule").startswith("fewest outliers")
    assert chosen == rows[3] and scoring.least_conspicuous(rows) == rows[4]


def test_where_none_is_within_the_budget_the_perplexities_decide():
    rows = [point(0, 0, 1.06, 2.0), point(5, 0, 1.2, 1.1)]
    chosen = scoring.best(rows)
    assert chosen.pop("rule").startswith("least product")
    assert chosen == rows[1]


def test_a_checkpoint_must_hold_every_weight_but_the_tied_ones(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes))
    weights = {name: 2 * value for name, value in model.state_dict().items()}
    tied = set(model._tied_weights_keys or ())
    save_file({name: value for name, value in weights.items() if name not in tied}, tmp_path / "model.safetensors")
    scoring.put(model, tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    del weights["model.norm.weight"]
    save_file({name: value for name, value in weights.items() if name not in tied}, tmp_path / "model.safetensors")
    with pytest.raises(AssertionError):
        scoring.put(model, tmp_path)


def test_the_recorded_choices_follow_from_the_recorded_checkpoints():
    found = json.loads((RESULTS / "openunlearning_trainers.json").read_text(encoding="utf-8"))
    assert set(found["best"]) == {"GradAscent", "GradDiff", "NPO", "SimNPO"}
    for trainer, chosen in found["best"].items():
        mine = [run for run in found["runs"] if run["trainer"] == trainer]
        assert [run["learning_rate"] for run in mine] == [1e-4, 3e-4, 1e-3]
        rows = [{"learning_rate": run["learning_rate"]} | row for run in mine for row in run["checkpoints"]]
        assert len(rows) == 60
        for kind, again in (
            (chosen, scoring.best(rows)),
            (found["at_any_price"][trainer], scoring.least_conspicuous(rows)),
        ):
            assert kind.items() >= again.items()
