"""Base models and the adapters on them: load, attach, stack, activate, scale, save."""

from adapter_unlearn.models.adapters import (
    active,
    adapter_names,
    add_finished,
    attach,
    attach_next,
    save_adapter,
    scaled,
    set_scale,
    stack,
    train_through,
)
from adapter_unlearn.models.base import (
    Dtype,
    Quantization,
    fetch,
    load_base,
    load_config,
    load_tokenizer,
    quantization_config,
    quantized_modules,
    skeleton,
    stored_quantization,
    weights_folder,
)
from adapter_unlearn.models.modes import evaluating, generator
from adapter_unlearn.models.processes import broadcast, gathered, share_of

__all__ = [
    "Dtype",
    "Quantization",
    "active",
    "adapter_names",
    "add_finished",
    "attach",
    "attach_next",
    "broadcast",
    "evaluating",
    "fetch",
    "gathered",
    "generator",
    "load_base",
    "load_config",
    "load_tokenizer",
    "quantization_config",
    "quantized_modules",
    "save_adapter",
    "scaled",
    "set_scale",
    "share_of",
    "skeleton",
    "stack",
    "stored_quantization",
    "train_through",
    "weights_folder",
]
