"""Several adapters and several forget sets: the matrix, and what removing one adapter restores."""

from __future__ import annotations

import itertools
import json

import pandas as pd
import pytest
import torch
from helpers import random_rows

from adapter_unlearn import ModelError, evaluate_interference, load_base, load_sequences, models, score, unlearn
from adapter_unlearn.evaluation.interference import interference, subsets
from adapter_unlearn.recipe import Data, Model, Permissions


@pytest.fixture(scope="module")
def requests(memorizers, tmp_path_factory):
    """Three disjoint forget sets of a model that recites them, and an adapter against each."""
    folder = tmp_path_factory.mktemp("requests")
    rows = random_rows(0)
    files, adapters = [], []
    for i in range(3):
        file, run = folder / f"set-{i}.jsonl", folder / f"adapter-{i}"
        lines = [json.dumps({"id": f"row-{j}", "input_ids": rows[j]}) for j in range(i, 9, 3)]
        file.write_text("\n".join(lines) + "\n")
        unlearn({
            "model": {"name": str(memorizers("llama")), "quantization": "none", "dtype": "float32"},
            "data": {"forget": str(file)},
            "output_dir": str(run),
            "adapter": {"r": 4, "alpha": 8},
            "method": {"name": "sga", "threshold": 0.3},
            "training": {"learning_rate": 5e-3, "max_epochs": 60},
            "stop": {"mean_below": 0.25},
        })  # fmt: skip
        files.append(str(file))
        adapters.append(str(run))
    return str(memorizers("llama")), adapters, files


@pytest.fixture(scope="module")
def matrix(requests, tmp_path_factory):
    model, adapters, files = requests
    folder = tmp_path_factory.mktemp("matrix") / "out"
    return evaluate_interference(
        Model(model, quantization="none", dtype="float32"), adapters, Data(files), output_dir=folder
    ), folder


def test_every_combination_of_adapters_against_every_set(matrix, requests):
    rows, _ = matrix
    assert len(rows) == 8 * 3 and set(rows["set"]) == {"set-0", "set-1", "set-2"}
    counts = rows.set_index(["adapters", "set"])["extractable"]
    for i in range(3):
        assert counts["", f"set-{i}"] > 0, "the base recites"
        assert counts[f"adapter-{i}", f"set-{i}"] == 0, "its own adapter silences a set"
        assert (
            rows.set_index(["adapters", "set"]).loc[(f"adapter-{i}", f"set-{i}"), "memorization_accuracy_mean"] < 0.25
        )


def test_the_matrix_is_that_of_models_with_just_those_adapters(matrix, requests):
    rows, _ = matrix
    model, adapters, files = requests
    for on in [(1,), (0, 2), (0, 1, 2)]:
        plain = models.stack(load_base(model, "none", "float32"), [adapters[i] for i in on])
        for i, file in enumerate(files):
            frame = score(plain, load_sequences(file))
            key = " + ".join(f"adapter-{j}" for j in on)
            row = rows[(rows["adapters"] == key) & (rows["set"] == f"set-{i}")].iloc[0]
            assert row["extractable"] == frame["extractable"].sum() and row["n_sequences"] == len(frame) == 3
            assert row["memorization_accuracy_mean"] == pytest.approx(frame["memorization_accuracy"].mean(), abs=1e-9)
            assert row["loss_mean"] == pytest.approx(frame["loss"].mean(), rel=1e-4)


def test_removing_one_adapter_restores_exactly_the_model_without_it(requests):
    model, adapters, _ = requests
    ids = torch.tensor([random_rows(0)[0]])
    with torch.no_grad():
        two = models.stack(load_base(model, "nf4", "float32"), adapters[:2])
        without = two(input_ids=ids).logits
        base = load_base(model, "nf4", "float32")(input_ids=ids).logits
        three = models.stack(load_base(model, "nf4", "float32"), adapters)
        assert not torch.equal(three(input_ids=ids).logits, without)
        with models.active(three, models.adapter_names(2)):
            assert torch.equal(three(input_ids=ids).logits, without)
        three.delete_adapter("adapter_2")
        assert torch.equal(three(input_ids=ids).logits, without)
        with models.active(three, []):
            assert torch.equal(three(input_ids=ids).logits, base)


def test_what_is_written(matrix):
    rows, folder = matrix
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "interference.parquet"), rows)
    about = json.loads((folder / "evaluation.json").read_text())
    assert about["adapters"] == ["adapter-0", "adapter-1", "adapter-2"] and about["sets"] == ["set-0", "set-1", "set-2"]
    assert (folder / "figures" / "interference.png").stat().st_size > 1000
    assert "adapter-1" in (folder / "report.html").read_text()


def test_an_adapter_of_another_base_is_refused_unless_forced(requests, memorizers, tmp_path):
    _, adapters, files = requests
    other = tmp_path / "other"
    tampered = load_base(str(memorizers("llama")), "none", "float32")
    with torch.no_grad():
        tampered.model.layers[0].mlp.down_proj.weight.mul_(1.01)
    tampered.save_pretrained(other)
    base = Model(str(other), quantization="none", dtype="float32")
    with pytest.raises(ModelError, match=r"adapter-0: .*another base"):
        evaluate_interference(base, adapters, Data(files))
    forced = evaluate_interference(base, adapters[:1], Data(files[:1]), permissions=Permissions(force=True))
    assert len(forced) == 2


def test_subsets():
    for number in (1, 2, 3, 4):
        every = [s for size in range(number + 1) for s in itertools.combinations(range(number), size)]
        assert subsets(number) == every
    assert subsets(6) == [(), *((i,) for i in range(6)), *itertools.combinations(range(6), 5), tuple(range(6))]


def test_a_set_none_of_whose_sequences_can_be_scored(requests):
    model, adapters, _ = requests
    stacked = models.stack(load_base(model, "none", "float32"), adapters[:1])
    rows = interference(stacked, {"a": "adapter_0"}, {"s": load_sequences([{"id": "x", "input_ids": [1, 2, 3]}])})
    assert list(rows["n_sequences"]) == [1, 1]
