"""The typed summary and its JSON form."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from synthetic_runs import SPREAD, UNSEEN, measurement, report

from adapter_unlearn.evaluation.criteria import Criteria
from adapter_unlearn.evaluation.summary import (
    NO_INTERVAL,
    DeltaSummary,
    FormSummary,
    Perplexity,
    Summary,
    TaskScore,
    from_json,
    to_json,
)
from adapter_unlearn.metrics import METRICS
from adapter_unlearn.runs import run_folder

BEFORE = np.linspace(0.5, 1, 12)


@pytest.fixture(params=[True, False], ids=["holdout", "no holdout"])
def summary(request):
    """Every optional part in one form or another, and a NaN in each kind of value."""
    unseen = UNSEEN if request.param else None
    measurements = [measurement("base", BEFORE, unseen), measurement("stacked", SPREAD, unseen, 1.1)]
    other = measurement("base", BEFORE - 0.1, unseen, 1.02)
    measurements.append(dataclasses.replace(measurement("merged", SPREAD, unseen), before=other, loaded_as="float32"))
    forms = dict(report(measurements).summary.forms)
    base_task = TaskScore("piqa", "acc", 40, 0.5, stderr=math.nan)
    after_task = TaskScore("piqa", "acc", 40, 0.4, before=0.5, change=-0.1, change_interval=(-0.2, math.nan))
    forms["base"] = dataclasses.replace(forms["base"], tasks=(base_task,), means={"zlib": math.nan, "surprise": 1.5})
    forms["stacked"] = dataclasses.replace(
        forms["stacked"],
        tasks=(after_task,),
        perplexities={"test": Perplexity(math.nan, NO_INTERVAL, math.nan, (math.nan, 0.1))},
    )
    forms["merged"] = dataclasses.replace(forms["merged"], delta=DeltaSummary(0.1, math.nan, 0.2))
    return Summary(forms)


def normalized(value):
    """The dataclass as nested plain values, in which a NaN equals a NaN."""
    if dataclasses.is_dataclass(value):
        fields = {each.name: normalized(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return type(value).__name__, fields
    if isinstance(value, dict):
        return {key: normalized(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(map(normalized, value))
    return type(value), "nan" if isinstance(value, float) and math.isnan(value) else value


def written(summary, folder):
    run_folder.write_json(folder / "summary.json", to_json(summary))
    return json.loads((folder / "summary.json").read_text())


def test_a_summary_survives_its_file(summary, tmp_path):
    known = {name: value for name, value in summary.base.means.items() if name in METRICS}
    forms = summary.forms | {"base": dataclasses.replace(summary.base, means=known)}
    expected = Summary(forms)
    assert normalized(from_json(written(expected, tmp_path))) == normalized(expected)


def test_a_single_sequence_has_no_interval(tmp_path):
    summary = report([measurement("base", [0.9]), measurement("stacked", [0.2])]).summary
    assert all(map(math.isnan, summary.base.memorization_accuracy_mean_interval))
    values = written(summary, tmp_path)
    assert values["forms"]["stacked"]["memorization_accuracy_mean_interval"] == [None, None]
    assert normalized(from_json(values)) == normalized(summary)


def test_keys_of_the_file(summary, tmp_path):
    values = written(summary, tmp_path)
    assert values["schema_version"] == run_folder.SCHEMA_VERSION and list(values["forms"]) == list(summary.forms)
    keys = {
        "n_sequences", "failing", "memorization_accuracy_mean", "memorization_accuracy_max", "longest_verbatim_run_max",
        "extractable", "extractable_50", "outliers_high", "outliers_low", "outliers_low_new", "loss_mean", "bounds",
        "paper_bounds",
    }  # fmt: skip
    with_holdout = {
        "holdout_memorization_accuracy_mean", "holdout_memorization_accuracy_max", "holdout_longest_verbatim_run_max",
        "holdout_extractable", "membership_auc_memorization_accuracy", "membership_auc_loss",
    }  # fmt: skip
    for form, result in values["forms"].items():
        assert keys <= set(result)
        assert (with_holdout <= set(result)) == (summary.base.holdout is not None)
        assert set(result["paper_bounds"]) == {"low", "high", "outliers_high", "outliers_low", "outliers_low_new"}
        assert ("before" in result) == (form == "merged") == ("delta" in result)
        assert ("test_perplexity_change" in result) == ("test_perplexity" in result and form != "base")
    if summary.base.holdout is not None:
        assert {"test_perplexity", "test_perplexity_interval"} <= set(values["forms"]["base"])
        assert "holdout_perplexity_change_interval" in values["forms"]["merged"]


def test_what_a_form_is_compared_with(summary):
    assert summary.base.form == "base" and [form.form for form in summary.after] == ["stacked", "merged"]
    assert summary.before("stacked") is summary.base
    assert summary.before("merged").loss_mean == pytest.approx(summary.base.loss_mean + 0.5)
    longest = None if summary.base.holdout is None else 4
    assert summary.criteria == Criteria(summary.base.bounds, longest)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="no forms"),
        pytest.param({"forms": {}}, id="no base"),
        pytest.param({"forms": []}, id="a list"),
        pytest.param({"forms": {"base": {"n_sequences": 3}}}, id="keys are missing"),
    ],
)
def test_no_summary(values):
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        from_json(values)


def test_every_field_of_a_form_is_in_the_file():
    """A field that is added to FormSummary without a place in the file would get lost in silence."""
    plain = {"int", "float", "Interval"}
    grouped = {
        "form", "bounds", "outliers", "paper_outliers", "means", "holdout", "perplexities", "tasks", "delta", "before",
        "loaded_as",
    }  # fmt: skip
    for each in dataclasses.fields(FormSummary):
        assert (each.type in plain) != (each.name in grouped), each.name
