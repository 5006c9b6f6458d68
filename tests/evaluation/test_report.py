"""A report against figures made from the rows by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from synthetic_runs import SPREAD, UNSEEN, measurement, report

from adapter_unlearn.data import Sets
from adapter_unlearn.evaluation.criteria import PAPER, criteria_of, failing
from adapter_unlearn.evaluation.report import build_report
from adapter_unlearn.evaluation.summary import DeltaSummary
from adapter_unlearn.metrics import set_level

BEFORE = np.linspace(0.5, 1, 12)


@pytest.fixture(scope="module")
def base():
    return measurement("base", BEFORE)


@pytest.fixture(scope="module")
def stacked():
    return measurement("stacked", SPREAD, UNSEEN * 0.9, 1.1)


def test_rows_of_all_forms(base, stacked):
    result = report([base, stacked])
    assert list(result.sequences.columns[:3]) == ["id", "form", "n_tokens"]
    assert list(result.sequences["form"]) == ["base"] * 12 + ["stacked"] * 12
    assert list(result.holdout["form"]) == ["base"] * 8 + ["stacked"] * 8
    assert set(result.membership["form"]) == {"base", "stacked"}
    assert not len(result.curves) and not len(result.utility) and not len(result.deltas)


def test_figures_of_a_form(base, stacked):
    summary = report([base, stacked]).summary
    rules = criteria_of("holdout", base.holdout)
    form = summary.forms["stacked"]
    assert form.bounds == summary.base.bounds == rules.bounds and summary.criteria == rules
    assert form.failing == failing(stacked.forget, base.forget, rules).sum() == 7
    assert (form.outliers.high, form.outliers.low, form.outliers.low_new) == (5, 2, 2)
    assert form.paper_outliers.low == (PAPER.low >= SPREAD).sum()
    assert form.memorization_accuracy_mean == pytest.approx(SPREAD.mean())
    assert form.memorization_accuracy_mean_interval == set_level.mean_interval(SPREAD).interval
    assert (form.extractable, summary.base.extractable, form.n_sequences) == (0, 1, 12)
    assert form.means == {"extractable_any_prefix": 0} and form.loss_mean == pytest.approx(5 * (1 - SPREAD.mean()))
    assert form.holdout.memorization_accuracy_max == pytest.approx(0.27) and form.holdout.longest_verbatim_run_max == 3
    assert form.holdout.membership_auc_loss == pytest.approx(set_level.auc(SPREAD, UNSEEN * 0.9))
    assert (
        form.perplexities["holdout"].change == pytest.approx(0.1) and summary.base.perplexities["test"].change is None
    )


def test_without_a_holdout_set():
    result = report([measurement("base", BEFORE, None), measurement("stacked", SPREAD, None)])
    assert result.summary.base.bounds == PAPER and result.summary.base.holdout is None
    assert list(result.holdout.columns) == ["id", "form", "n_tokens"] and not len(result.membership)


def test_documents_are_counted_once(base, stacked):
    sets = Sets(Dataset.from_dict({"document": ["a"] * 3 + ["b"] * 9}))
    base = dataclasses.replace(base, forget=base.forget.assign(extractable=[1.0, 1, 0] + [0.0] * 8 + [1]))
    summary = build_report([base, stacked], sets, criteria_of("holdout", base.holdout)).summary
    assert (summary.base.n_documents, summary.base.extractable, summary.base.extractable_documents) == (2, 3, 2)


def test_a_form_in_another_precision(base, stacked):
    """Compared with its own base; judged by bounds and longest run of the run's base."""
    own = measurement("base", np.full(12, 0.1), UNSEEN * 2)
    merged = dataclasses.replace(stacked, form="merged", before=own, loaded_as="float32, not quantized")
    summary = report([base, merged]).summary
    form = summary.forms["merged"]
    assert form.bounds == form.before.bounds == summary.base.bounds
    assert form.outliers.low == 2 and form.outliers.low_new == 0, "low in its own base too"
    assert form.failing == form.outliers.high == 5
    assert summary.before("merged") is form.before and form.loaded_as == "float32, not quantized"
    assert form.before.perplexities["test"].change is None
    expected = merged.perplexities["test"] / own.perplexities["test"] - 1
    assert form.perplexities["test"].change == pytest.approx(expected)


def test_deltas_as_one_vector(base, stacked):
    deltas = pd.DataFrame(
        {"module": ["a", "b"], "delta_norm": [3.0, 4.0], "weight_norm": [30.0, 40.0], "relative_size": 0.1,
         "projection": [1.0, 0.0], "relative_error": [0.0, 1.0]}
    )  # fmt: skip
    merged = dataclasses.replace(stacked, form="merged", deltas=deltas)
    result = report([base, merged])
    assert result.summary.forms["merged"].delta == DeltaSummary(
        pytest.approx(0.1), pytest.approx(9 / 25), pytest.approx(0.8)
    )
    assert list(result.deltas["form"]) == ["merged", "merged"]


def test_tasks(base, stacked):
    rows = pd.DataFrame({"task": "t", "metric": "acc", "doc_id": ["0", "1", "2"], "value": [1.0, 1.0, 0.0]})
    base = dataclasses.replace(base, utility=rows)
    stacked = dataclasses.replace(stacked, utility=rows.assign(value=[1.0, 0.0, 0.0]))
    result = report([base, stacked])
    (before,), (after,) = (form.tasks for form in result.summary.forms.values())
    assert (before.value, before.n) == (pytest.approx(2 / 3), 3) and before.stderr == pytest.approx(1 / 3)
    assert (after.before, after.value, after.change) == pytest.approx((2 / 3, 1 / 3, -1 / 3))
    assert after.change_interval == (-1, 0) and list(result.utility["form"]) == ["base"] * 3 + ["stacked"] * 3
