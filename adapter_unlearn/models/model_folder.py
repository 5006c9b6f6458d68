"""Check a model's folder and config, which may come from a stranger, before transformers loads anything from it.

The safetensors library itself checks header, offsets, shapes and dtypes before it allocates. transformers follows every
name in a weight index, and allocates whatever sizes the config names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from adapter_unlearn.errors import ModelError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_SIZES = {
    ("vocab_size", "hidden_size", "intermediate_size"): (1, 2**24),
    ("num_hidden_layers",): (1, 10_000),
    ("num_attention_heads", "num_key_value_heads", "head_dim", "num_experts", "num_local_experts"): (0, 2**16),
    ("max_position_embeddings",): (1, 2**31),
}
"""Names that transformers gives to the sizes of any architecture, with the least and the largest."""


def check_folder(folder: Path) -> None:
    """Check a local model folder; a hub id, which is no folder, passes.

    Raises:
        ModelError: it can't be read, holds something that is no file, or names a file that is not in it.
    """
    try:
        if not folder.is_dir():
            return
        entries = list(folder.iterdir())
        odd = [entry for entry in entries if not (entry.is_file() or entry.is_dir())]
        odd = [entry for entry in odd if entry.exists() or entry.suffix in (".json", ".safetensors")]
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{folder}: can't be read ({reason}); give read permission to it") from error
    if odd:
        raise ModelError(f"{odd[0]}: is a dangling link or no regular file; copy the model's files again")
    check_inside(folder / "tokenizer_config.json", _read(folder / "tokenizer_config.json").get("fast_tokenizer_files"))
    if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        weight_files(folder)


def weight_files(folder: Path) -> list[str]:
    """The names of the files in a folder's weight index. Raises ModelError if it is none, or names other places."""
    places = _read(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{folder / INDEX}: is not a valid index of weight files; copy the model's files again")
    files = sorted(set(places.values()))
    check_inside(folder / INDEX, files)
    return files


def check_inside(file: Path, names: Any) -> None:
    """Refuse names in a file of a folder that lead out of the folder. Raises ModelError."""
    for name in names if isinstance(names, Iterable) and not isinstance(names, str) else [names]:
        for path in (PurePosixPath(str(name)), PureWindowsPath(str(name))):
            if path.anchor or ".." in path.parts:
                raise ModelError(f"{file}: names a file outside of this folder; name files in it, or remove the file")


def check_sizes(config: Any, name: str) -> None:
    """Refuse a config with a size that no model has. Raises ModelError."""
    text = config.get_text_config()
    for keys, (least, largest) in _SIZES.items():
        for key in keys:
            value = getattr(text, key, None)
            for size in value if isinstance(value, list | tuple) else [value]:
                if isinstance(size, int | float) and not least <= size <= largest:
                    raise ModelError(
                        f"{name}: config.json has {key} {size:.6g}, and it must be from {least} to {largest}; copy the "
                        "model's files again"
                    )


def _read(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none, which transformers reports where it needs one."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
