"""Fixtures of the tests of merging."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers import CONFIGS
from merging_helpers import save_adapter
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Architecture -> a base's folder in float32, random weights; `embedded` is the shipped one."""
    folders = {"embedded": "embedded:model"}

    def folder(name: str, **changes) -> str:
        key = name + str(changes)
        if name == "embedded":
            return folders[name]
        if key not in folders:
            torch.manual_seed(0)
            config = type(CONFIGS[name]).from_dict(CONFIGS[name].to_dict() | changes)
            model = AutoModelForCausalLM.from_config(config).float()
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    torch.nn.init.normal_(parameter, std=0.08)
            folders[key] = str(tmp_path_factory.mktemp(name) / "base")
            model.save_pretrained(folders[key])
        return folders[key]

    return folder


@pytest.fixture
def llama(bases, tmp_path):
    """A copy of the Llama's folder, to break, and an adapter for it."""
    base = shutil.copytree(bases("llama"), tmp_path / "base")
    return base, save_adapter(tmp_path / "a", str(base), ["q_proj", "down_proj"])
