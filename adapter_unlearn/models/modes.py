"""Context managers that change how a model runs and restore it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode inside the block, and restore its mode after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def generator(model: Any) -> Iterator[Any]:
    """Yield the model's `generate`, without the defaults of the model's own generation config.

    transformers fills every setting that a call leaves open, for example a repetition penalty, from that config.
    The base's `generate` runs the adapters too, because they are in its layers; PEFT's `generate` would restore the
    config.
    """
    from peft import PeftModel
    from transformers import GenerationConfig

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield inner.generate
    finally:
        inner.generation_config = own
