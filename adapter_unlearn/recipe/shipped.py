"""The recipes that come with the package: beside it in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from adapter_unlearn.errors import OutputError, RecipeError

_PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """Where the recipes lie."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """Every shipped recipe, as `model/method.yaml`."""
    found = (path.relative_to(folder()) for path in folder().glob("*/*.yaml"))
    return sorted(path.as_posix() for path in found if path.parts[0] != "accelerate")


def path(name: str) -> Path:
    """A recipe's file.

    Raises:
        RecipeError: no recipe has this name.
    """
    if name not in names():
        raise RecipeError(f"no recipe {name!r} is shipped; choose from {', '.join(names())}")
    return folder() / name


def listing() -> list[tuple[str, str]]:
    """Name and first comment line of every recipe."""
    return [(name, path(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")) for name in names()]


def copy(name: str, file: Path) -> None:
    """Copy a recipe to a file of the user's.

    Raises:
        RecipeError: no recipe has this name.
        OutputError: the file exists, or can't be written.
    """
    text = path(name).read_text(encoding="utf-8")
    try:
        if file.exists():
            raise OutputError(f"{file}: exists already; choose another name")
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{file!s:.200}: can't be written: {error.strerror}") from error
