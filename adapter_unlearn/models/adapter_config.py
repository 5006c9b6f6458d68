"""Read and check an adapter's config, which may come from a stranger, before PEFT or any other code sees it.

Every command that reads an adapter calls `adapter_config`. It refuses what would change the base model, what is out of
range, and what this version does not know. Arithmetic and merging need `check_plain` as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapter_unlearn.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 65_536
MAX_ALPHA = 1e9
_MAX_JSON_BYTES = 10_000_000

# Initializations that do not change the base. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract from it or requantize it
# (the *_init functions of peft/tuners/lora/layer.py), so their deltas are relative to another base.
_BASE_KEPT = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
# Config keys of adapters that are no fixed delta beside an unchanged base, and what they do.
_REFUSED = {
    "layer_replication": "it repeats layers of the base",
    "megatron_config": "its factors are split over Megatron's ranks",
    "alora_invocation_tokens": "aLoRA acts only after certain tokens",
    "use_qalora": "QALoRA pools the input",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "arrow_config": "Arrow routes between adapters, token by token",
    "kasa_config": "KaSA truncates the base weight",
    "monteclora_config": "MonteCLoRA samples its factors",
}
# Config keys with which PEFT can stack and remove an adapter, but whose delta is not scaling * B @ A.
_NOT_PLAIN = {
    "use_dora": "DoRA also rescales the base weight's columns",
    "modules_to_save": "it holds whole trained modules that replace the base's",
    "trainable_token_indices": "it holds trained token embeddings that replace the base's",
    "lora_bias": "it has a bias beside the factors",
    "target_parameters": "it changes single parameters, whose factors are nested",
}
# Keys that don't change what a finished adapter computes, and keys that are read here. VeLoRA acts only in training.
_HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "r", "bias"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
    *("use_rslora", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
_NAME = re.compile(r"[\w.-]+")


def _is_count(value: Any, below: int) -> bool:
    return type(value) is int and 0 <= value < below


def _is_rank(value: Any) -> bool:
    return _is_count(value, MAX_RANK + 1) and value > 0


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_ALPHA  # false for NaN


def _are_names(value: Any) -> bool:
    """A module's name or a list of them, none of them a pattern."""
    values = [value] if isinstance(value, str) else value
    return isinstance(values, list) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in values)


def _are_targets(value: Any) -> bool:
    """A pattern, or a list of the ends of names."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _are_indices(value: Any) -> bool:
    lists = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(part, list) and all(_is_count(index, 2**31) for index in part) for part in lists)


def _by_pattern(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_valid, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, f"a whole number from 1 to {MAX_RANK}"),
    "lora_alpha": (_is_alpha, f"a finite number up to {MAX_ALPHA:.0e}"),
    "rank_pattern": (_by_pattern(_is_rank), f"patterns, each with a whole number from 1 to {MAX_RANK}"),
    "alpha_pattern": (_by_pattern(_is_alpha), f"patterns, each with a finite number up to {MAX_ALPHA:.0e}"),
    "lora_dropout": (lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"),
    "target_modules": (_are_targets, "a pattern, or a list of names"),
    "exclude_modules": (_are_targets, "a pattern, or a list of names"),
    "modules_to_save": (_are_names, "a list of names"),
    "layers_pattern": (_are_names, "a name, or a list of names"),
    "layers_to_transform": (
        lambda value: all(_is_count(index, 2**16) for index in (value if isinstance(value, list) else [value])),
        "a layer's number, or a list of them",
    ),
    "trainable_token_indices": (_are_indices, "a list of token ids, or one for each module"),
    "base_model_name_or_path": (_is_text, "a name"),
    "revision": (_is_text, "a name"),
}
"""Keys, the test of their values, and the values in words."""
_NEVER_NULL = ("r", "lora_alpha", "lora_dropout")
_MISSING = object()


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """The config of a LoRA adapter that PEFT can stack on its base and remove again.

    Raises:
        ModelError: the folder holds no LoRA adapter, loading it would change the base, or a value is out of range.
    """
    path = Path(folder)
    try:
        missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
        pickled = (path / "adapter_model.bin").is_file()
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror}); give read permission to it") from error
    if WEIGHTS in missing and pickled:
        raise ModelError(
            f"{path}: adapter_model.bin is a pickle, which can run code when it is loaded; save it as {WEIGHTS}"
        )
    if missing:
        raise ModelError(f"{path}: no adapter there ({missing[0]} is missing); name the folder of a PEFT LoRA adapter")
    config = read_json(path / CONFIG)
    _check_kind(path, config)
    for key, (is_valid, allowed) in _VALUES.items():
        value = config.get(key, _MISSING)
        if value is not _MISSING and not (is_valid(value) or (value is None and key not in _NEVER_NULL)):
            raise ModelError(f"{path / CONFIG}: {key} must be {allowed}, not {_short(value)}; save the adapter again")
    return config


def check_plain(path: Path, config: dict[str, Any]) -> None:
    """Refuse an adapter whose delta is not scaling * B @ A. Raises ModelError."""
    if special := [key for key in _NOT_PLAIN if config.get(key)]:
        raise ModelError(f"{path}: {special[0]} is set, {_NOT_PLAIN[special[0]]}; take a plain LoRA adapter")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in an adapter's folder. Raises ModelError if it can't be read."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(f"{path}: can't be read ({reason}); copy the adapter again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object; copy the adapter again")
    return value


def _check_kind(path: Path, config: dict[str, Any]) -> None:
    known = _HARMLESS | _REFUSED.keys() | _NOT_PLAIN.keys()
    unknown = sorted(key for key, value in config.items() if value and key not in known)
    special = [key for key in _REFUSED if config.get(key)]
    initial = config.get("init_lora_weights", True)
    if config.get("peft_type") != "LORA":
        reason = f"peft_type is {_short(config.get('peft_type'))}, not LORA;"
    elif str(initial).lower() not in _BASE_KEPT:
        reason = (
            f"init_lora_weights {_short(initial)} changes the base weights; convert the adapter with PEFT's "
            "path_initial_model_for_weight_conversion, or"
        )
    elif special:
        reason = f"{special[0]} is set, {_REFUSED[special[0]]};"
    elif config.get("bias", "none") != "none":
        reason = f"bias is {_short(config['bias'])}, so it holds biases that replace the base's;"
    elif unknown:
        reason = f"{_short(unknown[0])} is set, which this version does not know;"
    else:
        return
    raise ModelError(f"{path}: {reason} take a plain LoRA adapter")


def _short(value: Any) -> str:
    """A value for a message: short, and without control characters."""
    try:
        text = str(value) if isinstance(value, str) else repr(value)
    except ValueError:  # a whole number of more than 4300 digits
        return "a number of thousands of digits"
    return "".join(c if c.isprintable() else "?" for c in (text if len(text) <= 60 else text[:60] + "…"))
