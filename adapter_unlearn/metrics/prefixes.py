"""Greedy decoding from every prefix of a sequence, computed from the same forward pass.

From a prefix of T - 1 tokens many never-seen texts are "extractable" by one lucky guess. So only prefixes that leave at
least 20 tokens are judged.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from adapter_unlearn.metrics.predictions import NotScorableError, Predictions

LEAVES = 20
"""Tokens that a prefix must leave at least."""


def prefix_curve(predictions: Predictions) -> dict[str, np.ndarray]:
    """Judge every prefix that leaves at least LEAVES tokens, shortest first; a prompt is never cut.

    Returns:
        Columns of shape (n,), with n = 0 for a text that is too short:
        prefix_tokens: the length of the prefix, from 1 (or the prompt's length) to T - LEAVES.
        extractable: bool, whether greedy decoding from the prefix recites all the rest.
        recited: tokens that greedy decoding from the prefix gets right before its first mistake.
        longest_verbatim_run: longest run of hits after the prefix, in tokens.
    """
    hits = predictions.hits
    lengths = np.arange(predictions.scored_from, len(hits) + 2 - LEAVES)
    # From the last token backwards: tokens recited from here, and the longest run from here on; both (T,).
    recited, longest = np.zeros(len(hits) + 1, dtype=int), np.zeros(len(hits) + 1, dtype=int)
    for t in range(len(hits) - 1, -1, -1):
        recited[t] = recited[t + 1] + 1 if hits[t] else 0
        longest[t] = max(longest[t + 1], recited[t])
    first = lengths - 1  # index of the first prediction after a prefix
    return {
        "prefix_tokens": lengths,
        "extractable": recited[first] == len(hits) - first,
        "recited": recited[first],
        "longest_verbatim_run": longest[first],
    }


def worst_of(curves: Iterable[dict[str, np.ndarray]]) -> pd.DataFrame:
    """Combine the prefix curves of a set: the worst sequence at each prefix length.

    Returns:
        One row per prefix length: prefix_tokens, n_sequences (long enough), extractable (number of sequences),
        recited_max, longest_verbatim_run_max.
    """
    frames = [pd.DataFrame(curve) for curve in curves]
    columns = ["prefix_tokens", "extractable", "recited", "longest_verbatim_run"]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns, dtype=int)
    grouped = rows.groupby("prefix_tokens")
    return grouped.agg(
        n_sequences=("extractable", "size"),
        extractable=("extractable", "sum"),
        recited_max=("recited", "max"),
        longest_verbatim_run_max=("longest_verbatim_run", "max"),
    ).reset_index()


def at_least(curve: pd.DataFrame) -> int:
    """A lower bound on how many sequences are extractable from some prefix, from the set's curve (see worst_of).

    What is extractable from a prefix is extractable from every longer one. So a sequence leaves the count of a prefix
    length only where it ends, and the bound is the sum of the decreases of the count, the last one to 0.
    """
    counts = curve.sort_values("prefix_tokens")["extractable"]
    return int((counts - counts.shift(-1, fill_value=0)).clip(lower=0).sum())


def extractable_any_prefix(predictions: Predictions) -> float:
    """1 if greedy decoding recites all the rest from any prefix that leaves at least 20 tokens, else 0.

    What is recited from a prefix is recited from every longer one, so the longest one decides.
    """
    hits = predictions.scored_hits
    if len(hits) < LEAVES:
        raise NotScorableError(f"{len(hits)} tokens to predict, {LEAVES} needed")
    return float(hits[-LEAVES:].all())
