"""The content of a folder that a command of this package wrote: the names of its manifests, and the list of its files.

Each folder has one manifest, a JSON object that names this package under `package` and lists every other file and
subfolder under `files`. A folder is ours if its manifest lists everything in it. Only such a folder is ever replaced.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adapter_unlearn.runs.json_files import write_json

PACKAGE = "adapter-unlearn"
MANIFEST = "unlearning.json"
ARITHMETIC = "arithmetic.json"
EVALUATION = "evaluation.json"
SCORES = "scores.json"
COMPARISON = "comparison.json"
MANIFESTS = (MANIFEST, ARITHMETIC, EVALUATION, SCORES, COMPARISON)
"""The manifests of a run, of an arithmetic operation or merge, of an evaluation, of scores and of a comparison."""
RUNS = "runs"
"""The folder of a comparison that its matrix's runs are in."""
SCHEMA_VERSION = 1
"""Version of summary.json; it increases when the meaning of a key changes."""
_MAX_BYTES = 64 * 2**20


def record(folder: Path) -> None:
    """Add the list of a complete folder's entries to its manifest, if it has one."""
    manifest = next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)
    if manifest is not None:
        values = json.loads(manifest.read_text(encoding="utf-8"))
        write_json(manifest, values | {"files": [entry for entry, _ in _entries(folder) if entry != manifest.name]})


def listed(folder: Path) -> set[str]:
    """The files that the manifests of a folder list, the manifests included; empty if it has none of ours."""
    files: set[str] = set()
    for name in MANIFESTS:
        manifest = _read(folder / name)
        if manifest is not None:
            files |= {name, *manifest}
    return files


def foreign(folder: Path) -> str | None:
    """The first entry of a folder that none of its manifests lists, as a path in it; None if there is none.

    Links, devices, sockets, pipes and mount points are never ours, and neither is a folder without listed files.
    """
    return next(_foreign(folder, _entries(folder), listed(folder)), None)


def unlisted(folder: Path, name: str, files: set[str]) -> str | None:
    """The first of an entry of a folder and what is below it that is not among these files; None if there is none."""
    mode = (folder / name).lstat().st_mode
    below = _entries(folder, f"{name}/") if stat.S_ISDIR(mode) else ()
    return next(_foreign(folder, ((name, mode), *below), files), None)


def _foreign(folder: Path, entries: Iterable[tuple[str, int]], files: set[str]) -> Iterator[str]:
    for entry, mode in entries:
        ours = stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and not os.path.ismount(folder / entry))
        if entry not in files or not ours:
            yield entry


def _entries(folder: Path, inside: str = "") -> Iterator[tuple[str, int]]:
    """Every entry below a folder, as a path in it, with its mode; links are not followed."""
    with os.scandir(folder / inside) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        path, mode = f"{inside}{entry.name}", entry.stat(follow_symlinks=False).st_mode
        yield path, mode
        if stat.S_ISDIR(mode):
            yield from _entries(folder, f"{path}/")


def _read(manifest: Path) -> list[str] | None:
    """The files that a manifest lists; None if it is not a manifest of this package."""
    try:
        details = manifest.lstat()
        if not stat.S_ISREG(details.st_mode) or details.st_size > _MAX_BYTES:
            return None
        values: Any = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    package = values.get("package") if isinstance(values, dict) else None
    if not isinstance(package, dict) or package.get("name") != PACKAGE:
        return None
    files = values.get("files")
    return [file for file in files if isinstance(file, str)] if isinstance(files, list) else []
