"""Several adapters, several forget sets: which adapter silences which texts, and which one wakes them up again.

Rows come long, one a (subset of adapters, forget set), as write.interference describes them. A subset is named by its
adapters, joined by SEPARATOR; the empty name is the base.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from adapter_unlearn.reporting.formatting import accuracy, clean, count, number, share

SEPARATOR = " + "
Subset = frozenset[str]


@dataclass(frozen=True)
class Matrix:
    """The rows as tables: a line a subset of adapters, from none to all, a column a forget set.

    Attributes:
        adapters: names, in their first order.
        sets: names, in their first order.
        subsets: which adapters are on, a line each.
        n_sequences: how many sequences a set has.
        extractable: how many of them are recited.
        accuracy: their mean MA.
    """

    adapters: list[str]
    sets: list[str]
    subsets: list[Subset]
    n_sequences: pd.DataFrame
    extractable: pd.DataFrame
    accuracy: pd.DataFrame

    @property
    def share(self) -> pd.DataFrame:
        """What part of each set is recited."""
        return self.extractable / self.n_sequences

    def name(self, subset: Subset) -> str:
        """A subset as a reader sees it."""
        return clean(SEPARATOR.join(a for a in self.adapters if a in subset)) or "none (the base model)"


def subset_of(name: str) -> Subset:
    """The adapters that a row's `adapters` names."""
    return frozenset(name.split(SEPARATOR)) if name else frozenset()


def matrix(rows: pd.DataFrame) -> Matrix:
    """Rows as tables; a cell that was not measured is missing in them, not zero."""
    keys = [(subset_of(str(name)), str(of)) for name, of in zip(rows["adapters"], rows["set"], strict=True)]
    sets = list(dict.fromkeys(of for _, of in keys))
    adapters = list(dict.fromkeys(a for name in rows["adapters"] if name for a in str(name).split(SEPARATOR)))
    order = {adapter: i for i, adapter in enumerate(adapters)}
    subsets = sorted({on for on, _ in keys}, key=lambda subset: (len(subset), sorted(order[a] for a in subset)))

    def table(column: str) -> pd.DataFrame:
        found = dict(zip(keys, map(number, rows[column]), strict=True))
        return pd.DataFrame([[found.get((on, of)) for of in sets] for on in subsets], columns=sets, dtype=float)

    columns = ("n_sequences", "extractable", "memorization_accuracy_mean")
    return Matrix(adapters, sets, subsets, *map(table, columns))


@dataclass(frozen=True)
class Wake:
    """One more adapter brings recitation back.

    Attributes:
        set: the forget set of which more is recited.
        added: the adapter that was added.
        adapters: what was on before, as in the rows.
        before: how many of the set's sequences are recited without the added one.
        after: and with it.
    """

    set: str
    added: str
    adapters: str
    before: int
    after: int


def wakes(rows: pd.DataFrame) -> list[Wake]:
    """Every forget set, subset S and adapter a not in S under which more is recited with S + {a} than with S.

    Both S and S + {a} must have been measured on the set; where one was not, nothing is said.
    """
    found = matrix(rows)
    place = {subset: i for i, subset in enumerate(found.subsets)}
    cases = []
    for name in found.sets:
        recited = [number(value) for value in found.extractable[name]]
        for subset, i in place.items():
            for added in found.adapters:
                larger = place.get(subset | {added})
                if added in subset or larger is None:
                    continue
                before, after = recited[i], recited[larger]
                if before is not None and after is not None and after > before:
                    on = SEPARATOR.join(a for a in found.adapters if a in subset)
                    cases.append(Wake(name, added, on, int(before), int(after)))
    return cases


def owners(manifest: dict[str, Any]) -> dict[str, str]:
    """Forget set -> the adapter made for it: they are listed in the same order; none where the numbers differ."""
    adapters, sets = (list(map(str, manifest.get(key) or [])) for key in ("adapters", "sets"))
    return dict(zip(sets, adapters)) if len(adapters) == len(sets) else {}


@dataclass(frozen=True)
class Finding:
    """One forget set's fate in a sentence; `outcome` as of a check in verdict.py."""

    set: str
    outcome: str
    sentence: str


def findings(rows: pd.DataFrame, owner: dict[str, str]) -> list[Finding]:
    """For every forget set: does its own adapter silence it, and does another one wake it up again?

    Args:
        rows: the measurements.
        owner: forget set -> its adapter; a set without one is judged by all adapters together.
    """
    found, woken = matrix(rows), wakes(rows)
    told = []
    for name in found.sets:
        own = owner.get(name)
        subset = frozenset([own]) if own in found.adapters else frozenset(found.adapters)
        silenced, sentence = _silenced(found, name, subset, own)
        # without the own adapter on there is nothing asleep that could be woken up
        cases = [case for case in woken if case.set == name and (not own or subset <= subset_of(case.adapters))]
        tried = any(subset < other for other in found.subsets)
        if cases:
            sentence += " " + _woken(cases)
        elif tried and own:
            sentence += " No other adapter wakes it up."
        outcome = "unknown" if silenced is None else "pass" if silenced and not cases else "fail"
        told.append(Finding(clean(name), outcome, sentence))
    return told


def _silenced(found: Matrix, name: str, subset: Subset, own: str | None) -> tuple[bool | None, str]:
    who = f"Its own adapter {clean(own)}" if own in found.adapters else "All adapters together"
    recited = {line: number(found.extractable.at[i, name]) for i, line in enumerate(found.subsets)}
    now, before = recited.get(subset), recited.get(frozenset())
    if now is None:
        return None, f"{who} was not measured on it."
    left = share(now, number(found.n_sequences.at[found.subsets.index(subset), name]))
    told = "" if before is None else f" ({count(before)} without any adapter)"
    return now == 0, f"{who} leave{'s' if own in found.adapters else ''} {left} recited{told}."


def _woken(cases: list[Wake]) -> str:
    """The worst case of each adapter that wakes a set up."""
    worst: dict[str, Wake] = {}
    for case in sorted(cases, key=lambda case: case.before - case.after):
        worst.setdefault(case.added, case)
    parts = [
        f"when {clean(case.added)} is added to {clean(case.adapters) or 'the base model'}:"
        f" {count(case.before)} → {count(case.after)} recited"
        for case in worst.values()
    ]
    return f"It wakes up {', and '.join(parts)}."


def as_json(rows: pd.DataFrame, manifest: dict[str, Any]) -> dict[str, Any]:
    """What interference.json holds: the rows, the cases of waking up, a finding a set."""
    owner = owners(manifest)
    return {
        "rows": rows.to_dict("records"),
        "wakes": [vars(case) for case in wakes(rows)],
        "findings": [vars(finding) for finding in findings(rows, owner)],
    }


def heat_rows(rows: pd.DataFrame, owner: dict[str, str]) -> dict[str, list[tuple[str, list[dict[str, Any]]]]]:
    """The matrix as a page draws it: for each measure, lines of (subset, cells); a cell has text, heat and own."""
    found = matrix(rows)
    tables: Sequence[tuple[str, pd.DataFrame, pd.DataFrame, Any]] = (
        ("extractable", found.extractable, found.share, count),
        ("accuracy", found.accuracy, found.accuracy, accuracy),
    )
    return {
        key: [
            (
                found.name(subset),
                [
                    {
                        "text": show(cells.iat[i, j]),
                        "heat": round(100 * min(max(number(heat.iat[i, j]) or 0.0, 0.0), 1.0)),
                        "own": owner.get(name) in subset,
                    }
                    for j, name in enumerate(found.sets)
                ],
            )
            for i, subset in enumerate(found.subsets)
        ]
        for key, cells, heat, show in tables
    }
