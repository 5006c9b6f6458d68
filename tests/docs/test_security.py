"""SECURITY.md names a test for every promise, and the tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (?!promise|---)(.*) \| (.*) \|$", (ROOT / "SECURITY.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("tests", [tests for _, tests in ROWS], ids=[promise[:40] for promise, _ in ROWS])
def test_every_promise_is_tested(tests):
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", tests)
    assert named
    for path, test in named:
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text("utf-8"), test
