"""The file of a checkpoint: JSON values and tensors, beside the output folder, replaced as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from adapter_unlearn.errors import OutputError, RunError

if TYPE_CHECKING:
    import torch

_KEY, _DIGEST = "state", "sha256"


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        values: JSON values.
        tensors: by name.
    """

    values: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def path_of(output_dir: str | Path) -> Path:
    """Where the checkpoint of a run lies: OUTPUT_DIR.checkpoint."""
    path = Path(output_dir)
    return path.with_name(f"{path.name}.checkpoint")


def write(path: Path, saved: Saved) -> None:
    """Replace a checkpoint. A process that is killed meanwhile leaves the old file as it was.

    Raises:
        OutputError: it can't be written, for example because the disk is full; the old file is still there.
    """
    from safetensors.torch import save_file

    new = _unfinished(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in saved.tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(saved.values)
        save_file(tensors, new, {_KEY: text, _DIGEST: _digest(text, tensors)})
        _flush(new)
        new.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            new.unlink()
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path}: the checkpoint can't be written ({reason}); free the disk or choose another output_dir"
        ) from error


def read(path: Path) -> Saved:
    """A checkpoint. The file is safetensors, so that reading it runs no code.

    Raises:
        RunError: it can't be read, or a byte of it has changed since it was written.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about[_DIGEST] != _digest(about[_KEY], tensors):
                raise ValueError(_DIGEST)
            return Saved(json.loads(about[_KEY]), tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path}: is no checkpoint that can be read; start again with --overwrite") from error


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    """A hash of the content. A changed bit in a tensor would otherwise go unnoticed into the resumed run."""
    import torch

    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a checkpoint, and what a killed process left of the next one."""
    for file in (path, _unfinished(path)):
        file.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
