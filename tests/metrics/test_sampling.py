"""Extraction by sampling, on probabilities made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import predictions_of

from adapter_unlearn.metrics import sampling


def test_a_sample_of_a_hundred():
    """p_z is a product over what follows the prefix; (n, p) asks for one hit in n draws."""
    log_p = np.log([0.1, 0.5, 0.25, 0.5])
    predictions = predictions_of("....", prefix_tokens=2, sampled_log_p=log_p)
    assert sampling.p_z(predictions) == pytest.approx(1 / 16)
    assert sampling.log_p_z(predictions) == pytest.approx(math.log(1 / 16))
    assert sampling.np_extractable(predictions, n=10, p=0.47) == 1  # 1 - (15/16)^10 = 0.4755
    assert sampling.np_extractable(predictions, n=10, p=0.48) == 0
    assert sampling.np_extractable(predictions_of("x", sampled_log_p=np.zeros(1))) == 1
    cut = predictions_of("..", sampled_log_p=np.array([0.0, -np.inf]))
    assert (sampling.p_z(cut), sampling.log_p_z(cut), sampling.np_extractable(cut)) == (0, -math.inf, 0)


def test_unlikely_but_not_impossible():
    """1 - (1 - p)^n is 0 in floating point from p = 1e-17 on; and p itself from about 1e-324 on."""
    rare = predictions_of("x", sampled_log_p=np.log([1e-20]))
    assert sampling.np_extractable(rare, n=10**20, p=0.63) == 1
    assert sampling.np_extractable(rare, n=10**20, p=0.64) == 0
    rarer = predictions_of("x" * 200, sampled_log_p=np.full(200, -5.0))
    assert sampling.p_z(rarer) == 0 and sampling.log_p_z(rarer) == -1000
