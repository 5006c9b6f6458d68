"""Write recipes as plain values and as YAML."""

from __future__ import annotations

import re
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import yaml

from adapter_unlearn.recipe.schema import Recipe


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values, in the order of the schema."""
    return asdict(recipe)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe with every key written out; loading it gives the same recipe."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def commented_yaml(recipe: Recipe) -> str:
    """The same with a comment beside each key: the first sentence of its description in the schema."""
    lines = []
    for section in fields(recipe):
        value = getattr(recipe, section.name)
        if is_dataclass(value):
            lines.append(f"{section.name}:")
            comments = _comments(type(value))
            lines += [f"  {_entry(key, inner)} # {comments[key]}" for key, inner in vars(value).items()]
        elif isinstance(value, dict):
            lines += [f"{section.name}:", *(f"  {_entry(key, inner)}" for key, inner in value.items())]
        else:
            lines.append(f"{_entry(section.name, value)} # {_comments(Recipe)[section.name]}")
    return "\n".join(lines) + "\n"


def _entry(key: str, value: Any) -> str:
    """One line of YAML; lists are written in brackets."""
    style = None if isinstance(value, list | dict) else False
    return yaml.safe_dump({key: value}, default_flow_style=style, width=10**6, allow_unicode=True).strip()


def _comments(schema: type) -> dict[str, str]:
    """Key -> the first sentence of its description in the docstring."""
    import docstring_parser

    parameters = docstring_parser.parse(schema.__doc__ or "").params
    return {one.arg_name: re.split(r"\.(?:\s|$)", " ".join((one.description or "").split()))[0] for one in parameters}
