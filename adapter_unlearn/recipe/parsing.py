"""Read recipes from YAML, flags and mappings, and write them.

Only the standard library, YAML and jsonargparse are imported, so `--help` and an unknown key are answered at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe import shipped
from adapter_unlearn.recipe.checks import checked
from adapter_unlearn.recipe.schema import Recipe


def add_recipe_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Give the parser `--config FILE` and a flag `--a.b` for every key of a recipe."""
    parser.add_argument("--config", action="config", help="a recipe (YAML)")
    parser.add_class_arguments(Recipe)


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: the YAML file; None takes the defaults. If it names no method, what it leaves out is the default recipe's.
        overrides: flags as on the command line, for example ["--method.threshold", "0.5"]; they win.

    Raises:
        RecipeError: the file is missing or no YAML, a key is unknown or missing, a value has the wrong type or range.
    """
    parser = jsonargparse.ArgumentParser(prog="recipe", exit_on_error=False)
    add_recipe_arguments(parser)
    config = [] if path is None else ["--config", str(existing_recipe(path))]
    return parse_recipe(parser, [*config, *overrides])


def existing_recipe(path: str | Path) -> Path:
    """The path, if a recipe can be read there.

    Raises:
        RecipeError: there is no such file.
    """
    if not Path(path).is_file():
        raise RecipeError(f"{path}: no such recipe; `adapter-unlearn recipes list` names those that are shipped")
    return Path(path)


def parse_recipe(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> Recipe:
    """Parse arguments with a parser that has the recipe's; see load_recipe for what is raised."""
    for word, value in pairwise([*arguments, ""]):
        if word == "--config" or word.startswith("--config="):
            existing_recipe(value if word == "--config" else word.removeprefix("--config="))
    return _built(parser, lambda: parser.parse_args(list(arguments)))


def _built(parser: jsonargparse.ArgumentParser, parse: Callable[[], Any]) -> Recipe:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse announces its next major version through users' calls
        try:
            given = parse()
            named = "name" in (given.method or {})
            if not named:
                default = _default()
                parser.set_defaults(_flat(default))
                given = parse()
                given.method = {**default["method"], **(given.method or {})}
            parsed = parser.instantiate(given)
        except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
            raise RecipeError(_renamed(str(error)) or one_line(str(error))) from error
    made = Recipe(**{name: parsed[name] for name in Recipe.__dataclass_fields__})
    if not named:
        _refuse_missing_sets(made)
    return checked(made)


RENAMED = {"data.reference": "data.holdout", "data.written": "data.synthetic"}
"""Keys of earlier versions, and what they are called now."""


def _renamed(message: str) -> str | None:
    """One line for a parser's message about a key that has another name now; None for any other message."""
    for old, new in RENAMED.items():
        section, key = old.split(".")
        if f"--{old}" in message.split() or f"Group {section!r} does not accept option {key!r}" in message:
            return f"recipe key {old}: it is called {new} now; rename it"
    if "trust_remote_code" in message:
        return "recipe key model.trust_remote_code: no file can allow this; give the flag --trust_remote_code instead"
    return None


def _default() -> dict[str, Any]:
    """What stands in for the keys that a recipe without a method leaves out."""
    read: dict[str, Any] = yaml.safe_load((shipped.folder() / "default.yaml").read_text(encoding="utf-8"))
    return read


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with dots, as a parser names them; the method is one value."""
    keys: dict[str, Any] = {"method": sections["method"]}
    for section in sections.keys() - {"method"}:
        keys |= {f"{section}.{key}": value for key, value in sections[section].items()}
    return keys


def _refuse_missing_sets(recipe: Recipe) -> None:
    """The default recipe can't do without two more files; who has given it one text file is told of both at once."""
    held = recipe.method.get("retain_weight") or recipe.data.synthetic
    missing = ["data.retain (texts to keep)"] if held and recipe.data.retain is None else []
    missing += ["data.holdout (unseen texts of the forget set's kind)"] if recipe.data.holdout is None else []
    if missing:
        raise RecipeError(
            f"recipe key method: none is named, and the default, {recipe.method['name']}, needs {' and '.join(missing)}"
            "; give them, or name a method that needs neither, such as --method.name sga"
        )


def one_line(message: str) -> str:
    """Fold a parser's message of several lines into one, without its type jargon."""
    key = message.split('"')[1] if message.startswith('Parser key "') else ""
    lines = [line.strip(" -") for line in message.splitlines()]
    if key:
        given = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Given value:")), "")
        given = given or next((line.split("Got value:")[1].strip() for line in lines if "Got value:" in line), "")
        expected = [line.removeprefix("Expected a ").split(". Got value")[0] for line in lines if "Expected a " in line]
        kinds = " or ".join(_plain(kind) for kind in dict.fromkeys(expected)) or "another kind of value"
        return f"recipe key {key}: expected {kinds}, got {given!r}"
    return "recipe: " + "; ".join(line for line in lines if line)


def _plain(kind: str) -> str:
    names = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'str'>": "text"}
    names |= {"<class 'bool'>": "true or false", "<class 'NoneType'>": "null"}
    return names.get(kind, kind.removeprefix("typing.Literal").strip("[]").replace("'", ""))


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values, in the schema's order."""
    assert is_dataclass(recipe)
    return asdict(recipe)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every key written out; loading it gives the same recipe."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested plain values, as YAML would give them; raises RecipeError as load_recipe does."""
    parser = jsonargparse.ArgumentParser(prog="recipe", exit_on_error=False)
    add_recipe_arguments(parser)
    return _built(parser, lambda: parser.parse_object(_plain_values(values)))


def _plain_values(value: Any) -> Any:
    """Paths as text and NumPy's numbers as Python's, in nested mappings and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(inner) for inner in value]
    if isinstance(value, PathLike):
        return str(value)
    return value.item() if hasattr(value, "item") else value
