"""The state of a run in a checkpoint: one that no run can be in is refused."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from accelerate import Accelerator

from adapter_unlearn import RunError
from adapter_unlearn.runs.checkpoint_file import Saved
from adapter_unlearn.unlearning.checkpoint import Checkpoints
from adapter_unlearn.unlearning.records import Outcome
from adapter_unlearn.unlearning.run_state import RunState, values_of


@pytest.fixture
def values():
    outcome = Outcome([{"epoch": 0}, {"epoch": 3}], 3, pd.DataFrame({"id": ["a"], "loss": [0.5]}))
    return json.loads(json.dumps(values_of(RunState(outcome, parts=[{"scale": -1.0}], adapters=2))))


def read(values, path) -> Checkpoints:
    return Checkpoints(Accelerator(), path, saved=Saved(values, {}))


def test_a_state_is_read_as_it_was(values, tmp_path):
    checkpoints = read(values, tmp_path)
    assert checkpoints.epochs == 3 and values_of(checkpoints.run) == values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapters", 10**9), ("adapters", 0), ("adapters", "2"), ("parts", [{}]), ("parts", 3), ("rate", "x"),
        ("rate", -1.0), ("parts", [{"scale": float("nan")}]), ("outcome", 3), ("outcome", {"log": []}),
        ("position", {}), ("position", [1]),
    ],
    ids=str,
)  # fmt: skip
def test_a_state_that_no_run_is_in_is_refused(values, tmp_path, key, value):
    with pytest.raises(RunError, match=f"^{tmp_path}: .*--overwrite"):
        read(values | {key: value}, tmp_path)


@pytest.mark.parametrize("log", [[], [{}], [{"epoch": "x"}], [{"epoch": float("inf")}], 3], ids=str)
def test_a_log_that_no_run_has_is_refused(values, tmp_path, log):
    values["outcome"]["log"] = log
    with pytest.raises(RunError):
        read(values, tmp_path)
