"""`~` in paths: a shell expands it only at the start of a word, and never in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence


def expanded(path: str) -> str:
    """A path, or any other text, with `~` or `~USER` at its start replaced by the home folder, if there is one."""
    return os.path.expanduser(path)  # noqa: PTH111  Path.expanduser fails on other texts that begin with ~


def expand_fields(instance: object, keys: Sequence[str]) -> None:
    """Expand the paths, and the lists of paths, that are these fields of a frozen dataclass."""
    for key in keys:
        value = getattr(instance, key)
        if isinstance(value, str):
            object.__setattr__(instance, key, expanded(value))
        elif isinstance(value, list | tuple):
            parts = [expanded(part) if isinstance(part, str) else part for part in value]
            object.__setattr__(instance, key, type(value)(parts))
