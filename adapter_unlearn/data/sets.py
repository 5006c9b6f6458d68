"""The sets of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset


def digest(sequences: Dataset) -> str:
    """SHA-256 of the rows' tokens."""
    content = hashlib.sha256()
    for row in sequences["input_ids"]:
        content.update(np.array([len(row), *row], dtype=np.int64).tobytes())
    return content.hexdigest()


@dataclass(frozen=True)
class Sets:
    """The sets of a run, as returned by data.load_sequences. Only the forget set is required."""

    forget: Dataset
    retain: Dataset | None = None
    holdout: Dataset | None = None
    validation: Dataset | None = None
    test: Dataset | None = None

    def given(self) -> dict[str, Dataset]:
        """Name -> set, without the sets that are None."""
        pairs = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return {name: sequences for name, sequences in pairs if sequences is not None}
