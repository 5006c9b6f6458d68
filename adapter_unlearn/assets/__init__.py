"""The embedded default: a tiny model that memorized fictional records, and its data files.

Anywhere a model or a file is named, `embedded:model` or `embedded:forget.jsonl` names one of these.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
SCHEME = "embedded:"


def resolve(name: str) -> str:
    """The path that an `embedded:` name stands for; any other name as it is."""
    return str(FOLDER / name.removeprefix(SCHEME)) if name.startswith(SCHEME) else name
