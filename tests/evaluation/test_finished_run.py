"""Folders of finished runs: what is read, and what is refused."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_runs import SPREAD, finished_run, write_run

from adapter_unlearn import RunError, compare
from adapter_unlearn.evaluation import run_checks
from adapter_unlearn.evaluation.finished_run import read


@pytest.fixture(scope="module")
def run():
    return finished_run("run", SPREAD)


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """A run folder, to copy."""
    return write_run(run, tmp_path_factory.mktemp("run") / "run")


def test_a_run_is_read_as_it_was(run, tmp_path):
    result = read(write_run(run, tmp_path / "run"), "sga")
    assert result.summary == run.summary and result.manifest == run.manifest and result.experiment == "sga"
    for name in ("sequences", "holdout", "membership"):
        pd.testing.assert_frame_equal(getattr(result, name), getattr(run, name))
    assert result.recipe.data == run.recipe.data and result.weights != read(_changed(tmp_path)).weights


def _changed(folder):
    shutil.copytree(folder / "run", folder / "other")
    (folder / "other" / "adapter_model.safetensors").write_bytes(b"others")
    return folder / "other"


def test_an_evaluation_has_no_recipe_and_no_weights(run, tmp_path):
    folder = write_run(run, tmp_path / "run")
    (folder / "unlearning.json").rename(folder / "evaluation.json")
    result = read(folder)
    assert result.recipe is None and result.weights is None


def edit(name, **changes):
    """Change keys of a JSON file."""

    def change(folder):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda run: (run / "unlearning.json").unlink(), "unlearning.json", id="no manifest"),
        pytest.param(lambda run: (run / "summary.json").unlink(), "summary.json", id="no summary"),
        pytest.param(lambda run: shutil.rmtree(run), "not a finished run", id="no folder"),
        pytest.param(lambda run: (run / "summary.json").write_text("{"), "can't be read", id="no JSON"),
        pytest.param(lambda run: (run / "summary.json").write_text("[]"), "can't be read", id="no object"),
        pytest.param(lambda run: (run / "unlearning.json").write_text("[]"), "can't be read", id="no manifest object"),
        pytest.param(lambda run: (run / "summary.json").write_text("{}"), "has no schema_version", id="no version"),
        pytest.param(edit("summary.json", schema_version=0), "has schema_version 0", id="an earlier version"),
        pytest.param(edit("summary.json", forms={}), r"can't be read \(KeyError\)", id="no base"),
        pytest.param(lambda run: (run / "sequences.parquet").write_bytes(b"PAR1"), "can't be read", id="no parquet"),
        pytest.param(lambda run: (run / "sequences.parquet").unlink(), "can't be read", id="no rows"),
        pytest.param(lambda run: (run / "recipe.yaml").write_text("a: ["), "can't be read", id="no YAML"),
        pytest.param(lambda run: (run / "adapter_model.safetensors").unlink(), "can't be read", id="no adapter"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(run, tmp_path, change, named):
    good, bad = (write_run(run, tmp_path / name) for name in ("good", "bad"))
    change(bad)
    with pytest.raises(RunError, match=f"^{bad}: .*{named}") as error:
        compare([good, bad], output_dir=tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def nested(name, place, value):
    """Set a value inside a JSON file."""

    def change(folder):
        values = json.loads((folder / name).read_text())
        inner = values
        *keys, last = place.split(".")
        for key in keys:
            inner = inner.setdefault(key, {})
        inner[last] = value
        (folder / name).write_text(json.dumps(values))

    return change


def table(change, name="sequences.parquet"):
    def changed(folder):
        change(pd.read_parquet(folder / name)).to_parquet(folder / name, index=False)

    return changed


def fifo(name):
    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def loop(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return change


TAMPERED = {
    "base list": nested("unlearning.json", "base", [1]), "base text": nested("unlearning.json", "base", "m"),
    "base name": nested("unlearning.json", "base.name", {"a": 1}), "seed": nested("unlearning.json", "seed", [0]),
    "cost": nested("unlearning.json", "cost.seconds", "long"), "outcome": nested("unlearning.json", "outcome", 3),
    "date": nested("unlearning.json", "created", "yesterday"), "test": nested("unlearning.json", "data.test", [9]),
    "method": nested("unlearning.json", "method.name", ["a"]), "digits": nested("unlearning.json", "seed", 10**400),
    "not a number": nested("unlearning.json", "cost.epochs", float("nan")),
    "deep": lambda folder: (folder / "unlearning.json").write_text("[" * 100_000),
    "large": lambda folder: (folder / "unlearning.json").write_text(" " * 50_000_001),
    "count": nested("summary.json", "forms.stacked.failing", "none"),
    "infinite": nested("summary.json", "forms.stacked.loss_mean", float("inf")),
    "huge": nested("summary.json", "forms.stacked.loss_mean", 1e308),
    "interval": nested("summary.json", "forms.stacked.memorization_accuracy_mean_interval", [0.1]),
    "bounds": nested("summary.json", "forms.base.bounds", {"kind": "mine", "low": 0, "high": 1}),
    "perplexity": nested("summary.json", "forms.stacked.test_perplexity", {}),
    "change": nested("summary.json", "forms.stacked.test_perplexity_change", [0.1]),
    "form without rows": nested("summary.json", "forms.merged", {}),
    "no column": table(lambda rows: rows.drop(columns="loss")),
    "no form": table(lambda rows: rows[rows["form"] == "base"]),
    "fewer rows": table(lambda rows: rows.iloc[:-2]),
    "text": table(lambda rows: rows.assign(loss="a lot")),
    "lists": table(lambda rows: rows.assign(id=[[1]] * len(rows))),
    "dates": table(lambda rows: rows.assign(extractable_any_prefix=pd.to_datetime(rows["loss"] * 0))),
    "huge column": table(lambda rows: rows.assign(loss=1e308)),
    "membership": table(lambda rows: rows.drop(columns="auc_low"), "membership.parquet"),
    "holdout": table(lambda rows: rows.drop(columns="form"), "holdout.parquet"),
    "fifo": fifo("sequences.parquet"), "adapter fifo": fifo("adapter_model.safetensors"),
    "loop": loop("holdout.parquet"),
}  # fmt: skip
"""Changes to a run folder that a comparison must not choke on."""


@pytest.mark.parametrize("kind", list(TAMPERED))
def test_a_tampered_folder_is_refused_by_name(written, tmp_path, kind):
    bad = shutil.copytree(written, tmp_path / "bad")
    TAMPERED[kind](bad)
    with pytest.raises(RunError, match=f"^{bad}: can't be read"):
        compare([written, bad], output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_of_many_rows_is_not_read(written, tmp_path, monkeypatch):
    folder = shutil.copytree(written, tmp_path / "run")
    monkeypatch.setattr(run_checks, "MAX_CELLS", 1000)
    pq.write_table(pa.table({"a": np.zeros(1001)}), folder / "holdout.parquet")
    with pytest.raises(RunError, match="can't be read"):
        read(folder)
