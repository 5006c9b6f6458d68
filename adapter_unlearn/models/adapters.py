"""Attach, stack, activate, scale and save adapters on a base model.

The model is never copied: with its adapters disabled it is its base, bit for bit.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from adapter_unlearn.errors import ModelError
from adapter_unlearn.models import patterns
from adapter_unlearn.models.adapter_config import CONFIG, WEIGHTS, adapter_config
from adapter_unlearn.models.base import first_sentence

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from adapter_unlearn.recipe import Adapter

_IN_ADAPTER = re.compile(r"\.(base_layer|lora_\w+)(\.|$)")
FROZEN = "frozen"
"""The name on the model of a frozen base adapter, the recipe's `model.adapter`."""


def attach(base: PreTrainedModel, adapter: Adapter, frozen_adapter: str | Path | None = None) -> PeftModel:
    """Put a new LoRA adapter named `default` on the base. Its B is zero, so it changes nothing yet.

    Args:
        base: from load_base.
        adapter: rank, scaling, dropout and target modules.
        frozen_adapter: folder of an adapter that is part of the base; it is loaded as `frozen`, and stays frozen and
            active.

    Raises:
        ModelError: a target module does not exist, or `frozen_adapter` can't be loaded.
    """
    from peft import LoraConfig, get_peft_model

    targets: str | list[str] = adapter.target_modules
    if isinstance(targets, str) and not patterns.is_literal(targets):
        names = [name for name, _ in base.named_modules()]
        targets = patterns.matching(targets, names, "recipe key adapter.target_modules")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_rslora=adapter.use_rslora,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # peft corrects it for Conv1D and warns
            model = get_peft_model(base, config)
    except (ValueError, RuntimeError, re.error) as error:
        raise ModelError(f"recipe keys adapter.target_modules, adapter.r: {first_sentence(error)}") from error
    if frozen_adapter is not None:
        _load_adapter(model, frozen_adapter, FROZEN)
        _activate(model, [FROZEN, "default"], {name for name, _ in model.named_parameters() if ".default." in name})
    return model


def attach_next(model: PeftModel, name: str) -> None:
    """Put another new adapter with the configuration of `default` on the model, and make it the only trainable one.

    The adapters that were active stay active.
    """
    active_before = list(model.active_adapters)
    model.add_adapter(name, model.peft_config["default"])
    new = {parameter for parameter, _ in model.named_parameters() if f".{name}." in parameter}
    _activate(model, [*active_before, name], new)


def save_adapter(model: PeftModel, name: str, folder: str | Path) -> Path:
    """Write one adapter of the model; return the folder that plain PEFT loads it from."""
    model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    return Path(folder) if name == "default" else Path(folder) / name


def add_finished(model: PeftModel, folder: str | Path, name: str) -> None:
    """Load a finished adapter, frozen and inactive. Raises ModelError if it does not fit the model."""
    active_before, trained = list(model.active_adapters), _trainable(model)
    _load_adapter(model, folder, name)
    _activate(model, active_before, trained)


def set_scale(model: torch.nn.Module, name: str, factor: float) -> None:
    """Multiply one adapter's delta by `factor`; this is a setting of its layers, no weight is changed."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(name, factor)


@contextmanager
def scaled(model: torch.nn.Module, name: str, factor: float) -> Iterator[None]:
    """Multiply one adapter's delta by `factor` inside the block; the factor is 1 after it."""
    try:
        set_scale(model, name, factor)
        yield
    finally:
        set_scale(model, name, 1.0)


def stack(base: PreTrainedModel, adapters: Sequence[str | Path]) -> PeftModel:
    """Put finished adapters on the base, all of them active and frozen.

    Args:
        base: from load_base.
        adapters: one folder or more; the adapters get the names of `adapter_names`.

    Raises:
        ModelError: a folder holds no PEFT adapter, or one that does not fit this base.
    """
    from peft import PeftModel

    names = adapter_names(len(adapters))
    first = Path(adapters[0])
    with _fitting(first):
        config = _peft_config(base, first)
        model = PeftModel.from_pretrained(base, str(first), adapter_name=names[0], config=config)
        _check_complete(model, first, names[0])
    for name, folder in zip(names[1:], adapters[1:]):
        _load_adapter(model, folder, name)
    model.base_model.set_adapter(names)
    model.requires_grad_(False)
    return model.eval()


def adapter_names(number: int) -> list[str]:
    """The names that `stack` gives to this number of adapters."""
    return [f"adapter_{i}" for i in range(number)]


@contextmanager
def active(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Make exactly these adapters active inside the block; with none, the model is its base, bit for bit."""
    if not hasattr(model, "peft_config"):
        yield
        return
    before, trained = list(model.active_adapters), _trainable(model)
    try:
        if names:
            model.base_model.set_adapter(list(names))
            yield
        else:
            with model.disable_adapter():
                yield
    finally:
        _activate(model, before, trained)


def train_through(model: PeftModel, gradient_checkpointing: bool) -> None:
    """Prepare the model for adapter training; with checkpointing, the backward pass recomputes activations.

    prepare_model_for_kbit_training is not used, because it upcasts embeddings and output layer to float32, which takes
    2.1 GB more for a model of 8B parameters.
    """
    if not gradient_checkpointing:
        return
    base: Any = model.get_base_model()
    # transformers renamed it in 5.2x: older versions lack the new name, newer versions warn about the old one
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"recipe key training.gradient_checkpointing: {first_sentence(error)}") from error


def _trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _activate(model: Any, adapters: Sequence[str], trainable: set[str]) -> None:
    """Set the active adapters and the trainable parameters; peft makes every adapter trainable that it activates."""
    model.base_model.set_adapter(list(adapters))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)


def _load_adapter(model: PeftModel, folder: str | Path, name: str) -> None:
    path = Path(folder)
    with _fitting(path):
        model.add_adapter(name, _peft_config(model.get_base_model(), path))
        model.load_adapter(str(path), adapter_name=name)
        _check_complete(model, path, name)


def _check_complete(model: PeftModel, folder: Path, name: str) -> None:
    """Refuse an adapter with missing or unexpected tensors, about which peft only warns."""
    from peft import get_peft_model_state_dict

    with safe_open(folder / WEIGHTS, "pt") as file:
        stored = set(file.keys())
    placed = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    odd = sorted((placed - stored) | {key for key in stored - placed if ".lora_" in key})
    if odd:
        raise ModelError(
            f"{folder}: this adapter does not fit the base model: {len(odd)} tensors have no counterpart, {odd[0]} "
            "first; name the base it was trained on"
        )


def _peft_config(base: Any, folder: Path) -> Any:
    """PEFT's config of a checked adapter, in which no pattern of a stranger is left for `re` to match.

    Raises:
        ModelError: as adapter_config, or ranks or token ids are beyond the tensors.
    """
    from peft import PeftConfig

    values = adapter_config(folder)
    with safe_open(folder / WEIGHTS, "pt") as file:
        sides = [key for key in file.keys() if ".lora_A" in key or ".lora_embedding_A" in key]  # noqa: SIM118
        stored = max([file.get_slice(key).get_shape()[0] for key in sides], default=0)
    changed = [key.removeprefix("base_model.model.").partition(".lora_")[0] for key in sides]
    rank = max(values.get("r", 8), *(values.get("rank_pattern") or {}).values(), 1)
    if sides and rank > stored:
        raise ModelError(f"{folder}: {CONFIG} names rank {rank}, its tensors have {stored} at most; save it again")
    indices = values.get("trainable_token_indices") or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    if (highest := max((index for part in lists for index in part), default=0)) >= base.config.vocab_size:
        raise ModelError(f"{folder}: {CONFIG} names token {highest}, which the base does not have; name its own base")
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    names = [name for name, _ in base.named_modules() if name and not _IN_ADAPTER.search(name)]
    for key in ("target_modules", "exclude_modules"):
        if isinstance(pattern := values.get(key), str):
            setattr(config, key, set(patterns.matching(pattern, names, f"{folder / CONFIG}, {key}")))
    for key in ("rank_pattern", "alpha_pattern"):
        given = values.get(key) or {}
        if not all(map(patterns.is_literal, given)):
            matched = patterns.by_name(given, changed, f"{folder / CONFIG}, {key}")
            setattr(config, key, {f"^{re.escape(name)}": value for name, value in matched.items()})
    return config


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # _check_complete refuses them
            yield
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{folder}: out of memory while loading this adapter; free memory") from error
    except Exception as error:  # PEFT raises errors of many types on a damaged adapter
        raise ModelError(f"{folder}: this adapter does not fit the base model: {first_sentence(error)}") from error
