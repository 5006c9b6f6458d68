"""The embedded default: a tiny model that memorized fictional records, and its data files.

`embedded:model` and names such as `embedded:forget.jsonl` can be given wherever a model or a file is expected.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
SCHEME = "embedded:"


def resolve(name: str) -> str:
    """The path of an `embedded:` name; any other name is returned unchanged."""
    return str(FOLDER / name.removeprefix(SCHEME)) if name.startswith(SCHEME) else name
