"""Read recipes from YAML files, flags and mappings.

Only the standard library, PyYAML and jsonargparse are imported here, so that `--help` and errors do not wait for torch.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike, fspath
from typing import Any, get_type_hints

import jsonargparse
import yaml

from adapter_unlearn.errors import HIDDEN, RecipeError, path_name, word
from adapter_unlearn.recipe import shipped
from adapter_unlearn.recipe.checks import checked
from adapter_unlearn.recipe.composing import RENAMED, Layer, composed, last_method, layer_of
from adapter_unlearn.recipe.schema import Recipe
from adapter_unlearn.recipe.yaml_files import read_yaml

_KEYS = [
    f"{section}.{key.name}"
    for section, kind in get_type_hints(Recipe).items()
    if is_dataclass(kind)
    for key in fields(kind)
]


def add_recipe_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add `--config FILE` and a flag `--section.key` for every key of a recipe."""
    parser.add_argument(
        "--config", action="config",
        help="recipe (YAML): a file, or a shipped one such as methods/sga.yaml; of several files, later ones win",
    )  # fmt: skip
    parser.add_class_arguments(Recipe)


def load_recipe(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Read a recipe.

    Args:
        paths: one YAML file, or several to merge; later ones override earlier ones (see composing.py). A name that is
            no file is looked up among the shipped recipes: `models/tiny-cpu.yaml`, or without `.yaml`. None reads no
            file. Without a method, the missing keys are filled from recipes/default.yaml.
        overrides: flags as on the command line, for example ["--method.threshold", "0.5"]; they override the files.

    Raises:
        RecipeError: a file is missing or not YAML, a key is unknown or missing, or a value has the wrong type or range.
    """
    several = [] if paths is None else [paths] if isinstance(paths, str | PathLike) else paths
    if not isinstance(several, Sequence) or not all(isinstance(path, str | PathLike) for path in several):
        raise RecipeError("recipe: not a path; give the path of a YAML file, or several in a list")
    return _parsed(_parser(), _layers(several), overrides)


def parse_recipe(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> Recipe:
    """Parse a command line; flags override the files of `--config`, wherever they stand.

    Args:
        parser: has the arguments of `add_recipe_arguments`.
        arguments: the words of the command line.

    Raises:
        RecipeError: as `load_recipe`.
    """
    paths, flags = split_config(arguments)
    return _parsed(parser, _layers(paths), flags)


def split_config(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of `--config` on a command line, and all other words."""
    paths, flags, words = [], [], iter(arguments)
    for one in words:
        if one == "--config":
            paths.append(next(words, ""))
        elif one.startswith("--config="):
            paths.append(one.removeprefix("--config="))
        else:
            flags.append(one)
    return paths, flags


def from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested plain values, as YAML would give them; raises RecipeError as `load_recipe` does."""
    try:
        plain = _plain_values(values)
    except (RecursionError, ValueError, TypeError):
        raise RecipeError("recipe: its values are not those of a YAML file; give texts, numbers and lists") from None
    return _parsed(_parser(), [layer_of(plain, "recipe")], ())


@functools.cache  # building it takes half of the time of a recipe; parsing leaves it as it is
def _parser() -> jsonargparse.ArgumentParser:
    # without --print_config, which a failed parse would leave in the parser
    parser = jsonargparse.ArgumentParser(prog="recipe", exit_on_error=False, print_config=None)
    add_recipe_arguments(parser)
    return parser


def _layers(paths: Sequence[str | PathLike[str]]) -> list[Layer]:
    return [layer_of(read_yaml(shipped.find(path)), path_name(path, "--config")) for path in paths]


def _parsed(parser: jsonargparse.ArgumentParser, layers: Sequence[Layer], flags: Sequence[str]) -> Recipe:
    _check_flags(flags)

    def parse(method: str | None) -> Any:
        values = yaml.safe_dump(composed(layers, method))
        return parser.parse_args(["--config", values, *flags])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse announces its next major version
        try:
            named = last_method(layers)
            values = parse(named or "")
            method = (values.method or {}).get("name") or None
            if method is None or method != named:  # from a flag or the default recipe; it decides how files are merged
                values = parse(method)
            values = parser.instantiate(values)
        except (jsonargparse.ArgumentError, yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
            raise RecipeError(one_line(str(error))) from None
    recipe = Recipe(**{key.name: values[key.name] for key in fields(Recipe)})
    if method is None:
        _refuse_missing_sets(recipe)
    return checked(recipe)


def _check_flags(flags: Sequence[str]) -> None:
    """Refuse names of earlier versions, and a key or a section in place of both, such as `--model M`."""
    for flag, following in zip(flags, [*flags, ""][1:], strict=True):
        key, has_value, value = flag.removeprefix("--").partition("=")
        if key in RENAMED:
            raise RecipeError(f"--{key} is now --{RENAMED[key]}; rename it")
        value = value if has_value else following
        names = [name for name in _KEYS if key in name.split(".")]
        if flag.startswith("--") and names and not value.startswith("{") and not shipped.is_there(value):
            raise RecipeError(f"--{key}: no such flag with this value; did you mean --{', --'.join(names)}?")


def _refuse_missing_sets(recipe: Recipe) -> None:
    """The default recipe needs two more files than the forget set; one message names all that are missing."""
    retains = recipe.method.get("retain_weight") or recipe.data.synthetic
    missing = ["data.retain (texts to keep)"] if retains and recipe.data.retain is None else []
    missing += ["data.holdout (unseen texts of the forget set's kind)"] if recipe.data.holdout is None else []
    if missing:
        raise RecipeError(
            f"recipe key method: none is named, and the default, {recipe.method['name']}, needs {' and '.join(missing)}"
            "; give them, or name a method that needs neither, such as --method.name sga"
        )


def one_line(message: str) -> str:
    """Fold a parser's message of several lines into one line without the parser's type names."""
    key = message.split('"')[1] if message.startswith('Parser key "') else ""
    lines = [line.strip(" -") for line in message.splitlines()]
    if message.startswith("unrecognized arguments"):  # any value among them may be a text
        names = [word(name.split("=")[0]) for name in message.split() if name.startswith("--")]
        return f"recipe: unknown flags {', '.join(names)}" if names else "recipe: a value without a flag; remove it"
    if key:
        value = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Given value:")), "")
        value = value or next((line.split("Got value:")[1].strip() for line in lines if "Got value:" in line), "")
        expected = [line.removeprefix("Expected a ").split(". Got value")[0] for line in lines if "Expected a " in line]
        kinds = " or ".join(_plain_type(kind) for kind in dict.fromkeys(expected)) or "another kind of value"
        shown = HIDDEN if key.startswith("data.") else word(value.strip("'"))
        return f"recipe key {key}: expected {kinds}, got '{shown}'"
    return "recipe: " + "; ".join(line for line in lines if line)


def _plain_type(kind: str) -> str:
    names = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'str'>": "text"}
    names |= {"<class 'bool'>": "true or false", "<class 'NoneType'>": "null", "<class 'dict'>": "keys and values"}
    names |= {"<class 'list'>": "a list"}
    return names.get(kind, kind.removeprefix("typing.Literal").strip("[]").replace("'", ""))


def _plain_values(value: Any) -> Any:
    """Nested values with paths as text and NumPy numbers as Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(inner) for inner in value]
    if isinstance(value, PathLike):
        return fspath(value)
    return value.item() if hasattr(value, "item") else value
