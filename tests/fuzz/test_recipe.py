"""Recipes: YAML text, shipped recipes with hostile values, and mappings in memory."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from data_helpers import SECRET
from fuzz.inputs import changed, damaged, leaves, nested, texts
from hypothesis import strategies as st

from adapter_unlearn import recipe
from adapter_unlearn.recipe import shipped

SHIPPED = {
    f"{kind}/{name}": shipped.folder() / kind / f"{name}.yaml" for kind in shipped.KINDS for name in shipped.names(kind)
}
CONTENTS = [path.read_bytes() for path in SHIPPED.values()]
WHOLE = recipe.as_dict(recipe.load_recipe(["models/tiny-cpu", "methods/match"]))
FLAGS = ["--model.name", "m", "--data.forget", "a.jsonl", "--data.holdout", "b.jsonl", "--data.retain", "c.jsonl"]
KEYS = sorted({key for section in WHOLE.values() if isinstance(section, dict) for key in section} | set(WHOLE))
_MARKS = r"""{ } [ ] , &a *a <<: !!set !!python/object/apply:os.system !!binary !!timestamp !!int !!float !!bool !!omap
| > ? - --- ... %YAML 2001-13-45 0x 1_000 1:60:60 .inf .nan 1e400 ' " # \u = defaults: by_method: sga: null ~"""
_SPACE = ["\n", "\n  ", "\n    ", "\n%TAG ! tag:a:\n", "\t", "\x85", "\ufeff", SECRET]
_pieces = st.sampled_from([*(f"{key}: " for key in KEYS), *(f"{mark} " for mark in _MARKS.split()), *_SPACE])
_values = nested(KEYS)


class Hostile:
    """Claims to be a path or a number of NumPy's, and is neither."""

    def __fspath__(self) -> int:
        return 3

    def item(self) -> object:
        return self


def endless() -> dict:
    values: dict = {}
    values["method"] = values
    return values


_objects = (
    st.sampled_from(
        [
            b"\xff",
            {1, 2},
            object(),
            Hostile(),
            Path("a"),
            np.float64("nan"),
            np.arange(3),
            np.array(3),
            datetime.date(1, 1, 1),
            1j,
            len,
            Ellipsis,
            range(3),
            float,
            (1, 2),
            SECRET,
        ]
    )
    | st.builds(endless)
    | st.sampled_from([None, (1, 2)]).map(lambda key: {key: 1})
)


def dumped(values) -> bytes:
    try:
        return yaml.safe_dump(values).encode("utf-8", "surrogatepass")
    except (ValueError, yaml.YAMLError):  # digits without end
        return b"{"


STRUCTURED = {
    "text": st.lists(_pieces | texts, max_size=12).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
    | st.binary(max_size=99),
    "shipped": st.sampled_from(CONTENTS).flatmap(
        lambda content: damaged(content) | changed(yaml.safe_load(content), _values).map(dumped)
    ),
    "whole": changed(WHOLE, _values).map(dumped),
}


@pytest.mark.parametrize("kind", STRUCTURED)
def test_a_recipe_file(fuzzer, kind):
    path = fuzzer.given / "recipe.yaml"
    path.touch()

    def example(value: bytes) -> None:
        path.write_bytes(value)
        fuzzer.check(lambda: recipe.load_recipe([path], FLAGS), SECRET, only_prose=True)

    fuzzer.run(STRUCTURED[kind], example)


def test_a_mapping(fuzzer):
    hostile = changed(WHOLE, _values | _objects)

    def example(values: object) -> None:
        fuzzer.check(lambda: recipe.from_mapping(values), SECRET, only_prose=True)

    fuzzer.run(hostile | nested(KEYS, leaves | _objects), example)
