"""A matrix of experiments is run and compared: two experiments by two seeds, and one that fails."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import draw_no_figures, random_rows

from adapter_unlearn import OutputError, RecipeError, RunError, cli, compare
from adapter_unlearn.evaluation.finished_run import read
from adapter_unlearn.pipeline import manifest, unlearning_run
from adapter_unlearn.recipe import Data, Model, Permissions
from adapter_unlearn.reporting.comparison import figures


@pytest.fixture(scope="module")
def place(tmp_path_factory, memorizers):
    """A folder with a matrix that has been run, and the exit code."""
    folder = tmp_path_factory.mktemp("matrix")
    for name, seed, count in (("forget", 0, 10), ("holdout", 5, 8), ("test", 6, 8)):
        rows = random_rows(seed)[:count]
        lines = [json.dumps({"id": f"{name}-{i}", "input_ids": row}) for i, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    data = {name: str(folder / f"{name}.jsonl") for name in ("forget", "holdout", "test")}
    matrix = {
        "base": {
            "model": {"name": str(memorizers("llama")), "quantization": "none", "dtype": "float32"},
            "data": data,
            "training": {"max_epochs": 2, "learning_rate": 3e-3},
            "stop": {"max_perplexity_increase": None},
        },
        "seeds": [0, 1],
        "experiments": {
            "sga": {"method": {"name": "sga", "threshold": 0.7}},
            "ga": {"method": {"name": "ga"}},
            "broken": {"method": {"name": "sga"}, "adapter": {"target_modules": ["warp_drive"]}, "seeds": [0]},
        },
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(matrix, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        draw_no_figures(patch)
        return folder, again(folder)


@pytest.fixture
def copy(place, tmp_path, monkeypatch):
    """A copy of it that a test may change; no run can be made there, and nothing is drawn."""
    shutil.copytree(place[0], tmp_path / "copy")
    monkeypatch.setattr(figures, "pictures", lambda rows: {})
    return tmp_path / "copy"


@pytest.fixture
def quick(monkeypatch):
    """Without pictures, for tests of folders."""
    monkeypatch.setattr(figures, "pictures", lambda rows: {})


def again(folder, *words):
    return cli.main(["compare", "--config", str(folder / "m.yaml"), "--output_dir", str(folder / "out"), *words])


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "out" / "runs").rglob("*") if path.is_file()}


def test_a_matrix_makes_its_runs_and_one_comparison(place):
    folder, code = place
    assert code == 1, "a run failed"
    out = folder / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.csv",
        "comparison.json",
        "figures",
        "report.html",
        "runs",
    ]
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["ga-seed0", "ga-seed1", "sga-seed0", "sga-seed1"]
    told = json.loads((out / "comparison.json").read_text())
    assert set(told) == {
        "package", "created", "versions", "base", "bounds", "n_sequences", "n_holdout", "baseline", "rows", "pairs",
        "runs", "warnings", "files",
    }  # fmt: skip
    assert (told["baseline"], told["n_sequences"], told["n_holdout"]) == ("sga", 10, 8)
    assert [row["method"] for row in told["rows"]] == ["base", "sga", "ga"]
    for row in told["rows"][1:]:
        assert row["n_runs"] == 2 and row["seeds"] == "0 1"
        summaries = [json.loads((out / f"runs/{row['method']}-seed{i}/summary.json").read_text()) for i in (0, 1)]
        costs = [
            json.loads((out / f"runs/{row['method']}-seed{i}/unlearning.json").read_text())["cost"] for i in (0, 1)
        ]
        stacked = [found["forms"]["stacked"] for found in summaries]
        for key in ("memorization_accuracy_mean", "outliers_high", "extractable", "longest_verbatim_run_max"):
            assert row[key] == pytest.approx(np.mean([figures[key] for figures in stacked]))
        for name in ("holdout", "test"):
            changes = [figures[f"{name}_perplexity_change"] for figures in stacked]
            assert row[f"{name}_perplexity_change"] == pytest.approx(np.mean(changes))
            lows = [figures[f"{name}_perplexity_change_interval"][0] for figures in stacked]
            assert row[f"{name}_perplexity_change_low"] == pytest.approx(np.mean(lows))
        for key in ("seconds", "peak_memory_bytes", "sequences_ascended"):
            assert row[key] == pytest.approx(np.mean([cost[key] for cost in costs])) and row[key] > 0
    failed = [row for row in told["runs"] if row["failed"]]
    assert len(told["runs"]) == 5 and len(failed) == 1
    assert (failed[0]["method"], failed[0]["seed"]) == ("broken", 0) and "target_modules" in failed[0]["failed"]
    assert any(warning.startswith("broken, seed 0, failed: ") for warning in told["warnings"])
    rows = list(csv.DictReader((out / "comparison.csv").open()))
    assert [row["method"] for row in rows] == ["base", "sga", "ga"]
    assert {path.name for path in (out / "figures").iterdir()} == {"pareto_stacked.png", "pareto_auc_stacked.png"}


def test_the_paired_difference_is_that_of_the_files(place):
    folder, _ = place
    out = folder / "out"

    def mean_of_seeds(name):
        frames = [pd.read_parquet(out / f"runs/{name}-seed{seed}/sequences.parquet") for seed in (0, 1)]
        by_id = [frame[frame["form"] == "stacked"].set_index("id")["memorization_accuracy"] for frame in frames]
        return (by_id[0] + by_id[1]) / 2

    difference = mean_of_seeds("ga") - mean_of_seeds("sga")
    row = json.loads((out / "comparison.json").read_text())["rows"][2]
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]


def test_what_is_done_is_not_done_again(copy, monkeypatch, capsys):
    folder = copy
    before, asked = stamps(folder), []
    monkeypatch.setattr(unlearning_run, "unlearn", lambda run, _: asked.append(run) or 1 / 0)
    (folder / "out" / "comparison.json").unlink()  # as a kill in the middle would leave it
    (folder / "out" / ".comparison.json.abc_1234.partial").mkdir()
    assert again(folder) == 1
    assert [Path(run.output_dir).name for run in asked] == ["broken-seed0"], "what failed is tried again, nothing else"
    assert stamps(folder) == before and (folder / "out" / "comparison.json").is_file()
    failed = [row for row in json.loads((folder / "out" / "comparison.json").read_text())["runs"] if row["failed"]]
    assert failed[0]["failed"].startswith("ZeroDivisionError in ") and "failed" in capsys.readouterr().out


def test_an_error_that_is_no_user_s_is_a_row_without_its_message(copy, monkeypatch, caplog):
    """A library's message may quote what it choked on."""
    folder = copy

    def choke(*_, **__):
        raise ValueError("could not convert 'my secret text'")

    monkeypatch.setattr(unlearning_run, "unlearn", choke)
    with caplog.at_level(logging.INFO):
        found = compare(matrix=folder / "m.yaml", output_dir=folder / "out")
    reasons = found.runs["failed"].dropna().tolist()
    assert len(reasons) == 1 and reasons[0].startswith("ValueError in comparing.py, line ")
    assert "secret" not in caplog.text + (folder / "out" / "comparison.json").read_text()


def test_a_changed_recipe_is_not_taken_for_the_old_one(copy, monkeypatch, capsys):
    before, text = stamps(copy), (copy / "m.yaml").read_text()
    monkeypatch.setattr(unlearning_run, "unlearn", lambda *_, **__: pytest.fail("a run was started"))
    (copy / "m.yaml").write_text(text.replace("threshold: 0.7", "threshold: 0.6"))
    assert again(copy) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "sga-seed0: " in error and re.search(r"method\.threshold.*0\.7.*0\.6", error)
    assert "--overwrite" in error and stamps(copy) == before
    asked = []
    monkeypatch.setattr(unlearning_run, "unlearn", lambda *arguments: asked.append(arguments) or 1 / 0)
    found = compare(matrix=copy / "m.yaml", output_dir=copy / "out", permissions=Permissions(overwrite=True))
    assert [Path(run.output_dir).name for run, _ in asked] == ["sga-seed0", "sga-seed1", "broken-seed0"]
    assert all(permissions.overwrite for _, permissions in asked) and stamps(copy) == before
    assert list(found.rows["method"]) == ["base", "ga"], "an older run is not shown in a newer one's name"


def test_it_says_when_a_file_is_younger_than_the_run(copy, monkeypatch, caplog):
    monkeypatch.setattr(unlearning_run, "unlearn", lambda *_, **__: 1 / 0)
    told = json.loads((copy / "out/runs/ga-seed0/unlearning.json").read_text())
    forget = Path(yaml.safe_load((copy / "out/runs/ga-seed0/recipe.yaml").read_text())["data"]["forget"])
    old, newer = forget.stat().st_mtime, pd.Timestamp(told["created"]).timestamp() + 5
    assert again(copy) == 1 and "has changed since" not in caplog.text
    os.utime(forget, (newer, newer))
    try:
        assert again(copy) == 1 and f"{forget} has changed since" in caplog.text
    finally:
        os.utime(forget, (old, old))


def test_run_folders_are_compared_as_they_are(place, tmp_path, capsys, quick):
    folder, _ = place
    runs = [str(path) for path in sorted((folder / "out" / "runs").iterdir())]
    words = ["compare", *runs, "--output_dir", str(tmp_path / "c"), "--baseline", "best"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    told = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [row["method"] for row in told["rows"]] == ["base", "ga", "sga"], "seeds of one recipe are one method"
    assert str(tmp_path / "c" / "report.html") in out
    assert cli.main(words) == 2 and "--overwrite" in capsys.readouterr().err
    before = (tmp_path / "c" / "report.html").stat().st_mtime_ns
    assert cli.main([*words, "--overwrite"]) == 0
    assert (tmp_path / "c" / "report.html").stat().st_mtime_ns > before
    assert cli.main(["compare", runs[0], runs[0], "--output_dir", str(tmp_path / "d")]) == 2
    assert "twice" in capsys.readouterr().err and not (tmp_path / "d").exists()


def test_a_folder_is_never_taken_from_a_run(copy, tmp_path):
    """Not even with --overwrite: a comparison takes its own files' places and touches no others."""
    runs = sorted((copy / "out" / "runs").iterdir())
    before = stamps(copy)
    compare(runs, output_dir=copy / "out", permissions=Permissions(overwrite=True))
    assert stamps(copy) == before
    with pytest.raises(OutputError, match="holds a run"):
        compare(runs[1:], output_dir=runs[0], permissions=Permissions(overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("mine")
    with pytest.raises(OutputError, match=r"report\.html"):
        compare(runs, output_dir=tmp_path / "mine", permissions=Permissions(overwrite=True))
    assert (tmp_path / "mine" / "report.html").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file: .*--output_dir"):
        compare(runs, output_dir=tmp_path / "file")


def test_a_full_disk_leaves_the_old_comparison(place, tmp_path, monkeypatch, quick):
    folder, _ = place
    runs = sorted((folder / "out" / "runs").iterdir())
    compare(runs, output_dir=tmp_path / "c")
    before = {path: path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OutputError, match="No space left"):
        compare(runs, output_dir=tmp_path / "c", permissions=Permissions(overwrite=True))
    assert {path: path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()} == before
    with pytest.raises(OutputError, match="No space left"):
        compare(runs, output_dir=tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_every_run_failed(place, tmp_path, monkeypatch):
    folder, _ = place
    monkeypatch.setattr(unlearning_run, "unlearn", lambda *_, **__: 1 / 0)
    with pytest.raises(RunError, match="every run failed; sga, seed 0: ZeroDivisionError"):
        compare(matrix=folder / "m.yaml", output_dir=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_baseline_is_known_before_anything_is_run(place, tmp_path, monkeypatch):
    folder, _ = place
    monkeypatch.setattr(unlearning_run, "unlearn", lambda *_, **__: pytest.fail("a run was started"))
    with pytest.raises(RecipeError, match="'nobody'"):
        compare(matrix=folder / "m.yaml", output_dir=tmp_path / "c", baseline="nobody")
    with pytest.raises(RecipeError, match="nothing to compare"):
        compare(output_dir=tmp_path / "c")
    with pytest.raises(RecipeError, match="output_dir"):
        compare(matrix=folder / "m.yaml")


def test_no_forgotten_tokens_anywhere(place):
    """No 6 tokens in a row of any forget sequence, as text or as integers, in what comparing wrote."""
    folder, _ = place
    needles = []
    for row in random_rows(0):
        for start in range(len(row) - 5):
            six = row[start : start + 6]
            needles += [mark.join(map(str, six)).encode() for mark in (", ", ",", " ", "\n")]
            needles += [np.array(six, kind).tobytes() for kind in ("int64", "int32", "int16")]
    files = [path for path in (folder / "out").rglob("*") if path.is_file() and "runs" not in path.parts]
    assert {path.name for path in files} >= {"comparison.json", "comparison.csv", "report.html", "pareto_stacked.png"}
    for path in files:
        content = path.read_bytes()
        assert not any(needle in content for needle in needles), f"{path} holds forgotten tokens"
    assert any(needle in (folder / "forget.jsonl").read_bytes() for needle in needles), "the search finds a leak"


def test_public_api_reads_evaluations_too(place, tmp_path):
    from adapter_unlearn import evaluate

    folder, _ = place
    run = folder / "out" / "runs" / "ga-seed0"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    files = {name: recipe["data"][name] for name in ("forget", "holdout", "test")}
    model = Model(recipe["model"]["name"], quantization="none", dtype="float32")
    evaluate(model, run, Data(**files), output_dir=tmp_path / "e")
    found = compare([run, tmp_path / "e"])
    assert list(found.rows["method"]) == ["base", "ga-seed0", "e"] and found.pairs.loc[0, "alike"]
    assert np.isnan(found.rows.loc[2, "seconds"]) and read(tmp_path / "e").weights is None


def test_the_page_is_one_file_that_loads_nothing(place):
    page = (place[0] / "out" / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!#)', page) and "<script" not in page and "@import" not in page
    assert "default-src 'none'" in page
    for word in ("sga", "ga", "broken", "<svg"):
        assert word in page


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux only: elsewhere a peak can't be restarted"
)
def test_a_run_s_peak_memory_is_its_own():
    block = np.ones(400_000_000, dtype=np.uint8)
    del block
    before = manifest._peak_memory()
    manifest.restart_peak_memory()
    assert manifest._peak_memory() < before - 200_000_000
