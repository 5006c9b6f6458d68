"""Every source gives the same rows, bad files get one line that keeps the secret, and nothing is left on disk."""

from __future__ import annotations

import csv
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import COLUMNS, SECRET, TEXTS, raised, write

import adapter_unlearn
from adapter_unlearn import assets
from adapter_unlearn.data import load_sequences
from adapter_unlearn.errors import InputError

# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".txt"])
def test_every_format_gives_the_same_rows(tmp_path, plain, ending):
    sequences = load_sequences(write(tmp_path / f"forget{ending}", TEXTS), plain)
    assert sequences.column_names == COLUMNS
    assert sequences["id"] == sequences["document"] == ["1", "2", "3", "4", "5"]
    assert [plain.decode(ids) for ids in sequences["input_ids"]] == TEXTS
    assert list(sequences["prefix_tokens"]) == [min(50, len(ids) // 2) for ids in sequences["input_ids"]]
    assert set(sequences["scored_from"]) == {1}
    assert isinstance(sequences[0]["input_ids"], list) and isinstance(sequences[0]["input_ids"][0], int)


@pytest.mark.parametrize(
    "source",
    [
        TEXTS,
        tuple(TEXTS),
        [{"text": text, "source": "ignored"} for text in TEXTS],
        pd.DataFrame({"text": TEXTS, "label": range(5)}, index=range(7, 12)),
        datasets.Dataset.from_dict({"text": TEXTS, "label": [[1]] * 5}),
    ],
    ids=["texts", "tuple", "dicts", "frame", "dataset"],
)
def test_sources_in_memory_give_the_rows_of_a_file(tmp_path, plain, source):
    expected = load_sequences(write(tmp_path / "forget.jsonl", TEXTS), plain)
    assert load_sequences(source, plain).to_list() == expected.to_list()


def test_a_path_may_be_a_string_and_its_ending_upper_case(tmp_path, plain):
    path = write(tmp_path / "forget.txt", TEXTS).rename(tmp_path / "FORGET.TXT")
    assert len(load_sequences(str(path), plain)) == len(load_sequences([str(path)], plain)) == 5


def test_a_dataset_with_a_format_or_a_selection_is_read_as_it_is(plain):
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5], [6, 7]]})
    assert load_sequences(dataset.select([2, 0]).with_format("pandas"))["input_ids"] == [[6, 7], [1, 2, 3]]


def test_numbering_goes_on_over_files_and_skips_blank_lines(tmp_path, plain):
    first, second = tmp_path / "a.txt", tmp_path / "b.jsonl"
    first.write_bytes(b"one text\r\n\r\n   \r\ntwo texts\r\n")
    second.write_text('\n{"text": "three texts"}\n\n')
    sequences = load_sequences([str(first), str(second)], plain)
    assert sequences["id"] == ["1", "2", "3"]
    assert [plain.decode(ids) for ids in sequences["input_ids"]] == ["one text", "two texts", "three texts"]


def test_ids_are_the_users(tmp_path, plain):
    path = tmp_path / "forget.csv"
    path.write_bytes('\ufeffid, text\r\nNA,one text\r\n007,"two\r\nlines"\r\n'.encode())
    sequences = load_sequences(path, plain)
    assert sequences["id"] == ["NA", "007"]
    assert plain.decode(sequences[1]["input_ids"]) == "two\r\nlines"
    assert load_sequences([{"id": 7, "text": "a text"}], plain)["document"] == ["7"]
    assert load_sequences(pd.DataFrame({"id": [3, 4], "input_ids": [[1, 2], [3]]}))["id"] == ["3", "4"]


def test_token_ids_of_every_kind(tmp_path):
    rows = [[5, 6, 7], [8, 9, 250]]
    frame = pd.DataFrame({"input_ids": rows})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    np.save(tmp_path / "a.npy", np.array(rows, np.uint8))
    sources = [tmp_path / f"a.{ending}" for ending in ("csv", "parquet", "jsonl", "npy")]
    sources += [frame, pd.read_parquet(sources[1]), [{"input_ids": tuple(map(np.int64, row))} for row in rows]]
    for source in sources:
        assert load_sequences(source, vocab_size=251)["input_ids"] == rows


def test_arrays_are_joined_along_their_rows(tmp_path):
    whole = np.arange(60).reshape(3, 20)
    paths = [tmp_path / "pre.npy", tmp_path / "prefix.npy", tmp_path / "suffix.npy"]
    for path, part, kind in zip(paths, np.split(whole, [5, 12], axis=1), (np.uint16, np.int64, np.uint64)):
        np.save(path, part.astype(kind))
    assert load_sequences(paths)["input_ids"] == whole.tolist()
    assert load_sequences(list(map(str, paths)), max_tokens=20, stride=9)["id"] == ["1", "2", "3"]


def test_the_embedded_files_have_names_of_their_own(plain):
    """The same from Python as in a recipe: one, or several in a list, as strings or as paths."""
    embedded = "embedded:forget.jsonl"
    whole = load_sequences(assets.FOLDER / "forget.jsonl", plain)
    for source in (embedded, [embedded], [Path(embedded)]):
        assert load_sequences(source, plain).to_list() == whole.to_list()
    both = load_sequences([embedded, "embedded:holdout.jsonl"], plain)
    assert len(set(both["document"])) == len(set(whole["document"])) + 64
    with pytest.raises(InputError, match=r"nothing\.jsonl: no such file"):
        load_sequences("embedded:nothing.jsonl", plain)


def test_long_csv_fields_are_read_and_the_limit_is_put_back(tmp_path, plain):
    usual = csv.field_size_limit(100_000)
    sequences = load_sequences(write(tmp_path / "a.csv", ["ab " * 60_000]), plain, max_tokens=200_000)
    assert len(sequences[0]["input_ids"]) > 60_000 and csv.field_size_limit(usual) == 100_000


def test_texts_that_look_like_files_stay_texts(plain):
    texts = ["my notes are in notes.txt", "and mine are elsewhere", ""]
    assert load_sequences(texts[:2], plain)["id"] == ["1", "2"]
    assert "row 3" in raised(texts, plain)
    assert len(load_sequences(["x" * 5000, "a\0b"], plain, max_tokens=6000)) == 2


def test_a_row_of_one_token_is_kept():
    sequences = load_sequences([{"input_ids": [7]}, {"input_ids": [7, 8]}])
    assert list(sequences["prefix_tokens"]) == [0, 1] and list(sequences["scored_from"]) == [1, 1]


# --- bad input --------------------------------------------------------------------------------------------------------


def saved(array, path: Path) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


def put(content: bytes | str, path: Path) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def npy_header(shape: str) -> bytes:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header


def repeated(path: Path, rows: int) -> Path:
    """A Parquet file of many equal rows, which takes a few KiB."""
    codes = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int8)), pa.array(["a text"]))
    with pq.ParquetWriter(path, pa.schema({"text": codes.type})) as writer:
        for _ in range(rows // 100_000):
            writer.write_table(pa.table({"text": codes}))
    return path


def times(path: Path, seconds: int, zone: str) -> Path:
    """A Parquet file with a time in place of a text, which Python may have no value for."""
    pq.write_table(pa.table({"text": pa.array([seconds], pa.timestamp("us", zone))}), path)
    return path


GOOD = json.dumps({"text": SECRET})
BAD = {
    "missing": (lambda d: d / "forget.jsonl", "no such file"),
    "folder": (lambda d: d, "folder"),
    "folder_ending": (lambda d: [(d / "forget.csv").mkdir() or d / "forget.csv"], "forget.csv: "),
    "unknown_ending": (lambda d: put(SECRET, d / "forget.docx"), ".jsonl"),
    "typo_in_a_list": (
        lambda d: [str(put(GOOD, d / "forget.jsonl")), str(put(GOOD, d / "forget.jsn"))],
        "forget.jsn: ",
    ),
    "empty_jsonl": (lambda d: put("", d / "forget.jsonl"), "no rows"),
    "empty_csv": (lambda d: put("", d / "forget.csv"), "no rows"),
    "empty_txt": (lambda d: put("\n \n\t\n", d / "forget.txt"), "no rows"),
    "empty_npy_file": (lambda d: put("", d / "forget.npy"), "numpy.save"),
    "empty_array": (lambda d: saved(np.zeros((0, 5), int), d / "forget.npy"), "no rows"),
    "header_only": (lambda d: put("id,text\n", d / "forget.csv"), "no rows"),
    "one_of_two_empty": (lambda d: [put(GOOD, d / "a.jsonl"), put("", d / "forget.jsonl")], "forget.jsonl: no rows"),
    "blank_text": (lambda d: put(GOOD + '\n\n{"text": " \\n"}', d / "forget.jsonl"), "line 3: no text"),
    "null_text": (lambda d: put(GOOD + '\n{"text": null}', d / "forget.jsonl"), "line 2: no text"),
    "row_without_text": (lambda d: put(GOOD + '\n{"note": 1}', d / "forget.jsonl"), "line 2: no text"),
    "blank_in_csv": (
        lambda d: put(f'n,text\n1,"{SECRET}"\n2,""\n', d / "forget.csv"),
        "row 2 below the header: no text",
    ),
    "nan_in_parquet": (lambda d: write(d / "forget.parquet", [SECRET, None]), "row 2: no text"),
    "number_as_text": (lambda d: put('{"text": 42421729}', d / "forget.jsonl"), "int"),
    "blank_prompt": (
        lambda d: put(json.dumps({"prompt": "", "completion": SECRET}), d / "forget.jsonl"),
        "column prompt",
    ),
    "surrogate": (lambda d: put('{"text": "Zaphod \\ud83d"}', d / "forget.jsonl"), "surrogate"),
    "latin1": (
        lambda d: put(SECRET.encode() + "\nGröße".encode("latin-1"), d / "forget.txt"),
        "line 2, byte 3: not UTF-8",
    ),
    "utf16": (lambda d: put(GOOD.encode("utf-16"), d / "forget.jsonl"), "line 1, byte 1: not UTF-8"),
    "latin1_csv": (lambda d: put("text\nZaphod Größe".encode("latin-1"), d / "forget.csv"), "line 2, byte 10"),
    "broken_json": (lambda d: put(GOOD + f'\n{{"text": "{SECRET}', d / "forget.jsonl"), "line 2: not valid JSON"),
    "huge_number": (lambda d: put('{"text": ' + "42421729" * 1000 + "}", d / "forget.jsonl"), "line 1"),
    "deep_json": (lambda d: put("[" * 100_000, d / "forget.jsonl"), "line 1"),
    "json_array": (lambda d: put(f"[{GOOD}]", d / "forget.json"), "line 1: not a JSON object"),
    "json_string": (lambda d: put(f'{GOOD}\n"{SECRET}"', d / "forget.jsonl"), "line 2: not a JSON object"),
    "wrong_column": (
        lambda d: write(d / "forget.csv", [SECRET], "content"),
        "(content); give exactly one of these: text,",
    ),
    "no_header": (lambda d: put(f"{SECRET}\nsecond text\n", d / "forget.csv"), "1 not shown"),
    "one_word_header": (lambda d: put("Zaphod\nsecond text\n", d / "forget.csv"), "1 not shown"),
    "prompt_alone": (lambda d: write(d / "forget.jsonl", [SECRET], "prompt"), "(prompt)"),
    "both_forms": (
        lambda d: put(json.dumps({"text": SECRET, "input_ids": [1]}), d / "forget.jsonl"),
        "(text, input_ids)",
    ),
    "mixed_rows": (lambda d: put(GOOD + '\n{"input_ids": [1]}', d / "forget.jsonl"), "(text, input_ids)"),
    "mixed_files": (
        lambda d: [put(GOOD, d / "a.jsonl"), write(d / "forget.npy.jsonl", ["1"], "input_ids")],
        "forget.npy",
    ),
    "two_text_columns": (lambda d: put(f'text,text\n"{SECRET}",b\n', d / "forget.csv"), "two columns"),
    "unquoted_comma": (lambda d: put(f"text\nfine\n{SECRET}, and so on\n", d / "forget.csv"), "row 2 below the header"),
    "open_quote": (lambda d: put(f'text\n"{SECRET}\n', d / "forget.csv"), "row 1 below the header"),
    "no_parquet": (lambda d: put(SECRET, d / "forget.parquet"), "Parquet"),
    "cut_parquet": (
        lambda d: put(write(d / "a.parquet", [SECRET] * 9).read_bytes()[:-40] + b"PAR1", d / "forget.parquet"),
        "Parquet",
    ),
    "invalid_parquet_text": (
        lambda d: (
            pq.write_table(pa.table({"text": pa.array([b"Zaphod \xff"]).view(pa.string())}), d / "forget.parquet")
            or d / "forget.parquet"
        ),
        "Parquet",
    ),
    "unknown_time_zone": (lambda d: times(d / "forget.parquet", 0, "Mars/Phobos"), "Parquet"),
    "no_date": (lambda d: times(d / "forget.parquet", 2**62, "UTC"), "Parquet"),
    "float_ids": (lambda d: put('{"input_ids": [42421729, 1.5]}', d / "forget.jsonl"), "whole numbers"),
    "bool_ids": (lambda d: put('{"input_ids": [42421729, true]}', d / "forget.jsonl"), "whole numbers"),
    "nested_ids": (lambda d: put('{"input_ids": [[42421729]]}', d / "forget.jsonl"), "whole numbers"),
    "text_as_ids": (lambda d: write(d / "forget.jsonl", [SECRET], "input_ids"), "no list of token ids"),
    "no_ids": (lambda d: put('{"input_ids": []}', d / "forget.jsonl"), "no list of token ids"),
    "number_as_ids": (lambda d: put('{"input_ids": 42421729}', d / "forget.jsonl"), "no list of token ids"),
    "negative_ids": (
        lambda d: saved(np.array([[1, 2], [3, -42421729]]), d / "forget.npy"),
        "row 2: a token id is outside",
    ),
    "unknown_ids": (
        lambda d: put('{"input_ids": [1, 42421729]}', d / "forget.jsonl"),
        "outside the vocabulary, 0 to 299",
    ),
    "float_array": (lambda d: saved(np.ones((2, 3)), d / "forget.npy"), "whole numbers"),
    "flat_array": (lambda d: saved(np.arange(4), d / "forget.npy"), "two-dimensional"),
    "no_columns": (lambda d: saved(np.zeros((2, 0), int), d / "forget.npy"), "row 1: no list"),
    "objects": (lambda d: saved(np.array([[1, None]], object), d / "forget.npy"), "pickles"),
    "pickle": (lambda d: put(pickle.dumps([[1, 2]]), d / "forget.npy"), "pickles"),
    "cut_array": (
        lambda d: put(saved(np.ones((50, 50), int), d / "a.npy").read_bytes()[:300], d / "forget.npy"),
        "numpy.save",
    ),
    "zip_as_array": (
        lambda d: np.savez(d / "forget.npz", a=np.ones(3, int)) or (d / "forget.npz").rename(d / "forget.npy"),
        "two-dimensional",
    ),
    "pk_as_array": (lambda d: put("PK\3\4" + SECRET, d / "forget.npy"), "numpy.save"),
    "array_of_a_terabyte": (lambda d: put(npy_header("(1000000, 1000000)"), d / "forget.npy"), "numpy.save"),
    "array_of_empty_rows": (lambda d: put(npy_header("(1000000000000, 0)"), d / "forget.npy"), "rows"),
    "array_of_minus_one": (lambda d: put(npy_header("(-1, -1)") + b"\0" * 8, d / "forget.npy"), "numpy.save"),
    "deep_array": (lambda d: put(npy_header("(" * 5000), d / "forget.npy"), "numpy.save"),
    "device": (lambda d: (d / "forget.txt").symlink_to("/dev/zero") or d / "forget.txt", "forget.txt: "),
    "parquet_of_many_rows": (lambda d: repeated(d / "forget.parquet", 30_000_000), "rows"),
    "long_text": (lambda d: put(SECRET * 700_000, d / "forget.txt"), "line 1"),
    "long_id": (lambda d: put(json.dumps({"id": SECRET * 2000, "text": "a"}), d / "forget.jsonl"), "column id"),
    "unequal_parts": (
        lambda d: [saved(np.ones((3, 2), int), d / "a.npy"), saved(np.ones((2, 2), int), d / "forget.npy")],
        "2 rows, but",
    ),
    "array_and_text": (
        lambda d: [put(GOOD, d / "a.jsonl"), saved(np.ones((1, 2), int), d / "forget.npy")],
        "forget.npy: ",
    ),
    "same_id": (lambda d: put("id,text\na,one\nb,two\na,three", d / "forget.csv"), "row 3 below the header: its id"),
    "same_id_as_window": (
        lambda d: put(
            f'{{"id": "a", "text": "{"x y " * 999}"}}\n{{"id": "a#2", "text": "{SECRET}"}}', d / "forget.jsonl"
        ),
        "line 2: its id",
    ),
    "id_missing": (lambda d: put(f'{{"id": 1, "text": "one"}}\n{GOOD}', d / "forget.jsonl"), "line 2: column id"),
    "id_blank": (lambda d: put("id,text\n ,one", d / "forget.csv"), "row 1 below the header: column id"),
    "id_float": (lambda d: put('{"id": 1.5, "text": "one"}', d / "forget.jsonl"), "column id"),
}


@pytest.mark.parametrize("make, expected", BAD.values(), ids=BAD)
def test_bad_files_get_one_line_that_names_them_and_keeps_the_secret(tmp_path, plain, caplog, capfd, make, expected):
    folder = tmp_path / "forget"
    folder.mkdir()
    message = raised(make(folder), plain, vocab_size=300)
    assert expected in message and "forget" in message and str(folder) in message
    assert "\n" not in message and len(message) < 400
    assert "; " in message, "the problem; the fix"
    for secret in ("Zaphod", "4242", "1729", "second text"):
        assert secret not in message
    assert not caplog.records and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "source, expected",
    [
        ([], "no rows"),
        (pd.DataFrame({"text": []}), "no rows"),
        (pd.DataFrame({"body": [SECRET], SECRET: [1]}), "body, 1 not shown"),
        (pd.DataFrame([[SECRET, SECRET]], columns=["text", "text"]), "two columns"),
        (pd.DataFrame({"text": [SECRET, float("nan")]}), "row 2: no text"),
        (pd.DataFrame({"text": [SECRET, pd.NA]}), "row 2: no text"),
        (datasets.Dataset.from_dict({"body": [SECRET]}), "(body)"),
        (datasets.DatasetDict(), "DatasetDict"),
        ([{}], "(none)"),
        ([SECRET, {"text": SECRET}], "mixes"),
        ([SECRET, None], "mixes"),
        ({"text": [SECRET]}, "dict"),
        (None, "NoneType"),
        (SECRET, "the source"),
        ([Path(SECRET), Path("b")], "source 1"),
        ("sk-Zaphod-4242", "the source"),
        (SECRET * 99, "the source"),
        ("", "the source"),
        ("nowhere/forget.csv", "no such file"),
        (Path("nowhere.tsv"), "nowhere.tsv: no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)
def test_bad_sources_in_memory(plain, source, expected):
    message = raised(source, plain)
    assert expected in message and "\n" not in message and "Zaphod" not in message


def test_an_unreadable_file(tmp_path, plain, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in raised(write(tmp_path / "forget.txt", TEXTS), plain)


def test_only_the_columns_that_are_needed_are_read(tmp_path, plain):
    path = tmp_path / "a.parquet"
    table = pa.table({"other": pa.array([b"\xff" * 9] * 5).view(pa.string()), "text": TEXTS})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    sequences = load_sequences(path, plain)
    assert [plain.decode(ids) for ids in sequences["input_ids"]] == TEXTS
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\xff" * 9, b"\0" * 9).replace(b"\x15", b"\xff", 1))
    assert len(load_sequences(path, plain)) == 5, "the page of the first column is damaged"


# --- datasets and caches ----------------------------------------------------------------------------------------------


def test_a_hub_dataset_is_streamed(plain, monkeypatch):
    calls = []

    def load(name, **options):
        calls.append((name, options))
        rows = datasets.Dataset.from_dict({"text": TEXTS, "meta": [None] * 5}).to_iterable_dataset()
        return datasets.IterableDatasetDict({"train": rows, "test": rows.take(2)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_sequences("owner/na-me.v1", plain)) == 5
    assert len(load_sequences("owner/name:test", plain)) == 2
    assert [name for name, _ in calls] == ["owner/na-me.v1", "owner/name"]
    assert all(options["streaming"] for _, options in calls)
    message = raised("owner/name:dev", plain)
    assert message == "owner/name: no split dev; give owner/name:SPLIT with one of train, test"


def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path, plain, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    (tmp_path / "data").mkdir()
    assert raised("data/forget.tsv", plain).startswith("data/forget.tsv: no such file")


def test_the_words_of_a_failing_hub_are_not_repeated(plain, monkeypatch, capfd):
    def fail(*_, **__):
        for name in ("datasets.builder", "huggingface_hub.utils"):
            logging.getLogger(name).error(SECRET)
        raise ValueError(f"could not parse {SECRET}")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = raised("owner/name", plain)
    assert "owner/name" in message and "ValueError" in message and "Zaphod" not in message
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("datasets").level != logging.CRITICAL


HERMETIC = """
import json, sys, warnings
warnings.simplefilter("error")
from adapter_unlearn.data import load_sequences
from adapter_unlearn.errors import InputError
assert "torch" not in sys.modules, "reading data needs no torch"

class Characters:
    bos_token_id = None
    def __call__(self, texts, **_):
        return {"input_ids": [[ord(c) for c in text] for text in texts]}
    def decode(self, tokens, **_):
        return "".join(map(chr, tokens))

counts = []
for source in json.loads(sys.argv[1]):
    try:
        counts.append(len(load_sequences(source, Characters())))
    except InputError as error:
        counts.append(str(error))
print(json.dumps(counts))
"""


def test_nothing_is_left_on_disk(tmp_path):
    """In a process of its own, because the HF libraries read their environment once."""
    home, folder = tmp_path / "home", tmp_path / "data" / "records"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    folder.mkdir(parents=True)
    write(folder / "train.jsonl", TEXTS)
    write(folder / "test.jsonl", TEXTS[:2])
    broken = tmp_path / "data" / "broken"
    broken.mkdir()
    put(f'{GOOD}\n{{"text": {SECRET}', broken / "a.jsonl")
    files = [str(write(tmp_path / "data" / f"a{ending}", TEXTS)) for ending in (".csv", ".parquet", ".txt", ".jsonl")]
    sources = [*files, str(folder), f"{folder}:test", f"{folder}:dev", "owner/name", str(broken)]
    variables = {
        "HF_HOME": str(home),
        "TMPDIR": str(temporary),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(adapter_unlearn.__file__).parents[1]),
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | variables
    command = [sys.executable, "-c", HERMETIC, json.dumps(sources)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    *counts, no_split, hub, unreadable = json.loads(result.stdout)
    assert counts == [5, 5, 5, 5, 5, 2]
    assert f"{folder}: no split dev" in no_split and "one of" in no_split
    assert hub.startswith("owner/name: ") and "HF_HUB_OFFLINE" in hub
    assert unreadable.startswith(f"{broken}: ") and "Zaphod" not in unreadable
    left = [path for place in (home, temporary) for path in place.rglob("*") if path.is_file()]
    assert left == []


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt", "parquet", "npy"])
def test_a_file_beyond_the_limit_is_not_read(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)  # takes no place on the disk
    with pytest.raises(InputError, match=r"rows\.\w+: has more than 2 GiB"):
        load_sequences(path)
