"""Merge recipe files: lay the keys of several files over one another.

Beside the keys of a recipe, a file may have two more:

    defaults:                              # keys that yield to the keys of every other file
      training: {learning_rate: 3.0e-4}
    by_method:                             # method name -> keys that apply only to this method
      sga: {method: {threshold: 0.43}}

From lowest to highest precedence, a recipe consists of

1. `defaults`: first those of the files that name no method, then those of the files that do;
2. recipes/default.yaml, if neither a file nor a flag names a method;
3. `by_method` of the recipe's method;
4. all other keys.

Within a level, later files override earlier ones key by key. Flags override all of this (see parsing.py). In
`output_dir`, `{method}` stands for the name of the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from adapter_unlearn.errors import RecipeError, word
from adapter_unlearn.recipe import shipped
from adapter_unlearn.recipe.schema import Recipe
from adapter_unlearn.recipe.yaml_files import read_yaml

RENAMED = {"data.reference": "data.holdout", "data.written": "data.synthetic"}
"""Keys of earlier versions, and their present names."""
FLAGS_ONLY = ("model.trust_remote_code", "trust_remote_code", "overwrite", "force")
"""What only a flag may allow."""


@dataclass(frozen=True)
class Layer:
    """What one file contributes to a recipe.

    Attributes:
        keys: recipe keys, by section.
        defaults: recipe keys that yield to the keys of every other layer.
        by_method: method name -> recipe keys that apply only to this method.
    """

    keys: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    by_method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def layer_of(values: Any, place: str) -> Layer:
    """Split the content of a file into recipe keys, defaults and keys by method.

    Args:
        values: the content, as YAML gives it.
        place: the file's name, for messages.

    Raises:
        RecipeError: a key is unknown, or has another name now. A file without any key of a recipe may be one of texts,
            and nothing of it is shown.
    """
    keys = dict(mapping(values, place))
    names = [*get_type_hints(Recipe), *FLAGS_ONLY, "defaults", "by_method"]
    if keys and not any(get_close_matches(str(key), names, n=1) for key in keys):
        raise RecipeError(f"{place}: no recipe; a recipe has {', '.join(get_type_hints(Recipe))}")
    defaults = _sections(keys.pop("defaults", None), f"{place}, defaults")
    by_method = mapping(keys.pop("by_method", None), f"{place}, by_method")
    own = {method: _sections(part, f"{place}, by_method.{word(method)}") for method, part in by_method.items()}
    return Layer(_sections(keys, place), defaults, own)


def composed(layers: Sequence[Layer], method: str | None) -> dict[str, Any]:
    """The recipe keys that layers amount to.

    Args:
        layers: one per file; later ones override earlier ones.
        method: the name of the recipe's method; None takes recipes/default.yaml and its method.
    """
    default: Mapping[str, Any] = {}
    if method is None:
        default = read_yaml(shipped.folder() / "default.yaml")
        method = str(default["method"]["name"])
    own = _without_other_methods(layers, method)
    steps = [layer.defaults for layer in own if _method_name(layer.keys) is None]
    steps += [layer.defaults for layer in own if _method_name(layer.keys) is not None]
    steps += [default, *(layer.by_method.get(method, {}) for layer in own), *(layer.keys for layer in own)]
    values: dict[str, Any] = {"method": {"name": method}}
    for step in steps:
        values = merged(values, step)
    if isinstance(values.get("output_dir"), str):
        values["output_dir"] = values["output_dir"].replace("{method}", method)
    return values


def _without_other_methods(layers: Sequence[Layer], method: str) -> list[Layer]:
    """The layers without the parameters of other methods; parameters belong to the method named last before them."""
    result, current = [], method
    for layer in layers:
        current = _method_name(layer.keys) or current
        if current != method:
            layer = Layer(_without_method(layer.keys), _without_method(layer.defaults), layer.by_method)
        result.append(layer)
    return result


def _without_method(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key != "method"}


def last_method(layers: Sequence[Layer]) -> str | None:
    """The method that the last layer that names one names."""
    names = [name for layer in layers if (name := _method_name(layer.keys)) is not None]
    return names[-1] if names else None


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys with changes laid over them, section by section.

    A change of method.name drops the parameters of the earlier method.
    """
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            other_method = key == "method" and value.get("name", old.get("name")) != old.get("name")
            result[key] = dict(value) if other_method else {**old, **value}
        else:
            result[key] = value
    return result


def mapping(value: Any, place: str) -> Mapping[str, Any]:
    """The value if it maps keys to values, an empty mapping for None.

    Raises:
        RecipeError: the value is anything else.
    """
    if value is not None and not isinstance(value, Mapping):
        raise RecipeError(f"{place}: expected keys and values, got {type(value).__name__}")
    return value or {}


def _method_name(keys: Mapping[str, Any]) -> str | None:
    method = keys.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    return None if name is None else str(name)


def _sections(values: Any, place: str) -> dict[str, Any]:
    """The recipe keys of a part of a file, without empty sections."""
    keys, schema = dict(mapping(values, place)), get_type_hints(Recipe)
    for section, value in list(keys.items()):
        _refuse_flag(section, place)
        if section not in schema:
            raise RecipeError(f"{place}: unknown key '{word(section)}'; a recipe has {', '.join(schema)}")
        has_fields = is_dataclass(schema[section])
        if not has_fields and section != "method":
            continue
        if value is None:
            del keys[section]
        for key in mapping(value, f"{place}, {section}"):
            _refuse_flag(f"{section}.{key}", place)
            if (new := RENAMED.get(f"{section}.{key}")) is not None:
                raise RecipeError(f"{place}: recipe key {section}.{key} is now {new}; rename it")
            if has_fields and key not in (known := [one.name for one in fields(schema[section])]):
                raise RecipeError(f"{place}: unknown key {section}.{word(key)}; {section} has {', '.join(known)}")
    return keys


def _refuse_flag(key: str, place: str) -> None:
    if key in FLAGS_ONLY:
        flag = key.split(".")[-1]
        raise RecipeError(f"{place}: no file can set {key}; give the flag --{flag} instead")
