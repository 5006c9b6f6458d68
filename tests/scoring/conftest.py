"""The sequences that the scoring tests share."""

from __future__ import annotations

import pytest
from helpers import as_sequences, random_rows


@pytest.fixture(scope="module")
def sequences():
    rows = [*random_rows(0), *random_rows(1, (20, 33, 100))]
    loaded = as_sequences(rows, prefix_tokens=10)
    sizes = [None, *range(20, 20 + len(rows) - 1)]  # as of texts, one of which was not at hand
    return loaded.remove_columns("zlib_bytes").add_column("zlib_bytes", sizes)
