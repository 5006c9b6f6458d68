"""One process at a time writes an output folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from adapter_unlearn.errors import OutputError


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold the lock of an output folder inside the block. The system releases it when a process is killed.

    The lock is a file beside the folder. Both the file and the parents that were made for it are removed at the end,
    the parents if they are empty.

    Raises:
        OutputError: another process holds it, or the file can't be written.
    """
    path = Path(folder).absolute()
    lock = path.parent / f".{path.name}.lock"
    new = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=0)
        held.acquire()
    except Timeout:
        raise OutputError(f"{folder}: another process is writing it; wait, or choose another --output_dir") from None
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{folder}: can't be written ({reason}); choose another --output_dir") from error
    except NotImplementedError:  # a file system without locks
        held = None
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # before the release: a process that waits for nothing can't take a file that is going
        if held is not None:
            held.release()
        for parent in new:
            with suppress(OSError):
                parent.rmdir()
