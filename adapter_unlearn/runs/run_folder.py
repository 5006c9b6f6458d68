"""Write a run's folder: whole or not at all; and describe the weights that it was made from.

A new folder is written beside its final place and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from adapter_unlearn.errors import OutputError
from adapter_unlearn.version import __version__

MANIFEST = "unlearning.json"
ARITHMETIC = "arithmetic.json"
EVALUATION = "evaluation.json"
COMPARISON = "comparison.json"
RUNS = "runs"
SCHEMA_VERSION = 1
"""Version of summary.json; it increases when the meaning of a key changes."""
_MARKS = (MANIFEST, ARITHMETIC, "summary.json", "sequences.parquet")


def check_output(folder: str | Path, overwrite: bool, inputs: Iterable[str | Path]) -> None:
    """Refuse an output folder before any work is done.

    Raises:
        OutputError: as check_writable, or an input is the output folder or in it.
    """
    check_writable(folder, overwrite)
    check_apart(folder, inputs)


def check_writable(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse a folder that can't become an output folder.

    Raises:
        OutputError: it holds a run and `overwrite` is not set, holds other files, is a file, or can't be written.
    """
    path = Path(folder)
    with _reporting(f"{path!s:.200}", "choose another --output_dir", ValueError):
        _check_free(path, overwrite)
        _probe(path)


def check_apart(folder: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        OutputError: an input is the output folder or in it.
    """
    target = Path(folder).resolve()
    for place in inputs:
        if target in (Path(place).resolve(), *Path(place).resolve().parents):
            raise OutputError(f"{folder}: --output_dir would replace the input {place}; choose another folder")


@contextmanager
def _reporting(place: str, fix: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an error of the file system, or of these kinds, into one line. A name that holds a NUL is a ValueError."""
    errors: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except errors as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{place}: can't be written ({reason}); {fix}") from error


def _check_no_file(path: Path) -> None:
    if path.is_file():
        raise OutputError(f"{path}: is a file; choose another --output_dir")


def _check_free(path: Path, overwrite: bool) -> None:
    _check_no_file(path)
    if path.is_dir() and any(path.iterdir()):
        if not any((path / mark).is_file() for mark in _MARKS):
            raise OutputError(f"{path}: holds files that are not a run's; choose another --output_dir")
        if not overwrite:
            raise OutputError(f"{path}: already holds a run; add --overwrite or choose another --output_dir")
    if path.exists() and (path.resolve() == Path.cwd() or os.path.ismount(path) or path.is_symlink()):
        raise OutputError(
            f"{path}: is the working folder, a mount or a link and can't be replaced; name a folder in it"
        )


def _probe(path: Path) -> None:
    """Make and remove a folder where the run's will be, so that an error comes before training and not after it."""
    parent = next(place for place in path.absolute().parents if place.exists())
    Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".probe", dir=parent)).rmdir()


def _prefix(path: Path) -> str:
    return f".{path.absolute().name}."


@contextmanager
def new_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a staging folder beside `folder` and rename it at the end; after an error nothing is left.

    Raises:
        OutputError: as check_writable, or writing failed, for example because the disk is full.
    """
    path = Path(folder)
    check_writable(path, overwrite)
    with reporting_disk_errors(path), _staging(path.absolute().parent, _prefix(path)) as staging:
        staging.chmod(0o777 & ~_umask())
        yield staging
        for file in filter(Path.is_file, staging.rglob("*")):
            file.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
        _check_free(path, overwrite)  # again, because hours may have passed
        _replace(staging, path)


@contextmanager
def _staging(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, which is made too; at the end it is removed if it was not moved away."""
    parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def reporting_disk_errors(folder: str | Path) -> AbstractContextManager[None]:
    """Turn an error of the file system while a new folder is written into one line.

    Raises:
        OutputError: writing failed, for example because the disk is full.
    """
    fix = "nothing was left there; free the disk or choose another --output_dir"
    return _reporting(str(folder), fix, SafetensorError)


def check_renewable(folder: str | Path, names: Iterable[str]) -> None:
    """Refuse a folder that `renewed` must not write to, before any work is done.

    Raises:
        OutputError: it holds a run or a model, or other files with the names of the output, is a file, or can't be
            written.
    """
    path = Path(folder)
    with _reporting(f"{path!s:.200}", "choose another --output_dir", ValueError):
        _check_no_file(path)
        for mark in (*_MARKS, "config.json", "adapter_config.json"):
            if (path / mark).exists():
                raise OutputError(f"{path}: holds a run or a model ({mark}); choose another --output_dir")
        taken = [name for name in names if (path / name).exists()]
        if taken and not any((path / mark).exists() for mark in (COMPARISON, RUNS)):
            raise OutputError(f"{path}: holds {taken[0]}, but no comparison; choose another --output_dir")
        _probe(path)


@contextmanager
def renewed(folder: str | Path, mark: str) -> Iterator[Path]:
    """Yield a staging folder and move its entries into `folder` at the end; other entries of `folder` stay.

    This is for a folder that also holds runs, which new_folder would replace. The entry `mark` is removed first and
    moved last: a folder that holds it is complete.

    Raises:
        OutputError: writing failed, for example because the disk is full; the old entries are still there.
    """
    path = Path(folder)
    was_there = path.exists()
    fix = "free the disk or choose another --output_dir"
    try:
        with _reporting(str(path), fix), _staging(path, ".comparison.") as staging:
            yield staging
            for entry in (staging, *staging.rglob("*")):
                entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
            (path / mark).unlink(missing_ok=True)
            for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == mark):
                if (path / entry.name).is_dir():
                    shutil.rmtree(path / entry.name)
                entry.replace(path / entry.name)
    finally:
        if not was_there and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _replace(staging: Path, path: Path) -> None:
    """Rename staging to path; an old run is kept until the new one is in its place."""
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
    """Write standard JSON: NaN and infinity become null."""
    path.write_text(json.dumps(_without_nan(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value per line."""
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


def provenance() -> dict[str, Any]:
    """What every manifest begins with: the package and the time."""
    return {
        "package": {"name": "adapter-unlearn", "version": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def identities(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Path and fingerprint of every folder, for a manifest."""
    return [{"path": str(folder), "fingerprint": fingerprint(folder)} for folder in folders]


def fingerprint(folder: str | Path, blocks: int = 64, block_bytes: int = 4096) -> str | None:
    """Identify a model's weights by a hash of headers, sizes and sampled blocks; the cost does not grow with the size.

    Args:
        folder: holds *.safetensors files, or *.bin files.
        blocks: number of blocks sampled evenly from each file.
        block_bytes: bytes in a block.

    Returns:
        `sha256:…`, or None if the folder holds no weights.
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
