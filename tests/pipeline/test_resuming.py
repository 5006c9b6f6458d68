"""A run that is interrupted anywhere and resumed ends with the adapter of the undisturbed run, bit for bit."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_rows
from safetensors.torch import load_file

from adapter_unlearn import OutputError, Permissions, RunError, signals, unlearn
from adapter_unlearn.runs import checkpoint_file
from adapter_unlearn.unlearning import loop

RESUME = Permissions(resume=True)

METHODS = {
    "sga": {"name": "sga", "threshold": 0.5, "retain_weight": 0.5, "retain_sequences": 2},
    "tau": {"name": "tau", "threshold": 0.5},
    "match": {"name": "match", "retain_weight": 2.0, "retain_sequences": 4},
}


class Killed(BaseException):
    """Nothing catches it: the process is gone."""


@pytest.fixture
def settings(memorizers, write_rows, tmp_path):
    """Build a recipe of a few epochs that needs everything a checkpoint must hold; dropout needs torch's generator."""

    def build(folder: str, method: str, **training) -> dict:
        synthetic = {"synthetic": 6} if method == "match" else {}
        return {
            "model": {"name": str(memorizers("llama")), "quantization": "none", "dtype": "float32"},
            "data": {
                "forget": write_rows("forget.jsonl", random_rows(0)[:8]),
                "retain": write_rows("retain.jsonl", random_rows(7, (30, 20, 25))),
                "holdout": write_rows("holdout.jsonl", random_rows(9, (30, 40, 25, 36, 31))),
                "validation": write_rows("validation.jsonl", random_rows(8, (30, 20, 25))),
                **synthetic,
            },
            "output_dir": str(tmp_path / folder),
            "adapter": {"r": 4, "alpha": 8, "dropout": 0.1},
            "method": METHODS[method],
            "training": {
                "learning_rate": "auto" if method == "match" else 3e-3, "max_epochs": 4, "batch_size": 4,
                "sequences_per_step": 3, "learning_rate_decay": 0.5, **training,
            },
            "stop": {"mean_below": 0.05, "max_perplexity_increase": 50.0, "early": False},
        }  # fmt: skip

    return build


def result(run: dict) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The adapter, and the log without durations."""
    folder = Path(run["output_dir"])
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return load_file(folder / "adapter_model.safetensors"), [line | {"seconds": None} for line in log]


def assert_same(run: dict, expected: tuple[dict[str, torch.Tensor], list[dict]]) -> None:
    adapter, log = result(run)
    assert log == expected[1]
    assert adapter.keys() == expected[0].keys()
    assert all(torch.equal(adapter[name], tensor) for name, tensor in expected[0].items())


@pytest.fixture
def kill_after(monkeypatch):
    """End the process after this many checkpoints; 0 lets it live."""
    write, left = checkpoint_file.write, [0]

    def write_and_die(path, saved):
        write(path, saved)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(checkpoint_file, "write", write_and_die)

    def set_number(number: int) -> None:
        left[0] = number

    return set_number


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_is_continued_bit_for_bit(settings, kill_after, method):
    whole, broken = settings("whole", method), settings("broken", method, checkpoint_minutes=0.0)
    unlearn(whole)
    expected = result(whole)
    checkpoint = checkpoint_file.path_of(broken["output_dir"])
    kills = 0
    for number in (1, 3, 2, 5, 4, 7):  # in all stages, within and after epochs
        kill_after(number)
        try:
            unlearn(broken, RESUME)
            break
        except Killed:
            kills += 1
            assert checkpoint.is_file() and not Path(broken["output_dir"]).exists()
    kill_after(0)
    if not Path(broken["output_dir"]).exists():
        unlearn(broken, RESUME)
    assert kills >= 4
    assert_same(broken, expected)
    assert not checkpoint.exists(), "a finished run removes its checkpoint"
    assert not list(checkpoint.parent.glob(".*")), "no lock and no unfinished file is left"
