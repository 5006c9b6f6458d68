"""Put adapters on a base model, switch them, scale them, and save them.

Nothing here copies the model: with its adapters disabled, a model is its base, bit for bit.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from adapter_unlearn.errors import ModelError
from adapter_unlearn.models.base import first_sentence

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def attach(
    base: PreTrainedModel,
    r: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    target_modules: str | list[str] = "all-linear",
    use_rslora: bool = False,
    carried: str | Path | None = None,
) -> PeftModel:
    """Put a fresh LoRA adapter named `default` on the base; at first it changes nothing (B is zero).

    Args:
        base: from load_base.
        r: rank.
        alpha: numerator of the scaling.
        dropout: on the adapter's input.
        target_modules: all-linear, or names.
        use_rslora: scale by 1/sqrt(r) instead of 1/r.
        carried: an adapter folder the model already carries; it stays frozen and active beneath.

    Raises:
        ModelError: a target module does not exist, or `carried` can't be loaded.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        use_rslora=use_rslora,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # peft sets it right for Conv1D, and says so
            model = get_peft_model(base, config)
    except (ValueError, RuntimeError, re.error) as error:
        raise ModelError(f"recipe keys adapter.target_modules, adapter.r: {first_sentence(error)}") from error
    if carried is not None:
        _load_adapter(model, carried, "carried")
        model.base_model.set_adapter(["carried", "default"])
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(".default." in parameter_name)
    return model


def attach_next(model: PeftModel, name: str) -> None:
    """Put one more fresh adapter on the model, shaped as `default`; it alone is trained, all others act as they did."""
    active_before = list(model.active_adapters)
    model.add_adapter(name, model.peft_config["default"])
    model.base_model.set_adapter([*active_before, name])
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{name}." in parameter_name)


def save_adapter(model: PeftModel, name: str, folder: str | Path) -> Path:
    """Write one adapter of the model; return the folder it lies in, where plain PEFT finds it."""
    model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    return Path(folder) if name == "default" else Path(folder) / name


def add_finished(model: PeftModel, folder: str | Path, name: str) -> None:
    """Load a finished adapter beside the others, frozen and not active. Raises ModelError where it does not fit."""
    active_before = list(model.active_adapters)
    trained = {parameter_name for parameter_name, p in model.named_parameters() if p.requires_grad}
    _load_adapter(model, folder, name)
    model.base_model.set_adapter(active_before)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in trained)


def set_scale(model: torch.nn.Module, name: str, factor: float) -> None:
    """Let one adapter's delta count `factor` times: a setting of its layers, nothing is copied or changed."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(name, factor)


@contextmanager
def scaled(model: torch.nn.Module, name: str, factor: float) -> Iterator[None]:
    """Within, one adapter's delta counts `factor` times; before and after, once."""
    try:
        set_scale(model, name, factor)
        yield
    finally:
        set_scale(model, name, 1.0)


def stack(base: PreTrainedModel, adapters: Sequence[str | Path]) -> PeftModel:
    """Put finished adapters on the base, all active at once, frozen.

    Args:
        base: from load_base.
        adapters: folders, at least one; they get the names of `adapter_names`.

    Raises:
        ModelError: a folder holds no PEFT adapter, or one that does not fit this base.
    """
    from peft import PeftModel

    names = adapter_names(len(adapters))
    first = _adapter_folder(adapters[0])
    with _fitting(first):
        model = PeftModel.from_pretrained(base, str(first), adapter_name=names[0])
        _check_complete(model, first, names[0])
    for name, folder in zip(names[1:], adapters[1:]):
        _load_adapter(model, folder, name)
    model.base_model.set_adapter(names)
    model.requires_grad_(False)
    return model.eval()


def adapter_names(number: int) -> list[str]:
    """The names under which `stack` loads that many adapters."""
    return [f"adapter_{i}" for i in range(number)]


@contextmanager
def active(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Within, exactly these adapters act; with none the model is its base, bit for bit."""
    if not hasattr(model, "peft_config"):
        yield
        return
    before = list(model.active_adapters)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        if names:
            model.base_model.set_adapter(list(names))
            yield
        else:
            with model.disable_adapter():
                yield
    finally:
        model.base_model.set_adapter(before)
        for name, parameter in model.named_parameters():  # peft makes trainable what it activates or re-enables
            parameter.requires_grad_(name in trained)


def train_through(model: PeftModel, gradient_checkpointing: bool) -> None:
    """Make the model ready for adapter training; with checkpointing, activations are recomputed layer by layer.

    prepare_model_for_kbit_training is not used: it upcasts embeddings and output layer to float32 (2.1 GB at 8B).
    """
    if not gradient_checkpointing:
        return
    base: Any = model.get_base_model()
    # transformers renamed it in 5.2x; the older name warns there, the newer is missing before
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"recipe key training.gradient_checkpointing: {first_sentence(error)}") from error


def _load_adapter(model: PeftModel, folder: str | Path, name: str) -> None:
    path = _adapter_folder(folder)
    with _fitting(path):
        model.load_adapter(str(path), adapter_name=name)
        _check_complete(model, path, name)


def _check_complete(model: PeftModel, folder: Path, name: str) -> None:
    """Every tensor of the file must have found its place, and every place its tensor: peft only warns."""
    from peft import get_peft_model_state_dict

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    placed = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    odd = sorted((placed - stored) | {key for key in stored - placed if ".lora_" in key})
    if odd:
        raise ModelError(
            f"{folder}: this adapter does not fit the base model: {len(odd)} tensors have no counterpart, {odd[0]} "
            "first; name the base it was trained on"
        )


def _adapter_folder(folder: str | Path) -> Path:
    path = Path(folder)
    for needed in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / needed).is_file():
            raise ModelError(f"{path}: no adapter there ({needed} is missing); name the folder of a PEFT LoRA adapter")
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: adapter_config.json is no JSON; copy the adapter again") from error
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: a {config.get('peft_type')} adapter; only LoRA adapters can be stacked and measured")
    return path


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # _check_complete refuses them
            yield
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError, re.error) as error:
        raise ModelError(f"{folder}: this adapter does not fit the base model: {first_sentence(error)}") from error
