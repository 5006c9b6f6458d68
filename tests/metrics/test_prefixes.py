"""Every prefix that leaves 20 tokens, against the definition."""

from __future__ import annotations

import pytest
from helpers import predictions_of
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn.metrics import NotScorableError, prefixes


@given(st.text(alphabet="x.", min_size=1, max_size=60), st.integers(1, 30))
def test_every_prefix_that_leaves_twenty(pattern, scored_from):
    hits, tokens = [mark == "x" for mark in pattern], len(pattern) + 1
    predictions = predictions_of(pattern, prefix_tokens=50, scored_from=min(scored_from, tokens))
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
