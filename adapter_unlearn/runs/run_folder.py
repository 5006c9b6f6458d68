"""A run's folder: written beside and renamed, so that it is either whole or not there; and what it was made from."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from adapter_unlearn.errors import OutputError

MANIFEST = "unlearning.json"
ARITHMETIC = "arithmetic.json"
EVALUATION = "evaluation.json"
COMPARISON = "comparison.json"
RUNS = "runs"
SCHEMA_VERSION = 1
"""Of summary.json; a change of its keys' meaning raises it."""
_MARKS = (MANIFEST, ARITHMETIC, "summary.json", "sequences.parquet")


def check_writable(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse a folder before any work is done.

    Raises:
        OutputError: it holds a run and `overwrite` is not set, holds anything else, is a file, or can't be written.
    """
    path = Path(folder)
    try:
        _check_holds_nothing(path, overwrite)
        _probe(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path!s:.200}: can't be written ({reason}); choose another --output_dir") from error


def check_apart(folder: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        OutputError: an input is the output folder or lies in it.
    """
    target = Path(folder).resolve()
    for place in inputs:
        if target in (Path(place).resolve(), *Path(place).resolve().parents):
            raise OutputError(f"{folder}: --output_dir would replace {place}, which is read; choose another one")


def _check_holds_nothing(path: Path, overwrite: bool) -> None:
    if path.is_file():
        raise OutputError(f"{path}: a file stands where the output folder should; choose another --output_dir")
    if path.is_dir() and any(path.iterdir()):
        if not any((path / mark).is_file() for mark in _MARKS):
            raise OutputError(
                f"{path}: holds files that are no run, and they are not touched; choose another --output_dir"
            )
        if not overwrite:
            raise OutputError(f"{path}: already holds a run; add --overwrite or choose another --output_dir")
    if path.exists() and (path.resolve() == Path.cwd() or os.path.ismount(path) or path.is_symlink()):
        raise OutputError(f"{path}: this folder itself can't be replaced; name a new folder in it as --output_dir")


def _probe(path: Path) -> None:
    """Make and remove a folder of about that name, where the run's will be: better to fail now than after training."""
    parent = next(place for place in path.absolute().parents if place.exists())
    Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".probe", dir=parent)).rmdir()


def _prefix(path: Path) -> str:
    return f".{path.absolute().name}."


@contextmanager
def new_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a staging folder beside `folder`; on leaving without error it takes that name, else nothing is left.

    Raises:
        OutputError: as check_writable, or the disk refused (full, too large).
    """
    path = Path(folder)
    check_writable(path, overwrite)
    staging: Path | None = None
    try:
        with telling_of_the_disk(path):
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".partial", dir=path.absolute().parent))
            staging.chmod(0o777 & ~_umask())
            yield staging
            for file in filter(Path.is_file, staging.rglob("*")):
                file.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
            _check_holds_nothing(path, overwrite)  # once more: hours may have passed
            _take_place(staging, path)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def telling_of_the_disk(folder: str | Path) -> Iterator[None]:
    """Turn what the disk refuses while a new folder is written (full, too large) into one line.

    Raises:
        OutputError: it refused.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{folder}: can't be written ({reason}), nothing was left there; free the disk or choose another "
            "--output_dir"
        ) from error


def check_renewable(folder: str | Path, names: Iterable[str]) -> None:
    """Refuse a folder that `renewed` must not write to, before any work is done.

    Raises:
        OutputError: it is a run or a model itself, files that nobody here wrote bear the names of what would be
            written, it is a file, or can't be written.
    """
    path = Path(folder)
    try:
        if path.is_file():
            raise OutputError(f"{path}: a file stands where the output folder should; choose another --output_dir")
        for mark in (*_MARKS, "config.json", "adapter_config.json"):
            if (path / mark).exists():
                raise OutputError(f"{path}: holds a run or a model ({mark}); choose another --output_dir")
        taken = [name for name in names if (path / name).exists()]
        if taken and not any((path / mark).exists() for mark in (COMPARISON, RUNS)):
            raise OutputError(f"{path}: holds {taken[0]}, which is no comparison's; choose another --output_dir")
        _probe(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path!s:.200}: can't be written ({reason}); choose another --output_dir") from error


@contextmanager
def renewed(folder: str | Path, mark: str) -> Iterator[Path]:
    """Yield a staging folder; on leaving without error its entries take their places in `folder`; others stay.

    For a folder that also holds what took hours to make, so that it can't be replaced as new_folder does. The entry
    `mark` goes first and comes last: where it stands, all the others are whole and belong together.

    Raises:
        OutputError: the disk refused (full, too large); what stood there stands there still.
    """
    path = Path(folder)
    staging: Path | None = None
    was_there = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".comparison.", suffix=".partial", dir=path))
        yield staging
        for entry in (staging, *staging.rglob("*")):
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
        (path / mark).unlink(missing_ok=True)
        for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == mark):
            if (path / entry.name).is_dir():
                shutil.rmtree(path / entry.name)
            entry.replace(path / entry.name)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path}: can't be written ({reason}); free the disk or choose another --output_dir"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if not was_there and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _take_place(staging: Path, path: Path) -> None:
    """Rename staging to path; a run that stood there is kept until the new one stands."""
    if not path.exists():
        staging.rename(path)
        return
    old = staging.with_suffix(".old")
    path.rename(old)
    try:
        staging.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Write JSON that every reader takes: NaN and infinity become null."""
    path.write_text(json.dumps(_without_nan(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """One JSON value a line."""
    text = "".join(json.dumps(_without_nan(value), ensure_ascii=False) + "\n" for value in values)
    path.write_text(text, encoding="utf-8")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def fingerprint(folder: str | Path, blocks: int = 64, block_bytes: int = 4096) -> str | None:
    """What tells one model's weights from another's, cheap at any size: headers, sizes and sampled blocks, hashed.

    Args:
        folder: holds *.safetensors (else *.bin) files.
        blocks: sampled evenly from each file's data.
        block_bytes: bytes in a block.

    Returns:
        `sha256:…`, or None where the folder holds no weights.
    """
    files = sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("*.bin"))
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as handle:
            if file.suffix == ".safetensors":
                header = int.from_bytes(handle.read(8), "little")
                digest.update(handle.read(min(header, size)))
            for i in range(blocks):
                handle.seek(max(0, (size - block_bytes) * i // max(1, blocks - 1)))
                digest.update(handle.read(block_bytes))
    return f"sha256:{digest.hexdigest()}" if files else None
