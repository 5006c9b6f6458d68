"""The table of metrics: every row, and the names that stand for several."""

from __future__ import annotations

import pytest
from helpers import predictions_of, with_all_statistics

from adapter_unlearn import RecipeError
from adapter_unlearn.metrics import FORWARD, GROUPS, METRICS, NotScorableError, Predictions, compute, resolve


@pytest.mark.parametrize("name", FORWARD)
def test_no_tokens_no_number(name):
    with pytest.raises(NotScorableError):
        METRICS[name].function(with_all_statistics(""))


@pytest.mark.parametrize("name", FORWARD)
def test_numbers_keep_to_their_range(name):
    for pattern in ("x" * 70, "." * 70, "x." * 35):
        assert METRICS[name].lower <= METRICS[name].function(with_all_statistics(pattern)) <= METRICS[name].upper


@pytest.mark.parametrize("name", FORWARD)
def test_the_table_says_which_way_a_metric_goes(name):
    recited, unseen = (METRICS[name].function(with_all_statistics(pattern)) for pattern in ("x" * 70, "." * 70))
    assert recited > unseen if METRICS[name].memorized == "high" else recited < unseen


@pytest.mark.parametrize("name", FORWARD)
def test_a_metric_names_what_it_needs(name):
    """Only that, of what is not always there, and zlib_bytes, which a sequence has or has not."""
    whole = with_all_statistics("x." * 35)
    optional = ("log_p_mean", "log_p_deviation", "sampled_log_p", "reference_nll")
    needed = {need: getattr(whole, need) for need in METRICS[name].needs}
    assert needed.keys() <= set(optional)
    bare = Predictions(whole.hits, whole.nll, 1, 1, whole.zlib_bytes, **needed)
    assert METRICS[name].function(bare) == METRICS[name].function(whole)
    assert METRICS[name].cost == ("2 forwards" if "reference_nll" in needed else "1 forward")


def test_groups_and_names_resolve_in_order_each_once():
    assert resolve(["loss", "min_k", "loss"]) == ["loss", "min_k"]
    assert resolve(["loss", "all"]) == ["loss", *(name for name in METRICS if name != "loss")]
    assert resolve(["forward"]) == [*FORWARD] and {*FORWARD} < {*METRICS}


def test_an_unknown_metric_is_named_beside_those_there_are():
    with pytest.raises(RecipeError, match="'bleurt'") as caught:
        resolve(["bleurt"])
    assert all(name in str(caught.value) for name in [*GROUPS, *METRICS])


def test_compute_gives_a_number_or_a_reason():
    values = compute(["loss", "extractable_50", "zlib"], predictions_of("xx", nll=[1.0, 3.0]))
    assert values["loss"] == 2
    assert "50" in values["extractable_50"] and "tokenizer" in values["zlib"]
    assert compute(["loss"], predictions_of("xx", nll=[1.0, float("nan")])) == {"loss": "not a number"}
