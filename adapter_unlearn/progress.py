"""Progress bars of phases that take more than a second, each with an estimate of what remains.

They show on stderr of the first process of a launch. `TQDM_DISABLE=1` silences them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

DELAY = 1.0
"""Seconds after which the bar of a phase appears. It vanishes when the phase ends."""

_names: list[str] = []


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Put a name before that of every bar inside the block."""
    _names.append(name)
    try:
        yield
    finally:
        _names.pop()


def bar(name: str, total: int, unit: str, **options: Any) -> tqdm[Any]:
    """A bar, as a context manager; its `update(n)` counts n more units.

    Args:
        name: of the phase.
        total: units in the phase.
        unit: what is counted, for example `seq`.
        options: of tqdm, where they are not those of a phase's bar.
    """
    own: dict[str, Any] = {"desc": ": ".join([*_names, name]), "leave": False, "delay": DELAY, "disable": is_silent()}
    return tqdm(total=total, unit=unit, **own | options)


def is_silent() -> bool:
    """Whether this process shows no bar."""
    # `disable` overrides TQDM_DISABLE, so the variable is read here
    return os.environ.get("RANK", "0") != "0" or bool(os.environ.get("TQDM_DISABLE"))
