"""Read adapter folders, and refuse every adapter that is not plain LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from adapter_unlearn.errors import ModelError
from adapter_unlearn.models.adapters import CONFIG, WEIGHTS, adapter_config, read_json
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights.streaming import FLOATS, opened

_FACTOR = re.compile(r"^(?:base_model\.model\.)?(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))$")

# Initializations that do not change the base. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract from it or requantize it
# (the *_init functions of peft/tuners/lora/layer.py), so their deltas are relative to another base.
_BASE_KEPT = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
# Config keys with which an adapter is not scaling * B @ A, and what they do.
_OTHER_THAN_LORA = {
    "use_dora": "DoRA also rescales the base weight's columns",
    "modules_to_save": "it holds whole trained modules that replace the base's",
    "trainable_token_indices": "it holds trained token embeddings that replace the base's",
    "lora_bias": "it has a bias beside the factors",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it changes single parameters, whose factors are nested",
    "megatron_config": "its factors are split over Megatron's ranks",
    "alora_invocation_tokens": "aLoRA acts only after certain tokens",
    "use_qalora": "QALoRA pools the input",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "arrow_config": "Arrow routes between adapters, token by token",
    "kasa_config": "KaSA truncates the base weight",
    "monteclora_config": "MonteCLoRA samples its factors",
}
# Keys that don't change what a finished adapter computes, and keys that are read here. VeLoRA acts only in training.
_HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "r", "bias"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
    *("use_rslora", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
}


@dataclass(frozen=True)
class Module:
    """The factors of one module: A (rank, in) and B (out, rank). For an embedding, `in` is the vocabulary size."""

    a_key: str
    b_key: str
    rank: int
    shape: tuple[int, int]  # (out, in) of the delta
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """A folder with a plain LoRA adapter."""

    path: Path
    config: dict[str, Any]
    modules: dict[str, Module]  # by the module's name in the base model
    copies: tuple[str, ...]  # the base's embeddings, which PEFT stores beside the factors of a targeted embedding
    dtype: torch.dtype  # the widest dtype of the factors

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor. Raises ModelError if the file is broken or the tensor holds NaN or infinity."""
        with opened(self.path / WEIGHTS, "the adapter") as file:
            tensor: torch.Tensor = file.get_tensor(key)
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{self.path}: {key} holds NaN or infinity because its training diverged; take another adapter"
            )
        return tensor


def read(folder: str | Path) -> Adapter:
    """Read the config and the tensor headers of a plain LoRA adapter. Raises ModelError for any other folder."""
    path = Path(folder)
    if not (path / WEIGHTS).is_file() and (path / "adapter_model.bin").is_file():
        raise ModelError(
            f"{path}: adapter_model.bin is a pickle, which can run code when it is loaded; save it as {WEIGHTS}"
        )
    config = adapter_config(path)
    _check_plain_lora(path, config)
    factors: dict[str, dict[str, tuple[str, list[int]]]] = {}  # module -> side (A or B) -> key and shape
    copies: list[str] = []
    dtypes: set[torch.dtype] = set()
    with opened(path / WEIGHTS, "the adapter") as file:
        for key in file.keys():  # noqa: SIM118 (a handle, not a dict)
            match = _FACTOR.match(key)
            if match is None and key.endswith(".base_layer.weight"):
                copies.append(key)
                continue
            header = file.get_slice(key)
            if match is None or header.get_dtype() not in FLOATS:
                raise ModelError(
                    f"{path}: tensor {key} ({header.get_dtype()}) is no supported LoRA factor; "
                    "take an adapter with lora_A and lora_B in float32, float16 or bfloat16"
                )
            factors.setdefault(match[1], {})[match[2] or match[3]] = (key, list(header.get_shape()))
            dtypes.add(FLOATS[header.get_dtype()])
    if not factors:
        raise ModelError(f"{path}: {WEIGHTS} holds no LoRA factors; save the adapter again")
    modules = {name: _module(path, config, name, pair) for name, pair in sorted(factors.items())}
    return Adapter(path, config, modules, tuple(copies), reduce(torch.promote_types, dtypes))


def _check_plain_lora(path: Path, config: dict[str, Any]) -> None:
    reason = None
    unknown = sorted(key for key, value in config.items() if value and key not in _HARMLESS | _OTHER_THAN_LORA.keys())
    special = [key for key in _OTHER_THAN_LORA if config.get(key)]
    if config.get("peft_type") != "LORA":
        reason = f"peft_type is {config.get('peft_type')}, not LORA"
    elif str(config.get("init_lora_weights", True)).lower() not in _BASE_KEPT:
        reason = (
            f"init_lora_weights {config['init_lora_weights']} changes the base weights; convert the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, or"
        )
    elif special:
        reason = f"{special[0]} is set, {_OTHER_THAN_LORA[special[0]]}"
    elif config.get("bias", "none") != "none":
        reason = f"bias is {config['bias']}, so it holds biases that replace the base's"
    elif unknown:
        reason = f"{unknown[0]} is set, which this version does not know"
    if reason is not None:
        joint = "" if reason.endswith(" or") else ";"
        raise ModelError(f"{path}: {reason}{joint} take a plain LoRA adapter")


def _module(path: Path, config: dict[str, Any], name: str, factors: dict[str, tuple[str, list[int]]]) -> Module:
    """Match a module's factors with the config as PEFT does (LoraModel._create_and_replace, update_layer)."""
    rank = _of_pattern(path, config.get("rank_pattern"), name, config.get("r", 8))
    alpha = _of_pattern(path, config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    shapes = {side: shape for side, (_, shape) in factors.items()}
    fit = shapes.keys() == {"A", "B"} and all(len(shape) == 2 for shape in shapes.values())
    if not fit or not (0 < shapes["A"][0] == shapes["B"][1] == rank) or not isinstance(alpha, int | float):
        raise ModelError(
            f"{path}: module {name} has factors of shape {shapes}, which do not fit rank {rank} and alpha {alpha} in "
            f"{CONFIG}, and convolutions are not supported; save the adapter again"
        )
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Module(factors["A"][0], factors["B"][0], rank, (shapes["B"][0], shapes["A"][1]), scaling)


def _of_pattern(path: Path, pattern: dict[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first key that matches the name or its end, as in peft's get_pattern_key; keys are patterns."""
    for key, value in (pattern or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        except re.error as error:
            raise ModelError(
                f"{path}: {key!r} in {CONFIG} is no regular expression ({error}); give a valid one"
            ) from error
    return (pattern or {}).get(name, default)


def base_of(adapter: Adapter) -> dict[str, Any]:
    """The base of an adapter: name and revision from its config, fingerprint from its manifest."""
    config = adapter.config
    return {
        "name": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
        "fingerprint": _recorded_base(adapter.path).get("fingerprint"),
    }


def check_base(folder: str | Path, fingerprint: str | None, base: str) -> None:
    """Refuse an adapter of any kind on a base that it was not made for, if both fingerprints are known.

    Args:
        folder: of the adapter. One whose manifest records no fingerprint, or that has no manifest, passes.
        fingerprint: of the base at hand, from run_folder.fingerprint; None passes.
        base: its name, for the message.

    Raises:
        ModelError: the fingerprints differ.
    """
    made_for = _recorded_base(Path(folder))
    recorded = made_for.get("fingerprint")
    if recorded and fingerprint and recorded != fingerprint:
        raise ModelError(
            f"{folder}: was made for another base ({made_for.get('name')}) than {base}, whose weights have another "
            "fingerprint; name its base, or add --force if you know the two to be the same"
        )


def operation_manifest(operation: str, base: dict[str, Any], adapters: Sequence[Adapter]) -> dict[str, Any]:
    """What arithmetic.json begins with: which operation made the folder, from which base and adapters."""
    inputs = run_folder.identities(adapter.path for adapter in adapters)
    return run_folder.provenance() | {"operation": operation, "base": base, "inputs": inputs}


def _recorded_base(folder: Path) -> dict[str, Any]:
    """The base in an adapter's manifest; empty without a manifest."""
    recorded: dict[str, Any] = {}
    for manifest in (run_folder.ARITHMETIC, run_folder.MANIFEST):
        if (folder / manifest).is_file():
            recorded = read_json(folder / manifest).get("base") or {}
    return recorded


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal in the narrower of their dtypes."""
    narrow, wide = sorted((one, other), key=torch.Tensor.element_size)
    return torch.equal(narrow, wide.to(narrow.dtype))
