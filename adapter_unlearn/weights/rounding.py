"""How much of an adapter's delta is left in the weights once it is merged, quantized or rounded.

Quantization moves a weight to the nearest of a few code points. A delta smaller than their distance moves most weights
nowhere, if they stand on code points already (in place); added before the weights are quantized, it moves some across a
boundary, on average by as much as it says, with noise larger than itself. The projection tells the two apart; whether
the texts are recited, only scoring the model does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from adapter_unlearn import models
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.models import Quantization
from adapter_unlearn.weights import merging
from adapter_unlearn.weights.adapter_files import Adapter
from adapter_unlearn.weights.base_files import Base
from adapter_unlearn.weights.merging import Dtype


def survival(
    model: str,
    adapter: str | Path | Sequence[str | Path],
    quantization: Quantization = "nf4",
    dtype: Dtype = "bfloat16",
    in_place: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
) -> pd.DataFrame:
    """Compare the change of each deployed weight, C, with the delta it should have got, one weight at a time.

    Args:
        model: folder or hub id of the base, unquantized, in safetensors.
        adapter: one PEFT LoRA adapter folder, or several, whose deltas add up.
        quantization: none compares what is stored in `dtype` before and after; nf4 and int8 what is dequantized.
        dtype: of the merged weights, and of the base before it is quantized.
        in_place: merge as `merge_and_unload` does into a quantized base, one adapter after the other.
        revision: hub revision of the base.
        trust_remote_code: run Python that comes with the model.
        force: go on where an adapter was made for another base.

    Returns:
        A row a module: `module`, `quantized` (output layer and embeddings are not), `delta_norm` and `weight_norm`
        (Frobenius), `relative_size` = |delta| / |weight|, `projection` = <C, delta> / |delta|² (1: all of it acts, 0:
        none) and `relative_error` = |C - delta| / |delta|; the last two are NaN where the delta is zero.

    Raises:
        RecipeError: in_place without quantization; ModelError, RecipeError: as merging.merge.
    """
    if in_place and quantization == "none":
        raise RecipeError("in_place: merges into quantized weights; set quantization to nf4 or int8")
    adapters = [adapter] if isinstance(adapter, str | Path) else list(adapter)
    base, sources = merging.open_pair(model, adapters, revision, trust_remote_code, force)
    config = models.load_config(model, revision, trust_remote_code)
    quantized = models.quantized_modules(config, model, quantization, trust_remote_code)
    rows = []
    for module in dict.fromkeys(name for source in sources for name in source.modules):
        weight, deltas = _weight_and_deltas(base, sources, module)
        kind: Quantization = quantization if module in quantized else "none"
        before, after = _deployed(weight, deltas, kind, getattr(torch, dtype), in_place)
        measured = _compared(weight, torch.stack(deltas).sum(0), after - before)
        rows.append({"module": module, "quantized": kind != "none"} | measured)
    return pd.DataFrame(rows)


def overall(frame: pd.DataFrame) -> dict[str, float]:
    """`relative_size`, `projection` and `relative_error` of all modules together, as if they were one long vector."""
    square = frame["delta_norm"] ** 2
    size = math.sqrt(square.sum())
    moved, missed = (frame["projection"] * square).sum(), (frame["relative_error"] ** 2 * square).sum()
    return {
        "relative_size": size / math.sqrt((frame["weight_norm"] ** 2).sum()),
        "projection": float(moved) / size**2 if size else math.nan,
        "relative_error": math.sqrt(missed) / size if size else math.nan,
    }


def _weight_and_deltas(base: Base, adapters: Sequence[Adapter], module: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A module's weight and each adapter's delta, float64, as they are quantized: linear layers are (out, in)."""
    from transformers.pytorch_utils import Conv1D

    source = base.source(f"{module}.weight")
    assert source is not None  # open_pair refuses an adapter whose module has no weight
    found = [source.whole().double()]
    for adapter in (x for x in adapters if module in x.modules):
        left, right = merging.factors(base, [adapter], module)
        found.append(left @ right)
    if isinstance(base.skeleton.get_submodule(module), Conv1D):
        found = [tensor.T.contiguous() for tensor in found]
    return found[0], found[1:]


def _deployed(
    weight: torch.Tensor, deltas: Sequence[torch.Tensor], kind: Quantization, dtype: torch.dtype, in_place: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight that acts before and after merging, float64."""
    before = _rounded(weight.to(dtype), kind)
    if not in_place:
        return before.double(), _rounded((weight + sum(deltas)).to(dtype), kind).double()
    after = before
    for delta in deltas:  # peft adds in float32, whatever the base's dtype, and leaves what is not quantized in it
        added = after.float() + delta.float()
        after = _rounded(added if kind != "none" else added.to(dtype), kind)
    return before.double(), after.double()


def _rounded(weight: torch.Tensor, kind: Quantization) -> torch.Tensor:
    """Quantized and dequantized again, as transformers and bitsandbytes do it with models.quantization_config."""
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
