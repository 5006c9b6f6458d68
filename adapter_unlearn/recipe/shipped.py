"""The recipes that come with the package: beside it in a checkout, inside it in a wheel."""

from __future__ import annotations

import re
from itertools import takewhile
from os import PathLike, fspath
from pathlib import Path

from adapter_unlearn.errors import RecipeError, path_name
from adapter_unlearn.recipe.home import expanded

KINDS = ("models", "methods")
"""The folders of recipes; a run merges one file of each."""

_PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """The folder of the shipped recipes."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def names(kind: str) -> list[str]:
    """The names of the shipped files of one kind, without `.yaml`, sorted."""
    return sorted(path.stem for path in (folder() / kind).glob("*.yaml"))


def find(path: str | PathLike[str]) -> Path:
    """The file of a recipe.

    Args:
        path: a file, or the name of a shipped recipe, such as `models/tiny-cpu.yaml` or `models/tiny-cpu`. A file of
            that name in the working directory wins.

    Raises:
        RecipeError: there is neither.
    """
    path = expanded(fspath(path))
    if is_there(path):
        return Path(path)
    kind, _, name = Path(path).as_posix().removesuffix(".yaml").partition("/")
    if kind in KINDS and name in names(kind):
        return folder() / kind / f"{name}.yaml"
    place = str(path) if kind in KINDS and re.fullmatch(r"[\w.-]+", name) else path_name(path, "--config")
    raise RecipeError(f"{place}: no such recipe; give a file, or a name from `adapter-unlearn recipes list`")


def is_there(path: str | PathLike[str]) -> bool:
    """Whether the path is a file. A text in its place may be too long for a name, or hold a NUL."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def header(kind: str, name: str) -> list[str]:
    """The comment lines that a shipped file opens with, without `# `; the first one says what the file is."""
    lines = (folder() / kind / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
