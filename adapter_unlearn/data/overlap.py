"""Find documents that share a run of tokens: near-duplicates in one set, and texts that are in two sets."""

import re
from collections.abc import Iterator
from itertools import combinations, product

import datasets
import numpy as np
import numpy.typing as npt

# The Dataset's description says whether a leading token is a bos; select, filter and concatenate keep it.
DESCRIPTION = "Sequences of adapter-unlearn; leading bos token: "
_ODD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, the increment of splitmix64

_Hashes = npt.NDArray[np.uint64]
_Indices = npt.NDArray[np.int64]


def duplicates(sequences: datasets.Dataset, n: int = 20) -> list[tuple[str, str]]:
    """Pairs of documents of one set that share a run of `n` tokens, each pair once, sorted.

    A leading bos is ignored. A sequence shorter than `n` is compared as a whole. Runs are compared by 64-bit hashes:
    among 10 million different runs, the chance of a false pair is 3 in a million. A run that m documents share makes
    m (m - 1) / 2 pairs.
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
    """The tokens that precede every text of the set: one, or none."""
    return {int(token) for token in re.findall(re.escape(DESCRIPTION) + r"(\d+)", sequences.info.description)}


def _grams(sequences: datasets.Dataset, n: int, bos: set[int]) -> tuple[list[str], _Hashes, _Indices]:
    """The documents, and the hash and document index of every n-gram; both of shape (n-grams,).

    A row shorter than `n` is padded, so that it has one n-gram.
    """
    index: dict[str, int] = {}
    owners = [index.setdefault(name, len(index)) for name in sequences["document"]]
    powers = np.array([pow(_ODD, k, 2**64) for k in range(n)], np.uint64)
    grams = [np.zeros(0, np.uint64)]
    for batch in sequences.select_columns("input_ids").with_format("arrow").iter(batch_size=1000):
        rows = batch["input_ids"].combine_chunks()
        for tokens in np.split(rows.flatten().to_numpy(), np.cumsum(rows.value_lengths().to_numpy())[:-1]):
            tokens = tokens[1:] if len(tokens) and int(tokens[0]) in bos else tokens
            mixed = _mix(np.append(tokens, np.full(max(0, n - len(tokens)), -1)).astype(np.uint64))
            grams.append(np.lib.stride_tricks.sliding_window_view(mixed, n) @ powers)
    return list(index), np.concatenate(grams), np.repeat(np.array(owners, np.int64), list(map(len, grams[1:])))


def _mix(numbers: _Hashes) -> _Hashes:
    """Scramble 64-bit numbers (splitmix64), so that sums of them collide only by chance."""
    numbers = numbers + np.uint64(_ODD)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _groups(hashes: _Hashes, owners: _Indices) -> Iterator[list[int]]:
    """Every set of two or more documents that share an n-gram, ascending, each set once."""
    order = np.argsort(hashes)
    as_next = np.append(np.diff(hashes[order]) == 0, False)[: len(order)]
    order = order[as_next | np.roll(as_next, 1)]  # most n-grams occur once; only the others are sorted by owner
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
