"""The figures people want, as matplotlib Figures: no pyplot, no display, no global state left behind.

Small on purpose (4.8 inches): shown 370 pixels wide on a phone their 9-point letters are still read. Before and after
differ by marker and place as well as by colour, and the colours, after Okabe and Ito, are told apart by everybody.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_unlearn.reporting import forms
from adapter_unlearn.reporting.formatting import number

INK, MUTED, GRID, LINK, SURFACE = "#22262b", "#5b6470", "#dde1e6", "#cfd4da", "#fefefe"
BEFORE, AFTER, UNSEEN, BAND = "#c9510c", "#0b6fb5", "#6d7680", "#e6e9ec"
WIDTH = 4.8
MAX_DRAWN = 2000
MAX_CONNECTED = 300
_STYLE = {
    "text.usetex": False,
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "figure.facecolor": SURFACE,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.5,
    "path.simplify": False,
}
Band = tuple[float, float] | None


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in our style whatever the user's matplotlibrc says, and leave the settings as they were."""

    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return styled


@_styled
def memorization_figure(sequences: pd.DataFrame, band: Band = None, form: str | None = None) -> Figure:
    """MA of every sequence, before → after, most memorized first, against the band of never-seen text."""
    names = forms.ordered(sequences["form"])
    chosen = form or next(iter(forms.after(names)), forms.BASE)
    table = forms.wide(sequences)
    missing = pd.Series(np.nan, index=table.index)
    before = table.get(("memorization_accuracy", forms.BASE), missing)
    now = missing if chosen == forms.BASE else table.get(("memorization_accuracy", chosen), missing)
    pairs = pd.DataFrame({"before": before, "after": now}).dropna(how="all")
    pairs = _thinned(pairs.sort_values(["before", "after"], ascending=False, ignore_index=True))
    rank = pairs.index.to_numpy() + 1.0
    size = float(np.clip(42 / np.sqrt(max(len(pairs), 1)), 1.6, 5.5))
    figure, axes = _figure(3.3)
    if pairs["before"].notna().any():
        _dots(axes, rank, pairs["before"], size, BEFORE, hollow=True, label=forms.heading(forms.BASE, names))
    if pairs["after"].notna().any():
        _dots(axes, rank, pairs["after"], size, AFTER, hollow=False, label=forms.heading(chosen, names))
    if len(pairs) <= MAX_CONNECTED:
        _connect(axes, pairs.dropna(), size)
    _shade(axes, band)
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
    """A line from before to after, all of them one path: a thousand lines must not be a thousand elements."""
    x = np.repeat(pairs.index.to_numpy() + 1.0, 3)
    y = np.column_stack([pairs["before"], pairs["after"], np.full(len(pairs), np.nan)]).ravel()
    axes.plot(x, y, color=LINK, linewidth=min(1.5, size / 3), zorder=1)


def _dots(axes: Axes, x: Any, y: "pd.Series[float]", size: float, colour: str, *, hollow: bool, label: str) -> None:
    axes.plot(
        x,
        y,
        linestyle="none",
        marker="o",
        markersize=size,
        markerfacecolor=SURFACE if hollow else colour,
        markeredgecolor=colour,
        markeredgewidth=min(1.1, size / 3),
        label=label,
        zorder=3,
    )


def _thinned(pairs: pd.DataFrame) -> pd.DataFrame:
    """At most MAX_DRAWN rows: the worst after, whom no figure may hide, and an even sample of the others."""
    if len(pairs) <= MAX_DRAWN:
        return pairs
    worst = pairs["after"].fillna(pairs["before"]).nlargest(MAX_DRAWN // 4).index
    others = pairs.index.difference(worst)
    even = others[np.linspace(0, len(others) - 1, MAX_DRAWN - len(worst)).astype(int)]
    return pairs.loc[worst.union(even)]


@_styled
def histogram_figure(sequences: pd.DataFrame, reference: pd.DataFrame, band: Band = None) -> Figure:
    """How MA is spread: the forget set before, then in each form, then never-seen text, one above the other."""
    panels = []
    names = forms.ordered(sequences["form"])
    for form in names:
        label = f"forget set {forms.heading(form, names)}"
        panels.append((label, BEFORE if form == forms.BASE else AFTER, forms.values(sequences, form)))
    unseen = forms.values(reference, forms.BASE)
    if not unseen.empty:
        panels.append(("never-seen text", UNSEEN, unseen))
    figure, grid = _figure(0.75 + 0.85 * len(panels), rows=max(len(panels), 1))
    edges = np.linspace(0, 1, 21)
    for axes, (name, colour, found) in zip(grid, panels, strict=False):
        _shade(axes, band, upright=True)
        counts, _ = np.histogram(found, bins=edges)
        axes.stairs(100 * counts / max(len(found), 1), edges, fill=True, color=colour, zorder=2)
        axes.text(0.99, 0.96, f"{name} ({len(found):,})", transform=axes.transAxes, ha="right", va="top")
        axes.set_ylabel("sequences\n(%)")
        axes.yaxis.set_major_locator(MaxNLocator(3))
    for axes in grid:
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.4 * max([10.0, *(float(a.dataLim.y1) for a in grid if np.isfinite(a.dataLim.y1))]))
    grid[-1].set_xlabel("memorization accuracy")
    figure.align_ylabels()
    return figure


@_styled
def epochs_figure(train_log: Sequence[dict[str, Any]], band: Band = None, kept_epoch: int | None = None) -> Figure:
    """The run epoch by epoch in panels that share the epoch axis: MA, how many sequences are left, perplexity."""
    log = pd.DataFrame(list(train_log)).map(number) if train_log else pd.DataFrame({"epoch": []})
    has_perplexity = "validation_perplexity" in log and log["validation_perplexity"].notna().any()
    figure, grid = _figure(3.9 if has_perplexity else 2.9, rows=3 if has_perplexity else 2)
    _shade(grid[0], band, label="never-seen text")
    _line(grid[0], log, "memorization_accuracy_max", "highest", INK, "-")
    _line(grid[0], log, "memorization_accuracy_mean", "mean", AFTER, "--")
    grid[0].set_ylim(0, 1.05)
    grid[0].set_ylabel("memorization\naccuracy")
    _line(grid[1], log, "n_selected", "selected", INK, "-")
    _line(grid[1], log, "extractable", "recited", BEFORE, "--")
    grid[1].set_ylim(bottom=0)
    grid[1].set_ylabel("sequences")
    grid[1].yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if has_perplexity:
        _line(grid[2], log, "validation_perplexity", None, INK, "-")
        grid[2].set_ylabel("validation\nperplexity")
        grid[2].yaxis.set_major_locator(MaxNLocator(4))
    for axes in grid:
        if kept_epoch is not None:
            axes.axvline(kept_epoch, color=MUTED, linestyle=":", zorder=1, label="kept" if axes is grid[1] else None)
        if axes.get_legend_handles_labels()[0]:
            above = {"loc": "lower left", "bbox_to_anchor": (0, 0.96), "ncols": 3}
            axes.legend(**above, handlelength=1.8, columnspacing=1.4, borderpad=0)
    grid[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    grid[-1].set_xlabel("epoch (0: before unlearning)")
    figure.align_ylabels()
    return figure


def _line(axes: Axes, log: pd.DataFrame, column: str, label: str | None, colour: str, style: str) -> None:
    if column not in log:
        return
    points = log[["epoch", column]].dropna().astype(float)
    marks: dict[str, Any] = {"marker": "o", "markersize": 3} if len(points) <= 15 else {}
    axes.plot(points["epoch"], points[column], color=colour, linestyle=style, label=label, zorder=3, **marks)


def _figure(height: float, rows: int | None = None) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(rows or 1, 1, sharex=True, squeeze=False)[:, 0]
    for axes in grid:
        axes.grid(True, axis="y", color=GRID, linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)
        axes.tick_params(length=3)
    return figure, grid[0] if rows is None else grid


def _shade(axes: Axes, band: Band, *, upright: bool = False, label: str = "90 % of never-seen text") -> None:
    """The band of never-seen text: lying where MA is the y axis, upright where it is the x axis."""
    if band is not None:
        span = axes.axvspan if upright else axes.axhspan
        span(*band, color=BAND, linewidth=0, zorder=0, label=label)


def all_figures(
    sequences: pd.DataFrame,
    reference: pd.DataFrame,
    summary: dict[str, Any],
    train_log: Sequence[dict[str, Any]] = (),
    kept_epoch: int | None = None,
) -> dict[str, Figure]:
    """Every figure the results give, by the name of its file, in the order of the report."""
    band = forms.reference_band(reference) or forms.summary_band(summary)
    made = forms.after(sequences["form"]) or [forms.BASE]
    figures = {f"memorization_{form}": memorization_figure(sequences, band, form) for form in made}
    figures["histogram"] = histogram_figure(sequences, reference, band)
    if train_log:
        figures["epochs"] = epochs_figure(train_log, band, kept_epoch)
    return figures
