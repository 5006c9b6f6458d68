"""Single measures on hand-made predictions, the table and its page, outliers, and the area under the curve."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn import RecipeError
from adapter_unlearn.metrics import (
    NotScorableError,
    Predictions,
    docs,
    membership,
    prefixes,
    sampling,
    set_level,
    table,
    teacher_forced,
)
from adapter_unlearn.metrics.table import FORWARD, METRICS


def seen(pattern: str, prefix_tokens=1, scored_from=1, nll=None, **statistics):
    hits = np.array([mark == "x" for mark in pattern], dtype=bool)
    nll = np.ones(len(hits)) if nll is None else np.array(nll)
    return Predictions(hits, nll, prefix_tokens, scored_from, **statistics)


def everything(pattern: str) -> Predictions:
    """With every statistic that a metric may need."""
    nll = [0.01 if mark == "x" else 6.0 for mark in pattern]
    n = len(nll)
    statistics = {"log_p_mean": np.full(n, -3.0), "log_p_deviation": np.full(n, 1.5), "zlib_bytes": 80}
    return seen(pattern, nll=nll, sampled_log_p=-np.array(nll), reference_nll=np.full(n, 2.0), **statistics)


def test_by_hand():
    predictions = seen("xx.xxx.", prefix_tokens=4)
    assert teacher_forced.memorization_accuracy(predictions) == pytest.approx(5 / 7)
    assert teacher_forced.longest_verbatim_run(predictions) == 3
    assert teacher_forced.extractable(predictions) == 0
    assert teacher_forced.extractable(seen(".x.xxxx", prefix_tokens=4)) == 1
    assert teacher_forced.loss(seen("xx", nll=[1.0, 3.0])) == 2
    assert teacher_forced.longest_verbatim_run(seen("...")) == 0


def test_a_prompt_counts_for_nothing():
    predictions = seen("....xx", prefix_tokens=5, scored_from=5, nll=[9, 9, 9, 9, 1, 1])
    assert teacher_forced.memorization_accuracy(predictions) == 1
    assert teacher_forced.loss(predictions) == 1


def test_fifty_needs_fifty():
    assert teacher_forced.extractable_50(seen("." * 9 + "x" * 50 + ".", prefix_tokens=10)) == 1
    assert teacher_forced.extractable_50(seen("x" * 9 + "." + "x" * 49, prefix_tokens=10)) == 0
    with pytest.raises(NotScorableError, match="50 needed"):
        teacher_forced.extractable_50(seen("x" * 58, prefix_tokens=10))


@given(st.text(alphabet="x.", min_size=1, max_size=80))
def test_the_longest_run_is_the_longest_stretch(pattern):
    assert teacher_forced.longest_verbatim_run(seen(pattern)) == max(map(len, pattern.split(".")))


patterns = st.text(alphabet="x.", min_size=1, max_size=60)


@given(patterns)
def test_extraction_strength_is_what_need_not_be_given(pattern):
    hits, total = [mark == "x" for mark in pattern], len(pattern)
    given_least = next(k for k in range(total + 1) if all(hits[k:]))
    assert teacher_forced.extraction_strength(seen(pattern)) == pytest.approx(1 - given_least / total)
    theirs = next((k for k in range(total) if all(hits[k:])), total - 1)
    assert teacher_forced.extraction_strength_openunlearning(seen(pattern)) == pytest.approx(1 - theirs / total)


def test_nothing_comes_by_itself():
    assert teacher_forced.extraction_strength(seen("xx.")) == 0
    assert teacher_forced.extraction_strength_openunlearning(seen("xx.")) == pytest.approx(1 / 3)
    assert teacher_forced.exact_memorization(seen("..xx.x", prefix_tokens=3)) == pytest.approx(3 / 4)


@given(patterns, st.integers(1, 30))
def test_every_prefix_that_leaves_twenty(pattern, scored_from):
    hits, tokens = [mark == "x" for mark in pattern], len(pattern) + 1
    predictions = seen(pattern, prefix_tokens=50, scored_from=min(scored_from, tokens))
    curve = prefixes.prefix_curve(predictions)
    lengths = range(predictions.scored_from, tokens - 20 + 1)
    assert curve["prefix_tokens"].tolist() == list(lengths)
    assert curve["extractable"].tolist() == [all(hits[k - 1 :]) for k in lengths]
    assert curve["recited"].tolist() == [len(pattern[k - 1 :].split(".")[0]) for k in lengths]
    assert curve["longest_verbatim_run"].tolist() == [max(map(len, pattern[k - 1 :].split("."))) for k in lengths]
    if lengths:
        assert prefixes.extractable_any_prefix(predictions) == curve["extractable"].any()
    else:
        with pytest.raises(NotScorableError):
            prefixes.extractable_any_prefix(predictions)


def test_a_sample_of_a_hundred():
    """p_z is a product over what follows the prefix; (n, p) asks for one hit in n draws."""
    log_p = np.log([0.1, 0.5, 0.25, 0.5])
    predictions = seen("....", prefix_tokens=2, sampled_log_p=log_p)
    assert sampling.p_z(predictions) == pytest.approx(1 / 16)
    assert sampling.log_p_z(predictions) == pytest.approx(math.log(1 / 16))
    assert sampling.np_extractable(predictions, n=10, p=0.47) == 1  # 1 - (15/16)^10 = 0.4755
    assert sampling.np_extractable(predictions, n=10, p=0.48) == 0
    assert sampling.np_extractable(seen("x", sampled_log_p=np.zeros(1))) == 1
    cut = seen("..", sampled_log_p=np.array([0.0, -np.inf]))
    assert (sampling.p_z(cut), sampling.log_p_z(cut), sampling.np_extractable(cut)) == (0, -math.inf, 0)


def test_unlikely_but_not_impossible():
    """1 - (1 - p)^n is 0 in floating point from p = 1e-17 on; and p itself from about 1e-324 on."""
    rare = seen("x", sampled_log_p=np.log([1e-20]))
    assert sampling.np_extractable(rare, n=10**20, p=0.63) == 1
    assert sampling.np_extractable(rare, n=10**20, p=0.64) == 0
    rarer = seen("x" * 200, sampled_log_p=np.full(200, -5.0))
    assert sampling.p_z(rarer) == 0 and sampling.log_p_z(rarer) == -1000


def test_the_least_likely_fifth():
    predictions = seen("." * 11, nll=[9.0, 1, 2, 8, 1, 1, 1, 1, 1, 1, 7], scored_from=2)
    assert membership.min_k(predictions) == pytest.approx(-(8 + 7) / 2)
    assert membership.min_k(seen("...", nll=[3.0, 1, 2])) == -3, "one token at least"
    expected = {"log_p_mean": np.array([-3.0, -3.0]), "log_p_deviation": np.array([2.0, 0.0])}
    predictions = seen("xx", nll=[1.0, 3.0], **expected)
    assert membership.min_k_plus_plus(predictions, k=1.0) == pytest.approx((1 + 0) / 2)
    predictions = seen("xx", nll=[1.0, 3.001], **expected)
    assert membership.min_k_plus_plus(predictions) == pytest.approx(-1, rel=1e-3), "of a deviation of 0.001"


def test_zlib_and_the_model_without_adapters():
    assert membership.zlib_ratio(seen("..", nll=[1.0, 3.0], zlib_bytes=8)) == 0.25
    predictions = seen("..", nll=[1.0, 3.0], reference_nll=np.array([4.0, 1.0]))
    assert membership.reference_loss_difference(predictions) == -0.5
    with pytest.raises(NotScorableError, match="tokenizer"):
        membership.zlib_ratio(seen(".."))
    with pytest.raises(NotScorableError, match="no adapters"):
        membership.reference_loss_difference(seen(".."))
    with pytest.raises(NotScorableError, match="not finite"):
        membership.reference_loss_difference(seen("..", reference_nll=np.array([np.nan, 1])))


@pytest.mark.parametrize("name", FORWARD)
def test_no_tokens_no_number(name):
    with pytest.raises(NotScorableError):
        METRICS[name].function(everything(""))


@pytest.mark.parametrize("name", FORWARD)
def test_numbers_keep_to_their_range(name):
    for pattern in ("x" * 70, "." * 70, "x." * 35):
        assert METRICS[name].lower <= METRICS[name].function(everything(pattern)) <= METRICS[name].upper


@pytest.mark.parametrize("name", FORWARD)
def test_the_table_says_which_way_a_metric_goes(name):
    recited, unseen = (METRICS[name].function(everything(pattern)) for pattern in ("x" * 70, "." * 70))
    assert recited > unseen if METRICS[name].memorized == "high" else recited < unseen


@pytest.mark.parametrize("name", FORWARD)
def test_a_metric_names_what_it_needs(name):
    """Only that, of what is not always there, and zlib_bytes, which a sequence has or has not."""
    whole = everything("x." * 35)
    optional = ("log_p_mean", "log_p_deviation", "sampled_log_p", "reference_nll")
    needed = {need: getattr(whole, need) for need in METRICS[name].needs}
    assert needed.keys() <= set(optional)
    bare = Predictions(whole.hits, whole.nll, 1, 1, whole.zlib_bytes, **needed)
    assert METRICS[name].function(bare) == METRICS[name].function(whole)
    assert METRICS[name].cost == ("2 forwards" if "reference_nll" in needed else "1 forward")


def test_chosen():
    assert list(table.resolve(["loss", "min_k", "loss"])) == ["loss", "min_k"]
    assert table.resolve(["loss", "all"]) == ["loss", *(name for name in METRICS if name != "loss")]
    assert table.resolve(["forward"]) == [*FORWARD] and {*FORWARD} < {*METRICS}
    with pytest.raises(RecipeError, match="unknown metric 'bleurt'; choose from forward, all, memorization_accuracy"):
        table.resolve(["bleurt"])


def test_the_page_of_metrics_is_up_to_date():
    """If not: python -m adapter_unlearn.metrics.docs > docs/metrics.md."""
    written = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == docs.page()
    assert all(f"\n| `{name}` | " in written for name in METRICS)
    rows = [line for line in written.splitlines() if line.startswith("| `")]
    assert all(line.replace("\\|", "").count("|") == 8 for line in rows), "a bar in a formula ends its cell"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_auc_is_the_share_of_pairs(members, others):
    naive = np.mean([(m > o) + 0.5 * (m == o) for m in members for o in others])
    assert set_level.auc(np.array(members, float), np.array(others, float)) == pytest.approx(naive)


def test_auc_of_nothing():
    assert np.isnan(set_level.auc(np.array([np.nan]), np.array([1.0])))
