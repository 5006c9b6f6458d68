"""Standard JSON files: NaN and infinity become null."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write standard JSON: NaN and infinity become null."""
    path.write_text(json.dumps(_without_nan(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value per line."""
    text = "".join(json.dumps(_without_nan(value), ensure_ascii=False) + "\n" for value in values)
    path.write_text(text, encoding="utf-8")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
