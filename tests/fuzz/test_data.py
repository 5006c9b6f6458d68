"""Files of texts: random bytes, damaged files, and well-formed files with hostile values."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import SECRET, TEXTS, build, write
from fuzz.inputs import damaged, leaves, nested, texts
from hypothesis import strategies as st

from adapter_unlearn.data import load_sequences
from adapter_unlearn.data.reading import COLUMNS

VOCABULARY = 280
_names = st.sampled_from([*COLUMNS, "note", SECRET])
_known = re.compile("|".join(COLUMNS))  # shown in messages
_ids = st.lists(st.integers(-1, VOCABULARY) | leaves, max_size=4)
_cells = st.one_of(nested(COLUMNS), _ids, texts, texts)
_texts_or_ids = st.fixed_dictionaries({"text": texts}) | st.fixed_dictionaries({"input_ids": _ids})
_rows = st.lists(st.dictionaries(_names, _cells, max_size=4), max_size=4) | st.lists(_texts_or_ids, max_size=2)


def lines(rows) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@st.composite
def tables(draw) -> bytes:
    """CSV of hostile cells, sometimes with a separator or quotes of another kind."""
    file = io.StringIO()
    style = draw(st.sampled_from(["excel", "excel-tab", "unix"]))
    width = draw(st.integers(0, 3))
    header = draw(st.lists(_names, min_size=width, max_size=width, unique=True))
    row = st.lists(texts, min_size=width, max_size=width) | st.lists(texts, max_size=4)
    csv.writer(file, style).writerows([header, *draw(st.lists(row, max_size=4))])
    return file.getvalue().encode("utf-8", draw(st.sampled_from(["surrogatepass", "replace"])))


def columns() -> st.SearchStrategy[pa.Array]:
    """Arrow columns of two rows, of many types."""
    number = st.integers(-(2**63), 2**63 - 1)
    times = [pa.timestamp("s"), pa.timestamp("ns", "Mars/Phobos"), pa.timestamp("us", "+99:99"), pa.date64()]
    times += [pa.duration("s"), pa.time64("ns"), pa.uint64(), pa.float64()]
    views = st.tuples(number, number, st.sampled_from(times)).map(lambda x: pa.array(x[:2], pa.int64()).view(x[2]))
    raw = st.lists(st.binary(max_size=9), min_size=2, max_size=2)
    fixed = [
        pa.array(TEXTS[:2]),
        pa.array([[1, 2], [3]]),
        pa.array([None, None]),
        pa.array([{"a": SECRET}, None]),
        pa.array([[[1]], []]),
        pa.array([True, False]),
        pa.array([2**64 - 1, 0], pa.uint64()),
        pa.nulls(2, pa.string()),
        pa.array([[1, None], None]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([[("k", SECRET)], []], pa.map_(pa.string(), pa.string())),
        pa.array([1, 2], pa.int8()),
        pa.array([[1.0, float("nan")], [2.0]]),
        pa.array([1, 2]).cast(pa.decimal128(38, 3)),
    ]
    return st.one_of(
        st.sampled_from(fixed),
        views,
        raw.map(lambda x: pa.array(x).view(pa.string())),
        raw.map(pa.array),
        st.lists(
            _ids.filter(lambda ids: all(type(i) is int and abs(i) < 2**63 for i in ids)), min_size=2, max_size=2
        ).map(pa.array),
    )


@st.composite
def parquet(draw) -> bytes:
    """A Parquet file of such columns, sometimes damaged."""
    arrays = draw(st.dictionaries(st.sampled_from([*COLUMNS, "note"]), columns(), min_size=1, max_size=3))
    file = io.BytesIO()
    codec = draw(st.sampled_from(["none", "snappy", "gzip", "zstd"]))
    table = pa.table(list(arrays.values()), names=list(arrays))
    try:
        pq.write_table(table, file, compression=codec, use_dictionary=draw(st.booleans()), coerce_timestamps=None)
    except pa.ArrowException:  # no type of Parquet
        pq.write_table(pa.table({"text": TEXTS}), file)
    return draw(damaged(file.getvalue())) if draw(st.booleans()) else file.getvalue()


@st.composite
def arrays(draw) -> bytes:
    """A .npy file with a hostile header."""
    size = st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**63, 10**40]) | st.integers(0, 4)
    shape = draw(
        st.tuples(size, size) | st.lists(size, max_size=5).map(tuple) | st.sampled_from(["None", "(1,", "((((1"])
    )
    kinds = [
        "<i8",
        "|u1",
        ">u2",
        "<f4",
        "|O",
        "<U9",
        "|S3",
        "<M8[s]",
        "|V0",
        "|b1",
        "<c16",
        "[('a', '<i8')]",
        "<i8" * 99,
        "x",
    ]
    kind = draw(st.sampled_from(kinds))
    quoted = kind if kind.startswith("[") else repr(kind)
    order = draw(st.sampled_from(["False", "True", "0", "None", "__import__('os')"]))
    header = f"{{'descr': {quoted}, 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    version = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 255]))
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    content = b"\x93NUMPY" + bytes([version, 0]) + length + header + draw(st.binary(max_size=64))
    return draw(damaged(content)) if draw(st.integers(0, 3)) == 0 else content


def valid(tmp_path_factory, ending: str) -> bytes:
    folder = tmp_path_factory.mktemp("valid")
    if ending == "npy":
        np.save(folder / "a.npy", np.arange(12).reshape(3, 4))
        return (folder / "a.npy").read_bytes()
    return write(folder / f"a.{ending}", TEXTS).read_bytes()


STRUCTURED = {
    "jsonl": _rows.map(lines),
    "json": _rows.map(lines) | nested(COLUMNS).map(json.dumps).map(str.encode),
    "csv": tables(),
    "parquet": parquet(),
    "txt": st.lists(texts).map(lambda x: "\n".join(x).encode("utf-8", "surrogatepass")),
    "npy": arrays(),
}


@pytest.fixture(scope="module")
def tokenizer():
    return build(bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("ending", STRUCTURED)
def test_a_file_of_texts(fuzzer, tokenizer, tmp_path_factory, ending):
    content = valid(tmp_path_factory, ending)
    path = fuzzer.given / f"forget.{ending}"
    path.touch()

    def example(value: bytes) -> None:
        path.write_bytes(value)
        secrets = _known.sub("\n", value.decode("utf-8", "replace")) + SECRET
        fuzzer.check(lambda: load_sequences(path, tokenizer, vocab_size=VOCABULARY), secrets)

    fuzzer.run(st.one_of(STRUCTURED[ending], damaged(content), st.binary(max_size=200)), example)
