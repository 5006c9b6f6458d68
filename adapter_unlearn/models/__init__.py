"""Load base models; attach, stack, activate, scale and save adapters on them."""

from adapter_unlearn.models.adapters import (
    FROZEN,
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
)  # fmt: skip
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
)  # fmt: skip
from adapter_unlearn.models.modes import evaluating, generator
from adapter_unlearn.models.processes import broadcast, gathered, share_of

__all__ = [
    "FROZEN", "Dtype", "Quantization", "active", "adapter_names", "add_finished", "attach", "attach_next", "broadcast",
    "evaluating", "fetch", "gathered", "generator", "load_base", "load_config", "load_tokenizer",
    "quantization_config", "quantized_modules", "save_adapter", "scaled", "set_scale", "share_of", "skeleton", "stack",
    "stored_quantization", "train_through", "weights_folder",
]  # fmt: skip
