"""Merge adapters into a base model's files, without loading the model.

The deltas are added to the base's original, full-precision weights; for a quantized model the sum is quantized. The
other order, merging into quantized weights (`merge_and_unload` on an nf4 base), rounds each sum back to the code points
and loses most of a small delta, which undoes the unlearning.

Weights are copied in blocks of rows, so memory does not grow with the model. Sums are computed in float64 and rounded
once.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapter_unlearn import assets, models
from adapter_unlearn.errors import ModelError, RecipeError
from adapter_unlearn.recipe import Dtype, Model, Permissions, Quantization, check_choice
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import adapter_files, base_files
from adapter_unlearn.weights.adapter_files import Adapter
from adapter_unlearn.weights.base_files import Base
from adapter_unlearn.weights.streaming import FLOATS, Stored, Tensor, write_sharded

_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Output:
    """A tensor of the merged model: the base's tensor, the dtype to write, and the module whose delta is added."""

    key: str
    source: Stored
    dtype: str
    module: str | None


def merge(
    model: Model | str,
    adapters: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    quantization: Quantization = "none",
    dtype: Dtype | None = None,
    permissions: Permissions = Permissions(),
    shard_bytes: int = 5 * 10**9,
) -> Path:
    """Add adapters' deltas to the base's full-precision weights, and quantize the sum if asked to.

    Tokenizer, chat template, generation config, custom code and license are copied. `arithmetic.json` lists what was
    merged and the size of each delta relative to its weight. If an adapter changes only one of two tied layers, or both
    differently, the merged model stores both, and its config does not tie them.

    Args:
        model: the base, unquantized and in safetensors; only its name and revision are used.
        adapters: one PEFT LoRA adapter folder, or several, whose deltas are added up.
        output_dir: folder to write; plain transformers loads it.
        quantization: nf4 or int8 quantize the merged weights exactly as loading them with that quantization would, in
            the same dtype.
        dtype: of the weights; None keeps the dtype of each tensor.
        permissions: `overwrite` an earlier run or merged model, `force` an adapter of another base,
            `trust_remote_code`.
        shard_bytes: maximum size of a weight file.

    Returns:
        output_dir.

    Raises:
        ModelError: the base's weights are quantized or not in safetensors, an adapter is not plain LoRA, was made for
            another base or does not fit, or a merged weight is not finite in `dtype`.
        RecipeError: no adapter, one given twice, an unknown quantization or dtype, or shard_bytes below 1.
        OutputError: output_dir can't or must not be written.
    """
    folders = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    check_choice("quantization", quantization, Quantization)
    if dtype is not None:
        check_choice("dtype", dtype, Dtype)
    if shard_bytes < 1:
        raise RecipeError(f"shard_bytes: {shard_bytes} is out of range; give 1 or more")
    run_folder.check_output(output_dir, permissions.overwrite, [assets.resolve(Model.of(model).name), *folders])
    base, sources = open_pair(model, folders, permissions)
    outputs, untied = plan(base, sources, dtype)
    with run_folder.new_folder(output_dir, permissions.overwrite) as staging:
        full = staging / "full" if quantization != "none" else staging
        full.mkdir(exist_ok=True)
        sizes = _write_weights(full, base, outputs, sources, shard_bytes)
        base_files.copy_companions(base.folder, full)
        stored = _write_config(full, base, outputs, untied)
        about = _manifest(base, sources, sizes) | {"dtype": stored, "untied": untied, "quantization": quantization}
        if quantization != "none":
            _quantize(full, staging, quantization, stored, base.trust_remote_code, shard_bytes)
            about["order"] = f"the deltas were added to the base's weights, and the sum in {stored} was quantized"
        run_folder.write_json(staging / run_folder.ARITHMETIC, about)
    return Path(output_dir)


def open_pair(
    model: Model | str, adapters: Sequence[str | Path], permissions: Permissions = Permissions()
) -> tuple[Base, list[Adapter]]:
    """Read the headers of a base and of adapters, and refuse what can't be merged. Raises as merge."""
    if not adapters:
        raise RecipeError("adapter: none is named; name one adapter folder or more")
    adapter_files.check_distinct(adapters)
    sources = [adapter_files.read(adapter) for adapter in adapters]
    base = base_files.read(model, permissions.trust_remote_code)
    for source in sources:
        if not permissions.force:
            adapter_files.check_base(source.path, base.fingerprint, base.name)
        for name in source.modules:
            _check_fits(base, source, name)
    _check_copies(base, sources)
    return base, sources


def _check_fits(base: Base, adapter: Adapter, name: str) -> None:
    """Refuse an adapter with a module that has no weight of its shape in the base."""
    from transformers.pytorch_utils import Conv1D

    module, source = adapter.modules[name], base.source(f"{name}.weight")
    kind = dict(base.skeleton.named_modules()).get(name)
    shape = module.shape[::-1] if _is_transposed(kind) else module.shape
    if kind is None:
        reason = "which the base does not have"
    elif not isinstance(kind, torch.nn.Linear | torch.nn.Embedding | Conv1D):
        reason = f"a {type(kind).__name__}, and only linear layers and embeddings can be merged"
    elif isinstance(kind, torch.nn.Embedding) != module.a_key.endswith("lora_embedding_A"):
        reason = f"a {type(kind).__name__} in the base, which its factors do not fit"
    elif source is None:
        reason = "which has no weight of its own in the base's files"
    elif {tuple(kind.weight.shape), source.shape} != {shape}:
        reason = f"by a delta of shape {shape}, but the weight has shape {source.shape}"
    elif source.dtype not in FLOATS:
        reason = f"whose weight is stored as {source.dtype}, not as floating point"
    else:
        return
    raise ModelError(f"{adapter.path}: it changes {name}, {reason} ({base.name}); name the base it was made for")


def _check_copies(base: Base, adapters: Sequence[Adapter]) -> None:
    """Refuse an adapter whose copy of the base's embeddings differs: PEFT would load the copy over the base's."""
    for adapter in adapters:
        for key in adapter.copies:
            name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
            source, copy = base.source(name), adapter.tensor(key)
            if (
                source is None
                or source.shape != tuple(copy.shape)
                or not all(adapter_files.equal(x, copy[start : start + len(x)]) for start, x in source.blocks())
            ):
                raise ModelError(
                    f"{adapter.path}: its copy of {name} differs from that of {base.name}; name its own base"
                )


def plan(base: Base, adapters: Sequence[Adapter], dtype: Dtype | None) -> tuple[list[Output], tuple[str, ...]]:
    """The merged model's tensors, and the parameters that are no longer tied."""
    modules = {f"{name}.weight": name for adapter in adapters for name in adapter.modules}
    differing = [group for group in base.tied if not _stay_equal(base, adapters, group, modules)]
    untied = sorted(parameter for group in differing for parameter in group)
    # A layer that stays tied and has no tensor of its own gets the delta through the tensor that it shares.
    changed = {base.places[parameter]: module for parameter, module in modules.items() if parameter in base.places}
    outputs = [Output(key, x, _dtype(base, x, dtype), changed.get(key)) for key, x in base.stored.items()]
    for parameter in untied:
        if parameter not in base.places and (source := base.source(parameter)) is not None:
            outputs.append(Output(parameter, source, _dtype(base, source, dtype), modules.get(parameter)))
    return outputs, tuple(untied)


def _stay_equal(base: Base, adapters: Sequence[Adapter], group: frozenset[str], modules: dict[str, str]) -> bool:
    """Whether tied parameters stay equal: none of them is changed, or all are changed by the same factors."""
    changed = sorted(modules[parameter] for parameter in group if parameter in modules)
    if len(changed) not in (0, len(group)):
        return False
    both = [factors(base, adapters, name) for name in changed]
    return all(torch.equal(one, first) for pair in both[1:] for one, first in zip(pair, both[0]))


def _dtype(base: Base, tensor: Stored, dtype: Dtype | None) -> str:
    """The dtype to write. Tensors that the model does not load, such as masks of -1e9, keep theirs."""
    return tensor.dtype if dtype is None or not (tensor.key in base.known and tensor.dtype in FLOATS) else _NAMES[dtype]


def factors(base: Base, adapters: Sequence[Adapter], module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, rank) and (rank, columns), float64: their product is a module's whole delta, laid out as its weight."""
    transposed = _is_transposed(base.skeleton.get_submodule(module))
    left, right = [], []
    for adapter in (x for x in adapters if module in x.modules):
        entry = adapter.modules[module]
        a, b = adapter.tensor(entry.a_key).double(), adapter.tensor(entry.b_key).double()
        left.append(entry.scaling * (a.T if transposed else b))
        right.append(b.T if transposed else a)
    return torch.cat(left, 1), torch.cat(right, 0)


def _is_transposed(module: torch.nn.Module | None) -> bool:
    """Whether the weight is (in, out), as for embeddings and GPT-2's Conv1D."""
    return not isinstance(module, torch.nn.Linear)


def _write_weights(
    folder: Path, base: Base, outputs: Sequence[Output], adapters: Sequence[Adapter], shard_bytes: int
) -> dict[str, tuple[float, float]]:
    """Write the tensors; return the Frobenius norms |delta| and |weight| of each changed module."""
    sizes: dict[str, tuple[float, float]] = {}

    def changed(output: Output, module: str) -> Iterator[torch.Tensor]:
        left, right = factors(base, adapters, module)
        square = 0.0
        for start, block in output.source.blocks():
            weight = block.double()
            square += float(torch.linalg.vector_norm(weight)) ** 2
            yield _kept(base, output, block, torch.addmm(weight, left[start : start + len(block)], right))
        delta = float(((left.T @ left) * (right @ right.T)).sum())  # |left @ right|² without forming it
        sizes[module] = math.sqrt(max(0.0, delta)), math.sqrt(square)

    def unchanged(output: Output) -> Iterator[torch.Tensor]:
        for _, block in output.source.blocks():
            yield block if output.dtype == output.source.dtype else _kept(base, output, block, block)

    def values(output: Output) -> Iterator[torch.Tensor]:
        return unchanged(output) if output.module is None else changed(output, output.module)

    write_sharded(folder, [Tensor(x.key, x.dtype, x.source.shape, partial(values, x)) for x in outputs], shard_bytes)
    return sizes


def _kept(base: Base, output: Output, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """A block in its storage dtype. Raises ModelError if it is out of range."""
    kept = after.to(FLOATS[output.dtype])
    if bool(torch.isfinite(kept).all()):
        return kept
    if not bool(torch.isfinite(before).all()):
        raise ModelError(f"{base.name}: tensor {output.source.key} holds NaN or infinity; copy its files again")
    raise ModelError(
        f"{base.name}: tensor {output.source.key} is out of range of {FLOATS[output.dtype]} after merging; "
        "choose dtype bfloat16 or float32"
    )


def _write_config(folder: Path, base: Base, outputs: Sequence[Output], untied: Sequence[str]) -> str:
    """Write the base's config with the dtype of most weights, and untied if parameters are; return that dtype."""
    numbers: Counter[str] = Counter()
    for output in outputs:
        if output.dtype in FLOATS:
            numbers[output.dtype] += math.prod(output.source.shape)
    dtype = str(FLOATS[numbers.most_common(1)[0][0]]).removeprefix("torch.")

    def settled(values: dict[str, Any]) -> dict[str, Any]:
        new = {key: dtype if key in ("dtype", "torch_dtype") else value for key, value in values.items()}
        new |= {"tie_word_embeddings": False} if untied and values.get("tie_word_embeddings") else {}
        return new | {k: settled(v) for k, v in new.items() if k.endswith("_config") and isinstance(v, dict)}

    config = settled(json.loads((base.folder / "config.json").read_text(encoding="utf-8"))) | {"dtype": dtype}
    if untied:
        config["tie_word_embeddings"] = False  # a config may leave it out and tie by default
    run_folder.write_json(folder / "config.json", config)
    if untied:
        trust = base.trust_remote_code
        new = models.skeleton(models.load_config(str(folder), None, trust), base.name, trust)
        if len({id(new.get_parameter(name)) for name in untied}) < len(untied):
            raise ModelError(
                f"{base.name}: the adapters change the tied {' and '.join(untied)} differently, and this architecture "
                "can't untie them; keep the adapters stacked"
            )
    return dtype


def _quantize(
    full: Path, staging: Path, quantization: Quantization, stored: str, trust_remote_code: bool, shard_bytes: int
) -> None:
    """Load the merged model with this quantization, save it, and remove the full-precision weights."""
    dtype: Any = stored if stored in _NAMES else "float32"
    model = models.load_base(str(full), quantization, dtype, trust_remote_code=trust_remote_code)
    model.save_pretrained(str(staging), max_shard_size=shard_bytes)
    loaded = json.loads((staging / "config.json").read_text(encoding="utf-8"))
    # the file's config, because load_base sets use_cache and dropout in the loaded one
    config = json.loads((full / "config.json").read_text(encoding="utf-8"))
    config |= {"quantization_config": loaded["quantization_config"]}
    run_folder.write_json(staging / "config.json", config)
    base_files.copy_companions(full, staging)
    shutil.rmtree(full)


def _manifest(base: Base, adapters: Sequence[Adapter], sizes: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """What arithmetic.json holds; `relative_size` is |delta| / |weight|."""
    delta, weight = (math.hypot(*(pair[i] for pair in sizes.values())) for i in (0, 1))
    ratios = {name: delta / weight if weight else None for name, (delta, weight) in sorted(sizes.items())}
    origin = {"name": base.name, "revision": base.revision, "fingerprint": base.fingerprint}
    about = adapter_files.operation_manifest("merge", origin, adapters)
    return about | {"relative_size": {"all": delta / weight if weight else None, "modules": ratios}}
