"""What several adapters do to several forget sets, in sentences and as JSON."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from adapter_unlearn.reporting.formatting import clean, count, number, share
from adapter_unlearn.reporting.interference.matrix import Matrix, Subset, Wake, matrix_of, subset_of, wakes


def owners(manifest: dict[str, Any]) -> dict[str, str]:
    """Forget set -> the adapter made for it. Both are listed in the same order; empty where their numbers differ."""
    adapters, sets = (list(map(str, manifest.get(key) or [])) for key in ("adapters", "sets"))
    return dict(zip(sets, adapters)) if len(adapters) == len(sets) else {}


@dataclass(frozen=True)
class Finding:
    """What happened to one forget set, in a sentence; `outcome` is that of a check of the verdict."""

    set: str
    outcome: str
    sentence: str


def findings(rows: pd.DataFrame, owner: dict[str, str]) -> list[Finding]:
    """For every forget set: whether its own adapter stops its recitation, and whether another one brings it back.

    Args:
        rows: the measurements.
        owner: forget set -> its adapter. A set without one is judged by all adapters together.
    """
    matrix, cases = matrix_of(rows), wakes(rows)
    results = []
    for name in matrix.sets:
        own = owner.get(name)
        subset = frozenset([own]) if own in matrix.adapters else frozenset(matrix.adapters)
        stopped, sentence = _effect_of_own(matrix, name, subset, own)
        # without the set's own adapter, recitation has not stopped and cannot come back
        returns = [case for case in cases if case.set == name and (not own or subset <= subset_of(case.adapters))]
        others = any(subset < other for other in matrix.subsets)
        if returns:
            sentence += " " + _returns(returns)
        elif others and own:
            sentence += " No other adapter brings recitation back."
        outcome = "unknown" if stopped is None else "pass" if stopped and not returns else "fail"
        results.append(Finding(clean(name), outcome, sentence))
    return results


def _effect_of_own(matrix: Matrix, name: str, subset: Subset, own: str | None) -> tuple[bool | None, str]:
    who = f"Its own adapter {clean(own)}" if own in matrix.adapters else "All adapters together"
    recited = {line: number(matrix.extractable.at[i, name]) for i, line in enumerate(matrix.subsets)}
    now, before = recited.get(subset), recited.get(frozenset())
    if now is None:
        return None, f"{who} {'was' if own in matrix.adapters else 'were'} not measured on it."
    left = share(now, number(matrix.n_sequences.at[matrix.subsets.index(subset), name]))
    change = "" if before is None else f" ({count(before)} without any adapter)"
    return now == 0, f"{who} leave{'s' if own in matrix.adapters else ''} {left} recited{change}."


def _returns(cases: list[Wake]) -> str:
    """The worst case of each adapter that brings recitation back."""
    worst: dict[str, Wake] = {}
    for case in sorted(cases, key=lambda case: case.before - case.after):
        worst.setdefault(case.added, case)
    parts = [
        f"when {clean(case.added)} is added to {clean(case.adapters) or 'the base model'}:"
        f" {count(case.before)} → {count(case.after)} recited"
        for case in worst.values()
    ]
    return f"Recitation comes back {', and '.join(parts)}."


def as_json(rows: pd.DataFrame, manifest: dict[str, Any]) -> dict[str, Any]:
    """The content of interference.json: the rows, the cases of `wakes`, and one finding per set."""
    owner = owners(manifest)
    return {
        "rows": rows.to_dict("records"),
        "wakes": [vars(case) for case in wakes(rows)],
        "findings": [vars(finding) for finding in findings(rows, owner)],
    }
