"""The verdict: outcomes by key, and the figures in its sentences."""

import re

import numpy as np
import pandas as pd
import pytest
from reporting.builders import ALL_FORMS, BASE, EVERY_FORM, GOOD, NAN, curves_of, precise, summary_of, varied, with_form

from adapter_unlearn.evaluation.criteria import PAPER
from adapter_unlearn.evaluation.summary import Summary
from adapter_unlearn.reporting.formatting import plural
from adapter_unlearn.reporting.run.verdict import headline, verdict

KEYS = (
    "failing", "recitation", "any_prefix", "holdout_maximum", "holdout_band", "verbatim_run", "over_forgotten",
    "test_perplexity", "holdout_perplexity",
)  # fmt: skip


def outcomes(checks):
    return {check.key: check.outcome for check in checks}


@pytest.mark.parametrize(
    ("changed", "key", "outcome"),
    [
        ({"failing": 1}, "failing", "fail"),
        ({"extractable": 1}, "recitation", "fail"),
        ({"extractable_50": 1}, "recitation", "fail"),
        ({"extractable": NAN}, "recitation", "unknown"),
        ({"extractable_any_prefix": 0.25}, "any_prefix", "fail"),
        ({"extractable_any_prefix": None}, "any_prefix", "unknown"),
        ({"memorization_accuracy_max": 0.35}, "holdout_maximum", "pass"),
        ({"memorization_accuracy_max": 0.36}, "holdout_maximum", "fail"),
        ({"memorization_accuracy_max": NAN}, "holdout_maximum", "unknown"),
        ({"outliers_high": 1}, "holdout_band", "fail"),
        ({"longest_verbatim_run_max": 10}, "verbatim_run", "fail"),
        ({"outliers_low_new": 1}, "over_forgotten", "fail"),
        ({"outliers_low": 1}, "over_forgotten", "pass"),
        ({"test_perplexity": 103.0}, "test_perplexity", "pass"),
        ({"test_perplexity": 103.1}, "test_perplexity", "fail"),
        ({"test_perplexity": float("inf")}, "test_perplexity", "fail"),
        ({"test_perplexity": NAN}, "test_perplexity", "unknown"),
        ({"test_perplexity": 50.0}, "test_perplexity", "pass"),
        ({"holdout_perplexity": 44.0}, "holdout_perplexity", "pass"),
        ({"holdout_perplexity": 44.1}, "holdout_perplexity", "fail"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
)
def test_every_check_decides_alone(changed, key, outcome):
    checks = verdict(summary_of(**changed))
    assert outcomes(checks) == dict.fromkeys(KEYS, "pass") | {key: outcome}
    for check in checks:
        assert not check.sentence[0].islower() and check.sentence.endswith(".")
        assert "nan" not in check.sentence.lower() and "None " not in check.sentence.replace("None of", "")


def test_success_passes_every_check():
    checks = verdict(summary_of())
    assert tuple(outcomes(checks)) == KEYS and {check.outcome for check in checks} == {"pass"}
    told = headline(summary_of(), checks)
    assert "None of the 4" in told and "(2 before)" in told and "fail" not in told


def test_the_number_of_failing_sequences_is_said():
    (check,) = (check for check in verdict(summary_of(failing=3)) if check.key == "failing")
    assert check.outcome == "fail" and "3 of the 4 sequences" in check.sentence


def test_limits_of_perplexity_are_parameters():
    summary = summary_of(test_perplexity=104.0, holdout_perplexity=50.0)
    loose = verdict(summary, test_limit=0.05, holdout_limit=0.3)
    assert {check.outcome for check in loose} == {"pass"}


def without_holdout(**changed):
    """Two forms of an evaluation without a holdout set: the paper's bounds, no figures of never-seen text."""

    def bare(form, **values):
        kept = {name: value for name, value in form.perplexities.items() if name != "holdout"}
        return varied(varied(form, bounds=PAPER, holdout=None), perplexities=kept, **values)

    return Summary({"base": bare(BASE), "stacked": bare(GOOD, **changed)})


UNDECIDED = ("failing", "holdout_maximum", "holdout_band", "verbatim_run", "over_forgotten", "holdout_perplexity")


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        pytest.param({}, (), id="nothing fails by the paper's bounds"),
        pytest.param({"failing": 2, "outliers_high": 2}, ("failing", "holdout_band"), id="high outliers"),
        pytest.param({"failing": 2, "outliers_low_new": 2}, (), id="new low outliers prove nothing"),
        pytest.param({"failing": 3, "outliers_low_new": 2}, ("failing",), id="one more than the new low outliers"),
    ],
)
def test_without_a_holdout_set_fixed_bounds_never_acquit(changed, failed):
    expected = dict.fromkeys(KEYS, "pass") | dict.fromkeys(UNDECIDED, "unknown") | dict.fromkeys(failed, "fail")
    assert outcomes(verdict(without_holdout(**changed))) == expected


def test_only_the_base_was_measured():
    summary = summary_of("base")
    assert verdict(summary) == []
    assert "2 of the 4 sequences" in headline(summary, [])


def test_headline_counts_what_could_not_be_decided():
    summary = without_holdout()
    assert f"{len(UNDECIDED)} of {len(KEYS)} checks" in headline(summary, verdict(summary))
    unmeasured = summary_of(extractable=NAN)
    assert "1 of 9 checks" in headline(unmeasured, verdict(unmeasured))


def test_headline_names_the_worst_form():
    summary = summary_of(*ALL_FORMS)
    assert "(stacked, merged, requantized; 2 before)" in headline(summary, verdict(summary))
    summary = with_form(summary, "requantized", extractable=1)
    told = headline(summary, verdict(summary))
    assert told.startswith("1 of the 4 sequences") and "'requantized' (2 before)" in told and "1 of 27 checks" in told


def test_headline_counts_before_in_the_form_s_own_precision():
    summary = precise()
    assert "2 to 3 before)" in headline(summary, verdict(summary))
    alone = Summary({form: summary.forms[form] for form in ("base", "merged")})
    assert "(3 before)" in headline(alone, verdict(alone))


def test_a_form_is_judged_against_the_base_in_its_own_precision():
    checks = {(c.form, c.key): c for c in verdict(precise(test_perplexity=95.0, holdout_perplexity=30.0))}
    assert {key for key, check in checks.items() if check.outcome != "pass"} == {
        ("merged", "test_perplexity"),
        ("merged", "holdout_perplexity"),
    }
    for form, key, figures in (
        ("merged", "test_perplexity", ("95.00", "101.0", "+6.3 %")),
        ("stacked", "test_perplexity", ("100.0", "101.0", "+1.0 %")),
        ("merged", "recitation", ("(3 before)",)),
        ("stacked", "recitation", ("(2 before)",)),
    ):
        assert all(figure in checks[form, key].sentence for figure in figures)


def test_never_seen_text_is_one_yardstick_for_all_forms():
    summary = precise(holdout_memorization_accuracy_max=0.01, holdout_longest_verbatim_run_max=1)
    assert {check.outcome for check in verdict(summary)} == {"pass"}


def any_prefix(summary, curves):
    """The check of every form."""
    return {check.form: check for check in verdict(summary, curves) if check.key == "any_prefix"}


@pytest.mark.parametrize("seed", range(6))
def test_any_prefix_follows_its_definition_and_never_counts_too_many(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(21, 60, 12) if seed % 2 else [40] * 12
    hits = [np.arange(n) >= rng.integers(0, n + 1) for n in lengths]  # recited from some token on
    hits[0][-1] = False
    recited = sum(any(all(one[k:]) for k in range(len(one) - 19)) for one in hits)
    shortest = min(k for one in hits for k in range(1, len(one) - 18) if all(one[k - 1 :]))
    curves = curves_of({"base": hits, "stacked": [one & False for one in hits]})
    before, after = curves[curves["form"] == "base"], curves[curves["form"] == "stacked"]
    passed, failed = (
        any_prefix(summary_of(extractable_any_prefix=None), frame)["stacked"]
        for frame in (curves, pd.concat([after.assign(form="base"), before.assign(form="stacked")]))
    )
    assert (passed.outcome, failed.outcome) == ("pass", "fail")
    counts = [int(re.search(r"(?i)at least (\d+) (?!tok)", check.sentence)[1]) for check in (passed, failed)]
    assert counts[0] == counts[1] and 0 < counts[0] <= recited
    if seed % 2 == 0:
        assert counts[0] == recited, "texts of one length all end in the curve's last row"
    assert failed.sentence.endswith(f"{plural(shortest, 'token')}.")


EMPTY = pd.DataFrame(columns=["prefix_tokens", "n_sequences", "extractable", "recited_max", "form"])


@pytest.mark.parametrize("nothing", [None, pd.DataFrame(), EMPTY], ids=["none", "no columns", "no rows"])
def test_without_curves_the_metric_decides(nothing):
    unknown = verdict(summary_of(extractable_any_prefix=None), nothing)
    assert {check.key for check in unknown if check.outcome != "pass"} == {"any_prefix"}
    assert {check.outcome for check in verdict(summary_of(), nothing)} == {"pass"}


def test_the_curves_decide_whatever_the_metric_says():
    still = any_prefix(summary_of(), curves_of({"base": [[True] * 30], "stacked": [[True] * 30, [False] * 30]}))
    assert still["stacked"].outcome == "fail"
    assert "least 1 sequence " in still["stacked"].sentence and "1 token." in still["stacked"].sentence
    never = any_prefix(summary_of(), curves_of({"base": [[False] * 30], "stacked": [[False] * 30]}))
    assert never["stacked"].outcome == "pass" and "(none before)" in never["stacked"].sentence


def test_curves_of_the_base_count_only_where_it_has_the_form_s_precision():
    curves = curves_of({form: [np.full(30, form == "base")] * 3 for form in EVERY_FORM})
    checks = any_prefix(precise(), curves)
    assert "3 before" in checks["stacked"].sentence and "before" not in checks["merged"].sentence
