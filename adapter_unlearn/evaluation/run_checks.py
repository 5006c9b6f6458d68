"""Check the content of a finished run's files, which may come from a stranger, before anything is computed from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from adapter_unlearn.evaluation.summary import BASE, Summary

_FIELDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int and abs(value) < 2**53,
    "float": lambda value: _is_number(value),
    "float | None": lambda value: value is None or _is_number(value),
    "Interval": lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)),
    "Literal['holdout', 'paper']": lambda value: value in ("holdout", "paper"),
}
"""Types of a summary's fields, and the test of their values; of all others, each item must be a number or a record."""
MAX_JSON_BYTES = 50_000_000
MAX_CELLS = 100_000_000
LARGEST = 1e150
"""Absolute value of a number: its square is still finite."""
_SCORES = (
    "n_tokens", "memorization_accuracy", "extractable", "extractable_50", "extractable_any_prefix",
    "longest_verbatim_run", "loss",
)  # fmt: skip


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and (abs(value) <= LARGEST or math.isnan(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_date(value: Any) -> bool:
    return isinstance(value, str) and datetime.fromisoformat(value) is not None


_MANIFEST: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys([f"base.{key}" for key in ("name", "fingerprint", "quantization", "dtype", "adapter")], _is_text),
    "base.revision": _is_text,
    "seed": lambda value: type(value) is int and 0 <= value < 2**32,
    **dict.fromkeys([f"cost.{key}" for key in ("seconds", "peak_memory_bytes", "epochs")], _is_number),
    "cost.sequences_ascended": _is_number,
    "outcome.goal_reached": lambda value: isinstance(value, bool),
    "outcome.stopped_because": _is_text,
    "data.test.n_sequences": _is_number,
    "method.name": _is_text,
    "created": _is_date,
}
"""Keys of a manifest that a comparison reads, each of which may be missing or null, and the test of their values."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises OSError, ValueError or RecursionError."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError("too large")
    value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # write_json writes null


def read_table(path: Path) -> pd.DataFrame:
    """A Parquet file with a reasonable number of values. Raises errors of many types."""
    if not path.is_file():  # a FIFO would wait for a writer
        raise ValueError("no file")
    about = pq.read_metadata(path)
    if about.num_rows * about.num_columns > MAX_CELLS:
        raise ValueError("too many values")
    return pd.read_parquet(path)


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raises ValueError: a key that a comparison reads holds another kind of value."""
    for key, is_valid in _MANIFEST.items():
        value: Any = manifest
        for part in key.split("."):
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(key)
            value = None if value is None else value.get(part)
        if value is not None and not is_valid(value):
            raise ValueError(key)


def check_summary(record: Any) -> None:
    """Raises ValueError: a field of a summary, or of a record in it, holds another kind of value."""
    for each in fields(record):
        value = getattr(record, each.name)
        inner = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, tuple) else [value]
        is_valid = _FIELDS.get(str(each.type))
        records = [part for part in inner if is_dataclass(part)]
        for part in records:
            check_summary(part)
        if not records and not (is_valid(value) if is_valid else value is None or all(map(_is_number, inner))):
            raise ValueError(each.name)


def check_tables(summary: Summary, sequences: pd.DataFrame, holdout: pd.DataFrame, membership: pd.DataFrame) -> None:
    """Raises ValueError or KeyError: a table lacks a column or a form, or a column holds no numbers."""
    if set(sequences["form"]) != set(summary.forms) or (len(holdout) and set(holdout["form"]) != set(summary.forms)):
        raise ValueError("form")
    for table, columns in ((sequences, _SCORES), (holdout, _SCORES), (membership, ("auc", "auc_low", "auc_high"))):
        if not len(table):
            continue
        if not all(dtype.kind in "biuf" for dtype in table[list(columns)].dtypes):  # dates would convert to numbers
            raise ValueError("a column of numbers")
        values = table[list(columns)].to_numpy(dtype=float)
        if not bool((np.isnan(values) | (np.abs(values) <= LARGEST)).all()):
            raise ValueError("a number")
        names = [table[key] for key in ("form", "id" if columns is _SCORES else "metric")]
        if not all(isinstance(value, str | int) for column in names for value in column):
            raise ValueError("a name")
    for table in (sequences, holdout):
        if len(table) and table.groupby("form").size().nunique() != 1:
            raise ValueError("another number of sequences in one form")
    if BASE not in summary.forms or len(summary.forms) < 2:
        raise ValueError("no form")
