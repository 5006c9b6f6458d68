"""Patterns of strangers: matched as PEFT would, and never for long."""

from __future__ import annotations

import re
import time

import pytest
from peft.utils.other import get_pattern_key

from adapter_unlearn import ModelError
from adapter_unlearn.models import patterns

NAMES = [f"model.layers.{i}.{part}" for i in range(12) for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up")]


@pytest.mark.parametrize(
    "pattern",
    [r".*\.(q_proj|up)", r"model\.layers\.[0-5]\..*", r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|up).*?)", "nothing", r".*"],
)
def test_matching_is_that_of_re(pattern):
    assert patterns.matching(pattern, NAMES, "f") == [name for name in NAMES if re.fullmatch(pattern, name)]


def test_values_by_name_are_those_of_peft():
    given = {"q_proj": 1, r"layers\.1\d\..*": 2, "^model": 3, r"layers.3.mlp.up": 4, ".*up": 5}
    expected = {name: given[key] for name in NAMES if (key := get_pattern_key(given, name)) != name}
    assert patterns.by_name(given, NAMES, "f") == expected and {1, 2, 4, 5} == set(expected.values())


@pytest.mark.parametrize("pattern", ["(", "(?R)", "(?P<a>.)(?P>a)", "(" * 900 + ")" * 900, "a" * 5000, "[[a"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(ModelError, match="a file, a key") as caught:
        patterns.matching(pattern, NAMES, "a file, a key")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("pattern", [r"(\w+\.?)+\s", "(.*)*[A-Z]", r"(?:\w?\.?\w?)*[A-Z]", "(a|aa|.)+(b|.)+[^a-z.]"])
def test_a_pattern_that_backtracks_does_not_take_long(pattern):
    """`re` takes minutes or longer for each of them."""
    start = time.monotonic()
    assert patterns.matching(pattern, ["model.layers.0.self_attn.q_proj" * 2] * 10, "f") == []
    assert time.monotonic() - start < 2


def test_matching_has_a_time_limit(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    slow = r"(\w*?)(\w*?)(\w*?)(\w*?)(\w*?)(\w*?)\1\2\3\4\5\6[A-Z]"
    with pytest.raises(ModelError, match="a file, a key"):
        patterns.matching(slow, ["ab" * 60 + "A."] * 3, "a file, a key")


@pytest.mark.parametrize(
    ("pattern", "literal"),
    [("q_proj", True), (r"^model\.layers\.0\.q", True), ("model.layers.0.q", True), ("a*", False), ("(a)", False)],
)
def test_literal_names(pattern, literal):
    assert patterns.is_literal(pattern) is literal
