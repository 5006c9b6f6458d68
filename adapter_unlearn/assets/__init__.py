"""The embedded default: a tiny model that memorized fictional records, and its data files.

`embedded:model` and names such as `embedded:forget.jsonl` can be given wherever a model or a file is expected.
"""

import os
from os import PathLike
from pathlib import Path

from adapter_unlearn.errors import UserError

FOLDER = Path(__file__).parent
SCHEME = "embedded:"


def resolve(name: str | PathLike[str]) -> str:
    """The path of an `embedded:` name as a string; any other path or hub id is unchanged.

    Raises:
        UserError: it is neither a string nor a path.
    """
    if not isinstance(name, str | PathLike):
        raise UserError(f"a path or a hub id is a {type(name).__name__}; give a string or a path")
    name = os.fspath(name)
    return str(FOLDER / name.removeprefix(SCHEME)) if name.startswith(SCHEME) else name
