"""`~` in paths: a shell expands it only at the start of a word, and never in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def expanded(path: str) -> str:
    """A path, or any other text, with `~` or `~USER` at its start replaced by the home folder, if there is one."""
    return os.path.expanduser(path)  # noqa: PTH111  Path.expanduser fails on other texts that begin with ~


def expand_fields(instance: object, keys: Sequence[str]) -> None:
    """Turn the paths that are these fields of a frozen dataclass, in lists too, into expanded texts."""
    for key in keys:
        value = getattr(instance, key)
        parts = [_text(part) for part in (value if isinstance(value, list | tuple) else [value])]
        object.__setattr__(instance, key, type(value)(parts) if isinstance(value, list | tuple) else parts[0])


def _text(value: Any) -> Any:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    return expanded(value) if isinstance(value, str) else value
