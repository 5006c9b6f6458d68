"""Every source gives the same sequences, windows lose nothing, bad input gets a line, and no text is left behind."""

from __future__ import annotations

import csv
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
import zlib
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import adapter_unlearn
from adapter_unlearn import assets
from adapter_unlearn.data import duplicates, load_sequences, overlaps
from adapter_unlearn.errors import InputError

SECRET = "Zaphod's number is 4242-1729"
TEXTS = [
    SECRET,
    'The second text, with a comma and "quotes"',
    "NA",
    "Größe, naïve, 東京",
    "line one\u2028still line one",
]
COLUMNS = ["id", "document", "input_ids", "prefix_tokens", "scored_from", "zlib_bytes"]
BOS, EOS = 0, 1


def build(template: str | None = None, **special) -> PreTrainedTokenizerFast:
    """A byte-level BPE: 256 bytes, <s>, </s> and a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the number of the second text is the number"] * 3, trainer)
    if template:
        marks = [("<s>", BOS), ("</s>", EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)


@pytest.fixture(scope="module")
def plain():
    """As GPT-2's: no bos unasked, and no pad token."""
    return build(bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def marking():
    """As Llama's, with a trailing eos besides: <s> text </s>."""
    return build("<s> $A </s>", bos_token="<s>", eos_token="</s>", pad_token="</s>")


def write(path: Path, texts: list[str], column: str = "text") -> Path:
    """The texts in the format of the path's ending."""
    frame = pd.DataFrame({column: texts})
    match path.suffix:
        case ".txt":
            path.write_bytes("\n".join(texts).encode())
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case _:
            path.write_text("\n".join(json.dumps({column: text}) for text in texts) + "\n")
    return path


def raised(source, tokenizer=None, **options) -> str:
    """The message of the InputError that the source raises."""
    with pytest.raises(InputError) as caught:
        load_sequences(source, tokenizer, **options)
    assert "Zaphod" not in "".join(traceback.format_exception(caught.value)), "nor in what --debug shows"
    return str(caught.value)


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


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_only_the_leading_bos_is_added(plain, marking):
    assert marking(SECRET).input_ids[-1] == EOS and marking("").input_ids == [BOS, EOS]
    bare = load_sequences([SECRET], plain)[0]["input_ids"]
    assert load_sequences([SECRET], marking)[0]["input_ids"] == [BOS, *bare] and BOS not in bare


def test_an_eos_that_equals_the_bos_is_no_bos(plain):
    tokenizer = build("$A </s>", bos_token="</s>", eos_token="</s>")
    assert tokenizer("").input_ids == [EOS]
    assert load_sequences([SECRET], tokenizer)["input_ids"] == load_sequences([SECRET], plain)["input_ids"]


def test_a_bos_that_is_there_already_is_not_doubled(marking):
    expected = load_sequences([SECRET], marking)["input_ids"]
    assert load_sequences(["<s>" + SECRET], marking)["input_ids"] == expected
    assert load_sequences([{"input_ids": expected[0]}], marking)["input_ids"] == expected


def test_token_ids_get_no_bos(marking):
    assert load_sequences([{"input_ids": [5, 6, 7]}], marking)["input_ids"] == [[5, 6, 7]]


def test_many_texts_are_tokenized_as_one_by_one(plain):
    texts = [f"text number {i} of the set" for i in range(2500)]
    sequences = load_sequences(texts, plain)
    assert sequences["input_ids"][::500] == [plain(text).input_ids for text in texts[::500]]


def test_a_text_longer_than_the_tokenizers_maximum_says_nothing(caplog):
    tokenizer = build(bos_token="<s>")  # a new one, because it would say it once
    transformers.logging.enable_propagation()
    load_sequences(["the number " * 100], tokenizer)
    assert tokenizer.model_max_length == 16 and not caplog.records
    tokenizer("the number " * 100)
    transformers.logging.disable_propagation()
    assert caplog.records, "the test would notice"


@pytest.mark.parametrize("name", ["plain", "marking"])
def test_only_the_completion_counts(request, name):
    tokenizer = request.getfixturevalue(name)
    lead = [BOS] if name == "marking" else []
    row = load_sequences([{"prompt": "The number of Zaphod is", "completion": " 4242", "id": "z"}], tokenizer)[0]
    prompt = lead + tokenizer("The number of Zaphod is", add_special_tokens=False).input_ids
    assert row["input_ids"] == prompt + tokenizer(" 4242", add_special_tokens=False).input_ids
    assert row["prefix_tokens"] == row["scored_from"] == len(prompt)
    assert row["id"] == "z"


@pytest.mark.parametrize("name", ["plain", "marking"])
def test_zlib_bytes_are_those_of_the_text_that_counts(request, name):
    tokenizer = request.getfixturevalue(name)
    assert list(load_sequences(TEXTS, tokenizer)["zlib_bytes"]) == [len(zlib.compress(t.encode())) for t in TEXTS]
    asked = load_sequences([{"prompt": "The number of Zaphod is", "completion": " 4242"}], tokenizer)
    assert list(asked["zlib_bytes"]) == [len(zlib.compress(b" 4242"))]
    simple, *_, last = load_sequences(["a" * 40 + "q7#xM!z0"], tokenizer, max_tokens=10, stride=10)["zlib_bytes"]
    assert simple < last, "of its own window each"
    assert load_sequences([{"input_ids": [3, 4]}])["zlib_bytes"][0] is None


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_of_the_defaults():
    sequences = load_sequences([{"id": "a", "input_ids": list(range(420))}, {"id": "b", "input_ids": list(range(200))}])
    assert sequences["id"] == ["a#1", "a#2", "a#3", "b"] and sequences["document"] == ["a", "a", "a", "b"]
    assert [(ids[0], ids[-1]) for ids in sequences["input_ids"]] == [(0, 199), (150, 349), (220, 419), (0, 199)]
    assert set(sequences["prefix_tokens"]) == {50}


lengths = st.integers(2, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size)))


@settings(max_examples=80, deadline=None)
@given(total=st.integers(1, 300), lengths=lengths, prefix=st.integers(1, 60), with_bos=st.booleans())
def test_windows_cover_every_token_as_slices(marking, total, lengths, prefix, with_bos):
    max_tokens, stride = lengths
    body = list(range(2, total + 2))
    lead = [BOS] if with_bos else []
    sequences = load_sequences(
        [{"input_ids": lead + body}], marking, max_tokens=max_tokens, stride=stride, prefix_tokens=prefix
    )
    windows = sequences["input_ids"]
    if total + len(lead) <= max_tokens:
        assert list(windows) == [lead + body] and sequences["id"] == ["1"]
        return
    assert sequences["id"] == [f"1#{k}" for k in range(1, len(windows) + 1)]
    assert set(sequences["document"]) == {"1"}
    starts = []
    for ids, effective in zip(windows, sequences["prefix_tokens"], strict=True):
        assert len(ids) == max_tokens and ids[: len(lead)] == lead
        inner = ids[len(lead) :]
        starts.append(inner[0] - 2)
        assert inner == body[starts[-1] : starts[-1] + len(inner)]
        assert effective == min(prefix, max_tokens // 2)
    room = max_tokens - len(lead)
    steps = np.diff(starts)
    assert starts[0] == 0 and starts[-1] == total - room, "the first begins, the last ends with the text"
    assert all(steps[:-1] == min(stride, room)) and 0 < steps[-1] <= min(stride, room)


@settings(max_examples=80, deadline=None)
@given(prompt=st.integers(1, 90), rest=st.integers(1, 90), lengths=lengths, name=st.sampled_from(["plain", "marking"]))
def test_prompt_tokens_never_count_and_completion_tokens_always_appear(request, prompt, rest, lengths, name):
    max_tokens, stride = lengths
    tokenizer = request.getfixturevalue(name)
    lead = [BOS] if name == "marking" else []
    row = {"prompt": "\u0001" * prompt, "completion": "\u0002" * rest}  # a token a character, in no merge
    (asked,) = set(tokenizer(row["prompt"], add_special_tokens=False).input_ids)
    (told,) = set(tokenizer(row["completion"], add_special_tokens=False).input_ids)
    sequences = load_sequences([row], tokenizer, max_tokens=max_tokens, stride=stride, prefix_tokens=5)
    total = 0
    for k, sequence in enumerate(sequences):
        ids, start, prefix = (sequence[key] for key in ("input_ids", "scored_from", "prefix_tokens"))
        prompted = ids.count(asked)
        assert ids == lead + [asked] * prompted + [told] * ids.count(told) and len(ids) <= max_tokens
        assert told in ids, "a window of the prompt alone measures nothing"
        assert start == max(1, (len(lead) + prompted) if prompted else 1)
        short = min(5, len(ids) // 2)
        if prompted:
            assert prefix == (len(lead) + prompted if k == 0 else max(len(lead) + prompted, short))
        else:
            assert prefix == short
        total += ids.count(told)
    assert total >= rest
    first = sequences[0]["input_ids"].count(asked)
    fits = prompt + len(lead) < max_tokens
    assert first == (prompt if fits else max_tokens // 2 - len(lead))
    if prompt + rest + len(lead) <= max_tokens:
        assert len(sequences) == 1 and total == rest


# --- bad input --------------------------------------------------------------------------------------------------------


def saved(array, path: Path) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


def put(content: bytes | str, path: Path) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOOD = json.dumps({"text": SECRET})
BAD = {
    "missing": (lambda d: d / "forget.jsonl", "no such file"),
    "folder": (lambda d: d, "folder"),
    "folder_ending": (lambda d: [(d / "forget.csv").mkdir() or d / "forget.csv"], "not a file"),
    "unknown_ending": (lambda d: put(SECRET, d / "forget.docx"), ".jsonl"),
    "typo_in_a_list": (lambda d: [str(put(GOOD, d / "forget.jsonl")), str(put(GOOD, d / "forget.jsn"))], "known kind"),
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
    "unequal_parts": (
        lambda d: [saved(np.ones((3, 2), int), d / "a.npy"), saved(np.ones((2, 2), int), d / "forget.npy")],
        "2 rows, but",
    ),
    "array_and_text": (lambda d: [put(GOOD, d / "a.jsonl"), saved(np.ones((1, 2), int), d / "forget.npy")], "apart"),
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
    assert "; " in message, "what is wrong; the mend"
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


def test_text_needs_a_tokenizer(tmp_path):
    assert "forget.txt, line 1: text needs a tokenizer" in raised(write(tmp_path / "forget.txt", TEXTS))


def test_a_tokenizer_of_another_model_is_noticed(plain):
    assert "give the model's own tokenizer" in raised([SECRET], plain, vocab_size=10)


@pytest.mark.parametrize(
    "options, key",
    [
        ({"max_tokens": 1}, "max_tokens"),
        ({"stride": 0}, "stride"),
        ({"prefix_tokens": 0}, "prefix_tokens"),
    ],
)
def test_lengths_out_of_range(options, key):
    assert raised([{"input_ids": [1, 2]}], **options).startswith(f"{key} is ")


def test_an_unreadable_file(tmp_path, plain, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in raised(write(tmp_path / "forget.txt", TEXTS), plain)


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


# --- shared n-grams ---------------------------------------------------------------------------------------------------


def naive(sequences, n):
    """Document -> its set of n-grams, as tuples; a shorter sequence is one gram."""
    grams: dict[str, set] = {}
    for document, ids in zip(sequences["document"], sequences["input_ids"], strict=True):
        grams.setdefault(document, set()).update(tuple(ids[i : i + n]) for i in range(max(1, len(ids) - n + 1)))
    return grams


def naive_duplicates(sequences, n):
    grams = naive(sequences, n)
    return sorted((a, b) for a in grams for b in grams if a < b and grams[a] & grams[b])


def naive_overlaps(sequences, others, n):
    mine, theirs = naive(sequences, n), naive(others, n)
    return sorted((a, b) for a in mine for b in theirs if mine[a] & theirs[b])


token_rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows=token_rows, others=token_rows, n=st.integers(1, 6), max_tokens=st.integers(6, 14))
def test_shared_n_grams_equal_sets_of_tuples(rows, others, n, max_tokens):
    a, b = (
        load_sequences([{"input_ids": row} for row in part], max_tokens=max_tokens, stride=2) for part in (rows, others)
    )
    assert duplicates(a, n) == naive_duplicates(a, n)
    assert overlaps(a, b, n) == naive_overlaps(a, b, n)


def test_twenty_tokens_are_shared_and_nineteen_are_not():
    run = list(range(100, 120))
    rows = [[1, 2, *run], [*run[:19], 3, 4, 5], [*range(200, 230), *run], run]
    sequences = load_sequences([{"id": name, "input_ids": row} for name, row in zip("dcba", rows)])
    assert duplicates(sequences) == [("a", "b"), ("a", "d"), ("b", "d")]
    assert overlaps(sequences.select([1]), sequences) == [("c", "c")]
    assert overlaps(sequences.select([0]), sequences) == [("d", "a"), ("d", "b"), ("d", "d")]


def test_windows_of_one_document_are_no_duplicates():
    sequences = load_sequences([{"input_ids": list(range(1000))}, {"input_ids": list(range(500, 700))}])
    assert len(sequences) > 2 and duplicates(sequences) == [("1", "2")]


def test_a_leading_bos_does_not_matter(plain, marking):
    one, two = "abcdefgh XYZ", "abcdefgh, otherwise"
    shared = len(plain("abcdefgh").input_ids)
    sequences = load_sequences([one, two], marking)
    assert sequences[0]["input_ids"][: shared + 1] == sequences[1]["input_ids"][: shared + 1]
    assert duplicates(sequences, shared) == [("1", "2")] and duplicates(sequences, shared + 1) == []
    assert overlaps(sequences, sequences.select([1]), shared + 1) == [("2", "2")]
    short, bare = load_sequences(["abc"], marking), load_sequences(["abc"], plain)
    assert overlaps(short, bare) == overlaps(bare, short) == [("1", "1")]
    joined = datasets.concatenate_datasets([sequences.select([0]), sequences.select([1])])
    assert duplicates(joined.filter(lambda row: True), shared + 1) == []


def test_empty_sets_share_nothing():
    sequences = load_sequences([{"input_ids": [1, 2, 3]}])
    empty = sequences.select([])
    assert duplicates(empty) == overlaps(empty, sequences) == overlaps(sequences, empty) == overlaps(empty, empty) == []


def test_large_sets_and_common_boilerplate_take_seconds():
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 50_000, (6000, 120))
    rows[:300, 20:80] = np.arange(60)  # 300 documents with a boilerplate of 60 tokens: 41 n-grams, one group
    names = [f"{i:05}" for i in range(len(rows))]
    sequences = datasets.Dataset.from_dict({"document": names, "input_ids": rows.tolist()})
    found = duplicates(sequences)
    assert len(found) == 300 * 299 // 2 and found == sorted(set(found)) and max(max(found)) == "00299"
    assert len(overlaps(sequences.select([0, 5999]), sequences)) == 301
