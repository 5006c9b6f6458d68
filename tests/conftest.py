"""Fixtures shared by all tests."""

from __future__ import annotations

import functools
import logging

import helpers
import pytest
import torch
from helpers import CONFIGS, memorize, random_rows

torch.set_num_threads(1)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def memorizers(tmp_path_factory):
    """Architecture -> folder of a model that memorized `random_rows(0)` to different degrees."""
    folders = {}

    def folder(architecture: str):
        if architecture not in folders:
            model = memorize(CONFIGS[architecture], random_rows(0))
            folders[architecture] = tmp_path_factory.mktemp(architecture) / "model"
            model.save_pretrained(folders[architecture])
        return folders[architecture]

    return folder


@pytest.fixture
def write_rows(tmp_path):
    """Write rows of token ids as a JSONL file in the test's folder; returns its path."""
    return functools.partial(helpers.write_rows, tmp_path)


@pytest.fixture
def without_figures(monkeypatch):
    """Reports without figures, which take most of the time that a run on a tiny model needs."""
    helpers.draw_no_figures(monkeypatch)
