"""Shared n-grams against sets of tuples."""

from __future__ import annotations

import datasets
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_unlearn.data import duplicates, load_sequences, overlaps


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
