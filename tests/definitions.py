"""Definitions of the metrics, written out plainly, for the tests to compare with."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from helpers import warped

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


def naive_forward(model, sequence, sampling=(1.0, 40, 1.0)):
    """The forward metrics of a sequence, with one forward pass per token; all but those that need adapters."""
    ids, start, prefix = sequence["input_ids"], sequence["scored_from"], sequence["prefix_tokens"]
    hits, nlls, drawn, surprises = [], [], [], []
    for t in range(1, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:t]])).logits[0, -1:].float()
        log_p = torch.log_softmax(logits.double(), -1)[0]
        hits.append(int(logits.argmax()) == ids[t])
        nlls.append(-float(log_p[ids[t]]))
        drawn.append(float(warped(logits, *sampling)[0, ids[t]]))
        mean = float((log_p.exp() * log_p).sum())
        deviation = math.sqrt((log_p.exp() * log_p**2).sum() - mean**2)
        surprises.append((float(log_p[ids[t]]) - mean) / max(deviation, 0.001))
    counted, suffix = hits[start - 1 :], hits[prefix - 1 :]
    longest = run = 0
    for hit in counted:
        run = run + 1 if hit else 0
        longest = max(longest, run)
    total = len(counted)
    fifth = max(1, int(0.2 * total))
    prefixes = range(start, len(ids) - 20 + 1)
    p_z = math.prod(math.exp(value) for value in drawn[prefix - 1 :])
    loss = sum(nlls[start - 1 :]) / total
    return {
        "memorization_accuracy": sum(counted) / total,
        "exact_memorization": sum(suffix) / len(suffix),
        "extractable": float(all(suffix)),
        "extractable_50": float(all(suffix[:50])) if len(suffix) >= 50 else math.nan,
        "extractable_any_prefix": float(any(all(hits[k - 1 :]) for k in prefixes)) if prefixes else math.nan,
        "longest_verbatim_run": float(longest),
        "extraction_strength": 1 - next(k for k in range(total + 1) if all(counted[k:])) / total,
        "extraction_strength_openunlearning": 1
        - next((k for k in range(total) if all(counted[k:])), total - 1) / total,
        "p_z": p_z,
        "log_p_z": sum(drawn[prefix - 1 :]),
        "np_extractable": float(1 - (1 - p_z) ** 100 >= 0.5),
        "loss": loss,
        "zlib": loss / sequence["zlib_bytes"] if sequence.get("zlib_bytes") else math.nan,
        "min_k": -sum(sorted(nlls[start - 1 :], reverse=True)[:fifth]) / fifth,
        "min_k_plus_plus": sum(sorted(surprises[start - 1 :])[:fifth]) / fifth,
    }


NEEDS_ADAPTERS = {"reference_loss_difference"}
"""Forward metrics that `naive_forward` leaves out."""
