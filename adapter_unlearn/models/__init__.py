"""Load base models; attach, stack, activate, scale and save adapters on them."""

from .adapters import active, adapter_names, attach, attach_next, save_adapter, scaled, set_scale, stack, train_through
from .base import fetch, load_base, load_config, load_tokenizer, skeleton, stored_quantization, weights_folder
from .modes import evaluating, generator
from .processes import broadcast, gathered, share_of

__all__ = [
    "active", "adapter_names", "attach", "attach_next", "broadcast", "evaluating", "fetch", "gathered", "generator",
    "load_base", "load_config", "load_tokenizer", "save_adapter", "scaled", "set_scale", "share_of", "skeleton",
    "stack", "stored_quantization", "train_through", "weights_folder",
]  # fmt: skip
