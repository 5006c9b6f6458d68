"""What a command is, and the flags that commands share, which are derived from the recipe's dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse

from adapter_unlearn import recipe
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe import Data, Evaluation, Model, Permissions, Stop, Utility

PROGRAM = "adapter-unlearn"

FLAGS: dict[str, tuple[type, str]] = {
    "model": (Model, "name"),
    "max_perplexity_increase": (Stop, "max_perplexity_increase"),
    **{name: (Model, name) for name in ("quantization", "dtype")},
    **{name: (Data, name) for name in ("forget", "retain", "holdout", "validation", "test")},
    **{name: (Data, name) for name in ("max_tokens", "prefix_tokens")},
    **{name: (Evaluation, name) for name in ("forms", "metrics", "bounds", "batch_size")},
    **{name: (Utility, name) for name in ("tasks", "replies", "limit")},
    **{name: (Permissions, name) for name in ("overwrite", "force", "trust_remote_code", "resume")},
}
"""Short flag -> the dataclass and the field that it sets. The field gives its type, choices, default and help."""

BASE = ("model", "forget", "quantization", "dtype", "max_tokens", "prefix_tokens", "batch_size")
"""Flags of every command that scores a forget set."""

PERMISSIONS = ("overwrite", "force", "trust_remote_code")
"""Flags of every command that writes a folder and loads a model."""

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """One command of the program.

    Attributes:
        help: one line for the list of commands.
        add_arguments: adds the command's flags to a parser.
        run: runs the command with that parser on the words of the command line. It returns the exit code, None for 0,
            and raises UserError.
    """

    help: str
    add_arguments: Callable[[jsonargparse.ArgumentParser], None]
    run: Callable[[jsonargparse.ArgumentParser, list[str]], int | None]


def parse(parser: jsonargparse.ArgumentParser, words: list[str]) -> dict[str, Any]:
    """The values of a command's flags.

    Raises:
        RecipeError: a flag is unknown, missing, or has a wrong value.
    """
    try:
        return dict(vars(parser.parse_args(words)))
    except jsonargparse.ArgumentError as error:
        raise RecipeError(recipe.one_line(str(error)).replace("recipe key ", "--").replace("recipe: ", "")) from error


def add_flags(parser: jsonargparse.ArgumentParser, names: Sequence[str], **defaults: Any) -> None:
    """Add short flags.

    Args:
        parser: of a command.
        names: of FLAGS.
        defaults: by flag, where a command's default is not the field's. A flag without any default is required.
    """
    for name in names:
        kind, field_name = FLAGS[name]
        field = next(field for field in fields(kind) if field.name == field_name)
        options = _type_options(get_type_hints(kind)[field_name]) | {"help": _help(kind, field_name)}
        default = defaults.get(name, field.default if field.default_factory is MISSING else field.default_factory())
        options |= {"required": True} if default is MISSING else {"default": default}
        parser.add_argument(f"--{name}", **options)


def from_flags(kind: type[T], values: dict[str, Any], **others: Any) -> T:
    """A dataclass from the flags that set its fields; the flags are removed from the values.

    Args:
        kind: of FLAGS.
        values: of parse.
        others: fields that no flag sets.
    """
    flags = {name: field for name, (owner, field) in FLAGS.items() if owner is kind and name in values}
    return kind(**{field: values.pop(name) for name, field in flags.items()}, **others)


def add_output(parser: jsonargparse.ArgumentParser, permissions: Sequence[str] = PERMISSIONS, **options: Any) -> None:
    """Add --output_dir and flags of Permissions; the options are `default` or `required`."""
    parser.add_argument("--output_dir", type=str, **options, help="folder to write; it must be new or empty")
    add_flags(parser, permissions)


def show(action: Callable[[], None]) -> None:
    """Print a result on the first process of a launch, and end the launch."""
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process:
        action()
    state.destroy_process_group()


def _type_options(hint: Any) -> dict[str, Any]:
    """How an argument takes values of this type: its type or choices, and nargs for a list."""
    if hint is bool:
        return {"action": "store_true"}
    if get_origin(hint) is Literal:
        return {"choices": list(get_args(hint))}
    parts = [part for part in get_args(hint) if part not in (NoneType, ...)]
    if get_origin(hint) in (list, tuple):
        return _type_options(parts[0]) | {"nargs": "+"}
    if parts:  # a union: of a text and a list of texts, or of a value and None
        return _type_options(parts[-1])
    return {"type": hint}


def _help(kind: type, field_name: str) -> str:
    documented = docstring_parser.parse(kind.__doc__ or "").params
    text = next((entry.description or "" for entry in documented if entry.arg_name == field_name), "")
    return " ".join(text.split()).removesuffix(".")
