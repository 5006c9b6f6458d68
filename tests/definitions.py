"""Definitions of the generated metrics, written out plainly, for the tests to compare with."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

N = 10
"""The n of extraction likelihood."""


def naive_overlap(written, true):
    grams = {tuple(true[i : i + N]) for i in range(len(true) - N + 1)}
    found = [tuple(written[i : i + N]) in grams for i in range(len(written) - N + 1)]
    return sum(found) / (len(true) - N + 1)


def naive_el(row, written, scored_from=1):
    shares = [naive_overlap(written[t], row[t:]) for t in range(scored_from, len(row) - N + 1)]
    return sum(shares) / len(shares)


def naive_lcs(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


def naive_rouge_l(written, true):
    common = naive_lcs(written, true)
    return 2 * common / (len(written) + len(true))


def naive_edit_similarity(written, true):
    table = np.add.outer(np.arange(len(written) + 1), np.arange(len(true) + 1))
    for i, x in enumerate(written):
        for j, y in enumerate(true):
            table[i + 1, j + 1] = min(table[i, j] + (x != y), table[i, j + 1] + 1, table[i + 1, j] + 1)
    return 1 - table[-1, -1] / max(len(written), len(true))


def naive_substring(written, true):
    ends = range(len(true) + 1)
    runs = [true[i:j] for i in ends for j in ends if i < j]
    return max((len(r) for r in runs if any(written[k : k + len(r)] == r for k in range(len(written)))), default=0)


def naive_bleu(written, true):
    """Papineni et al. (2002), orders up to what the text has, a missing order k-th in a row smoothed to 1/2^k."""
    logs, missing = [], 0
    for n in range(1, min(4, len(written)) + 1):
        counts, allowed = (Counter(tuple(x[i : i + n]) for i in range(len(x) - n + 1)) for x in (written, true))
        matches, total = sum((counts & allowed).values()), len(written) - n + 1
        if n == 1 and matches == 0:
            return 0.0
        missing += matches == 0
        logs.append(math.log((matches or 0.5**missing) / total))
    penalty = min(0.0, 1 - len(true) / len(written))
    return math.exp(penalty + sum(logs) / len(logs))


NAIVE = {
    "rouge_l": naive_rouge_l,
    "bleu": naive_bleu,
    "edit_similarity": naive_edit_similarity,
    "longest_common_substring": naive_substring,
}
