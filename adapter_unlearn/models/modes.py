"""Context managers that set how a model runs, and set it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, the model's own mode after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def generator(model: Any) -> Iterator[Any]:
    """The model's `generate`; within, nothing is set that is not said in the call.

    transformers fills every setting that a call leaves open from the model's own generation config, for example a
    repetition penalty. Adapters sit in the layers of the base, so its `generate` is theirs too; that of PEFT would
    put the config back.
    """
    from peft import PeftModel
    from transformers import GenerationConfig

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield inner.generate
    finally:
        inner.generation_config = own
