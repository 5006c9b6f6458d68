"""The figure of several adapters and forget sets."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adapter_unlearn.reporting.images import Picture
from adapter_unlearn.reporting.interference.matrix import Matrix, Part, matrix_of, parts
from adapter_unlearn.reporting.page import title_and_caption
from adapter_unlearn.reporting.style import BEFORE, INK, LINK, SURFACE, WIDTH, short_names, styled


def picture(rows: pd.DataFrame) -> Picture:
    """The figure with its title and caption."""
    words = title_and_caption("interference/captions.j2", "interference")
    return Picture("interference", *words, interference_figure(rows))


@styled
def interference_figure(rows: pd.DataFrame) -> Figure:
    """One line per subset of adapters: how much of every forget set is recited, and its mean memorization accuracy.

    On the left, filled circles mark the active adapters. On the right is one cell per forget set, the darker the more
    of it is recited. `rows` are those of evaluation.interference.interference.
    """
    matrix = matrix_of(rows)
    panels = parts(matrix)
    k, n = len(matrix.adapters), len(matrix.sets)
    beside = k + 2 * n <= 10
    longest = max(map(len, short_names([*matrix.adapters, *matrix.sets])), default=0)
    figure = Figure(
        figsize=(WIDTH, (0.27 * len(matrix.subsets) + 0.09 * longest + 0.9) * (1 if beside else 2)),
        layout="constrained",
    )
    columns = [0.65 * max(k, 1), 0.8 * n, n] if beside else [0.65 * max(k, 1), n]
    grid = figure.subplots(1 if beside else 2, len(columns), squeeze=False, width_ratios=columns)
    for i, part in enumerate(panels):
        if i == 0 or not beside:
            _switches(grid[0 if beside else i, 0], matrix)
        _heat(grid[0, i + 1] if beside else grid[i, 1], matrix, part)
    figure.align_xlabels()
    return figure


def _switches(axes: Axes, matrix: Matrix) -> None:
    """One circle per adapter and subset, filled where the adapter is active."""
    for x, adapter in enumerate(matrix.adapters):
        for y, subset in enumerate(matrix.subsets):
            is_on = adapter in subset
            axes.plot(
                x, y, "o", markersize=7, markeredgewidth=1, markeredgecolor=INK if is_on else LINK,
                markerfacecolor=INK if is_on else SURFACE,
            )  # fmt: skip
    axes.set_ylabel("active adapters")
    _named_columns(axes, matrix.adapters, len(matrix.subsets), "adapter")


def _heat(axes: Axes, matrix: Matrix, part: Part) -> None:
    """One cell per subset and set: its figure on a colour of that strength."""
    for y in range(len(matrix.subsets)):
        for x in range(len(matrix.sets)):
            alpha = 0.75 * part.strength(y, x)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=BEFORE, alpha=alpha, linewidth=0))
            axes.text(x, y, part.text(y, x), ha="center", va="center", fontsize=9)
    axes.set_title(part.label, fontsize=9.5, loc="left")
    axes.set_ylabel("")
    _named_columns(axes, matrix.sets, len(matrix.subsets), "forget set")


def _named_columns(axes: Axes, names: Sequence[str], n_rows: int, label: str) -> None:
    axes.grid(False)
    axes.set_xlim(-0.5, max(len(names), 1) - 0.5)
    axes.set_ylim(n_rows - 0.5, -0.5)
    labels = short_names(names)
    slanted = {"rotation": 40, "ha": "right"} if max(map(len, labels), default=0) <= 12 else {"rotation": 90}
    axes.set_xticks(range(len(names)), labels, **slanted)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(label)
