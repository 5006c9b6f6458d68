"""Which runs are comparable, and how their rows are paired."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from synthetic_runs import SPREAD, finished_run

from adapter_unlearn import RunError
from adapter_unlearn.evaluation import comparison
from adapter_unlearn.evaluation.comparison.comparable import comparable
from adapter_unlearn.recipe import Data


def test_rows_are_paired_by_id_whatever_their_order():
    first, second = finished_run("a", SPREAD), finished_run("b", SPREAD)
    shuffled = second.sequences.sample(frac=1, random_state=0).reset_index(drop=True)
    _, ordered = comparable([first, replace(second, sequences=shuffled)])
    for form in ("base", "stacked"):
        pd.testing.assert_frame_equal(
            *(frame[frame["form"] == form].reset_index(drop=True) for frame in (ordered.sequences, second.sequences)),
            check_dtype=False,
        )  # fmt: skip
    result = comparison.compare([first, replace(second, sequences=shuffled)])
    assert result.pairs.loc[0, "memorization_accuracy_distance"] == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(
            lambda run: {"manifest": run.manifest | {"base": {"name": "n", "fingerprint": "sha256:2"}}},
            "base models",
            id="another base",
        ),
        pytest.param(
            lambda run: {"manifest": run.manifest | {"base": run.manifest["base"] | {"adapter": "x"}}},
            "model.adapter",
            id="a base with an adapter",
        ),
        pytest.param(
            lambda run: {"sequences": run.sequences[run.sequences["id"] != "text-3"]},
            "forget sets.*12 .* 11 ",
            id="a sequence less",
        ),
        pytest.param(
            lambda run: {"sequences": run.sequences.replace("text-3", "text-x")},
            "forget sets.*'text-3'",
            id="other ids",
        ),
        pytest.param(
            lambda run: {"sequences": run.sequences.assign(n_tokens=61)}, "forget sets.*tokens", id="other lengths"
        ),
        pytest.param(
            lambda run: {"sequences": run.sequences.assign(loss=run.sequences["loss"] + 0.5)},
            "forget sets.*loss",
            id="other texts",
        ),
        pytest.param(lambda run: {"holdout": run.holdout.assign(loss=0.0)}, "holdout sets.*loss", id="other holdout"),
        pytest.param(lambda run: {"holdout": pd.DataFrame()}, "holdout sets.*8 .* 0 ", id="no holdout"),
        pytest.param(
            lambda run: {"recipe": replace(run.recipe, data=Data(forget="f.jsonl", prefix_tokens=20))},
            "prefixes.*50 and 20",
            id="other prefixes",
        ),
        pytest.param(
            lambda run: {"summary": finished_run("x", SPREAD, with_holdout=False).summary},
            "holdout and paper",
            id="other bounds",
        ),
    ],
)
def test_runs_of_other_texts_or_bases_are_refused(change, named):
    first, second = finished_run("one", SPREAD), finished_run("two", SPREAD)
    with pytest.raises(RunError, match=f"^one and two: .*{named}") as error:
        comparable([first, replace(second, **change(second))])
    assert "\n" not in str(error.value)


def test_noise_is_no_other_text():
    first, second = finished_run("one", SPREAD), finished_run("two", SPREAD)
    noisy = second.sequences.assign(loss=lambda frame: frame["loss"] + 0.05)
    assert len(comparable([first, replace(second, sequences=noisy)])) == 2


def test_another_precision_changes_the_loss_of_the_base():
    first, second = finished_run("one", SPREAD), finished_run("two", SPREAD)
    coarse = second.manifest | {"base": second.manifest["base"] | {"quantization": "int8"}}
    apart = second.sequences.assign(loss=lambda frame: frame["loss"] + 0.5)
    result = comparison.compare([first, replace(second, manifest=coarse, sequences=apart)])
    assert any("nf4, float32; int8, float32" in warning for warning in result.warnings)


def test_runs_with_other_test_sets_are_compared():
    first, second = finished_run("one", SPREAD), finished_run("two", SPREAD)
    fewer = second.manifest | {"data": {"test": {"n_sequences": 8}}}
    result = comparison.compare([first, replace(second, manifest=fewer)])
    assert any("one and two" in warning and "test set" in warning for warning in result.warnings)
    assert not any("test set" in warning for warning in comparison.compare([first, second]).warnings)
