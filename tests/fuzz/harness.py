"""What the fuzzers share: how many examples, what an example may do, and what it may end in.

An example passes if a reader accepts the input or raises a UserError of one short printable line that quotes nothing of
it, in 5 seconds, in 256 MiB, and without writing a file outside the places that it may write to, starting a process,
unpickling or connecting to anything.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import adapter_unlearn
from adapter_unlearn.errors import LONGEST, UserError

MANY = 10_000
SECONDS = 5
"""For one example."""
GROWTH = 256 * 1024
"""KiB of memory that an example may take, the shares of C libraries included. Linux only."""
GRAM = 8
"""Characters in a row that a message may not share with the input."""

_SOURCE = "\n".join(path.read_text("utf-8") for path in sorted(Path(adapter_unlearn.__file__).parent.rglob("*.py")))
_FORBIDDEN = {
    "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
    "socket.getaddrinfo",
}  # fmt: skip
_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Watch:
    """What the process does while an example runs. Python has no way to remove an audit hook, so there is one."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        self.allowed: tuple[str, ...] = ()
        self.installed = False

    def hook(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self.events is None:
            return
        if name in _FORBIDDEN:
            self.events.append(f"{name} {arguments!r:.200}")
        elif name in _CHANGES or (name == "open" and (arguments[2] or 0) & _WRITING):
            places = arguments[:2] if name in ("os.rename", "os.link") else arguments[:1]
            below = arguments[-1] if name in _CHANGES and arguments[-1] != -1 else None  # a folder's number
            if not all(self._may_write(place, below) for place in places):
                self.events.append(f"{name} {arguments!r:.200}")

    def _may_write(self, place: object, below: int | None) -> bool:
        if not isinstance(place, str | bytes | os.PathLike):
            return True  # a file that is open already
        start = Path() if below is None else Path(f"/proc/self/fd/{below}").readlink()
        absolute = os.path.realpath(start / os.fsdecode(place))
        return "__pycache__" in absolute or absolute == os.devnull or absolute.startswith(self.allowed)

    @contextmanager
    def during(self, allowed: tuple[str, ...]) -> Iterator[list[str]]:
        if not self.installed:
            sys.addaudithook(self.hook)
            self.installed = True
        events: list[str] = []
        self.events, self.allowed = events, allowed
        try:
            yield events
        finally:
            self.events = None


_WATCH = _Watch()


class Fuzzer:
    """Runs a property on many examples, inside a folder of which only parts may change."""

    def __init__(self, root: Path, number: int | None) -> None:
        """Nothing runs yet.

        Args:
            root: an empty folder; also the home, the working directory and the place of temporary files.
            number: the seed of MANY examples; None takes few, the same ones each time.
        """
        self.root, self.number = root, number
        self.given = root / "given"
        self.given.mkdir()
        self.writable: tuple[Path, ...] = ()
        self.outcomes: Counter[str] = Counter()

    def run(self, strategy: st.SearchStrategy[Any], example: Callable[[Any], None], few: int = 80) -> None:
        """Run an example on values of the strategy. Some must be accepted, and some refused."""

        def test(value: Any) -> None:
            example(value)

        chosen = settings(
            max_examples=few if self.number is None else MANY, derandomize=self.number is None,
            deadline=SECONDS * 1000, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink], print_blob=False,
        )  # fmt: skip
        fuzzed = chosen(given(strategy)(test))
        if self.number is not None:
            print(f"--hypothesis-seed={self.number}")
            fuzzed = seed(self.number)(fuzzed)
        try:
            fuzzed()
        finally:
            print(f"{self.outcomes.total()} examples: {dict(self.outcomes)}")
        assert len(self.outcomes) == 2, self.outcomes

    def check(self, action: Callable[[], object], secrets: str = "", only_prose: bool = False) -> UserError | None:
        """Run an action on an input, and check what it does and what it ends in.

        Args:
            action: what is fuzzed.
            secrets: what the message may not quote.
            only_prose: only stretches with a space count, because single words of the input may be shown.

        Returns:
            The error; None if the input was accepted.
        """
        before, memory = self._files(), _reset_peak()
        error = None
        with _WATCH.during(tuple(os.path.realpath(place) for place in self.writable)) as events:
            try:
                action()
            except UserError as caught:
                error = caught
        assert not events, events
        assert self._files() == before, "a file appeared or vanished"
        assert (taken := _kib("VmHWM") - memory) < GROWTH, f"took {taken >> 10} MiB"
        if error is not None:
            self._check_message(str(error), secrets, only_prose)
        result = "accepted" if error is None else "refused"
        self.outcomes[result] += 1
        return error

    def _check_message(self, message: str, secrets: str, only_prose: bool) -> None:
        assert message.isprintable() and 0 < len(message) <= LONGEST, message[: 2 * LONGEST]
        message = message.replace(str(self.root), "")
        grams = {message[i : i + GRAM] for i in range(len(message) - GRAM + 1)}
        shared = {gram for gram in grams if gram in secrets and not (only_prose and " " not in gram)}
        assert not [gram for gram in shared if gram not in _SOURCE], message

    def _files(self) -> set[str]:
        """Every file in the root but those that may change."""
        return {
            os.path.join(folder, name)  # noqa: PTH118 (called twice for every example)
            for folder, folders, names in os.walk(self.root)
            for name in [*folders, *names]
            if not any(str(place) in f"{folder}/{name}" for place in self.writable)
        }


def _reset_peak() -> int:
    """Make the process's present memory its peak, and return it, in KiB."""
    if (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")
    return _kib("VmRSS")


def _kib(name: str) -> int:
    """A line of the process's status on Linux; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
