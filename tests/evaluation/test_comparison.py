"""Comparing runs: the arithmetic against its definition, a real small matrix, what is refused, and privacy."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_unlearn import OutputError, RecipeError, RunError, cli, compare
from adapter_unlearn.evaluation import comparison
from adapter_unlearn.evaluation.closeness import SAME_AS_SEEDS, SAME_SHARE, closeness, pareto_front
from adapter_unlearn.evaluation.comparison import Failed
from adapter_unlearn.evaluation.finished_run import Finished, comparable, read
from adapter_unlearn.pipeline import experiments, manifest, unlearning_run
from adapter_unlearn.reporting import comparison as report
from adapter_unlearn.runs import run_folder

# --- synthetic runs ---


def made(folder, accuracy, seed=0, recipe=None, perplexity=1.1, weights=None, forms=("stacked",), **changes):
    """A finished run of 12 sequences whose MA is given, and of 8 never-seen ones."""
    base = np.linspace(0.5, 1, len(accuracy))
    unseen = np.linspace(0.1, 0.3, 8)
    after = {form: np.asarray(accuracy) + 0.01 * i for i, form in enumerate(forms)}

    def rows(values, name, form):
        return pd.DataFrame(
            {
                "id": [f"{name}-{i}" for i in range(len(values))],
                "form": form,
                "n_tokens": 60,
                "memorization_accuracy": values,
                "extractable": (values >= 0.99).astype(float),
                "longest_verbatim_run": np.floor(50 * values**2),
                "loss": 5 * (1 - values),
                "note": None,
            }
        )

    def aggregates(ratio, values):
        return {
            "memorization_accuracy_mean": float(np.mean(values)),
            "memorization_accuracy_max": float(np.max(values)),
            "bounds": {"kind": "holdout", "low": 0.11, "high": 0.29},
            "holdout_longest_verbatim_run_max": 4,
            "holdout_perplexity": 30.0 * ratio,
            "test_perplexity": 50.0 * ratio**0.5,
            "holdout_perplexity_change_interval": [ratio - 1.02, ratio - 0.98],
            "membership_auc_loss": 0.9,
            "extractable": int((np.asarray(values) >= 0.99).sum()),
        }

    sequences = [rows(base, "text", "base"), *(rows(values, "text", form) for form, values in after.items())]
    holdout = [rows(unseen, "new", "base"), *(rows(unseen * 0.9, "new", form) for form in forms)]
    run = Finished(
        str(folder),
        {
            "base": {"name": "m", "fingerprint": "sha256:1", "quantization": "nf4", "dtype": "float32"},
            "seed": seed,
            "cost": {"seconds": 10.0 + seed, "peak_memory_bytes": 5e6, "sequences_ascended": 40, "epochs": 4},
            "outcome": {"goal_reached": seed == 0, "stopped_because": "The stop rule held."},
            "data": {"test": {"n_sequences": 9}},
        },
        {
            "forms": {"base": aggregates(1.0, base)}
            | {form: aggregates(perplexity, values) for form, values in after.items()}
        },
        pd.concat(sequences, ignore_index=True),
        pd.concat(holdout, ignore_index=True),
        pd.DataFrame(),
        pd.DataFrame(),
        {"seed": seed, "output_dir": str(folder), "data": {"prefix_tokens": 50}, "method": recipe or str(folder)},
        weights or f"{folder}{seed}",
    )
    return replace(run, **changes)


SPREAD = np.linspace(0.05, 0.45, 12)


# --- the arithmetic, against its definition ---

scores = st.lists(st.floats(0, 1), min_size=2, max_size=9)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_closeness_is_its_definition(data):
    n = data.draw(st.integers(2, 9))
    matrix = st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=1, max_size=3)
    a, b = np.array(data.draw(matrix)), np.array(data.draw(matrix))
    before = np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    found = closeness(a, b, before, 0.01, list(range(len(a))), list(range(len(b))))
    means = [sum(row[i] for row in a) / len(a) - sum(row[i] for row in b) / len(b) for i in range(n)]
    assert found.difference.value == pytest.approx(sum(means) / n)
    generator = np.random.default_rng(0)
    drawn = np.concatenate([np.array(means)[generator.integers(n, size=(2000, n))].mean(axis=1)])
    low, high = (np.quantile(drawn, q, method=m) for q, m in ((0.025, "lower"), (0.975, "higher")))
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))
    within = [np.mean(np.abs(x[i] - x[j])) for x in (a, b) for i in range(len(x)) for j in range(i + 1, len(x))]
    cross = [(i, j) for i in range(len(a)) for j in range(len(b)) if not within or i != j]
    distance = np.mean([np.mean(np.abs(a[i] - b[j])) for i, j in cross])
    effect = min(np.mean(np.abs(x.mean(axis=0) - before)) for x in (a, b))
    tolerance = max(0.01, SAME_SHARE * effect, SAME_AS_SEEDS * np.mean(within) if within else 0)
    assert found.distance == pytest.approx(distance) and found.tolerance == pytest.approx(tolerance)
    spans = [(x.mean(axis=1).min(), x.mean(axis=1).max()) for x in (a, b)]
    overlap = bool(within) and spans[0][0] <= spans[1][1] and spans[1][0] <= spans[0][1]
    if abs(distance - tolerance) > 1e-9 and min(abs(low), abs(high)) > 1e-9:
        assert found.alike == ((low <= 0 <= high or overlap) and distance <= tolerance)


def test_what_is_alike_and_what_is_not():
    rng = np.random.default_rng(1)
    before, level = rng.uniform(0.6, 1, 64), rng.uniform(0.2, 0.4, 64)
    jitter = rng.normal(0, 0.01, (4, 64))
    assert closeness(level[None], level[None], before, 0.01).alike
    assert closeness(level[None], (level + jitter[0])[None], before, 0.01).alike
    assert not closeness(level[None], (level + 0.03 + jitter[0])[None], before, 0.01).alike, "a direction"
    swing = np.where(np.arange(64) % 2, 0.15, -0.15)
    cancelled = closeness(level[None], (level + swing)[None], before, 0.01)
    assert not cancelled.alike and abs(cancelled.difference.value) < 1e-9, "large differences that cancel"
    few = closeness(level[None, :3], (level + rng.normal(0, 0.3, 64))[None, :3], before[:3], 0.01)
    assert few.difference.low < 0 < few.difference.high and not few.alike, "lack of evidence is no likeness"
    # where seeds of one method are as far apart as two methods, it is noise; from one seed each nobody could know
    shifts = np.array([-0.1, 0.1, -0.05, 0.12])[:, None]
    both = [level + shifts[:2], level + shifts[2:]]
    assert closeness(*both, before, 0.01, [0, 1], [0, 1]).alike
    assert not closeness(both[0][:1], both[1][:1], before, 0.01, [0], [1]).alike


def test_shared_seeds_do_not_make_methods_look_closer():
    """Two methods that are equal seed by seed are compared across seeds, as two seeds of one method are."""
    rng = np.random.default_rng(0)
    runs = rng.uniform(0, 1, (3, 40))
    found = closeness(runs, runs, np.ones(40), 0.0, [0, 1, 2], [0, 1, 2])
    apart = np.mean([np.abs(runs[i] - runs[j]).mean() for i in range(3) for j in range(3) if i != j])
    assert found.distance == pytest.approx(apart) and found.alike


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan]), st.integers(0, 4)), min_size=1, max_size=12))
def test_front_is_its_definition(points):
    x, y = (np.array(column, dtype=float) for column in zip(*points))
    for i, on in enumerate(pareto_front(x, y)):
        beaten = any(
            x[j] <= x[i] and y[j] <= y[i] and (x[j] < x[i] or y[j] < y[i]) for j in range(len(x)) if not np.isnan(x[j])
        )
        assert on == (not np.isnan(x[i]) and not beaten)


def test_failing_is_its_definition():
    run = made("a", SPREAD)
    rows = run.sequences[run.sequences["form"] == "stacked"].reset_index(drop=True)
    old = run.sequences[run.sequences["form"] == "base"].reset_index(drop=True)
    for i, value in enumerate(comparison.failing(run, "stacked")):
        now, before = rows.loc[i], old.loc[i]
        high = now["memorization_accuracy"] > 0.29
        low = now["memorization_accuracy"] < 0.11 <= before["memorization_accuracy"]
        assert value == float(high or low or now["extractable"] == 1 or now["longest_verbatim_run"] > 4)
    assert 0 < comparison.failing(run, "stacked").sum() < 12
    rows = run.sequences.copy()
    rows.loc[rows["form"] == "stacked", "memorization_accuracy"] = np.nan
    assert np.isnan(comparison.failing(replace(run, sequences=rows), "stacked")).all()


# --- the table ---


def test_seeds_are_means_and_ranges():
    runs = [made(f"r/m-seed{seed}", SPREAD + 0.02 * seed, seed, "m", 1.1 + 0.1 * seed) for seed in (0, 1, 2)]
    found = comparison.compare([*runs, made("r/other", SPREAD + 0.1)])
    row = found.rows.set_index("method").loc["m"]
    assert row["n_runs"] == 3 and row["seeds"] == "0 1 2" and list(found.rows["method"]) == ["base", "m", "other"]
    assert row["memorization_accuracy_mean"] == pytest.approx(SPREAD.mean() + 0.02)
    assert row["holdout_perplexity_change"] == pytest.approx(0.2)
    ends = row["holdout_perplexity_change_seeds_min"], row["holdout_perplexity_change_seeds_max"]
    assert ends == pytest.approx((0.1, 0.3)) and row["goal_reached"] == pytest.approx(1 / 3)
    counts = [comparison.failing(run, "stacked").sum() for run in runs]
    assert row["failing"] == pytest.approx(np.mean(counts))
    assert (row["failing_seeds_min"], row["failing_seeds_max"]) == (min(counts), max(counts))
    assert row["failing_low"] <= row["failing"] <= row["failing_high"]
    other = found.rows.set_index("method").loc["other"]
    assert found.baseline == "m" and other["difference"] == pytest.approx(0.08)
    # all sequences differ by as much: whatever is drawn, the paired difference is the same
    assert other["difference_low"] == pytest.approx(0.08) and other["difference_high"] == pytest.approx(0.08)
    assert np.isnan(row["difference"])


def test_rows_are_paired_by_id_whatever_their_order():
    first, second = made("a", SPREAD), made("b", SPREAD)
    shuffled = second.sequences.sample(frac=1, random_state=0).reset_index(drop=True)
    _, ordered = comparable([first, replace(second, sequences=shuffled)])
    for form in ("base", "stacked"):
        pd.testing.assert_frame_equal(
            *(frame[frame["form"] == form].reset_index(drop=True) for frame in (ordered.sequences, second.sequences)),
            check_dtype=False,
        )  # fmt: skip
    assert (
        comparison.compare([first, replace(second, sequences=shuffled)]).pairs.loc[0, "memorization_accuracy_distance"]
        == 0
    )


def test_one_recipe_and_one_seed_twice_are_two_rows_and_duplicates():
    runs = [made("x/a", SPREAD, 0, "m", weights="w"), made("y/a", SPREAD, 0, "m", weights="w")]
    found = comparison.compare(runs)
    assert list(found.rows["method"]) == ["base", "x/a", "y/a"] and found.pairs.loc[0, "duplicate"]
    assert any("same adapter, byte for byte" in warning for warning in found.warnings)


def test_it_warns_of_methods_that_are_identical_within_noise():
    rng = np.random.default_rng(0)
    near, far = made("near", SPREAD + rng.normal(0, 0.004, 12)), made("far", SPREAD + 0.1)
    found = comparison.compare([made("a", SPREAD), near, far])
    alike = [warning for warning in found.warnings if "identical within noise" in warning]
    assert len(alike) == 1 and alike[0].startswith("a and near") and list(found.pairs["alike"]) == [True, False, False]
    # methods that forget alike but damage what is near the texts differently are not the same
    damaged = near.holdout.assign(loss=lambda frame: frame["loss"] + (frame["form"] == "stacked"))
    assert not comparison.compare([made("a", SPREAD), replace(near, holdout=damaged)]).pairs.loc[0, "alike"]


def test_baseline_and_best():
    runs = [made("a", SPREAD + 0.3), made("b", np.full(12, 0.2), perplexity=1.3), made("c", np.full(12, 0.2))]
    assert comparison.compare(runs).baseline == "a" and comparison.compare(runs, baseline="b").baseline == "b"
    assert comparison.compare(runs, baseline="best").baseline == "c", "as few failing, and less damage"
    with pytest.raises(RecipeError, match=r"'z'.*best, a, b, c"):
        comparison.compare(runs, baseline="z")
    gone = comparison.compare(runs, [Failed("z", 0, "z-seed0", "no memory")], "z")
    assert gone.baseline == "a" and "The baseline z failed, so differences are to a." in gone.warnings
    table = comparison.compare(runs).rows.set_index("method")
    assert list(table["front_holdout"]) == [False, False, False, True], "the base is on no front, c beats the others"


def test_forms_have_rows_of_their_own():
    both = made("a", SPREAD, forms=("stacked", "merged"))
    found = comparison.compare([both, made("b", SPREAD)])
    assert [tuple(row) for row in found.rows[["method", "form"]].to_numpy()] == [
        ("base", "base"), ("a", "stacked"), ("a", "merged"), ("b", "stacked"),
    ]  # fmt: skip
    assert list(found.pairs["form"]) == ["stacked"]
    assert {picture.name for picture in report.figures.pictures(found.rows)} == {
        "pareto_stacked", "pareto_auc_stacked", "pareto_merged", "pareto_auc_merged",
    }  # fmt: skip


# --- what must not be compared ---


def other_frame(frame, **columns):
    return frame.assign(**columns)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda run: {"manifest": run.manifest | {"base": {"name": "n", "fingerprint": "sha256:2"}}}, "base models"),
        (lambda run: {"manifest": run.manifest | {"base": run.manifest["base"] | {"adapter": "x"}}}, "carries"),
        (lambda run: {"sequences": run.sequences[run.sequences["id"] != "text-3"]}, "forget sets.*12 .* 11 "),
        (lambda run: {"sequences": run.sequences.replace("text-3", "text-x")}, "forget sets.*'text-3'"),
        (lambda run: {"sequences": run.sequences.assign(n_tokens=61)}, "forget sets.*tokens"),
        (
            lambda run: {"sequences": run.sequences.assign(loss=run.sequences["loss"] + 0.5)},
            "forget sets.*another loss",
        ),
        (lambda run: {"holdout": run.holdout.assign(loss=0.0)}, "holdout sets.*another loss"),
        (lambda run: {"holdout": pd.DataFrame()}, "holdout sets.*8 .* 0 "),
        (lambda run: {"recipe": run.recipe | {"data": {"prefix_tokens": 20}}}, "prefixes.*50 and 20"),
    ],
)
def test_runs_of_other_texts_or_bases_are_refused(change, named):
    first, second = made("one", SPREAD), made("two", SPREAD)
    with pytest.raises(RunError, match=f"one and two: .*{named}") as error:
        comparable([first, replace(second, **change(second))])
    assert "\n" not in str(error.value)


def test_numeric_noise_is_no_other_text():
    first, second = made("one", SPREAD), made("two", SPREAD)
    noisy = second.sequences.assign(loss=lambda frame: frame["loss"] + 0.05)
    assert len(comparable([first, replace(second, sequences=noisy)])) == 2
    coarse = second.manifest | {"base": second.manifest["base"] | {"quantization": "int8"}}
    apart = second.sequences.assign(loss=lambda frame: frame["loss"] + 0.5)
    found = comparison.compare([first, replace(second, manifest=coarse, sequences=apart)])
    assert any("different precision (nf4, float32; int8, float32)" in warning for warning in found.warnings)
    test = second.manifest | {"data": {"test": {"n_sequences": 8}}}
    found = comparison.compare([first, replace(second, manifest=test)])
    assert "one and two have different test sets: their test figures don't compare." in found.warnings


# --- a matrix, as a file ---

SMALL = {
    "base": {"model": {"name": "m"}, "data": {"forget": "f.jsonl"}},
    "experiments": {"a": {"method": {"name": "sga"}}},
}


TWO_SETS = """
base: {model: {name: m}, method: {name: ga}}
experiments: {a: {data: {forget: f}}, b: {data: {forget: g}}}
"""


def test_an_experiment_stores_only_its_deviations(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: {name: m}\ndata: {forget: f.jsonl}\nseed: 7\nmethod: {name: sga, threshold: 0.5}"
    )
    matrix = {
        "recipe": str(tmp_path / "r.yaml"),
        "base": {"training": {"max_epochs": 3, "batch_size": 2}, "method": {"retain_sequences": 4}},
        "experiments": {
            "plain": None,
            "higher": {"method": {"threshold": 0.9}, "training": {"learning_rate": "1e-3"}},
            "npo": {"method": {"name": "npo"}, "seeds": [1, 2]},
        },
    }
    planned = experiments.plan(matrix, tmp_path / "runs")
    assert [(one.experiment, one.seed) for one in planned] == [("plain", 7), ("higher", 7), ("npo", 1), ("npo", 2)]
    plain, higher, npo, _ = (one.recipe for one in planned)
    assert plain.method == {"name": "sga", "threshold": 0.5, "retain_sequences": 4} and plain.seed == 7
    assert higher.method["threshold"] == 0.9 and higher.training.learning_rate == 1e-3
    assert higher.training.max_epochs == 3 and higher.training.batch_size == 2
    assert npo.method == {"name": "npo"}, "another method takes none of the shared method's parameters"
    assert (npo.seed, npo.output_dir) == (1, str(tmp_path / "runs" / "npo-seed1"))
    assert set(experiments.differing(plain, higher)) == {"method.threshold", "training.learning_rate"}
    assert experiments.differing(npo, replace(npo, output_dir="x", tracking="wandb")) == []


def test_an_experiment_that_names_no_method_is_the_default_recipe(tmp_path):
    base = {"model": {"name": "m"}, "data": {"forget": "f", "retain": "r", "holdout": "u"}}
    matrix = {"base": base, "experiments": {"default": {}, "sga": {"method": {"name": "sga"}}}}
    default, sga = (one.recipe for one in experiments.plan(matrix, tmp_path))
    assert default.method["name"] == "match" and default.data.synthetic and not default.stop.early
    assert sga.method == {"name": "sga"} and not sga.data.synthetic and sga.stop.early


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("experiments: {a: {}}", "base is missing"),
        ("base: {}\nexperiments: {}", "experiments"),
        ("base: {}\nexperiment: {a: {}}", "'experiment'"),
        ("base: {}\nexperiments: {a: {}, a: {}}", "line 2: 'a' stands twice"),
        ("base: [1]\nexperiments: {a: {}}", "base: expected keys"),
        ("base: {model: {name: m}, data: {forget: f}}\nexperiments: {a: {training: {speed: 3}}}", "'a'.*speed"),
        ("base: {model: {name: m}, data: {forget: f}}\nexperiments: {../a: {}}", "no name for a folder"),
        ("base: {model: {name: m}, data: {forget: f}}\nexperiments: {a: {seed: 3}}", "seeds: .3."),
        ("base: {output_dir: x}\nexperiments: {a: {}}", "output_dir"),
        ("base: {}\nseeds: [0, 0]\nexperiments: {a: {}}", "seeds"),
        ("base: {}\nseeds: 3\nexperiments: {a: {}}", "seeds"),
        ("recipe: none.yaml\nexperiments: {a: {}}", "none.yaml"),
        (TWO_SETS, "'a' and 'b'"),
        ("base: {model: {name: m}, data: {forget: f}}\nexperiments: {a: {method: {name: magic}}}", "'a'.*magic"),
        ("base: {", "line"),
    ],
)  # fmt: skip
def test_a_bad_matrix_is_one_line_and_nothing_is_run(text, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(text)
    monkeypatch.setattr(unlearning_run, "unlearn", lambda *_, **__: pytest.fail("a run was started"))
    assert cli.main(["compare", "--config", "m.yaml", "--output_dir", "out"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.search(named, lines[0]), lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.yaml"]


# --- a real matrix: two experiments by two seeds, and one that fails ---


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
    return folder, again(folder)


@pytest.fixture
def copy(place, tmp_path, monkeypatch):
    """A copy of it that a test may change; no run can be made there, and nothing is drawn."""
    shutil.copytree(place[0], tmp_path / "copy")
    monkeypatch.setattr(report.figures, "pictures", lambda rows: [])
    return tmp_path / "copy"


@pytest.fixture
def quick(monkeypatch):
    """Without pictures, for tests of folders."""
    monkeypatch.setattr(report.figures, "pictures", lambda rows: [])


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
        "runs", "warnings",
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
    monkeypatch.setattr(unlearning_run, "unlearn", lambda run, **_: asked.append(run) or 1 / 0)
    (folder / "out" / "comparison.json").unlink()  # as a kill in the middle would leave it
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
    assert "sga-seed0: holds a run of another recipe (method.threshold: 0.7 there, 0.6 now)" in error
    assert "--overwrite" in error and stamps(copy) == before
    asked = []
    monkeypatch.setattr(unlearning_run, "unlearn", lambda run, **given: asked.append((run, given)) or 1 / 0)
    found = compare(matrix=copy / "m.yaml", output_dir=copy / "out", overwrite=True)
    assert [Path(run.output_dir).name for run, _ in asked] == ["sga-seed0", "sga-seed1", "broken-seed0"]
    assert all(given["overwrite"] for _, given in asked) and stamps(copy) == before
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
    assert "ga, 2 seeds" in out and str(tmp_path / "c" / "report.html") in out
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
    compare(runs, output_dir=copy / "out", overwrite=True)
    assert stamps(copy) == before
    with pytest.raises(OutputError, match="holds a run"):
        compare(runs[1:], output_dir=runs[0], overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("mine")
    with pytest.raises(OutputError, match=r"report\.html"):
        compare(runs, output_dir=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "report.html").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file stands"):
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
        compare(runs, output_dir=tmp_path / "c", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()} == before
    with pytest.raises(OutputError, match="No space left"):
        compare(runs, output_dir=tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def broken(source: Path, target: Path, change) -> Path:
    shutil.copytree(source, target)
    change(target)
    return target


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda run: (run / "unlearning.json").unlink(), "no finished run"),
        (lambda run: (run / "summary.json").write_text("{"), "can't be read"),
        (lambda run: (run / "summary.json").write_text("{}"), "has no schema_version"),
        (lambda run: (run / "summary.json").write_text('{"schema_version": 0}'), "has schema_version 0"),
        (lambda run: (run / "summary.json").write_text('{"schema_version": 1}'), "no figures of the base"),
        (lambda run: (run / "sequences.parquet").write_bytes(b"PAR1"), "can't be read"),
        (lambda run: (run / "sequences.parquet").unlink(), "no column 'id'"),
        (lambda run: (run / "recipe.yaml").write_text("a: ["), "can't be read"),
        (lambda run: (run / "adapter_model.safetensors").unlink(), "can't be read"),
        (lambda run: shutil.rmtree(run), "no finished run"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_one_line(place, tmp_path, change, named, capsys):
    folder, _ = place
    runs = folder / "out" / "runs"
    bad = broken(runs / "ga-seed0", tmp_path / "bad", change)
    assert cli.main(["compare", str(runs / "ga-seed1"), str(bad), "--output_dir", str(tmp_path / "c")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and str(bad) in lines[0] and named in lines[0] and not (tmp_path / "c").exists()


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


def test_the_page_is_one_file_that_loads_nothing(place):
    page = (place[0] / "out" / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!#)', page) and "<script" not in page and "@import" not in page
    assert "default-src 'none'" in page
    for word in ("sga", "ga", "broken, seed 0", "test", "Forgetting against cost", "2 seeds", "<svg"):
        assert word in page


def test_without_holdout_or_test_there_is_still_a_table():
    runs = [made(name, SPREAD + shift) for name, shift in (("a", 0.0), ("b", 0.2))]
    bare = []
    for run in runs:
        kept = ("memorization_accuracy_mean", "memorization_accuracy_max", "extractable")
        forms = {
            form: {key: figures[key] for key in kept} | {"bounds": {"kind": "paper", "low": 0.15, "high": 0.6}}
            for form, figures in run.summary["forms"].items()
        }
        bare.append(replace(run, holdout=pd.DataFrame(), summary={"forms": forms}))
    found = comparison.compare(bare)
    assert not found.rows[["front_holdout", "front_test"]].to_numpy().any()
    assert report.figures.pictures(found.rows) == []
    assert report.render_comparison(found, manifest.of_comparison(found.about), [])


# --- what a run costs ---


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux only: elsewhere a peak can't be restarted"
)
def test_a_run_s_peak_memory_is_its_own():
    block = np.ones(400_000_000, dtype=np.uint8)
    del block
    before = manifest._peak_memory()
    manifest.restart_peak_memory()
    assert manifest._peak_memory() < before - 200_000_000


def test_renewed_puts_its_mark_last(tmp_path):
    out = tmp_path / "out"
    with run_folder.renewed(out, "mark") as staging:
        (staging / "mark").write_text("1")
        (staging / "figures").mkdir()
        (staging / "figures" / "a.png").write_text("1")
    (out / "runs").mkdir()
    seen = []
    replace_file = Path.replace

    def watched(self, target):
        seen.append((self.name, (out / "mark").exists()))
        return replace_file(self, target)

    with pytest.MonkeyPatch.context() as patch, run_folder.renewed(out, "mark") as staging:
        patch.setattr(Path, "replace", watched)
        for name in ("mark", "new"):
            (staging / name).write_text("2")
        (staging / "figures").mkdir()
    assert seen[-1] == ("mark", False) and {name for name, _ in seen} == {"mark", "new", "figures"}
    assert sorted(path.name for path in out.iterdir()) == ["figures", "mark", "new", "runs"]
    assert not list((out / "figures").iterdir()), "the old figures are gone"


def test_public_api_reads_evaluations_too(place, tmp_path):
    from adapter_unlearn import evaluate

    folder, _ = place
    run = folder / "out" / "runs" / "ga-seed0"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    files = {name: recipe["data"][name] for name in ("forget", "holdout", "test")}
    evaluate(recipe["model"]["name"], run, quantization="none", dtype="float32", output_dir=tmp_path / "e", **files)
    found = compare([run, tmp_path / "e"])
    assert list(found.rows["method"]) == ["base", "ga-seed0", "e"] and found.pairs.loc[0, "alike"]
    assert np.isnan(found.rows.loc[2, "seconds"]) and read(tmp_path / "e").weights is None
