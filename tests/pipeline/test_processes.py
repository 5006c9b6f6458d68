"""One process or two, one batch or several: the same adapter. Under `accelerate launch`, as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import launch, random_rows
from safetensors.torch import load_file

from adapter_unlearn import unlearn

LENGTHS = (24, 32, 40, 28, 36, 64, 31, 27)


@pytest.fixture
def settings(memorizers, write_rows, tmp_path):
    def build(folder: str, batch_size: int, method=None) -> dict:
        return {
            "model": {"name": str(memorizers("llama")), "quantization": "none", "dtype": "float32"},
            "data": {
                "forget": write_rows("forget.jsonl", random_rows(0)[:8]),
                "retain": write_rows("retain.jsonl", random_rows(7, (30, 20, 25))),
                "validation": write_rows("validation.jsonl", random_rows(8, (30, 20, 25))),
            },
            "output_dir": str(tmp_path / folder),
            "adapter": {"r": 4, "alpha": 8},
            "method": method or {"name": "sga", "threshold": 0.5, "retain_weight": 0.5, "retain_sequences": 2},
            "training": {"learning_rate": 3e-3, "max_epochs": 60, "batch_size": batch_size},
            "stop": {"mean_below": 0.08, "max_perplexity_increase": None},
        }

    return build


def adapter(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def test_the_adapter_does_not_depend_on_batches_or_processes(settings, tmp_path):
    whole, halves, shared = settings("whole", 8), settings("halves", 4), settings("shared", 4)
    unlearn(whole)
    unlearn(halves)
    printed = launch(shared, tmp_path, processes=2)
    assert printed.count("Load it with plain PEFT") == 1, "only one process may speak"
    manifest = json.loads((tmp_path / "shared" / "unlearning.json").read_text())
    assert manifest["cost"]["processes"] == 2
    log = [json.loads(line) for line in (tmp_path / "whole" / "train_log.jsonl").read_text().splitlines()]
    assert log[1]["n_selected"] > 2 and log[-1]["n_selected"] == 1, "the selection must shrink to one sequence"
    expected = adapter(whole["output_dir"])
    for run in (halves, shared):
        for name, tensor in adapter(run["output_dir"]).items():
            assert float((tensor - expected[name]).abs().max()) < 1e-5, (run["output_dir"], name)


def test_losses_over_sequences_and_references_are_exact_too(settings, tmp_path):
    """NPO's weights and its mean over sequences, KL's second forward, and a band that selects fewer and fewer."""
    method = {"name": "compose", "select": "band", "high": 0.3, "low": 0.05, "loss": "npo"}
    method |= {"retain_loss": "kl", "retain_weight": 2.0, "retain_sequences": 3}
    whole, shared = settings("whole", 8, method), settings("shared", 4, method)
    for run in (whole, shared):
        run["training"]["max_epochs"] = 22
    unlearn(whole)
    launch(shared, tmp_path, processes=2)
    assert json.loads((tmp_path / "shared" / "unlearning.json").read_text())["cost"]["processes"] == 2
    logs = [[json.loads(line) for line in (tmp_path / name / "train_log.jsonl").read_text().splitlines()]
            for name in ("whole", "shared")]  # fmt: skip
    assert len(logs[0]) == len(logs[1]) > 4 and logs[0][-1]["n_selected"] < logs[0][1]["n_selected"]
    for one, other in zip(logs[0][1:], logs[1][1:]):
        assert one["n_selected"] == other["n_selected"] and one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    expected = adapter(whole["output_dir"])
    for name, tensor in adapter(shared["output_dir"]).items():
        assert float((tensor - expected[name]).abs().max()) < 1e-5, name


def test_matching_is_exact_too(settings, write_rows, tmp_path):
    """Each row keeps its matched holdout sequence, in any process and batch; from the recipe on."""
    method = {"name": "match", "retain_weight": 2.0, "retain_sequences": 2}
    whole, halves, shared = settings("whole", 8, method), settings("halves", 3, method), settings("shared", 3, method)
    for run in (whole, halves, shared):
        run["data"]["holdout"] = write_rows("holdout.jsonl", random_rows(9, (30, 20, 25, 41, 1)))  # one has no score
        run["training"] |= {"learning_rate_decay": 0.5, "max_epochs": 6, "sequences_per_step": 5}
        run["stop"] |= {"early": False, "mean_below": 0.9}
        run["evaluation"] = {"bounds": "paper"}
    unlearn(whole)
    unlearn(halves)
    launch(shared, tmp_path, processes=2)
    assert json.loads((tmp_path / "shared" / "unlearning.json").read_text())["cost"]["processes"] == 2
    logs = [[json.loads(line) for line in (tmp_path / name / "train_log.jsonl").read_text().splitlines()]
            for name in ("whole", "halves", "shared")]  # fmt: skip
    assert [len(log) for log in logs] == [7, 7, 7], "all epochs are trained"
    assert logs[0][-1]["memorization_accuracy_mean"] < logs[0][0]["memorization_accuracy_mean"], (
        "(the loss itself grows with its rows' weights)"
    )
    expected = adapter(whole["output_dir"])
    assert any(float(tensor.abs().max()) > 0 for name, tensor in expected.items() if "lora_B" in name)
    for log, run in ((logs[1], halves), (logs[2], shared)):
        for one, other in zip(logs[0][1:], log[1:]):
            assert one["n_selected"] == other["n_selected"] and one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        for name, tensor in adapter(run["output_dir"]).items():
            assert float((tensor - expected[name]).abs().max()) < 1e-5, (run["output_dir"], name)


def test_one_process_under_accelerate(settings, tmp_path):
    run = settings("single", 8)
    run["training"]["max_epochs"] = 2
    launch(run, tmp_path, processes=1)
    assert json.loads((tmp_path / "single" / "unlearning.json").read_text())["cost"]["processes"] == 1
