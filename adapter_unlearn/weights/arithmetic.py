"""Adapters as vectors: adapter folder -> adapter folder, exact, without the base model and without a GPU.

A LoRA module changes its weight by delta = scaling * B @ A. Scaling B scales the delta; stacking the A's and the B's
of several adapters along the rank adds their deltas exactly. PEFT's `add_weighted_adapter` is another thing: it adds
A's and B's separately, and (A1 + A2)(B1 + B2) is not A1 B1 + A2 B2.

Factors are read one tensor at a time and computed with in float64; what is held is the result, in its storage dtype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapter_unlearn.errors import ModelError, OutputError, RecipeError
from adapter_unlearn.runs import run_folder
from adapter_unlearn.version import __version__
from adapter_unlearn.weights.adapter_files import CONFIG, WEIGHTS, Adapter, Module, base_of, read

PREFIX = "base_model.model."


def negate(adapter: str | Path, output_dir: str | Path, scale: float = -1.0, overwrite: bool = False) -> Path:
    """Multiply every delta of an adapter by `scale`: -1 takes back what it learned.

    Only B is scaled and A, the config and the dtype stay, so that negating twice gives the same bits. (A dtype that
    would overflow or underflow gives way to float32 in that tensor.)

    Args:
        adapter: folder of a PEFT LoRA adapter.
        output_dir: folder to write; loads with plain PEFT.
        scale: any finite number; 0 gives an adapter that does nothing.
        overwrite: replace a run that stands in output_dir.

    Raises:
        ModelError: no plain LoRA adapter there; the message says what it is.
        RecipeError: scale is not finite.
        OutputError: output_dir can't or must not be written.
    """
    _check_finite("scale", [scale])
    _check_output(output_dir, [adapter], overwrite)
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
    """The weighted sum of adapters' deltas, exact: ranks are concatenated, each adapter's scaling folded into its B.

    Args:
        adapters: folders of PEFT LoRA adapters for the same base, one or more; ranks, scalings and target modules may
            differ (a module that one of them lacks gets nothing from it).
        weights: a finite number for each.
        output_dir: folder to write; plain LoRA with scaling 1, its dtype the widest of the inputs'.
        rank: afterwards compress to this rank at most; None keeps the sum of the ranks.
        overwrite: replace a run that stands in output_dir.
        force: go on where the adapters name different bases.

    Raises:
        ModelError: an adapter is no plain LoRA, or they were made for different bases.
        RecipeError: not one weight for each adapter, not finite, or rank below 1.
        OutputError: output_dir can't or must not be written.
    """
    if not adapters or len(adapters) != len(weights):
        raise RecipeError(f"weights: {len(weights)} for {len(adapters)} adapters; give one for each")
    _check_finite("weights", weights)
    return _sum("combine", adapters, weights, output_dir, rank, overwrite, force)


def compress(adapter: str | Path, output_dir: str | Path, rank: int, overwrite: bool = False) -> Path:
    """The best adapter of at most this rank: each delta's truncated SVD, through the QR of its factors.

    No delta is ever formed. `arithmetic.json` states the relative Frobenius error of every module and of all, storage
    rounding included. A module whose rank is no higher already keeps its factors.

    Args:
        adapter: folder of a PEFT LoRA adapter.
        output_dir: folder to write; plain LoRA with scaling 1.
        rank: at least 1.
        overwrite: replace a run that stands in output_dir.

    Raises:
        ModelError, RecipeError, OutputError: as combine.
    """
    return _sum("compress", [adapter], [1.0], output_dir, rank, overwrite, False)


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
        raise RecipeError(f"rank {rank}: must be 1 or more; leave it out to keep the exact sum")
    _check_output(output_dir, adapters, overwrite)
    sources = [read(adapter) for adapter in adapters]
    if not force:
        _check_same_base(sources)
    dtype = sources[0].dtype
    for source in sources[1:]:
        dtype = torch.promote_types(dtype, source.dtype)  # bfloat16 with float16 gives float32
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
    """B (out, total rank) with weights and scalings folded in, A (total rank, in); float64."""
    held = [(adapter, weight) for adapter, weight in zip(adapters, weights) if name in adapter.modules]
    first, first_module = held[0][0], held[0][0].modules[name]
    for adapter, _ in held[1:]:
        module = adapter.modules[name]
        if (module.shape, _is_embedding(module)) != (first_module.shape, _is_embedding(first_module)):
            raise ModelError(
                f"{adapter.path}: module {name} is {module.shape} here and {first_module.shape} in {first.path}; "
                "these adapters belong to different bases, combine only adapters of one"
            )
    b = [weight * x.modules[name].scaling * x.tensor(x.modules[name].b_key).double() for x, weight in held]
    a = [x.tensor(x.modules[name].a_key).double() for x, _ in held]
    return torch.cat(b, 1), torch.cat(a, 0)


def _truncated(b: torch.Tensor, a: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of b @ a of this rank (Eckart-Young), from an SVD no larger than the factors' rank.

    The singular values' roots go to both sides, so that neither factor strains a narrow storage dtype.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    roots = s[:rank].sqrt()
    return q_b @ (u[:, :rank] * roots), (roots[:, None] * v[:rank]) @ q_a.T


def _difference(
    b: torch.Tensor, a: torch.Tensor, other_b: torch.Tensor, other_a: torch.Tensor, scaling: float = 1.0
) -> tuple[float, float]:
    """(|scaling (b a - other_b other_a)|, |scaling b a|), Frobenius, from Gram matrices; its floor is 1e-8 of |b a|."""

    def norm(left: torch.Tensor, right: torch.Tensor) -> float:
        return math.sqrt(max(0.0, float(((left.T @ left) * (right @ right.T)).sum())))

    distance = norm(torch.cat([b, -other_b], 1), torch.cat([a, other_a], 0))
    return abs(scaling) * distance, abs(scaling) * norm(b, a)


def _stored(value: torch.Tensor, dtype: torch.dtype, path: Path, name: str) -> torch.Tensor:
    """The float64 tensor in its storage dtype, or in float32 where over- or underflow would cost more than rounding."""
    for storage in (dtype, torch.promote_types(dtype, torch.float32)):
        kept = value.to(storage)
        lost = float((kept.double() - value).norm())
        if math.isfinite(lost) and lost <= torch.finfo(storage).eps * float(value.norm()):
            return kept.contiguous()
    raise ModelError(f"{path}: module {name} times this factor is beyond what {storage} holds; choose one nearer to 1")


def _check_same_base(adapters: Sequence[Adapter]) -> None:
    """Fingerprints decide where both are recorded; else the names, which for folders may differ in spelling only."""
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
                f"{adapter.path}: made for another base ({other['name']}) than {adapters[0].path} ({first['name']}); "
                "combine adapters of one base, or go on with force if you know the two to be the same"
            )


def _common_copies(adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    """The base's embeddings that PEFT stored beside the factors, once; they must be the same in every adapter."""
    copies: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        for stored in adapter.copies:
            key, tensor = _with_prefix(stored), adapter.tensor(stored)
            known = copies.setdefault(key, tensor)
            narrow, wide = sorted((known, tensor), key=torch.Tensor.element_size)
            if not torch.equal(narrow, wide.to(narrow.dtype)):
                raise ModelError(
                    f"{adapter.path}: its copy of the base's {key} is not that of {adapters[0].path}; "
                    "these adapters belong to different bases, combine only adapters of one"
                )
            copies[key] = wide
    return copies


def _plain(config: dict[str, Any], modules: Iterable[str] | None) -> dict[str, Any]:
    """The config of a finished, plain LoRA adapter; with `modules` it targets exactly those, by their full names.

    Tying is taken off: the file holds the factors of both tied layers, and of those of a sum neither follows from the
    other.
    """
    reset = {"init_lora_weights": True, "inference_mode": True, "ensure_weight_tying": False, "loftq_config": {}}
    reset |= dict.fromkeys(("eva_config", "corda_config", "lora_ga_config", "velora_config", "runtime_config"))
    if modules is not None:
        reset |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    plain = {key: reset.get(key, value) for key, value in config.items() if key != "runtime_config"}
    return plain if modules is None else plain | {"target_modules": sorted(modules)}


def _rank_config(ranks: dict[str, int]) -> dict[str, Any]:
    """Ranks and alphas that give every module scaling 1. Anchored, escaped names, for PEFT reads them as patterns."""
    r = max(ranks.values())
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r}
    common: dict[str, Any] = {"r": r, "lora_alpha": r, "use_rslora": False, "lora_dropout": 0.0}
    return common | {"rank_pattern": pattern, "alpha_pattern": dict(pattern)}


def _manifest(operation: str, adapters: Sequence[Adapter], sizes: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """What was computed from what, and how far the stored result is from the definition."""
    ratios = {name: error / size if size else 0.0 for name, (error, size) in sizes.items()}
    error, size = (math.hypot(*(pair[i] for pair in sizes.values())) for i in (0, 1))
    known = [base for base in map(base_of, adapters) if base["fingerprint"]]
    return {
        "package": {"name": "adapter-unlearn", "version": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "operation": operation,
        "base": (known or [base_of(adapters[0])])[0],
        "inputs": [{"path": str(x.path), "fingerprint": run_folder.fingerprint(x.path)} for x in adapters],
        "relative_error": {"all": error / size if size else 0.0, "modules": ratios},
    }


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


def _check_output(output_dir: str | Path, adapters: Iterable[str | Path], overwrite: bool) -> None:
    if Path(output_dir).resolve() in [Path(adapter).resolve() for adapter in adapters]:
        raise OutputError(f"{output_dir}: is also an adapter to read; choose another --output_dir")
    run_folder.check_writable(output_dir, overwrite)


def _check_finite(flag: str, values: Iterable[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise RecipeError(f"{flag} {value}: must be a finite number")


def _with_prefix(key: str) -> str:
    return key if key.startswith(PREFIX) else PREFIX + key


def _is_embedding(module: Module) -> bool:
    return module.a_key.endswith("lora_embedding_A")
