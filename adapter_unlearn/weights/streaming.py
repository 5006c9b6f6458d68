"""Read and write safetensors files in blocks of rows, so that no tensor is in memory as a whole.

The format: eight bytes with the header's length, a JSON header (name -> dtype, shape, byte offsets), the values.
Shapes and dtypes are known before the values, so the header can be written first. `safetensors.torch.save_file` needs
all tensors of a file at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from adapter_unlearn.errors import ModelError
from adapter_unlearn.models.model_folder import INDEX, SINGLE

BLOCK = 2**19
"""Numbers in a block; 4 MB in float64."""

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
_BITS |= {"I64": 64, "U64": 64, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "C64": 64}


@contextmanager
def opened(path: Path, what: str = "the model's files") -> Iterator[Any]:
    """Open a safetensors file. Raises ModelError if it can't be read; `what` is to be copied again."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: can't be read ({str(error).splitlines()[0][:200]}); copy {what} again") from error


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; `dtype` is the format's name, such as BF16."""

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks along the first dimension, each with the index of its first row. Raises ModelError."""
        with opened(self.path) as file:
            if not self.shape:
                yield 0, file.get_tensor(self.key)
                return
            rows = file.get_slice(self.key)
            step = max(1, BLOCK // max(1, math.prod(self.shape[1:])))
            for start in range(0, self.shape[0], step):
                yield start, rows[start : start + step]

    def whole(self) -> torch.Tensor:
        """The whole tensor."""
        blocks = [block for _, block in self.blocks()]
        return torch.cat(blocks) if len(blocks) != 1 else blocks[0]


@dataclass(frozen=True)
class Tensor:
    """A tensor to write; `values` returns its blocks in order."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], Iterable[torch.Tensor]]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * _BITS[self.dtype] // 8


def read_headers(path: Path) -> dict[str, Stored]:
    """Every tensor of a file by name. Raises ModelError if the file is broken or a dtype is not supported."""
    with opened(path) as file:
        headers = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a handle, not a dict)
        tensors = {key: Stored(path, key, s.get_dtype(), tuple(s.get_shape())) for key, s in headers.items()}
    for tensor in tensors.values():
        if tensor.dtype not in _BITS:
            raise ModelError(
                f"{path}: tensor {tensor.key} has the unsupported dtype {tensor.dtype}; name another model"
            )
    return tensors


def write_sharded(folder: Path, tensors: Sequence[Tensor], shard_bytes: int) -> None:
    """Write model.safetensors, or shards and their index if it would be larger than `shard_bytes`.

    A tensor larger than `shard_bytes` gets a shard of its own.
    """
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(x.size for x in shards[-1]) + tensor.size > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write(folder / SINGLE, shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write(folder / name, shard)
        places |= {tensor.key: name for tensor in shard}
    index = {"metadata": {"total_size": sum(x.size for x in tensors)}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write(path: Path, tensors: Iterable[Tensor]) -> None:
    """Write one file, wide dtypes first: the file is memory-mapped, so numbers must be aligned to their size."""
    ordered = sorted(tensors, key=lambda tensor: -_BITS[tensor.dtype])
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        header[tensor.key] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            start = file.tell()
            for block in tensor.values():
                file.write(block.contiguous().flatten().view(torch.uint8).numpy().data)
            if file.tell() - start != tensor.size:
                raise AssertionError(f"{tensor.key}: wrote {file.tell() - start} bytes, expected {tensor.size}")
