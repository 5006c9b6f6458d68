"""Numbers as text."""

import numpy as np
import pytest

from adapter_unlearn.reporting import formatting


@pytest.mark.parametrize(
    ("show", "shown"),
    [
        ("percent", {-0.00001: "+0.0 %", -float("inf"): "-∞ %"}),
        ("decimal", {5.1234: "5.123", 51.234: "51.23", 512.34: "512.3", 5123.4: "5,123", 1e9: "1.00e+09"}),
        ("duration", {3.21: "3.2 s", 42: "42 s", 134: "2 min 14 s", 3725: "1 h 02 min", None: "—"}),
        ("size", {512: "512 bytes", 912345: "912 kB", 3.4e6: "3.4 MB", 1.2e9: "1.2 GB"}),
        (
            "signed",
            {0.0042: "+0.004", -0.0151: "-0.015", -0.0004: "+0.000", 0: "+0.000", 12.345: "+12.35", None: "—"},
        ),
        (
            "metric_value",
            {0: "0.000", 0.00123: "0.00123", -0.05: "-0.0500", 0.5: "0.500", -71.4: "-71.40", -float("inf"): "-∞"},
        ),
    ],
)
def test_numbers_read_the_same_everywhere(show, shown):
    function = getattr(formatting, show)
    assert {value: function(value) for value in shown} == shown


def test_changes_and_intervals():
    assert formatting.percent(formatting.relative_change(100, 96.5)) == "-3.5 %"
    assert formatting.relative_change(None, 3) is None and formatting.relative_change(0, 3) is None
    assert formatting.percent_interval([-0.0123, float("inf")]) == "[-1.2, +∞]"
    assert formatting.interval(None, str) == formatting.interval([0.1, None], str) == ""
    assert formatting.interval((float("nan"), 1.0), str) == ""


def test_missing_numbers():
    assert formatting.number(np.float64("nan")) is None and formatting.number(np.int64(3)) == 3.0
    assert formatting.metric_value(None) == formatting.DASH
