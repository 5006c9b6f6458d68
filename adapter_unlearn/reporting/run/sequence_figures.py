"""Figures of all sequences: memorization accuracy before and after, and its distribution."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_unlearn.evaluation.summary import BASE
from adapter_unlearn.reporting import form_names, frames
from adapter_unlearn.reporting.frames import Band
from adapter_unlearn.reporting.style import AFTER, BEFORE, LINK, SURFACE, UNSEEN, new_figure, shade, styled

MAX_DRAWN = 2000
MAX_CONNECTED = 300


@styled
def memorization_figure(sequences: pd.DataFrame, band: Band = None, form: str | None = None) -> Figure:
    """Memorization accuracy of every sequence before and after, the most memorized first, with the never-seen range.

    Args:
        sequences: as in Report.
        band: the range of never-seen text.
        form: the form shown as `after`; the first one by default.
    """
    forms = form_names.ordered(sequences["form"])
    chosen = form or next(iter(form_names.after(forms)), BASE)
    table = frames.wide(sequences)
    missing = pd.Series(np.nan, index=table.index)
    before = table.get(("memorization_accuracy", BASE), missing)
    now = missing if chosen == BASE else table.get(("memorization_accuracy", chosen), missing)
    pairs = pd.DataFrame({"before": before, "after": now}).dropna(how="all")
    pairs = _thinned(pairs.sort_values(["before", "after"], ascending=False, ignore_index=True))
    rank = pairs.index.to_numpy() + 1.0
    size = float(np.clip(42 / np.sqrt(max(len(pairs), 1)), 1.6, 5.5))
    figure, axes = new_figure(3.3)
    if pairs["before"].notna().any():
        _dots(axes, rank, pairs["before"], size, BEFORE, hollow=True, label=form_names.heading(BASE, forms))
    if pairs["after"].notna().any():
        _dots(axes, rank, pairs["after"], size, AFTER, hollow=False, label=form_names.heading(chosen, forms))
    if len(pairs) <= MAX_CONNECTED:
        _connect(axes, pairs.dropna(), size)
    shade(axes, band)
    axes.set_ylim(-0.02, 1.03)
    margin = 0.5 + 0.015 * len(rank)
    axes.set_xlim(1 - margin, (rank[-1] if len(rank) else 1) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("sequence, by rank before unlearning")
    axes.set_ylabel("memorization accuracy")
    if len(pairs):
        marks = {"handletextpad": 0.4, "columnspacing": 1.4, "borderaxespad": 0.1}
        figure.legend(loc="outside upper left", ncols=3, markerscale=max(1.0, 4 / size), **marks)
    return figure


def _connect(axes: Axes, pairs: pd.DataFrame, size: float) -> None:
    """Connect before and after. All lines are one path, because a thousand SVG elements would be slow."""
    x = np.repeat(pairs.index.to_numpy() + 1.0, 3)
    y = np.column_stack([pairs["before"], pairs["after"], np.full(len(pairs), np.nan)]).ravel()
    axes.plot(x, y, color=LINK, linewidth=min(1.5, size / 3), zorder=1)


def _dots(axes: Axes, x: Any, y: "pd.Series[float]", size: float, colour: str, *, hollow: bool, label: str) -> None:
    axes.plot(
        x, y, linestyle="none", marker="o", markersize=size, markerfacecolor=SURFACE if hollow else colour,
        markeredgecolor=colour, markeredgewidth=min(1.1, size / 3), label=label, zorder=3,
    )  # fmt: skip


def _thinned(pairs: pd.DataFrame) -> pd.DataFrame:
    """At most MAX_DRAWN rows: the worst ones after unlearning and an even sample of the others."""
    if len(pairs) <= MAX_DRAWN:
        return pairs
    worst = pairs["after"].fillna(pairs["before"]).nlargest(MAX_DRAWN // 4).index
    others = pairs.index.difference(worst)
    even = others[np.linspace(0, len(others) - 1, MAX_DRAWN - len(worst)).astype(int)]
    return pairs.loc[worst.union(even)]


@styled
def histogram_figure(sequences: pd.DataFrame, holdout: pd.DataFrame, band: Band = None) -> Figure:
    """Histograms of memorization accuracy: the forget set in every form, and never-seen text."""
    panels = []
    forms = form_names.ordered(sequences["form"])
    for form in forms:
        label = f"forget set {form_names.heading(form, forms)}"
        panels.append((label, BEFORE if form == BASE else AFTER, frames.values(sequences, form)))
    unseen = frames.values(holdout, BASE)
    if not unseen.empty:
        panels.append(("never-seen text", UNSEEN, unseen))
    figure, grid = new_figure(0.75 + 0.85 * len(panels), rows=max(len(panels), 1))
    edges = np.linspace(0, 1, 21)
    for axes, (name, colour, accuracy) in zip(grid, panels, strict=False):
        shade(axes, band, upright=True)
        counts, _ = np.histogram(accuracy, bins=edges)
        axes.stairs(100 * counts / max(len(accuracy), 1), edges, fill=True, color=colour, zorder=2)
        axes.text(0.99, 0.96, f"{name} ({len(accuracy):,})", transform=axes.transAxes, ha="right", va="top")
        axes.set_ylabel("sequences\n(%)")
        axes.yaxis.set_major_locator(MaxNLocator(3))
    for axes in grid:
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.4 * max([10.0, *(float(a.dataLim.y1) for a in grid if np.isfinite(a.dataLim.y1))]))
    grid[-1].set_xlabel("memorization accuracy")
    figure.align_ylabels()
    return figure
