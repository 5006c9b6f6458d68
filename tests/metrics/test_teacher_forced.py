"""Metrics of one teacher-forced forward pass, on predictions made by hand."""

from __future__ import annotations

import pytest
from helpers import predictions_of
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn.metrics import NotScorableError, teacher_forced

patterns = st.text(alphabet="x.", min_size=1, max_size=60)


def test_by_hand():
    predictions = predictions_of("xx.xxx.", prefix_tokens=4)
    assert teacher_forced.memorization_accuracy(predictions) == pytest.approx(5 / 7)
    assert teacher_forced.longest_verbatim_run(predictions) == 3
    assert teacher_forced.extractable(predictions) == 0
    assert teacher_forced.extractable(predictions_of(".x.xxxx", prefix_tokens=4)) == 1
    assert teacher_forced.loss(predictions_of("xx", nll=[1.0, 3.0])) == 2
    assert teacher_forced.longest_verbatim_run(predictions_of("...")) == 0


def test_a_prompt_counts_for_nothing():
    predictions = predictions_of("....xx", prefix_tokens=5, scored_from=5, nll=[9, 9, 9, 9, 1, 1])
    assert teacher_forced.memorization_accuracy(predictions) == 1
    assert teacher_forced.loss(predictions) == 1


def test_fifty_needs_fifty():
    assert teacher_forced.extractable_50(predictions_of("." * 9 + "x" * 50 + ".", prefix_tokens=10)) == 1
    assert teacher_forced.extractable_50(predictions_of("x" * 9 + "." + "x" * 49, prefix_tokens=10)) == 0
    with pytest.raises(NotScorableError, match="50 needed"):
        teacher_forced.extractable_50(predictions_of("x" * 58, prefix_tokens=10))


@given(st.text(alphabet="x.", min_size=1, max_size=80))
def test_the_longest_run_is_the_longest_stretch(pattern):
    assert teacher_forced.longest_verbatim_run(predictions_of(pattern)) == max(map(len, pattern.split(".")))


@given(patterns)
def test_extraction_strength_is_what_need_not_be_given(pattern):
    hits, total = [mark == "x" for mark in pattern], len(pattern)
    given_least = next(k for k in range(total + 1) if all(hits[k:]))
    predictions = predictions_of(pattern)
    assert teacher_forced.extraction_strength(predictions) == pytest.approx(1 - given_least / total)
    theirs = next((k for k in range(total) if all(hits[k:])), total - 1)
    assert teacher_forced.extraction_strength_openunlearning(predictions_of(pattern)) == pytest.approx(
        1 - theirs / total
    )


def test_nothing_comes_by_itself():
    assert teacher_forced.extraction_strength(predictions_of("xx.")) == 0
    assert teacher_forced.extraction_strength_openunlearning(predictions_of("xx.")) == pytest.approx(1 / 3)
    assert teacher_forced.exact_memorization(predictions_of("..xx.x", prefix_tokens=3)) == pytest.approx(3 / 4)
