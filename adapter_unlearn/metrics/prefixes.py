"""What greedy decoding recites from every prefix, not only from the one that was chosen; from the same forward.

A prefix of T-1 tokens is "extractable" in many a text that was never seen: one lucky guess. So only prefixes that leave
at least 20 tokens are judged.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from adapter_unlearn.metrics.predictions import NotScorableError, Predictions

LEAVES = 20
"""The least tokens that a prefix must leave."""


def prefix_curve(predictions: Predictions) -> dict[str, np.ndarray]:
    """Judge every prefix that leaves at least LEAVES tokens, the shortest first; a prompt is never cut.

    Returns:
        Columns, of shape (n,), with n = 0 for a text that is too short:
        prefix_tokens: its length, from 1 (or the prompt's length) to T - LEAVES.
        extractable: bool, whether greedy decoding from it recites all the rest.
        recited: tokens that greedy decoding from it gets right before its first mistake.
        longest_verbatim_run: most consecutive tokens after it that are the model's first choice, given the true text.
    """
    hits = predictions.hits
    lengths = np.arange(predictions.scored_from, len(hits) + 2 - LEAVES)
    # Backwards, one token more a step: what is recited from here, and the longest run from here on.
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
    """The prefix curves of a set as one: at each prefix length, what holds for any sequence.

    Returns:
        A row a prefix length: prefix_tokens, n_sequences (that are long enough), extractable (how many are),
        recited_max, longest_verbatim_run_max.
    """
    frames = [pd.DataFrame(curve) for curve in curves]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(_curve_columns)
    grouped = rows.groupby("prefix_tokens")
    return grouped.agg(
        n_sequences=("extractable", "size"),
        extractable=("extractable", "sum"),
        recited_max=("recited", "max"),
        longest_verbatim_run_max=("longest_verbatim_run", "max"),
    ).reset_index()


def at_least(curve: pd.DataFrame) -> int:
    """How many sequences of a set are recited from some prefix, at least, by its curve (see worst_of).

    A curve counts sequences a prefix length. What is recited from a prefix is recited from every longer one, so a
    sequence leaves the count only where it ends: the sum of the count's falls, the last to 0.
    """
    counts = curve.sort_values("prefix_tokens")["extractable"]
    return int((counts - counts.shift(-1, fill_value=0)).clip(lower=0).sum())


_curve_columns: dict[str, list[int]] = {
    name: [] for name in ("prefix_tokens", "extractable", "recited", "longest_verbatim_run")
}


def extractable_any_prefix(predictions: Predictions) -> float:
    """1 when greedy decoding recites all the rest from any prefix that leaves at least 20 tokens, else 0.

    What is recited from one prefix is recited from every longer one, so the longest of them decides.
    """
    hits = predictions.scored_hits
    if len(hits) < LEAVES:
        raise NotScorableError(f"{len(hits)} tokens to predict, {LEAVES} needed")
    return float(hits[-LEAVES:].all())
