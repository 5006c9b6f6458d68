"""The embedded model, with and without adapters, for tests of utility."""

from __future__ import annotations

import pytest
import torch
from utility_texts import write_task

from adapter_unlearn import load_base, models
from adapter_unlearn.recipe import Adapter


@pytest.fixture(scope="session")
def tokenizer():
    return models.load_tokenizer("embedded:model")


@pytest.fixture(scope="session")
def base():
    return load_base("embedded:model", "none", "float32")


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """Two adapters that lower the model's scores, but not to zero."""
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = models.attach(load_base("embedded:model", "none", "float32"), Adapter(r=4, alpha=8))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.08)
        folders.append(tmp_path_factory.mktemp("adapter") / "adapter")
        models.save_adapter(model, "default", folders[-1])
    return folders


@pytest.fixture(scope="session")
def stacked(adapters):
    return models.stack(load_base("embedded:model", "none", "float32"), adapters)
