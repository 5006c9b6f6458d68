"""Run folders with one damaged or hostile file: read, and compared with a good one."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import contextmanager

import pandas as pd
import pytest
from fuzz.inputs import changed, damaged, leaves, nested, texts
from hypothesis import strategies as st
from synthetic_runs import SPREAD, finished_run, write_run

from adapter_unlearn import compare
from adapter_unlearn.evaluation import finished_run as runs
from adapter_unlearn.reporting.comparison import figures

TABLES = ("sequences.parquet", "holdout.parquet", "membership.parquet")
FILES = ("unlearning.json", "summary.json", "recipe.yaml", "adapter_model.safetensors", *TABLES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's folder."""
    return write_run(finished_run("run", SPREAD, forms=("stacked", "merged")), tmp_path_factory.mktemp("run") / "run")


def as_json(values) -> bytes:
    return json.dumps(values).encode()


@st.composite
def tables(draw, valid: bytes) -> bytes:
    """A table with hostile cells, columns or rows."""
    frame = pd.read_parquet(io.BytesIO(valid)).astype(object)
    for _ in range(draw(st.integers(1, 3))):
        column = draw(st.sampled_from(list(frame.columns)))
        kind = draw(st.sampled_from(["cell", "cell", "column", "remove", "rename", "rows", "repeat"]))
        if kind == "cell" and len(frame):
            frame.iat[draw(st.integers(0, len(frame) - 1)), frame.columns.get_loc(column)] = draw(leaves)
        elif kind == "column":
            value = draw(leaves | st.sampled_from([[1], {"a": 1}, b"\xff", pd.Timestamp(0)]))
            frame[column] = pd.Series([value] * len(frame), dtype=object, index=frame.index)
        elif kind == "remove" and len(frame.columns) > 1:
            frame = frame.drop(columns=column)
        elif kind == "rename":
            frame = frame.rename(columns={column: draw(texts).encode("utf-8", "replace").decode()})
        elif kind == "rows":
            frame = frame.iloc[: draw(st.integers(0, len(frame)))]
        elif kind == "repeat":
            frame = pd.concat([frame, frame.iloc[: draw(st.integers(0, 3))]], ignore_index=True)
        frame = frame.loc[:, ~frame.columns.duplicated()]
    file = io.BytesIO()
    try:
        frame.infer_objects().to_parquet(file, index=False)
    except Exception:  # values that Parquet has no type for
        return valid[:-1]
    return file.getvalue()


def hostile(folder) -> st.SearchStrategy[tuple[str, bytes]]:
    """A file's name and its content."""
    contents = {name: (folder / name).read_bytes() for name in FILES}
    kinds = []
    for name, content in contents.items():
        kinds.append(st.tuples(st.just(name), damaged(content)))
        if name.endswith(".json"):
            values = json.loads(content)
            part = changed(values, nested([*values, "name", "stacked", "base"])).map(as_json)
            kinds += [st.tuples(st.just(name), part)] * 5
        elif name in TABLES:
            kinds += [st.tuples(st.just(name), tables(content))] * 3
    return st.one_of(kinds)


@pytest.fixture
def folders(fuzzer, run):
    """A good run's folder and one to damage."""
    return shutil.copytree(run, fuzzer.given / "good"), shutil.copytree(run, fuzzer.given / "bad")


@contextmanager
def damage(folder, name: str, content: bytes):
    """Replace a file of the folder inside the block."""
    valid = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(content)
        yield
    finally:
        (folder / name).write_bytes(valid)


def test_a_run_folder(fuzzer, folders):
    good, bad = folders

    def example(value: tuple[str, bytes]) -> None:
        with damage(bad, *value):
            fuzzer.check(lambda: runs.read(bad))

    fuzzer.run(hostile(good), example, few=160)


def test_a_comparison(fuzzer, folders, monkeypatch):
    monkeypatch.setattr(figures, "pictures", lambda rows: [])  # half a second each
    good, bad = folders
    place = fuzzer.root / "results"
    place.mkdir()
    fuzzer.writable = (place,)

    def example(value: tuple[str, bytes]) -> None:
        with damage(bad, *value):
            try:
                error = fuzzer.check(lambda: compare([good, bad], output_dir=place / "out"))
                assert [path.name for path in place.iterdir()] == (["out"] if error is None else [])
            finally:
                shutil.rmtree(place / "out", ignore_errors=True)

    fuzzer.run(hostile(good), example, few=40)
