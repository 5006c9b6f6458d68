"""Read YAML files that may come from strangers, or may be no YAML at all.

Keys must be distinct, and size, depth and the expansion of aliases are bounded. No message quotes the file, because a
file of texts may be given in a recipe's place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from adapter_unlearn.errors import RecipeError, path_name, word

MAX_BYTES = 256 * 1024
MAX_VALUES = 10_000
MAX_DEPTH = 32


def read_yaml(path: str | PathLike[str]) -> Any:
    """The content of a YAML file in which no key may stand twice.

    Raises:
        RecipeError: the file can't be read, is not YAML, is too large, or a key stands twice; names the line.
    """
    place = path_name(path, "--config")
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(f"{place}: has more than {MAX_BYTES // 1024} KiB; give a recipe, not a file of texts")
        text = content.decode("utf-8")
        _check_extent(yaml.parse(text, yaml.SafeLoader), place)
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        if isinstance(error, _RepeatedKey):
            raise RecipeError(f"{place}{line}: {error.problem}; keep one of the two") from None
        problem = re.sub(r"(['\"]).*\1", "…", str(error.problem))
        raise RecipeError(f"{place}{line}: not YAML ({problem}); correct the line, or give a recipe") from None
    except (OSError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "not YAML"  # a value that does not fit its tag, such as !!int
        raise RecipeError(f"{place}: can't be read ({reason}); give a YAML file") from None


class _RepeatedKey(yaml.constructor.ConstructorError):
    """A key stands twice."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML silently keeps only the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True) if key.tag != "tag:yaml.org,2002:merge" else key.value
            if isinstance(name, str | int | float | bool | None) and name in known:
                raise _RepeatedKey(None, None, f"'{word(name)}' stands twice", key.start_mark)
            known.add(name if not isinstance(name, list | dict) else id(key))
        return super().construct_mapping(node, deep)


@dataclass
class _Extent:
    """The size of a value, with every alias in it replaced by what it stands for."""

    anchor: str | None = None
    values: int = 1
    depth: int = 1

    def add(self, inner: _Extent) -> None:
        self.values += inner.values
        self.depth = max(self.depth, inner.depth + 1)


def _check_extent(events: Iterable[yaml.Event], place: str) -> None:
    """Refuse a file that is too deep or has too many values, before any value is built.

    Raises:
        RecipeError: it has more than MAX_VALUES values or MAX_DEPTH levels, or an alias that stands for itself.
    """
    anchors: dict[str, _Extent] = {}
    open_values = [_Extent()]
    for event in events:
        closed = None
        if isinstance(event, yaml.CollectionStartEvent):
            open_values.append(_Extent(event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = open_values.pop()
        elif isinstance(event, yaml.ScalarEvent):
            closed = _Extent(event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise RecipeError(f"{_line(place, event)}: an alias of no earlier value; write the value out")
            closed = anchors[event.anchor]
        if closed is not None:
            anchors |= {closed.anchor: closed} if closed.anchor else {}
            open_values[-1].add(closed)
        outer = open_values[-1]
        if outer.values > MAX_VALUES or max(outer.depth, len(open_values)) > MAX_DEPTH:
            raise RecipeError(
                f"{_line(place, event)}: more than {MAX_VALUES} values or {MAX_DEPTH} levels, aliases written out; "
                "give a recipe, which has fewer"
            )


def _line(place: str, event: yaml.Event) -> str:
    return f"{place}, line {event.start_mark.line + 1}" if event.start_mark else place
