"""Base folder + adapters -> merged model folder, without loading the model.

The deltas are added to the base's original, full-precision weights; whoever wants a quantized model gets the sum
quantized. The other order, merging into weights that are quantized already (`merge_and_unload` on an nf4 base), rounds
each sum back to the code points, and with them most of a small delta: the unlearning is undone.

Weights go from the base's files to the new ones a block of rows at a time, so memory does not grow with the model; sums
are made in float64 and rounded once.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from adapter_unlearn import assets, models
from adapter_unlearn.errors import ModelError, RecipeError
from adapter_unlearn.models import Quantization
from adapter_unlearn.runs import run_folder
from adapter_unlearn.version import __version__
from adapter_unlearn.weights import adapter_files, base_files
from adapter_unlearn.weights.adapter_files import Adapter
from adapter_unlearn.weights.base_files import Base
from adapter_unlearn.weights.streaming import FLOATS, Stored, Tensor, write_sharded

Dtype = Literal["bfloat16", "float16", "float32"]

_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Output:
    """A tensor of the merged model: a tensor of the base, its dtype, and the module whose delta comes on top."""

    key: str
    source: Stored
    dtype: str
    module: str | None


def merge(
    model: str,
    adapter: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    quantization: Quantization = "none",
    dtype: Dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    force: bool = False,
) -> Path:
    """Add adapters' deltas to the base's full-precision weights; quantize the sum, if wanted.

    Tokenizer, chat template, generation config, custom code and license come along; `arithmetic.json` says what was
    merged, and how large each delta is beside its weight. Where an adapter changes only one of two tied layers (or both
    differently), the merged model stores both, and its config ties them no more.

    Args:
        model: folder or hub id of the base, unquantized, in safetensors.
        adapter: one PEFT LoRA adapter folder, or several, whose deltas add up.
        output_dir: folder to write; loads with plain transformers.
        quantization: nf4 or int8 quantize the merged weights, exactly as loading them with that quantization would,
            in the same dtype.
        dtype: of the weights; None keeps each tensor's own.
        revision: hub revision of the base.
        trust_remote_code: run Python that comes with the model.
        shard_bytes: most bytes in a weight file.
        overwrite: replace a run or merged model that stands in output_dir.
        force: go on where an adapter was made for another base.

    Returns:
        output_dir.

    Raises:
        ModelError: the base's weights are quantized already or no safetensors, an adapter is no plain LoRA, was made
            for another base or does not fit, or a merged weight is not finite in `dtype`.
        RecipeError: no adapter, or shard_bytes below 1.
        OutputError: output_dir can't or must not be written.
    """
    adapters = [adapter] if isinstance(adapter, str | Path) else list(adapter)
    if shard_bytes < 1:
        raise RecipeError(f"shard_bytes {shard_bytes}: must be 1 or more; leave it out for files of 5 GB")
    run_folder.check_writable(output_dir, overwrite)
    run_folder.check_apart(output_dir, [assets.resolve(model), *adapters])
    base, sources = open_pair(model, adapters, revision, trust_remote_code, force)
    outputs, untied = plan(base, sources, dtype)
    with run_folder.new_folder(output_dir, overwrite) as staging:
        full = staging / "full" if quantization != "none" else staging
        full.mkdir(exist_ok=True)
        sizes = _write_weights(full, base, outputs, sources, shard_bytes)
        base_files.copy_companions(base.folder, full)
        stored = _write_config(full, base, outputs, untied, trust_remote_code)
        about = _manifest(base, sources, sizes) | {"dtype": stored, "untied": untied, "quantization": quantization}
        if quantization != "none":
            _quantize(full, staging, quantization, stored, trust_remote_code, shard_bytes)
            about["order"] = (
                f"the deltas were added to the base's own weights, the sum stored as {stored} and quantized"
            )
        run_folder.write_json(staging / run_folder.ARITHMETIC, about)
    return Path(output_dir)


def open_pair(
    model: str,
    adapters: Sequence[str | Path],
    revision: str | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
) -> tuple[Base, list[Adapter]]:
    """Look at a base and adapters, and refuse what can't be merged. Only headers are read. Raises as merge."""
    if not adapters:
        raise RecipeError("adapter: none is named; name one adapter folder or more")
    sources = [adapter_files.read(adapter) for adapter in adapters]
    base = base_files.read(model, revision, trust_remote_code)
    for source in sources:
        adapter_files.check_base(source.path, base.fingerprint, model, force)
        for name in source.modules:
            _check_fits(base, source, name)
    _check_copies(base, sources)
    return base, sources


def _check_fits(base: Base, adapter: Adapter, name: str) -> None:
    """One module of an adapter must have one weight of the base, of its shape, to be added to."""
    from transformers.pytorch_utils import Conv1D

    module, source = adapter.modules[name], base.source(f"{name}.weight")
    kind = dict(base.skeleton.named_modules()).get(name)
    if kind is None:
        reason = "which the base does not have"
    elif not isinstance(kind, torch.nn.Linear | torch.nn.Embedding | Conv1D):
        reason = f"a {type(kind).__name__}, and only linear layers and embeddings can be merged"
    elif isinstance(kind, torch.nn.Embedding) != module.a_key.endswith("lora_embedding_A"):
        reason = f"a {type(kind).__name__} in the base, which its factors are not made for"
    elif source is None:
        reason = "which has no weight of its own in the base's files"
    elif {tuple(kind.weight.shape), source.shape} != {
        shape := module.shape[::-1] if _is_turned(kind) else module.shape
    }:
        reason = f"by a delta of shape {shape}, and the weight's shape is {source.shape}"
    elif source.dtype not in FLOATS:
        reason = f"and its weight is stored as {source.dtype}, to which nothing can be added"
    else:
        return
    raise ModelError(f"{adapter.path}: it changes {name}, {reason} ({base.name}); name the base it was made for")


def _check_copies(base: Base, adapters: Sequence[Adapter]) -> None:
    """PEFT stores the embeddings of a base beside their factors, and loads them over the base's: they must be equal."""
    for adapter in adapters:
        for key in adapter.copies:
            name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
            source, copy = base.source(name), adapter.tensor(key)
            if source is None or source.shape != tuple(copy.shape) or not _holds(source, copy):
                raise ModelError(
                    f"{adapter.path}: its copy of {name} is not that of {base.name}; name the base it was made for"
                )


def _holds(source: Stored, copy: torch.Tensor) -> bool:
    """Whether the two are equal in the narrower of their dtypes."""
    for start, block in source.blocks():
        narrow, wide = sorted((block, copy[start : start + len(block)]), key=torch.Tensor.element_size)
        if not torch.equal(narrow, wide.to(narrow.dtype)):
            return False
    return True


def plan(base: Base, adapters: Sequence[Adapter], dtype: Dtype | None) -> tuple[list[Output], tuple[str, ...]]:
    """What the merged model's tensors are made of, every module once; and the parameters that are tied no more."""
    modules = {f"{name}.weight": name for adapter in adapters for name in adapter.modules}
    parting = [group for group in base.tied if not _move_together(base, adapters, group, modules)]
    untied = sorted(parameter for group in parting for parameter in group)
    # Of layers that stay tied, those without a tensor of their own get the delta with the one that has it.
    changed = {base.places[parameter]: module for parameter, module in modules.items() if parameter in base.places}
    outputs = [Output(key, x, _dtype(base, x, dtype), changed.get(key)) for key, x in base.stored.items()]
    for parameter in untied:
        if parameter not in base.places and (source := base.source(parameter)) is not None:
            outputs.append(Output(parameter, source, _dtype(base, source, dtype), modules.get(parameter)))
    return outputs, tuple(untied)


def _move_together(base: Base, adapters: Sequence[Adapter], group: frozenset[str], modules: dict[str, str]) -> bool:
    """Whether tied parameters stay equal: none of them is changed, or all are, by the same factors."""
    changed = sorted(modules[parameter] for parameter in group if parameter in modules)
    if len(changed) not in (0, len(group)):
        return False
    both = [factors(base, adapters, name) for name in changed]
    return all(torch.equal(one, first) for pair in both[1:] for one, first in zip(pair, both[0]))


def _dtype(base: Base, tensor: Stored, dtype: Dtype | None) -> str:
    """What it is stored as. Leftovers that the model does not take up, such as masks of -1e9, keep theirs."""
    return tensor.dtype if dtype is None or not (tensor.key in base.known and tensor.dtype in FLOATS) else _NAMES[dtype]


def factors(base: Base, adapters: Sequence[Adapter], module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, rank) and (rank, columns), float64: their product is the module's whole delta, laid out as its weight."""
    turned = _is_turned(base.skeleton.get_submodule(module))
    left, right = [], []
    for adapter in (x for x in adapters if module in x.modules):
        found = adapter.modules[module]
        a, b = adapter.tensor(found.a_key).double(), adapter.tensor(found.b_key).double()
        left.append(found.scaling * (a.T if turned else b))
        right.append(b.T if turned else a)
    return torch.cat(left, 1), torch.cat(right, 0)


def _is_turned(module: torch.nn.Module) -> bool:
    """Whether its weight is (in, out): an embedding's, and that of GPT-2's Conv1D."""
    return not isinstance(module, torch.nn.Linear)


def _write_weights(
    folder: Path, base: Base, outputs: Sequence[Output], adapters: Sequence[Adapter], shard_bytes: int
) -> dict[str, tuple[float, float]]:
    """Write the tensors; return each changed module's |delta| and |weight|, Frobenius."""
    sizes: dict[str, tuple[float, float]] = {}

    def changed(output: Output, module: str) -> Iterator[torch.Tensor]:
        left, right = factors(base, adapters, module)
        square = 0.0
        for start, block in output.source.blocks():
            weight = block.double()
            square += float(torch.linalg.vector_norm(weight)) ** 2
            yield _kept(base, output, block, torch.addmm(weight, left[start : start + len(block)], right))
        delta = float(((left.T @ left) * (right @ right.T)).sum())  # the delta itself need not be formed
        sizes[module] = math.sqrt(max(0.0, delta)), math.sqrt(square)

    def unchanged(output: Output) -> Iterator[torch.Tensor]:
        for _, block in output.source.blocks():
            yield block if output.dtype == output.source.dtype else _kept(base, output, block, block)

    def values(output: Output) -> Iterator[torch.Tensor]:
        return unchanged(output) if output.module is None else changed(output, output.module)

    write_sharded(folder, [Tensor(x.key, x.dtype, x.source.shape, partial(values, x)) for x in outputs], shard_bytes)
    return sizes


def _kept(base: Base, output: Output, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """A block in the dtype it is stored in. Raises ModelError where it does not fit in."""
    kept = after.to(FLOATS[output.dtype])
    if bool(torch.isfinite(kept).all()):
        return kept
    if not bool(torch.isfinite(before).all()):
        raise ModelError(f"{base.name}: tensor {output.source.key} holds NaN or infinity; copy its files again")
    raise ModelError(
        f"{base.name}: tensor {output.source.key} is beyond what {FLOATS[output.dtype]} holds once it is merged; "
        "choose dtype bfloat16 or float32"
    )


def _write_config(folder: Path, base: Base, outputs: Sequence[Output], untied: Sequence[str], trust: bool) -> str:
    """The base's config with the dtype that most of the weights have, and without the tying that is no more."""
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
        config["tie_word_embeddings"] = False  # many a config leaves out that it ties
    run_folder.write_json(folder / "config.json", config)
    if untied:
        new = models.skeleton(models.load_config(str(folder), None, trust), base.name, trust)
        if len({id(new.get_parameter(name)) for name in untied}) < len(untied):
            raise ModelError(
                f"{base.name}: {' and '.join(untied)} are one weight, of which the adapters change parts differently, "
                "and this architecture can't have them apart; keep the adapters stacked"
            )
    return dtype


def _quantize(
    full: Path, staging: Path, quantization: Quantization, stored: str, trust_remote_code: bool, shard_bytes: int
) -> None:
    """Load the merged model with this quantization, write what was loaded, and take the full weights away."""
    dtype: Any = stored if stored in _NAMES else "float32"
    model = models.load_base(str(full), quantization, dtype, trust_remote_code=trust_remote_code)
    model.save_pretrained(str(staging), max_shard_size=shard_bytes)
    loaded = json.loads((staging / "config.json").read_text(encoding="utf-8"))
    config = json.loads((full / "config.json").read_text(encoding="utf-8"))  # load_base sets what is for scoring only
    config |= {"quantization_config": loaded["quantization_config"]}
    run_folder.write_json(staging / "config.json", config)
    base_files.copy_companions(full, staging)
    shutil.rmtree(full)


def _manifest(base: Base, adapters: Sequence[Adapter], sizes: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """What was merged, and how large each delta is beside its weight."""
    delta, weight = (math.hypot(*(pair[i] for pair in sizes.values())) for i in (0, 1))
    ratios = {name: delta / weight if weight else None for name, (delta, weight) in sorted(sizes.items())}
    return {
        "package": {"name": "adapter-unlearn", "version": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "operation": "merge",
        "base": {"name": base.name, "revision": base.revision, "fingerprint": base.fingerprint},
        "inputs": [{"path": str(x.path), "fingerprint": run_folder.fingerprint(x.path)} for x in adapters],
        "relative_size": {"all": delta / weight if weight else None, "modules": ratios},
    }
