"""The errors a user can cause and fix.

    UserError                the command line prints it as one line and exits with code 2
    ├── InputError           a file of texts: missing, empty, a bad row, a wrong column
    ├── RecipeError          a recipe or flag: unknown key, value out of range, unknown method
    ├── ModelError           a base model or an adapter that can't be loaded or does not fit
    ├── RunError             a finished run that can't be read, or can't be compared with another
    └── OutputError          an output folder that can't or must not be written

A message is one sentence: the place (file, row or key), the problem, and the fix. It never holds a text.
Any other exception is a bug in this package or in a library.

Names and values in a message come from users and from files of strangers. `path_name` and `word` decide what of them is
shown, and every message is printable.
"""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path

HIDDEN = "(not shown, as it may be a text)"
LONGEST = 2000
"""Characters in a message. Names in files of strangers may be of any length."""
_ENDINGS = (
    ".jsonl", ".json", ".jsn", ".csv", ".tsv", ".parquet", ".txt", ".npy", ".npz", ".yaml", ".yml", ".arrow", ".gz",
    ".zip", ".md", ".doc", ".docx", ".pdf", ".xlsx",
)  # fmt: skip


def printable(text: object) -> str:
    """Escape every character that is not printable, such as terminal codes, line breaks and bidirectional overrides."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def path_name(path: str | PathLike[str], otherwise: str = HIDDEN) -> str:
    """A path for a message, or other words if it may be a text that was given in a path's place.

    A path is shown if its folder exists, or if it has no white space and starts as a path does (/, ./, ../ or ~) or
    ends as a file of data or a recipe does.
    """
    name = fspath(path)
    if not 0 < len(name) <= 1000 or not name.isprintable():
        return otherwise
    has_form = name.startswith(("/", "./", "../", "~")) or name.lower().endswith(_ENDINGS)
    return name if (has_form and " " not in name) or _folder_exists(name) else otherwise


def word(value: object, otherwise: str = HIDDEN) -> str:
    """A value for a message, or other words if it is not one short word."""
    return str(value) if re.fullmatch(r"[\w.+/:<-]{0,64}", str(value)) else otherwise


def _folder_exists(name: str) -> bool:
    """Whether the path names a folder that exists, other than the working directory, and something in it."""
    parent = Path(name).parent
    try:
        return parent != Path() and parent.is_dir()
    except OSError:
        return False


class UserError(Exception):
    """An error that the user can fix; the message says where and how, in one printable line."""

    def __str__(self) -> str:
        """The message, in one line; of a long one the beginning, with the place, and the end, with the fix."""
        line = printable(" ".join(super().__str__().split()))
        return line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} … {line[-LONGEST // 4 :]}"


class InputError(UserError):
    """A file of texts can't be used."""


class RecipeError(UserError):
    """A recipe key or flag is unknown or out of range."""


class ModelError(UserError):
    """A base model or an adapter can't be loaded, or the two do not fit."""


class RunError(UserError):
    """A finished run can't be read or compared."""


class OutputError(UserError):
    """An output folder can't be written, or holds files that must not be replaced."""
