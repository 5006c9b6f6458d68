"""YAML of strangers, and files that are no YAML: one line, nothing of the file, bounded time."""

from __future__ import annotations

import traceback

import pytest

from adapter_unlearn import RecipeError, load_recipe, recipe

SECRET = "Zaphod's number is 4242"


def bomb(row: str) -> str:
    return "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {row.replace('*', f'*a{i - 1}')}\n" for i in range(1, 10))


BAD = {
    "deep list": ("[" * 100_000, "line 1"),
    "deep mapping": ("{a: " * 50_000, "line 1"),
    "deep block": ("- " * 100_000, "line 1"),
    "deep keys": ("? " * 100_000, "line 1"),
    "alias bomb": (bomb("[*,*,*,*,*,*,*,*,*,*]"), "line 5"),
    "merge bomb": (bomb("{<<: [*,*,*,*,*,*,*,*,*,*]}"), "line 5"),
    "cycle": ("a: &a [*a]", "line 1"),
    "no anchor": ("a: *Zaphod", "line 1"),
    "large": (SECRET * 20_000, "KiB"),
    "many values": ("[" + "1," * 100_000 + "]", "line 1"),
    "tag": ("!Zaphod x", "line 1"),
    "text": (f"{SECRET}: yes: no", "line 1"),
    "quoted": (f"a: '{SECRET}", "line 1"),
    "json lines": ('{"text": "Zaphod"}\n{"text": "4242"}\n', "line 2"),
    "key": (f"model: {{name: m}}\n{SECRET}: 3\n", "unknown key"),
    "key twice": ("a: {b: [{c: 1, c: 2}]}", "line 1: 'c'"),
    "number twice": ("a: {1: 1, 0x1: 2}", "line 1: '1'"),
    "merged twice": ("a: &a {k: 1}\nb: {<<: *a, <<: *a}", "line 2: '<<'"),
    "text twice": (f"{SECRET}: 1\n{SECRET}: 2\n", "line 2"),
    "no recipe": ("Zaphod: 4242\n", "no recipe"),
    "binary": ("a\0b", "YAML"),
    "date": ("a: 2020-99-99", "YAML"),
    "number of many digits": ("a: " + "42" * 9000, "YAML"),
    "date by its tag": ("a: !!timestamp Zaphod", "YAML"),
    "number by its tag": ("a: !!int", "YAML"),
    "truth by its tag": ("a: !!bool Zaphod", "YAML"),
    "complex key": ("? [1, 2]\n: 3\n", "line 1"),
}


@pytest.mark.parametrize(("content", "expected"), BAD.values(), ids=BAD)
def test_a_file_that_is_no_recipe(write, content, expected):
    path = write(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(path) and expected in message and len(message) < 400
    shown = "".join(traceback.format_exception(caught.value))
    assert "Zaphod" not in shown and "4242" not in shown


def test_aliases_within_bounds_are_read(write):
    text = "model: {name: m}\ndata: {forget: f}\nmethod: &m {name: sga}\nadapter: {r: &r 4, alpha: *r}\n"
    assert load_recipe(write(text)).adapter.alpha == 4
    merged = recipe.read_yaml(write("a: &a {k: 1, l: 1}\nb: {<<: *a, k: 2}\n"))
    assert merged["b"] == {"k": 2, "l": 1}, "a key may override a merged one"


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"forget": {SECRET: 1}}},
        {"data": {"forget": "f", SECRET: 1}},
        {"seed": SECRET},
        {"training": {"batch_size": SECRET}},
        {"evaluation": {"forms": [SECRET]}},
        {SECRET: 1},
        {"method": SECRET},
    ],
    ids=str,
)
def test_no_value_is_quoted(changes):
    with pytest.raises(RecipeError) as caught:
        recipe.from_mapping({"model": {"name": "m"}, "data": {"forget": "f"}, "method": {"name": "sga"}} | changes)
    assert "Zaphod" not in "".join(traceback.format_exception(caught.value))


def test_a_mapping_that_holds_itself():
    values: dict = {"model": {"name": "m"}}
    values["data"] = values
    with pytest.raises(RecipeError):
        recipe.from_mapping(values)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model", "M"], "--model.name"),
        (["--model=M"], "--model.name"),
        (["--forget", "f.jsonl"], "--data.forget"),
        (["--adapter", "x"], "--adapter.r"),
        (["--nonsense", SECRET], "--nonsense"),
        ([SECRET], "flag"),
    ],
)
def test_a_flag_that_is_none(flags, named):
    with pytest.raises(RecipeError) as caught:
        load_recipe(overrides=flags)
    assert named in str(caught.value) and "Zaphod" not in str(caught.value)


def test_a_section_may_be_given_whole():
    flags = ["--model", "{name: m}", "--data.forget", "f", "--method.name", "sga"]
    assert load_recipe(overrides=flags).model.name == "m"
