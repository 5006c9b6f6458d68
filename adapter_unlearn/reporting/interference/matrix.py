"""Several adapters and several forget sets as a matrix, and the cases in which an adapter brings recitation back.

The input has one row per (subset of adapters, forget set), as returned by evaluation.interference.interference. A
subset is named by its adapters, joined by SEPARATOR; the empty name is the base.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from adapter_unlearn.reporting.formatting import accuracy, clean, count, number

SEPARATOR = " + "
Subset = frozenset[str]


@dataclass(frozen=True)
class Matrix:
    """Tables with one line per subset of adapters, from none to all, and one column per forget set.

    Attributes:
        adapters: names, in order of first appearance.
        sets: names, in order of first appearance.
        subsets: the active adapters of each line.
        n_sequences: number of sequences of a set.
        extractable: number of recited sequences.
        accuracy: mean memorization accuracy.
    """

    adapters: list[str]
    sets: list[str]
    subsets: list[Subset]
    n_sequences: pd.DataFrame
    extractable: pd.DataFrame
    accuracy: pd.DataFrame

    @property
    def share(self) -> pd.DataFrame:
        """The share of each set that is recited."""
        return self.extractable / self.n_sequences

    def name(self, subset: Subset) -> str:
        """A subset's name for display."""
        return clean(SEPARATOR.join(a for a in self.adapters if a in subset)) or "none (the base model)"


def subset_of(name: str) -> Subset:
    """The adapters named in a row's `adapters`."""
    return frozenset(name.split(SEPARATOR)) if name else frozenset()


def matrix_of(rows: pd.DataFrame) -> Matrix:
    """Rows as tables; a cell that was not measured is NaN."""
    keys = [(subset_of(str(name)), str(of)) for name, of in zip(rows["adapters"], rows["set"], strict=True)]
    sets = list(dict.fromkeys(of for _, of in keys))
    adapters = list(dict.fromkeys(a for name in rows["adapters"] if name for a in str(name).split(SEPARATOR)))
    order = {adapter: i for i, adapter in enumerate(adapters)}
    subsets = sorted({on for on, _ in keys}, key=lambda subset: (len(subset), sorted(order[a] for a in subset)))

    def table(column: str) -> pd.DataFrame:
        figures = dict(zip(keys, map(number, rows[column]), strict=True))
        return pd.DataFrame([[figures.get((on, of)) for of in sets] for on in subsets], columns=sets, dtype=float)

    columns = ("n_sequences", "extractable", "memorization_accuracy_mean")
    return Matrix(adapters, sets, subsets, *map(table, columns))


@dataclass(frozen=True)
class Wake:
    """A case in which one more adapter brings recitation back.

    Attributes:
        set: the forget set of which more is recited.
        added: the adapter that was added.
        adapters: the adapters active before, named as in the rows.
        before: number of the set's sequences recited without the added adapter.
        after: the same with it.
    """

    set: str
    added: str
    adapters: str
    before: int
    after: int


def wakes(rows: pd.DataFrame) -> list[Wake]:
    """Every forget set, subset S and adapter a not in S such that more is recited with S + {a} than with S.

    Pairs of which S or S + {a} was not measured on the set are left out.
    """
    matrix = matrix_of(rows)
    place = {subset: i for i, subset in enumerate(matrix.subsets)}
    cases = []
    for name in matrix.sets:
        recited = [number(value) for value in matrix.extractable[name]]
        for subset, i in place.items():
            for added in matrix.adapters:
                larger = place.get(subset | {added})
                if added in subset or larger is None:
                    continue
                before, after = recited[i], recited[larger]
                if before is not None and after is not None and after > before:
                    on = SEPARATOR.join(a for a in matrix.adapters if a in subset)
                    cases.append(Wake(name, added, on, int(before), int(after)))
    return cases


@dataclass(frozen=True)
class Part:
    """One of the two figures of a matrix: cells as shown, and the strength of their colour from 0 to 1."""

    label: str
    cells: pd.DataFrame
    heat: pd.DataFrame
    show: Callable[[Any], str]

    def text(self, i: int, j: int) -> str:
        """The figure of line i and set j."""
        return self.show(self.cells.iat[i, j])

    def strength(self, i: int, j: int) -> float:
        """The strength of its colour; 0 where nothing was measured."""
        return min(max(number(self.heat.iat[i, j]) or 0.0, 0.0), 1.0)


def parts(matrix: Matrix) -> tuple[Part, Part]:
    """What is shown of a matrix: recited sequences, and mean memorization accuracy."""
    return (
        Part("recited", matrix.extractable, matrix.share, count),
        Part("mean accuracy", matrix.accuracy, matrix.accuracy, accuracy),
    )
