"""Manifests on systems that lack what Linux has."""

from __future__ import annotations

import sys

import pytest
import torch

from adapter_unlearn.pipeline import manifest


@pytest.mark.skipif(torch.cuda.is_available(), reason="the accelerator's peak is reported instead")
def test_without_the_resource_module_no_peak_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert manifest._peak_memory() is None


@pytest.mark.skipif(sys.platform == "win32" or torch.cuda.is_available(), reason="the process's peak on Unix")
def test_the_peak_is_in_bytes():
    assert 10**7 < manifest._peak_memory() < 10**12
