"""Measure how much of an adapter's delta is left in the weights after merging, rounding and quantization.

Quantization moves a weight to the nearest of a few code points. A delta that is smaller than their distance changes
almost no weight if it is added to quantized weights (in place). Added before quantization, it moves some weights across
a boundary: on average by the delta, with noise larger than the delta. The projection distinguishes the two cases.
Whether the texts are still extractable is measured by scoring the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from adapter_unlearn import models
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe import Dtype, Model, Permissions, Quantization
from adapter_unlearn.weights import merging
from adapter_unlearn.weights.adapter_files import Adapter
from adapter_unlearn.weights.base_files import Base


def survival(
    model: Model | str,
    adapters: str | Path | Sequence[str | Path],
    quantization: Quantization = "nf4",
    dtype: Dtype = "bfloat16",
    in_place: bool = False,
    permissions: Permissions = Permissions(),
) -> pd.DataFrame:
    """Compare the change C of each deployed weight with the delta of the adapters, one weight at a time.

    Args:
        model: the base, unquantized and in safetensors; only its name and revision are used.
        adapters: one PEFT LoRA adapter folder, or several, whose deltas are added up.
        quantization: none compares the weights stored in `dtype` before and after; nf4 and int8 the dequantized ones.
        dtype: of the merged weights, and of the base before it is quantized.
        in_place: merge one adapter after the other into quantized weights, as `merge_and_unload` does.
        permissions: `force` an adapter of another base, `trust_remote_code`.

    Returns:
        One row per module: `module`, `quantized` (false for output layer and embeddings), `delta_norm` and
        `weight_norm` (Frobenius), `relative_size` = |delta| / |weight|, `projection` = <C, delta> / |delta|² (1: the
        whole delta acts, 0: nothing) and `relative_error` = |C - delta| / |delta|; the last two are NaN for a delta of
        zero.

    Raises:
        RecipeError: in_place without quantization.
        ModelError, RecipeError: as merging.merge.
    """
    if in_place and quantization == "none":
        raise RecipeError("in_place: there are no quantized weights to merge into; set quantization to nf4 or int8")
    folders = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    base, sources = merging.open_pair(model, folders, permissions)
    trust = permissions.trust_remote_code
    config = models.load_config(base.name, Model.of(model).revision, trust)
    quantized = models.base.quantized_modules(config, base.name, quantization, trust)
    rows = []
    for module in dict.fromkeys(name for source in sources for name in source.modules):
        weight, deltas = _weight_and_deltas(base, sources, module)
        kind: Quantization = quantization if module in quantized else "none"
        before, after = _deployed(weight, deltas, kind, getattr(torch, dtype), in_place)
        figures = _compared(weight, torch.stack(deltas).sum(0), after - before)
        rows.append({"module": module, "quantized": kind != "none"} | figures)
    return pd.DataFrame(rows)


def overall(frame: pd.DataFrame) -> dict[str, float]:
    """`relative_size`, `projection` and `relative_error` of all modules together, as of one long vector."""
    square = frame["delta_norm"] ** 2
    size = math.sqrt(square.sum())
    moved, missed = (frame["projection"] * square).sum(), (frame["relative_error"] ** 2 * square).sum()
    return {
        "relative_size": size / math.sqrt((frame["weight_norm"] ** 2).sum()),
        "projection": float(moved) / size**2 if size else math.nan,
        "relative_error": math.sqrt(missed) / size if size else math.nan,
    }


def _weight_and_deltas(base: Base, adapters: Sequence[Adapter], module: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A module's weight and each adapter's delta, float64, in the quantized layout: (out, in) for linear layers."""
    from transformers.pytorch_utils import Conv1D

    source = base.source(f"{module}.weight")
    assert source is not None  # open_pair refuses an adapter whose module has no weight
    matrices = [source.whole().double()]
    for adapter in (x for x in adapters if module in x.modules):
        left, right = merging.factors(base, [adapter], module)
        matrices.append(left @ right)
    if isinstance(base.skeleton.get_submodule(module), Conv1D):
        matrices = [matrix.T.contiguous() for matrix in matrices]
    return matrices[0], matrices[1:]


def _deployed(
    weight: torch.Tensor, deltas: Sequence[torch.Tensor], kind: Quantization, dtype: torch.dtype, in_place: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight that the model computes with, before and after merging; float64."""
    before = _rounded(weight.to(dtype), kind)
    if not in_place:
        return before.double(), _rounded((weight + sum(deltas)).to(dtype), kind).double()
    after = before
    for delta in deltas:  # peft adds in float32, whatever the base's dtype, and leaves what is not quantized in it
        added = after.float() + delta.float()
        after = _rounded(added if kind != "none" else added.to(dtype), kind)
    return before.double(), after.double()


def _rounded(weight: torch.Tensor, kind: Quantization) -> torch.Tensor:
    """Quantize and dequantize a weight as transformers and bitsandbytes do with models.base.quantization_config."""
    from bitsandbytes import functional

    if kind == "none":
        return weight
    if kind == "int8":
        codes, statistics, _ = functional.int8_vectorwise_quant(weight.half())
        return functional.int8_vectorwise_dequant(codes, statistics)
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    return functional.dequantize_4bit(packed, state)


def _compared(weight: torch.Tensor, delta: torch.Tensor, change: torch.Tensor) -> dict[str, float]:
    size, whole = float(delta.norm()), float(weight.norm())
    return {
        "delta_norm": size,
        "weight_norm": whole,
        "relative_size": size / whole if whole else math.inf,
        "projection": float((change * delta).sum()) / size**2 if size else math.nan,
        "relative_error": float((change - delta).norm()) / size if size else math.nan,
    }
