"""What may be written where. Every command checks its output folder here, before any work is done.

A new output goes to a place where nothing is, or an empty folder, or, with `overwrite`, a folder whose whole content is
an output of this package (see contents.py). Never replaced are files, links, devices, mount points, the working folder,
the home folder and their parents, and a folder that an input is in.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapter_unlearn.errors import OutputError
from adapter_unlearn.runs import contents, locks

PROBE_BYTES = 2**20
"""A place with less space than this is full."""
_CHOOSE = "choose another --output_dir"


def check_output(folder: str | Path, overwrite: bool, inputs: Iterable[str | Path]) -> None:
    """Refuse an output folder before any work is done, and remove what killed processes left beside it.

    Raises:
        OutputError: as check_writable, or an input is the output folder or in it.
    """
    check_apart(folder, inputs)
    check_writable(folder, overwrite)


def check_writable(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse a folder that can't become an output folder, and remove what killed processes left beside it.

    Raises:
        OutputError: it holds an output and `overwrite` is not set, holds other files, is something else than a folder
            or must not be replaced, or can't be written.
    """
    path = Path(folder)
    with reporting(f"{path!s:.200}", _CHOOSE, ValueError):
        locks.remove_leftovers(path.absolute())
        check_free(path, overwrite)
        probe(next(place for place in path.absolute().parents if os.path.lexists(place)), path.absolute().name)


def check_apart(folder: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse to replace what is read.

    Raises:
        OutputError: an input is the output folder or in it.
    """
    target = _status(folder)
    for place in inputs if target is not None else ():
        real = Path(os.path.realpath(place)) if "\0" not in str(place) else Path()
        if any(_status(part) == target for part in (real, *real.parents)):
            raise OutputError(f"{folder}: --output_dir would replace the input {place}; choose another folder")


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a place that holds something which must not be replaced."""
    if not _is_folder(path):
        return
    if _is_protected(path):
        raise OutputError(f"{path}: is a mount, the working or home folder, or above one; name a folder in it")
    if any(path.iterdir()):
        if (entry := contents.foreign(path)) is not None:
            raise OutputError(f"{path}: holds {entry}, which no manifest of this package lists; {_CHOOSE}")
        if not overwrite:
            raise OutputError(f"{path}: already holds a run; add --overwrite or {_CHOOSE}")


def check_renewable(folder: str | Path, names: Iterable[str]) -> None:
    """Refuse a folder that folder.renewed must not write to, before any work is done.

    Raises:
        OutputError: it holds a run or a model, or other files with the names of the output, is something else than a
            folder, or can't be written.
    """
    path = Path(folder)
    with reporting(f"{path!s:.200}", _CHOOSE, ValueError):
        if os.path.lexists(path) and not path.is_dir():
            raise OutputError(f"{path}: is not a folder; {_CHOOSE}")
        for mark in (*contents.MANIFESTS, *_MARKS):
            if mark != contents.COMPARISON and os.path.lexists(path / mark):
                raise OutputError(f"{path}: holds a run or a model ({mark}); {_CHOOSE}")
        if path.is_dir() and not locks.has_leftovers(path / contents.COMPARISON):
            _check_names(path, names)
        probe(next(place for place in (path, *path.absolute().parents) if os.path.lexists(place)), path.absolute().name)


_MARKS = ("summary.json", "sequences.parquet", "config.json", "adapter_config.json")


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Refuse a folder with entries of these names that its comparison does not list."""
    listed = contents.listed(path)
    for name in names:
        if os.path.lexists(path / name) and (entry := contents.unlisted(path, name, listed)) is not None:
            raise OutputError(f"{path}: holds {entry}, but no comparison that lists it; {_CHOOSE}")


def probe(parent: Path, name: str) -> None:
    """Write a file to a new folder in `parent` and remove both, so that an error comes before the work."""
    with locks.hidden_folder(parent, name, locks.TEMPORARY) as folder:
        (folder / "probe").write_bytes(bytes(PROBE_BYTES))


@contextmanager
def reporting(place: str, fix: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an error of the file system, or of these kinds, into one line. A name that holds a NUL is a ValueError."""
    errors: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except errors as error:
        raise OutputError(f"{place}: can't be written ({reason(error)}); {fix}") from error


def reason(error: Exception) -> str:
    """Why something can't be written, without the name of a hidden file."""
    return getattr(error, "strerror", None) or str(error)


def _is_folder(path: Path) -> bool:
    """Whether a folder is there; False if nothing is.

    Raises:
        OutputError: something else is there, or nothing could be.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if path.name == "..":
            raise OutputError(f"{path}: is no name of a folder; {_CHOOSE}") from None
        return False
    if stat.S_ISLNK(mode):
        raise OutputError(f"{path}: is a link; name the folder that it leads to, or {_CHOOSE}")
    if not stat.S_ISDIR(mode):
        raise OutputError(f"{path}: is {'a file' if stat.S_ISREG(mode) else 'a device or pipe'}; {_CHOOSE}")
    return True


def _is_protected(path: Path) -> bool:
    """Whether a folder is a mount point, the working folder, the home folder, or holds one of the last two."""
    places = [Path.cwd()]
    with suppress(RuntimeError):  # a user without a home
        places.append(Path.home().resolve())
    return os.path.ismount(path) or any(path.resolve() in (place, *place.parents) for place in places)


def _status(path: str | Path) -> tuple[int, int] | None:
    """What identifies a folder or file under every name; None if it can't be read."""
    with suppress(OSError, ValueError):
        status = Path(path).stat()
        return status.st_dev, status.st_ino
    return None
