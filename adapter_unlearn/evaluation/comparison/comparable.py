"""Which finished runs are comparable: one base, the same texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from adapter_unlearn.errors import RunError
from adapter_unlearn.evaluation.finished_run import Finished, rows_by_id
from adapter_unlearn.evaluation.summary import BASE, Perplexity

SAME_TEXT = 0.25
"""In nats. Numeric noise changes the base's loss on a text by a few hundredths; another text changes it by more."""


def comparable(runs: Sequence[Finished]) -> list[Finished]:
    """The runs, with their rows in the order of the first run's.

    A run folder holds neither a text nor its hash (a short secret could be found by hashing guesses). Texts are
    identified by id, by length and by the base's loss on them.

    Raises:
        RunError: two runs differ in base, forget set, holdout set, bounds or prefix length; names the two folders.
    """
    first = runs[0]
    for other in runs[1:]:
        if reason := _difference(first, other):
            raise RunError(f"{first.folder} and {other.folder}: {reason}; compare runs of one base on the same texts")
    return [_in_order_of(first, run) for run in runs]


def _difference(first: Finished, other: Finished) -> str | None:
    a, b = (run.manifest.get("base") or {} for run in (first, other))
    fingerprints = [base.get("fingerprint") for base in (a, b)]
    if None not in fingerprints and fingerprints[0] != fingerprints[1]:
        names = [f"{base.get('name')} with {str(base['fingerprint'])[:15]}…" for base in (a, b)]
        return f"their base models differ ({', '.join(names)})"
    if bool(a.get("adapter")) != bool(b.get("adapter")):
        return "the base of one has an adapter (model.adapter) and that of the other has none"
    same_precision = first.precision == other.precision
    for name, column in (("forget", "sequences"), ("holdout", "holdout")):
        if reason := _set_difference(getattr(first, column), getattr(other, column), same_precision):
            return f"their {name} sets differ: {reason}"
    kinds = [run.summary.base.bounds.kind for run in (first, other)]
    if kinds[0] != kinds[1]:
        return f"their outliers have different bounds ({kinds[0]} and {kinds[1]})"
    lengths = [run.recipe.data.prefix_tokens for run in (first, other) if run.recipe is not None]
    if len(set(lengths)) > 1:
        return f"their prefixes have different lengths ({lengths[0]} and {lengths[1]} tokens)"
    return None


def _set_difference(first: pd.DataFrame, other: pd.DataFrame, same_precision: bool) -> str | None:
    a, b = rows_by_id(first, BASE), rows_by_id(other, BASE)
    if len(a) != len(b):
        return f"{len(a)} sequences in the first and {len(b)} in the second"
    if len(only := a.index.difference(b.index)):
        return f"sequence {only[0][0]!r} is in the first only"
    if not len(a):
        return None
    b = b.reindex(a.index)
    if len(different := a[a["n_tokens"] != b["n_tokens"]]):
        return f"sequence {different.index[0][0]!r} has another number of tokens"
    if same_precision and len(different := a[(a["loss"] - b["loss"]).abs() > SAME_TEXT]):
        return f"sequence {different.index[0][0]!r} has another loss under the base"
    return None


def warnings(runs: Sequence[Finished]) -> list[str]:
    """Differences between comparable runs that affect some figures: the base's precision and the test set."""
    sentences, first = [], runs[0]
    if len(precisions := dict.fromkeys(run.precision for run in runs)) > 1:
        sentences.append(f"The bases differ in precision ({'; '.join(precisions)}): this alone changes figures.")
    for other in runs[1:]:
        if _tests_differ(first, other):
            folders = f"{first.folder} and {other.folder}"
            sentences.append(f"{folders} have different test sets: their test figures are not comparable.")
            break
    return sentences


def _tests_differ(first: Finished, other: Finished) -> bool:
    counts = [((run.manifest.get("data") or {}).get("test") or {}).get("n_sequences") for run in (first, other)]
    a, b = (run.summary.base.perplexities.get("test", Perplexity(math.nan)).value for run in (first, other))
    return counts[0] != counts[1] or (first.precision == other.precision and abs(a - b) > 0.01 * a)


def _in_order_of(first: Finished, run: Finished) -> Finished:
    tables: dict[str, Any] = {}
    for name in ("sequences", "holdout"):
        if len(frame := getattr(run, name)):
            ids = rows_by_id(getattr(first, name), BASE).index
            parts = [rows_by_id(frame, form).reindex(ids).assign(form=form) for form in dict.fromkeys(frame["form"])]
            tables[name] = pd.concat(parts, ignore_index=True)
    return replace(run, **tables)
