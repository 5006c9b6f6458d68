"""Where a folder comes from: the package and the time, and fingerprints of the weights that it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapter_unlearn.runs.contents import PACKAGE
from adapter_unlearn.version import __version__


def provenance() -> dict[str, Any]:
    """What every manifest begins with: the package and the time."""
    return {
        "package": {"name": PACKAGE, "version": __version__},
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
