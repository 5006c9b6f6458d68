"""Write an output folder: whole or not at all.

A new folder is written beside its final place and renamed when it is complete.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError

from adapter_unlearn.errors import OutputError
from adapter_unlearn.runs import contents, locks, output
from adapter_unlearn.runs.contents import PACKAGE

_FREE = "nothing was left there; free the disk or choose another --output_dir"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that only writing gives."""


@contextmanager
def new_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a staging folder beside `folder` and rename it at the end; after an error nothing is left.

    A complete folder is not lost: if its place was taken meanwhile, it gets the name FOLDER.result, or FOLDER.result.2.

    Raises:
        OutputError: as output.check_writable, or writing failed, for example because the disk is full.
    """
    path = Path(folder)
    output.check_writable(path, overwrite)
    with reporting_disk_errors(path), _staging(path.absolute().parent, path.absolute().name) as staging:
        yield staging
        contents.record(staging)
        _make_readable(staging)
        try:
            output.check_free(path, overwrite)  # again, because hours may have passed
            _replace(staging, path)
        except (OSError, OutputError) as error:
            problem = error if isinstance(error, OutputError) else f"{path}: can't be written ({output.reason(error)})"
            raise OutputError(f"{problem}; the result is in {_move_aside(staging, path)}") from error


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
        with output.reporting(str(path), fix, SafetensorError), _staging(path, mark) as staging:
            yield staging
            contents.record(staging)
            _make_readable(staging)
            (path / mark).unlink(missing_ok=True)
            for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == mark):
                if (path / entry.name).is_dir():
                    shutil.rmtree(path / entry.name)
                entry.replace(path / entry.name)
        locks.remove_leftovers(path / mark)  # until now they tell that the entries without a mark are ours
    finally:
        if not was_there and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


@contextmanager
def temporary(beside: str | Path | None = None) -> Iterator[Path]:
    """A temporary folder that only this user can read, removed at the end. Folders of killed processes are removed too.

    Args:
        beside: an output folder, for large files; None takes the system's place, `TMPDIR`.

    Raises:
        OutputError: the folder can't be written, or the disk is full, at the start or inside the block.
    """
    where = "TMPDIR, the place of temporary files" if beside is None else str(beside)
    fix = "name a folder with free space in it" if beside is None else "free the disk or choose another --output_dir"
    with ExitStack() as opened:
        with output.reporting(where, fix):
            place = Path(tempfile.gettempdir(), PACKAGE) if beside is None else Path(beside).absolute()
            locks.remove_leftovers(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            output.probe(place.parent, place.name)
            folder = opened.enter_context(locks.hidden_folder(place.parent, place.name, locks.TEMPORARY))
        try:
            yield folder
        except (OSError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno not in FULL:
                raise
            raise OutputError(f"{where}: can't be written ({output.reason(error)}); {fix}") from error


def write_new_file(path: Path, text: str) -> None:
    """Write a file that is not there yet.

    Raises:
        OutputError: something has this name, or writing failed; then nothing is left.
    """
    try:
        with path.open("x", encoding="utf-8") as stream, _removing(path):
            stream.write(text)
            stream.flush()
    except FileExistsError as error:
        raise OutputError(f"{path}: exists already; choose another name") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path!s:.200}: can't be written ({output.reason(error)}); choose another name") from error


def reporting_disk_errors(folder: str | Path) -> AbstractContextManager[None]:
    """Turn an error of the file system while a new folder is written into one line.

    Raises:
        OutputError: writing failed, for example because the disk is full.
    """
    return output.reporting(str(folder), _FREE, SafetensorError)


@contextmanager
def _removing(path: Path) -> Iterator[None]:
    """Remove a half-written file after an error."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def _staging(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent`, which is made too; at the end it is removed if it was not moved away."""
    parent.mkdir(parents=True, exist_ok=True)
    with locks.hidden_folder(parent, name, locks.PARTIAL) as staging:
        yield staging


def _make_readable(staging: Path) -> None:
    """Give a folder the usual permissions: temporary folders, and files of safetensors, are only for their owner."""
    for entry in (staging, *staging.rglob("*")):
        entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())


def _move_aside(staging: Path, path: Path) -> Path:
    """Rename staging to a free name beside `path`."""
    names = itertools.chain([f"{path.name}.result"], (f"{path.name}.result.{i}" for i in itertools.count(2)))
    place = next(place for name in names if not os.path.lexists(place := path.with_name(name)))
    staging.rename(place)
    return place


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace(staging: Path, path: Path) -> None:
    """Rename staging to path; an old run is kept until the new one is in its place."""
    if not path.exists():
        staging.rename(path)
        return
    old = staging.with_suffix(f".{locks.OLD}")
    with locks.held(path, wait=False):
        path.rename(old)
        try:
            staging.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
