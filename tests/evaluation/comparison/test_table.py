"""The tables of a comparison, from synthetic runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import SPREAD, finished_run

from adapter_unlearn import RecipeError
from adapter_unlearn.evaluation import comparison
from adapter_unlearn.evaluation.comparison import Failed


def test_seeds_are_means_and_ranges():
    runs = [finished_run(f"r/m-seed{seed}", SPREAD + 0.02 * seed, seed, "m", 1.1 + 0.1 * seed) for seed in (0, 1, 2)]
    result = comparison.compare([*runs, finished_run("r/other", SPREAD + 0.1)])
    row = result.rows.set_index("method").loc["m"]
    assert row["n_runs"] == 3 and row["seeds"] == "0 1 2" and list(result.rows["method"]) == ["base", "m", "other"]
    assert row["memorization_accuracy_mean"] == pytest.approx(SPREAD.mean() + 0.02)
    assert row["holdout_perplexity_change"] == pytest.approx(0.2)
    ends = row["holdout_perplexity_change_seeds_min"], row["holdout_perplexity_change_seeds_max"]
    assert ends == pytest.approx((0.1, 0.3)) and row["goal_reached"] == pytest.approx(1 / 3)
    counts = [comparison.failing(run, "stacked").sum() for run in runs]
    assert row["failing"] == pytest.approx(np.mean(counts))
    assert (row["failing_seeds_min"], row["failing_seeds_max"]) == (min(counts), max(counts))
    assert row["failing_low"] <= row["failing"] <= row["failing_high"]
    other = result.rows.set_index("method").loc["other"]
    assert result.baseline == "m" and other["difference"] == pytest.approx(0.08)
    # all sequences differ by the same amount, so every bootstrap sample has the same mean
    assert other["difference_low"] == pytest.approx(0.08) and other["difference_high"] == pytest.approx(0.08)
    assert np.isnan(row["difference"])


def test_one_recipe_and_one_seed_twice_are_two_rows_and_duplicates():
    runs = [finished_run("x/a", SPREAD, 0, "m", weights="w"), finished_run("y/a", SPREAD, 0, "m", weights="w")]
    result = comparison.compare(runs)
    assert list(result.rows["method"]) == ["base", "x/a", "y/a"] and result.pairs.loc[0, "duplicate"]
    assert any("same adapter, byte for byte" in warning for warning in result.warnings)


def test_it_warns_of_methods_that_are_identical_within_noise():
    rng = np.random.default_rng(0)
    near, far = finished_run("near", SPREAD + rng.normal(0, 0.004, 12)), finished_run("far", SPREAD + 0.1)
    result = comparison.compare([finished_run("a", SPREAD), near, far])
    alike = [warning for warning in result.warnings if "identical within noise" in warning]
    assert len(alike) == 1 and alike[0].startswith("a and near") and list(result.pairs["alike"]) == [True, False, False]
    # methods that forget alike but differ in the damage to never-seen text are not the same
    damaged = near.holdout.assign(loss=lambda frame: frame["loss"] + (frame["form"] == "stacked"))
    assert not comparison.compare([finished_run("a", SPREAD), replace(near, holdout=damaged)]).pairs.loc[0, "alike"]


def test_baseline_and_best():
    runs = [
        finished_run("a", SPREAD + 0.3),
        finished_run("b", np.full(12, 0.2), perplexity_ratio=1.3),
        finished_run("c", np.full(12, 0.2)),
    ]
    assert comparison.compare(runs).baseline == "a" and comparison.compare(runs, baseline="b").baseline == "b"
    assert comparison.compare(runs, baseline="best").baseline == "c", "as few failing, and less damage"
    with pytest.raises(RecipeError, match=r"'z'.*best, a, b, c"):
        comparison.compare(runs, baseline="z")
    failed = comparison.compare(runs, [Failed("z", 0, "z-seed0", "no memory")], "z")
    assert failed.baseline == "a" and any("baseline z failed" in warning for warning in failed.warnings)
    assert failed.runs.set_index("method").loc["z", "failed"] == "no memory"
    table = comparison.compare(runs).rows.set_index("method")
    assert list(table["front_holdout"]) == [False, False, False, True], "the base is on no front, c beats the others"


def test_failing_is_that_of_the_rows():
    run = finished_run("a", SPREAD)
    rows = run.sequences[run.sequences["form"] == "stacked"].reset_index(drop=True)
    old = run.sequences[run.sequences["form"] == "base"].reset_index(drop=True)
    for i, value in enumerate(comparison.failing(run, "stacked")):
        now, before = rows.loc[i], old.loc[i]
        high = now["memorization_accuracy"] > 0.29
        low = now["memorization_accuracy"] < 0.11 <= before["memorization_accuracy"]
        assert value == float(high or low or now["extractable_any_prefix"] == 1 or now["longest_verbatim_run"] > 4)
    assert 0 < comparison.failing(run, "stacked").sum() < 12
    rows = run.sequences.copy()
    rows.loc[rows["form"] == "stacked", "memorization_accuracy"] = np.nan
    assert np.isnan(comparison.failing(replace(run, sequences=rows), "stacked")).all()


def test_forms_have_rows_of_their_own():
    both = finished_run("a", SPREAD, forms=("stacked", "merged"))
    result = comparison.compare([both, finished_run("b", SPREAD)])
    assert [tuple(row) for row in result.rows[["method", "form"]].to_numpy()] == [
        ("base", "base"), ("a", "stacked"), ("a", "merged"), ("b", "stacked"),
    ]  # fmt: skip
    assert list(result.pairs["form"]) == ["stacked"]


def test_without_a_holdout_set():
    runs = [finished_run(name, SPREAD + shift, with_holdout=False) for name, shift in (("a", 0.0), ("b", 0.2))]
    result = comparison.compare(runs)
    assert not result.rows[["front_holdout", "front_test"]].to_numpy().any()
    assert result.rows["auc_loss"].isna().all() and result.rows["holdout_perplexity"].isna().all()
    assert result.about["bounds"]["kind"] == "paper" and result.about["n_holdout"] == 0
    assert "holdout_loss_distance" not in result.pairs
