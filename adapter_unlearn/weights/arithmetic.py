"""Arithmetic on adapter folders: exact, without the base model and without a GPU.

A LoRA module changes its weight by delta = scaling * B @ A. Scaling B scales the delta. Concatenating the factors of
several adapters along the rank adds their deltas exactly. PEFT's `add_weighted_adapter` does something else: it adds
the A's and the B's separately, and (B1 + B2)(A1 + A2) is not B1 A1 + B2 A2.

Factors are read one tensor at a time and computed in float64; only the result, in its storage dtype, is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from adapter_unlearn.errors import ModelError, RecipeError
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import adapter_files
from adapter_unlearn.weights.adapter_files import CONFIG, WEIGHTS, Adapter, Module, base_of, equal, read

PREFIX = "base_model.model."


def negate(adapter: str | Path, output_dir: str | Path, scale: float = -1.0, overwrite: bool = False) -> Path:
    """Multiply every delta of an adapter by `scale`; -1 reverses what it learned.

    Only B is scaled; A, the config and the dtype stay, so negating twice gives the same bits. A tensor that would
    overflow or underflow is stored in float32.

    Args:
        adapter: folder of a PEFT LoRA adapter.
        output_dir: folder to write; plain PEFT loads it.
        scale: any finite number; 0 gives an adapter that does nothing.
        overwrite: replace an earlier run in output_dir.

    Raises:
        ModelError: the folder holds no plain LoRA adapter.
        RecipeError: scale is not finite.
        OutputError: output_dir can't or must not be written.
    """
    _check_finite("scale", [scale])
    run_folder.check_output(output_dir, overwrite, [adapter])
    source = read(adapter)
    tensors = {key: source.tensor(key) for key in source.copies}
    sizes: dict[str, tuple[float, float]] = {}
    for name, module in source.modules.items():
        a, b = source.tensor(module.a_key), source.tensor(module.b_key)
        scaled = b.double() * scale
        tensors[module.a_key], tensors[module.b_key] = a, _stored(scaled, b.dtype, source.path, name)
        after = tensors[module.b_key].double()
        sizes[name] = _difference(scaled, a.double(), after, a.double(), module.scaling)
    config = _plain(source.config, source.modules if source.config.get("ensure_weight_tying") else None)
    manifest = _manifest("negate", [source], sizes) | {"scale": scale}
    return _write(output_dir, overwrite, config, tensors, manifest)


def combine(
    adapters: Sequence[str | Path],
    weights: Sequence[float],
    output_dir: str | Path,
    rank: int | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> Path:
    """Write the exact weighted sum of adapters' deltas: ranks are concatenated, scalings folded into B.

    Args:
        adapters: folders of PEFT LoRA adapters for the same base, one or more; ranks, scalings and target modules may
            differ.
        weights: one finite number per adapter.
        output_dir: folder to write; plain LoRA with scaling 1, in the widest dtype of the inputs.
        rank: compress the sum to at most this rank; None keeps the sum of the ranks.
        overwrite: replace an earlier run in output_dir.
        force: accept adapters that name different bases.

    Raises:
        ModelError: an adapter is not plain LoRA, or they were made for different bases.
        RecipeError: the weights are not finite or not one per adapter, an adapter is given twice, or the rank is below
            1.
        OutputError: output_dir can't or must not be written.
    """
    if not adapters or len(adapters) != len(weights):
        raise RecipeError(f"weights: {len(weights)} for {len(adapters)} adapters; give one weight for each")
    _check_finite("weights", weights)
    return _sum("combine", adapters, weights, output_dir, rank, overwrite, force)


def compress(adapter: str | Path, output_dir: str | Path, rank: int, overwrite: bool = False) -> Path:
    """Write the best approximation of at most this rank: the truncated SVD of every delta, from its factors' QR.

    No delta is formed. `arithmetic.json` holds the relative Frobenius error of every module and of all together,
    including the rounding to the storage dtype. A module whose rank is not higher keeps its factors.

    Args:
        adapter: folder of a PEFT LoRA adapter.
        output_dir: folder to write; plain LoRA with scaling 1.
        rank: at least 1.
        overwrite: replace an earlier run in output_dir.

    Raises:
        ModelError, RecipeError, OutputError: as combine.
    """
    return _sum("compress", [adapter], [1.0], output_dir, rank, overwrite, False)


def cast(folder: str | Path, dtype: torch.dtype) -> None:
    """Round the factors of a finished adapter, in its folder, to a dtype; none is made wider."""
    path = Path(folder) / WEIGHTS
    tensors = load_file(path)
    if any(tensor.itemsize > dtype.itemsize for tensor in tensors.values()):
        rounded = {key: x.to(dtype) if x.itemsize > dtype.itemsize else x for key, x in tensors.items()}
        save_file(rounded, path, metadata={"format": "pt"})


def _sum(
    operation: str,
    adapters: Sequence[str | Path],
    weights: Sequence[float],
    output_dir: str | Path,
    rank: int | None,
    overwrite: bool,
    force: bool,
) -> Path:
    if rank is not None and rank < 1:
        raise RecipeError(f"rank: {rank} is out of range; give 1 or more, or leave it out to keep the exact sum")
    run_folder.check_output(output_dir, overwrite, adapters)
    sources = [read(adapter) for adapter in adapters]
    if not force:
        _check_same_base(sources)
    adapter_files.check_distinct(adapters)
    dtype = reduce(torch.promote_types, [source.dtype for source in sources])  # bfloat16 with float16 gives float32
    tensors = _common_copies(sources)
    ranks: dict[str, int] = {}
    sizes: dict[str, tuple[float, float]] = {}
    for name in dict.fromkeys(name for source in sources for name in source.modules):
        b, a = _concatenated(name, sources, weights)
        low_b, low_a = (b, a) if rank is None or a.shape[0] <= rank else _truncated(b, a, rank)
        kept_b, kept_a = (_stored(factor, dtype, sources[0].path, name) for factor in (low_b, low_a))
        module = next(source.modules[name] for source in sources if name in source.modules)
        tensors |= {_with_prefix(module.a_key): kept_a, _with_prefix(module.b_key): kept_b}
        ranks[name], sizes[name] = kept_a.shape[0], _difference(b, a, kept_b.double(), kept_a.double())
    config = _plain(sources[0].config, ranks) | _rank_config(ranks)
    config["fan_in_fan_out"] = any(source.config.get("fan_in_fan_out") for source in sources)
    manifest = _manifest(operation, sources, sizes) | {"weights": list(weights), "rank": rank}
    return _write(output_dir, overwrite, config, tensors, manifest)


def _concatenated(
    name: str, adapters: Sequence[Adapter], weights: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """B (out, total rank) with weights and scalings folded in, and A (total rank, in); float64."""
    pairs = [(adapter, weight) for adapter, weight in zip(adapters, weights) if name in adapter.modules]
    first, first_module = pairs[0][0], pairs[0][0].modules[name]
    for adapter, _ in pairs[1:]:
        module = adapter.modules[name]
        if (module.shape, _is_embedding(module)) != (first_module.shape, _is_embedding(first_module)):
            raise ModelError(
                f"{adapter.path}: module {name} is {module.shape} here and {first_module.shape} in {first.path}, so "
                "these adapters belong to different bases; combine adapters of one base"
            )
    b = [weight * x.modules[name].scaling * x.tensor(x.modules[name].b_key).double() for x, weight in pairs]
    a = [x.tensor(x.modules[name].a_key).double() for x, _ in pairs]
    return torch.cat(b, 1), torch.cat(a, 0)


def _truncated(b: torch.Tensor, a: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of b @ a of this rank (Eckart-Young), from an SVD of the size of the factors' rank.

    Both factors get the square roots of the singular values, so that neither overflows a narrow storage dtype.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    roots = s[:rank].sqrt()
    return q_b @ (u[:, :rank] * roots), (roots[:, None] * v[:rank]) @ q_a.T


def _difference(
    b: torch.Tensor, a: torch.Tensor, other_b: torch.Tensor, other_a: torch.Tensor, scaling: float = 1.0
) -> tuple[float, float]:
    """(|scaling (b a - other_b other_a)|, |scaling b a|): Frobenius, from Gram matrices, accurate to 1e-8 |b a|."""

    def norm(left: torch.Tensor, right: torch.Tensor) -> float:
        return math.sqrt(max(0.0, float(((left.T @ left) * (right @ right.T)).sum())))

    distance = norm(torch.cat([b, -other_b], 1), torch.cat([a, other_a], 0))
    return abs(scaling) * distance, abs(scaling) * norm(b, a)


def _stored(value: torch.Tensor, dtype: torch.dtype, path: Path, name: str) -> torch.Tensor:
    """The float64 tensor in its storage dtype, or in float32 if over- or underflow would cost more than rounding."""
    for storage in (dtype, torch.promote_types(dtype, torch.float32)):
        kept = value.to(storage)
        lost = float((kept.double() - value).norm())
        if math.isfinite(lost) and lost <= torch.finfo(storage).eps * float(value.norm()):
            return kept.contiguous()
    raise ModelError(
        f"{path}: module {name} times this factor is out of range of {storage}; choose a factor nearer to 1"
    )


def _check_same_base(adapters: Sequence[Adapter]) -> None:
    """Compare fingerprints where both are recorded, else names; folders are resolved first."""
    first = base_of(adapters[0])
    for adapter in adapters[1:]:
        other = base_of(adapter)
        if first["fingerprint"] and other["fingerprint"]:
            same = first["fingerprint"] == other["fingerprint"]
        else:
            names = [Path(base["name"]).resolve() if base["name"] else None for base in (first, other)]
            revisions = [base["revision"] or "main" for base in (first, other)]
            same = None in names or (names[0] == names[1] and revisions[0] == revisions[1])
        if not same:
            raise ModelError(
                f"{adapter.path}: was made for another base ({other['name']}) than {adapters[0].path} "
                f"({first['name']}); combine adapters of one base, or add --force if the two are the same"
            )


def _common_copies(adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    """The base's embeddings that PEFT stored beside the factors; they must be equal in all adapters."""
    copies: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        for stored in adapter.copies:
            key, tensor = _with_prefix(stored), adapter.tensor(stored)
            known = copies.setdefault(key, tensor)
            if not equal(known, tensor):
                raise ModelError(
                    f"{adapter.path}: its copy of the base's {key} is not that of {adapters[0].path}, so "
                    "these adapters belong to different bases; combine adapters of one base"
                )
            copies[key] = max(known, tensor, key=torch.Tensor.element_size)
    return copies


def _plain(config: dict[str, Any], modules: Iterable[str] | None) -> dict[str, Any]:
    """The config of a finished, plain LoRA adapter; with `modules`, it targets exactly these full names.

    Tying is switched off, because the file holds the factors of both tied layers and they may differ in a sum.
    """
    reset = {"init_lora_weights": True, "inference_mode": True, "ensure_weight_tying": False, "loftq_config": {}}
    reset |= dict.fromkeys(("eva_config", "corda_config", "lora_ga_config", "velora_config", "runtime_config"))
    if modules is not None:
        reset |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    plain = {key: reset.get(key, value) for key, value in config.items() if key != "runtime_config"}
    return plain if modules is None else plain | {"target_modules": sorted(modules)}


def _rank_config(ranks: dict[str, int]) -> dict[str, Any]:
    """Ranks and alphas that give every module scaling 1; PEFT reads names as patterns, so they are escaped."""
    r = max(ranks.values())
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r}
    common: dict[str, Any] = {"r": r, "lora_alpha": r, "use_rslora": False, "lora_dropout": 0.0}
    return common | {"rank_pattern": pattern, "alpha_pattern": dict(pattern)}


def _manifest(operation: str, adapters: Sequence[Adapter], sizes: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """What arithmetic.json holds; `relative_error` is the distance of the stored result from the definition."""
    ratios = {name: error / size if size else 0.0 for name, (error, size) in sizes.items()}
    error, size = (math.hypot(*(pair[i] for pair in sizes.values())) for i in (0, 1))
    known = [base for base in map(base_of, adapters) if base["fingerprint"]]
    about = adapter_files.operation_manifest(operation, (known or [base_of(adapters[0])])[0], adapters)
    return about | {"relative_error": {"all": error / size if size else 0.0, "modules": ratios}}


def _write(
    output_dir: str | Path,
    overwrite: bool,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    manifest: dict[str, Any],
) -> Path:
    with run_folder.new_folder(output_dir, overwrite) as staging:
        save_file(tensors, staging / WEIGHTS, metadata={"format": "pt"})
        run_folder.write_json(staging / CONFIG, config)
        run_folder.write_json(staging / run_folder.ARITHMETIC, manifest)
    return Path(output_dir)


def _check_finite(flag: str, values: Iterable[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise RecipeError(f"{flag}: {value} is out of range; give a finite number")


def _with_prefix(key: str) -> str:
    return key if key.startswith(PREFIX) else PREFIX + key


def _is_embedding(module: Module) -> bool:
    return module.a_key.endswith("lora_embedding_A")
