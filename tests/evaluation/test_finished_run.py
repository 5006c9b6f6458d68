"""Folders of finished runs: what is read, and what is refused."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from synthetic_runs import SPREAD, finished_run, write_run

from adapter_unlearn import RunError, compare
from adapter_unlearn.evaluation.finished_run import read


@pytest.fixture
def run():
    return finished_run("run", SPREAD)


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
