"""The parameters of a method: defaults, and what is refused."""

from __future__ import annotations

import math

import pytest

from adapter_unlearn import RecipeError
from adapter_unlearn.unlearning import methods


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"name": "sgb"}, "unknown method 'sgb'"),
        ({}, "method.name: missing"),
        ({"name": 3}, "unknown method 3"),
        ({"name": "sga", "threshold": 1.5}, "method.threshold"),
        ({"name": "sga", "threshold": "high"}, "method.threshold"),
        ({"name": "sga", "threshold": None}, "method.threshold"),
        ({"name": "sga", "run_threshold": 0}, "method.run_threshold"),
        ({"name": "sga", "threshold": math.nan}, "method.threshold"),
        ({"name": "ga", "threshold": 0.5}, "ga takes no such parameter"),
        ({"name": "sga", "retain_weight": -1}, "method.retain_weight"),
        ({"name": "sga", "retain_sequences": 0}, "method.retain_sequences"),
        ({"name": "sga", "retain_loss": "mse"}, "expected nll or kl, got 'mse'"),
        ({"name": "sga", "run_threshold": 2.5}, "a whole number or holdout or null"),
        ({"name": "npo", "beta": 0}, "method.beta"),
        ({"name": "npo", "beta": True}, "expected a number"),
        ({"name": "wga", "alpha": -0.5}, "method.alpha"),
        ({"name": "undial", "strength": 0.0}, "method.strength"),
        ({"name": "match", "others": -0.1}, "method.others"),
        ({"name": "band", "high": 1.5}, "method.high"),
        ({"name": "band", "high": "paper"}, "a number or holdout"),
        ({"name": "band", "high": 0.2, "low": 0.3}, "not below method.high"),
        ({"name": "compose", "select": "some"}, "all or threshold or band or top_k"),
        ({"name": "compose", "select": "top_k", "top_k": 0}, "method.top_k"),
        ({"name": "compose", "select": "all", "threshold": 0.5}, "select all has no such parameter"),
        ({"name": "compose", "loss": "ihl", "beta": 0.5}, "loss ihl has no such parameter"),
        ({"name": "compose", "loss": "npo", "others": 0.5}, "loss npo has no such parameter"),
        ({"name": "control", "retain_weight": 1.0}, "control takes no such parameter"),
    ],
)
def test_a_bad_method(method, named):
    with pytest.raises(RecipeError, match=named):
        methods.resolve(method)


def test_defaults_are_written_out():
    assert methods.resolve({"name": "sga"}) == {
        "name": "sga", "threshold": 0.7, "run_threshold": None, "retain_weight": 0.0, "retain_sequences": 32,
        "retain_loss": "nll",
    }  # fmt: skip
