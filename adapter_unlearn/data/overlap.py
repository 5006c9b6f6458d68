"""Which documents share a run of tokens: near-duplicates within a set, and texts that stand in two sets."""

import re
from collections.abc import Iterator
from itertools import combinations, product

import datasets
import numpy as np
import numpy.typing as npt

# Token ids can't tell a bos from a word, so the Dataset's description does; select, filter and concatenate keep it.
DESCRIPTION = "Sequences of adapter-unlearn; leading bos token: "
_ODD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, the increment of splitmix64

_Hashes = npt.NDArray[np.uint64]
_Indices = npt.NDArray[np.int64]


def duplicates(sequences: datasets.Dataset, n: int = 20) -> list[tuple[str, str]]:
    """Pairs of documents of one set that share a run of `n` tokens, each pair once, sorted.

    A leading bos doesn't count. A sequence shorter than `n` is compared as a whole: it equals another or it doesn't.
    Runs are compared by 64-bit hashes: a false pair has a chance of 3 in a million among 10 million different runs.
    What all of m documents share makes m (m - 1) / 2 pairs, so a long boilerplate in a large set makes a long list.
    """
    names, hashes, owners = _grams(sequences, n, bos_tokens(sequences))
    pairs = {pair for group in _groups(hashes, owners) for pair in combinations(group, 2)}
    return sorted((min(names[i], names[j]), max(names[i], names[j])) for i, j in pairs)


def overlaps(sequences: datasets.Dataset, others: datasets.Dataset, n: int = 20) -> list[tuple[str, str]]:
    """Pairs (document of `sequences`, document of `others`) that share a run of `n` tokens; see `duplicates`."""
    bos = bos_tokens(sequences) | bos_tokens(others)
    names, hashes, owners = _grams(sequences, n, bos)
    other_names, other_hashes, other_owners = _grams(others, n, bos)
    owners = np.concatenate([owners, other_owners + len(names)])
    pairs: set[tuple[int, int]] = set()
    for group in _groups(np.concatenate([hashes, other_hashes]), owners):
        first = np.searchsorted(group, len(names))  # where the documents of `others` begin
        pairs.update(product(group[:first], group[first:]))
    return sorted((names[i], other_names[j - len(names)]) for i, j in pairs)


def bos_tokens(sequences: datasets.Dataset) -> set[int]:
    """The tokens that were put before every text of the set: one, or none."""
    return {int(token) for token in re.findall(re.escape(DESCRIPTION) + r"(\d+)", sequences.info.description)}


def _grams(sequences: datasets.Dataset, n: int, bos: set[int]) -> tuple[list[str], _Hashes, _Indices]:
    """The documents, and for every n-gram its hash and its document's index.

    A row shorter than `n` is filled up, so that its one n-gram stands for the whole row.
    """
    index: dict[str, int] = {}
    owners = [index.setdefault(name, len(index)) for name in sequences["document"]]
    powers = np.array([pow(_ODD, k, 2**64) for k in range(n)], np.uint64)
    found = [np.zeros(0, np.uint64)]
    for batch in sequences.select_columns("input_ids").with_format("arrow").iter(batch_size=1000):
        rows = batch["input_ids"].combine_chunks()
        for tokens in np.split(rows.flatten().to_numpy(), np.cumsum(rows.value_lengths().to_numpy())[:-1]):
            tokens = tokens[1:] if len(tokens) and int(tokens[0]) in bos else tokens
            mixed = _mix(np.append(tokens, np.full(max(0, n - len(tokens)), -1)).astype(np.uint64))
            found.append(np.lib.stride_tricks.sliding_window_view(mixed, n) @ powers)
    return list(index), np.concatenate(found), np.repeat(np.array(owners, np.int64), list(map(len, found[1:])))


def _mix(numbers: _Hashes) -> _Hashes:
    """Scatter 64-bit numbers (splitmix64), so that sums of them collide by chance only."""
    numbers = numbers + np.uint64(_ODD)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _groups(hashes: _Hashes, owners: _Indices) -> Iterator[list[int]]:
    """Every set of two or more documents that share an n-gram, ascending; a set that shares many n-grams comes once."""
    order = np.argsort(hashes)
    as_next = np.append(np.diff(hashes[order]) == 0, False)[: len(order)]
    order = order[as_next | np.roll(as_next, 1)]  # most n-grams occur once; the rest is small, and sorted in full
    order = order[np.lexsort((owners[order], hashes[order]))]
    hashes, owners = hashes[order], owners[order]
    new_hash = np.diff(hashes, prepend=~hashes[:1]) != 0
    kept = new_hash | (np.diff(owners, prepend=-1) != 0)
    owners, starts = owners[kept], np.flatnonzero(new_hash[kept])
    sizes = np.diff(starts, append=len(owners))
    signatures = np.add.reduceat(_mix(owners.astype(np.uint64)), starts) if len(starts) else hashes
    shared = np.flatnonzero(sizes > 1)
    _, first = np.unique(signatures[shared], return_index=True)
    for i in shared[first]:
        yield owners[starts[i] : starts[i] + sizes[i]].tolist()
