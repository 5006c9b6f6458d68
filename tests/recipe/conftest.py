"""A recipe file in a temporary folder."""

from __future__ import annotations

import pytest


@pytest.fixture
def write(tmp_path):
    """Write text to a file, and return its path."""

    def to(text: str, name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return to
