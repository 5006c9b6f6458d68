"""The fuzzer, with few examples or with many."""

from __future__ import annotations

import random

import pytest
from fuzz.harness import Fuzzer


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"])
def fuzzer(request, tmp_path, monkeypatch) -> Fuzzer:
    """A few examples, always the same, or many with a random seed, which is printed. `--hypothesis-seed` repeats it."""
    for variable in ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    known = request.config.getoption("--hypothesis-seed", None)
    number = random.SystemRandom().randrange(2**32) if known is None else int(known)
    return Fuzzer(tmp_path, number if request.param else None)
