"""Folders that are held while a process works in them, and removed after one that was killed.

A folder is held by an advisory lock (flock) on it, which ends with its process however that ends. Its name is
`.NAME.RANDOM.KIND`: NAME is that of the output beside it, RANDOM are eight characters. Where a file system has no such
locks (or on Windows), nothing is removed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL, OLD, TEMPORARY = "partial", "old", "temporary"
"""The kinds: a new output that is being written; the old one while the new one takes its place; anything else."""


@contextmanager
def hidden_folder(parent: Path, name: str, kind: str) -> Iterator[Path]:
    """A new, held folder beside the output of this name; at the end it is removed if it was not moved away."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=f".{kind}", dir=parent))
        with held(folder):
            if not folder.is_dir():  # another process took it for a leftover before it was held
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextmanager
def held(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a folder inside the block, if it is free; with `wait`, wait until it is."""
    lock = _open(folder)
    try:
        if lock is not None:
            _lock(lock, wait)
        yield
    finally:
        if lock is not None:
            os.close(lock)


def remove_leftovers(output: Path) -> None:
    """Remove the hidden folders that killed processes left beside an output.

    An old run whose place was not taken by the new one is put back.
    """
    pattern = re.compile(rf"\.{re.escape(output.name)}\.[a-z0-9_]{{8}}\.([a-z]+)")
    with suppress(OSError):
        for entry in sorted(output.parent.iterdir()):
            match = pattern.fullmatch(entry.name)
            if match and match[1] in (PARTIAL, OLD, TEMPORARY):
                _remove_leftover(entry, output if match[1] == OLD else None)


def has_leftovers(output: Path) -> bool:
    """Whether a process that was killed, or one that still works, has a hidden folder beside an output."""
    start = f".{output.name}."
    names = (entry.name for entry in output.parent.iterdir())
    return any(name.startswith(start) and name.endswith(f".{PARTIAL}") for name in names)


def _remove_leftover(folder: Path, place: Path | None) -> None:
    """Remove a hidden folder that no process holds, or move it to its place if that is free."""
    lock = _open(folder)
    if lock is None:
        return
    try:
        if not _lock(lock, wait=False):
            return
        if place is not None and not os.path.lexists(place):
            folder.rename(place)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _open(folder: Path) -> int | None:
    """A descriptor of this user's folder, which is no link; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    if os.fstat(opened).st_uid != os.getuid():
        os.close(opened)
        return None
    return opened


def _lock(opened: int, wait: bool) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
