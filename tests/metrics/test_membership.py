"""Membership scores, on likelihoods made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import predictions_of

from adapter_unlearn.metrics import NotScorableError, membership


def test_the_least_likely_fifth():
    predictions = predictions_of("." * 11, nll=[9.0, 1, 2, 8, 1, 1, 1, 1, 1, 1, 7], scored_from=2)
    assert membership.min_k(predictions) == pytest.approx(-(8 + 7) / 2)
    assert membership.min_k(predictions_of("...", nll=[3.0, 1, 2])) == -3, "one token at least"
    expected = {"log_p_mean": np.array([-3.0, -3.0]), "log_p_deviation": np.array([2.0, 0.0])}
    predictions = predictions_of("xx", nll=[1.0, 3.0], **expected)
    assert membership.min_k_plus_plus(predictions, k=1.0) == pytest.approx((1 + 0) / 2)
    predictions = predictions_of("xx", nll=[1.0, 3.001], **expected)
    assert membership.min_k_plus_plus(predictions) == pytest.approx(-1, rel=1e-3), "of a deviation of 0.001"


def test_zlib_and_the_model_without_adapters():
    assert membership.zlib_ratio(predictions_of("..", nll=[1.0, 3.0], zlib_bytes=8)) == 0.25
    predictions = predictions_of("..", nll=[1.0, 3.0], reference_nll=np.array([4.0, 1.0]))
    assert membership.reference_loss_difference(predictions) == -0.5
    with pytest.raises(NotScorableError, match="tokenizer"):
        membership.zlib_ratio(predictions_of(".."))
    with pytest.raises(NotScorableError, match="no adapters"):
        membership.reference_loss_difference(predictions_of(".."))
    with pytest.raises(NotScorableError, match="not finite"):
        membership.reference_loss_difference(predictions_of("..", reference_nll=np.array([np.nan, 1])))
