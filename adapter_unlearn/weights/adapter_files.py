"""Read adapter folders, and refuse every adapter that is not plain LoRA."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from adapter_unlearn.errors import ModelError, RecipeError
from adapter_unlearn.models import patterns
from adapter_unlearn.models.adapter_config import CONFIG, WEIGHTS, adapter_config, check_plain, read_json
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights.streaming import FLOATS, opened

_FACTOR = re.compile(r"^(?:base_model\.model\.)?(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))$")

_IDENTITY = ("base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


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
    config = adapter_config(path)
    check_plain(path, config)
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
    rank, alpha = (
        dict.fromkeys(factors, config.get(key, 8))
        | patterns.by_name(config.get(pattern) or {}, factors, f"{path / CONFIG}, {pattern}")
        for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
    )
    modules = {}
    for name, pair in sorted(factors.items()):
        divisor = math.sqrt(rank[name]) if config.get("use_rslora") else rank[name]
        modules[name] = _module(path, name, pair, rank[name], alpha[name] / divisor)
    return Adapter(path, config, modules, tuple(copies), reduce(torch.promote_types, dtypes))


def _module(path: Path, name: str, factors: dict[str, tuple[str, list[int]]], rank: int, scaling: float) -> Module:
    """Match a module's factors with the config as PEFT does (LoraModel._create_and_replace, update_layer)."""
    shapes = {side: shape for side, (_, shape) in factors.items()}
    fit = shapes.keys() == {"A", "B"} and all(len(shape) == 2 for shape in shapes.values())
    if not fit or not (0 < shapes["A"][0] == shapes["B"][1] == rank):
        raise ModelError(
            f"{path}: module {name} has factors of shape {shapes}, which do not fit rank {rank} in {CONFIG}, and "
            "convolutions are not supported; save the adapter again"
        )
    return Module(factors["A"][0], factors["B"][0], rank, (shapes["B"][0], shapes["A"][1]), scaling)


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


def check_distinct(folders: Sequence[str | Path]) -> None:
    """Refuse the same adapter twice, which would silently double its delta.

    Two folders hold the same adapter if they are one place, or if their weights, scaling and base are the same.

    Raises:
        ModelError: a folder holds no LoRA adapter.
        RecipeError: names the two folders.
    """
    seen: dict[str, str | Path] = {}
    for folder in folders if len(folders) > 1 else ():
        config = adapter_config(folder)
        content = [run_folder.fingerprint(folder), *map(config.get, _IDENTITY)]
        keys = (os.path.realpath(folder), json.dumps(content, sort_keys=True))
        for key in keys:
            if key in seen:
                raise RecipeError(
                    f"adapter: {folder} is the same adapter as {seen[key]}, and its delta would be added twice; name "
                    "it once, or first write a multiple of it with `negate --scale 2`"
                )
        seen |= dict.fromkeys(keys, folder)


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
            texts = isinstance(recorded, dict) and [recorded.get(key) for key in ("name", "fingerprint")]
            if not texts or not all(text is None or isinstance(text, str) for text in texts):
                raise ModelError(
                    f"{folder / manifest}: base must have a name and a fingerprint; copy the adapter again, or remove "
                    "the file"
                )
    return recorded


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal in the narrower of their dtypes."""
    narrow, wide = sorted((one, other), key=torch.Tensor.element_size)
    return torch.equal(narrow, wide.to(narrow.dtype))
