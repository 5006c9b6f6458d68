"""SIGINT and SIGTERM: a command ends with one line, and training ends between two optimizer steps.

The handlers are those of the command line. A program that calls the Python functions keeps its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

REPEATED_AFTER = 1.0
"""Seconds. A launcher passes on the signal that its processes got from the terminal too; a user who sends a second
signal needs longer."""

_deferring = False
_received: int | None = None
_received_at = 0.0


class Interrupted(BaseException):
    """The process was asked to end. It is no Exception, so that no handler of errors catches it.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Turn the signals into Interrupted inside the block. Outside the main thread it does nothing."""
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Only record a signal inside the block, where `received` tells it, and raise Interrupted at the end.

    A second signal raises it at once.
    """
    global _deferring
    before, _deferring = _deferring, True
    try:
        yield
    finally:
        _deferring = before
    if _received is not None and not _deferring:
        raise Interrupted(_received)


def received() -> int | None:
    """The number of the signal that was recorded, or None."""
    return _received


def _handle(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    now = time.monotonic()
    repeated = _received is not None
    if repeated and now - _received_at < REPEATED_AFTER:
        return
    _received, _received_at = number, now
    if not _deferring or repeated:
        raise Interrupted(number)
    if os.environ.get("RANK", "0") == "0":
        notice = "\nstopping after this step; a second signal stops at once\n"
        with contextlib.suppress(OSError):
            os.write(2, notice.encode())  # print is not reentrant
