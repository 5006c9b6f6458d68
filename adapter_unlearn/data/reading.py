"""Read files, hub datasets and objects in memory as tables of rows, each with its place in the source.

The texts are secrets. Nothing here writes a file: `load_dataset` without streaming and `.map` would leave the text in
Arrow files in the HF cache. No message quotes a cell, a token, or a column name that may be a text.
"""

import codecs
import csv
import io
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from adapter_unlearn import assets
from adapter_unlearn.errors import InputError, path_name, word

COLUMNS = ["text", "input_ids", "prompt", "completion", "id"]
MAX_ROWS = 2_000_000
MAX_BYTES = 2**31
EXPECTED = "text, or input_ids, or prompt and completion"


class Row(NamedTuple):
    """One row of a source, and its place there."""

    place: str  # for messages, such as "forget.jsonl, line 7"
    values: dict[str, Any]


class Table(NamedTuple):
    """The rows of one source."""

    name: str
    columns: list[str]  # of the source; the rows hold only those of COLUMNS
    rows: list[Row]


def read(source: Any) -> list[Table]:
    """Read a source of `load_sequences` as one or more tables."""
    if isinstance(source, str | os.PathLike):
        return _read_named(assets.resolve(source))
    if isinstance(source, datasets.Dataset):
        return [_table("the dataset", source.with_format(None), columns=source.column_names)]
    if isinstance(source, pd.DataFrame):
        rows = source.loc[:, ~source.columns.duplicated()].to_dict("records")
        return [_table("the data frame", rows, columns=list(source.columns))]
    if not isinstance(source, list | tuple):
        raise InputError(
            f"the source is a {type(source).__name__}; give a path, a hub id, a Dataset, a DataFrame or a list"
        )
    if _are_paths(source):
        return _read_files([Path(assets.resolve(path)) for path in source])
    if all(isinstance(row, str) for row in source):
        return [_table("the list", [{"text": text} for text in source])]
    if all(isinstance(row, Mapping) for row in source):
        return [_table("the list", source)]
    raise InputError("the list: mixes several kinds of items; give only paths, only texts or only dicts")


def _are_paths(items: list[Any] | tuple[Any, ...]) -> bool:
    """Whether the items are paths: Path objects, or strings of which one is a file or all end like data files."""
    if not items or not all(isinstance(item, str | os.PathLike) for item in items):
        return False
    if any(isinstance(item, os.PathLike) or _is(Path.is_file, item) for item in items):
        return True
    return all(_ends_as_data_file(item) for item in items)


def _is(test: Callable[[Path], bool], name: str) -> bool:
    """Whether a file or folder of that name exists. A text may be too long for a name, or hold a NUL."""
    try:
        return bool(name) and test(Path(name))
    except (OSError, ValueError):
        return False


def _ends_as_data_file(name: str) -> bool:
    return "\n" not in name and name.lower().endswith(tuple(_READERS))


def _read_named(name: str) -> list[Table]:
    """Read a file, or a dataset folder or hub id with or without `:split`."""
    folder = _is(Path.is_dir, name)
    if not folder and (_is(Path.exists, name) or _ends_as_data_file(name)):
        return _read_files([Path(name)])
    place, split = (name, "train") if folder or ":" not in name else name.rsplit(":", 1)
    # A mistyped path such as data/forget.tsv looks like a hub id, and must not be sent over the network.
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not Path(place).parent.is_dir()
    if _is(Path.is_dir, place) or hub:
        return [_read_dataset(place, split)]
    place = path_name(name, "the source")
    raise InputError(f"{place}: no such file and no hub id (owner/name); check the path, or give texts as a list")


def _read_dataset(name: str, split: str) -> Table:
    """Read a split of a dataset folder or hub dataset, streamed, so that no copy is left in the HF cache."""
    local = Path(name).is_dir()
    table = None
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("datasets", "huggingface_hub"))}
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)  # their messages may quote a text
        with tempfile.TemporaryDirectory() as locks:  # streaming leaves a lock file named after the folder
            splits = datasets.load_dataset(name, streaming=True, cache_dir=locks if local else None)
            if split in splits:
                table = _table(f"{name}, split {split}", splits[split])
    except Exception as error:  # of many types, and its message may quote a text
        problem, fix = "no such file, folder or hub dataset", "check the name, the network and HF_HUB_OFFLINE"
        if local:
            problem, fix = "this folder can't be read as a dataset", "give the file in it"
        raise InputError(f"{name}: {problem} ({type(error).__name__}); {fix}") from None
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
    if table is None:
        raise InputError(f"{name}: no split {word(split)}; give {name}:SPLIT with one of {', '.join(map(str, splits))}")
    return table


def _read_files(paths: list[Path]) -> list[Table]:
    kinds = {path: path.suffix.lower() for path in paths}
    for number, (path, kind) in enumerate(kinds.items(), 1):
        if not _is(Path.exists, str(path)):
            raise InputError(
                f"{path_name(path, f'source {number}')}: no such file; check the path, or give the texts as a file"
            )
        if kind not in _READERS or not path.is_file():
            raise InputError(f"{path}: a folder, a device, or an unknown file type; give one of {', '.join(_READERS)}")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: has more than {MAX_BYTES >> 30} GiB; give fewer rows")
        if (kind == ".npy") != (kinds[paths[0]] == ".npy"):
            raise InputError(f"{path}: .npy files can't be combined with other files; load them separately")
    return [_read_npy(paths)] if kinds[paths[0]] == ".npy" else [_READERS[kinds[path]](path) for path in paths]


def _table(
    name: str,
    rows: Iterable[Any],
    columns: Iterable[Any] | None = None,
    unit: str = "row {}",
    numbers: Iterable[int] | None = None,
) -> Table:
    """Rows with their numbers in the source, by default 1, 2, …; by default the columns are their keys."""
    keys: dict[Any, None] = {}
    kept: list[Row] = []
    for number, values in zip(numbers or count(1), rows, strict=False):
        _check_number(name, len(kept) + 1)
        keys.update(dict.fromkeys(values))
        cells = {column: values[column] for column in COLUMNS if column in values}
        kept.append(Row(f"{name}, {unit.format(number)}", cells))
    return Table(name, list(map(str, keys if columns is None else columns)), kept)


def _check_number(name: str, rows: int) -> None:
    if rows > MAX_ROWS:
        raise InputError(f"{name}: has more than {MAX_ROWS:,} rows; give a part of them")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check the file and its permissions") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file. Only a line feed ends a line, because a text may hold form feeds and U+2028."""
    for number, line in enumerate(_bytes(path).removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            where = f"{path}, line {number}, byte {error.start + 1}"
            raise InputError(f"{where}: not UTF-8; save the file as UTF-8") from None


def _read_txt(path: Path) -> Table:
    lines = {number: line.removesuffix("\r") for number, line in numbered_lines(path) if line.strip()}
    return _table(str(path), [{"text": line} for line in lines.values()], unit="line {}", numbers=lines)


def _read_jsonl(path: Path) -> Table:
    lines = {number: _json_object(path, number, line) for number, line in numbered_lines(path) if line.strip()}
    return _table(str(path), lines.values(), unit="line {}", numbers=lines)


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # the parser's message may quote the line
        raise InputError(f"{path}, line {number}: not valid JSON; write one object per line") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number}: not a JSON object; write one object per line, with {EXPECTED}")
    return value


def _read_csv(path: Path) -> Table:
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 131,072 characters
    header: list[str] = []
    rows: list[dict[str, str]] = []
    try:
        for record in filter(None, csv.reader((line + "\n" for _, line in numbered_lines(path)), strict=True)):
            if not header:
                header = [column.strip() for column in record]
            elif len(record) == len(header):
                rows.append(dict(zip(header, record, strict=True)))
            else:
                raise csv.Error
    except csv.Error:
        raise InputError(
            f"{path}, row {len(rows) + 1} below the header: not as many fields as the header, or an open quote; "
            "quote texts that hold commas or line breaks"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return _table(str(path), rows, header, unit="row {} below the header")


def _read_parquet(path: Path) -> Table:
    """Only the columns that are needed, in small batches: a few bytes may decode to any number of equal rows."""
    rows: list[dict[str, Any]] = []
    decoded = 0
    try:
        file = pq.ParquetFile(pa.BufferReader(_bytes(path)))
        names = file.schema_arrow.names
        needed = [name for name in COLUMNS if name in names]
        _check_number(str(path), file.metadata.num_rows)
        for batch in file.iter_batches(256, columns=needed) if needed else ():
            decoded += batch.nbytes
            if decoded > MAX_BYTES:
                raise InputError(f"{path}: decodes to more than {MAX_BYTES >> 30} GiB; give fewer rows")
            rows += batch.to_pylist()
    except (pa.ArrowException, OSError, LookupError, ValueError, OverflowError):  # also of dates and time zones
        raise InputError(f"{path}: not a readable Parquet file; write it again or give JSONL") from None
    return _table(str(path), rows or [{}] * file.metadata.num_rows, names)


def _read_npy(paths: list[Path]) -> Table:
    """Arrays of token ids, shape (rows, tokens), joined along the tokens."""
    parts: list[list[list[int]]] = []
    for path in paths:
        array = _array(path)
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"{path}: not a two-dimensional array of whole numbers; give rows of token ids")
        _check_number(str(path), len(array))
        parts.append(array.tolist())  # lists, because joining uint64 with int64 gives floats
        if len(parts[-1]) != len(parts[0]):
            raise InputError(
                f"{path}: has {len(parts[-1])} rows, but {paths[0]} has {len(parts[0])}; give parts of the same rows"
            )
    rows = [{"input_ids": list(chain(*row))} for row in zip(*parts, strict=True)]
    return _table(" + ".join(map(str, paths)), rows, ["input_ids"])


def _array(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file. Its header is compared with the file's size before anything is allocated."""
    content = io.BytesIO(_bytes(path))
    try:
        version = npy.read_magic(content)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(content)
        if math.prod(shape) * dtype.itemsize != len(content.getbuffer()) - content.tell() or min(shape, default=1) < 0:
            raise ValueError
        content.seek(0)
        return npy.read_array(content, allow_pickle=False)
    except Exception:  # of many types: the header is Python source
        raise InputError(f"{path}: not a two-dimensional .npy array without pickles; save it with numpy.save") from None


_READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
    ".npy": lambda path: _read_npy([path]),
}
