"""The fuzzers notice what they look for."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_helpers import SECRET
from fuzz import harness
from fuzz.harness import GROWTH, Fuzzer
from hypothesis import strategies as st
from hypothesis.errors import DeadlineExceeded, FlakyFailure

from adapter_unlearn.errors import InputError


class LoudError(InputError):
    """Its message is not made printable."""

    def __str__(self) -> str:
        return self.args[0]


def refuse(message: str, kind: type[InputError] = InputError):
    raise kind(message)


BAD = {
    "another error": lambda root: [][1],
    "file outside": lambda root: (root.parent / "other").write_text("a"),
    "folder outside": lambda root: (root.parent / "folder").mkdir(),
    "file removed": lambda root: (root / "given" / "a").unlink(),
    "process": lambda root: subprocess.run([sys.executable, "-c", ""]),
    "pickle": lambda root: pickle.loads(pickle.dumps(Path("a"))),
    "memory": lambda root: bytearray(GROWTH * 1100).count(1),
    "two lines": lambda root: refuse("one\ntwo", LoudError),
    "unprintable": lambda root: refuse("one\x1b[2J", LoudError),
    "nothing": lambda root: refuse("", LoudError),
    "a whole file": lambda root: refuse("a" * 9999, LoudError),
    "a text": lambda root: refuse(f"forget.csv: {SECRET}"),
}


@pytest.fixture
def one(tmp_path):
    (tmp_path / "root").mkdir()
    fuzzer = Fuzzer(tmp_path / "root", None)
    (fuzzer.given / "a").touch()
    return fuzzer


@pytest.mark.parametrize("kind", BAD)
def test_what_an_example_must_not_do(one, kind):
    with pytest.raises((AssertionError, IndexError)):
        one.check(lambda: BAD[kind](one.root), SECRET)


def test_an_example_may_write_where_it_is_told(one):
    one.writable = (one.root / "out",)
    assert one.check(lambda: (one.root / "out").mkdir()) is None
    assert one.check(lambda: (one.root / "out" / "a").write_text("a")) is None
    assert one.check(lambda: refuse("forget.csv: a problem")) is not None
    assert one.outcomes == {"accepted": 2, "refused": 1}


def test_a_fuzzer_that_refuses_everything_fails(one):
    with pytest.raises(AssertionError, match="refused"):
        one.run(st.integers(), lambda value: one.check(lambda: refuse("forget.csv: a problem")))


def test_a_hang_is_found(one, monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 0.01)
    with pytest.raises((DeadlineExceeded, FlakyFailure)):
        one.run(st.just(0), lambda value: one.check(lambda: time.sleep(0.1)), few=1)
