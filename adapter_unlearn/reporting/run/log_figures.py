"""Figures of a run's course: epoch by epoch, and the adapter at every scale that was measured."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_unlearn.reporting import style
from adapter_unlearn.reporting.formatting import clean, number
from adapter_unlearn.reporting.frames import Band
from adapter_unlearn.reporting.style import AFTER, BEFORE, INK, LINK, MUTED, SURFACE

_Counts = Sequence[tuple[str, str, str, str]]
"""Lines of the panel of sequences: column, label, colour, line style."""
_EPOCH_COUNTS = (("n_selected", "selected", INK, "-"), ("extractable", "recited", BEFORE, "--"))
_SCALE_COUNTS = (
    ("outliers_high", "outliers, high", INK, "-"),
    ("outliers_low_new", "new low", AFTER, "--"),
    ("extractable", "recited", BEFORE, ":"),
)


@style.styled
def epochs_figure(train_log: Sequence[dict[str, Any]], band: Band = None, kept_epoch: int | None = None) -> Figure:
    """The run by epoch: memorization accuracy, numbers of sequences, and validation perplexity if it was measured.

    With several stages, vertical lines separate them and the axis label names them.

    Args:
        train_log: one record per epoch.
        band: the range of never-seen text.
        kept_epoch: the epoch whose adapter was kept; it is marked.
    """
    spans = stage_spans(train_log)
    log = pd.DataFrame(list(train_log)).map(number) if train_log else pd.DataFrame({"epoch": []})
    figure, grid = _panels(log, "epoch", band, _EPOCH_COUNTS)
    for axes in grid:
        for _, first, _ in spans[1:]:
            axes.axvline(first - 0.5, color=LINK, linewidth=1.5, zorder=1)
        if kept_epoch is not None:
            axes.axvline(kept_epoch, color=MUTED, linestyle=":", zorder=1, label="kept" if axes is grid[1] else None)
        style.legend_above(axes)
    grid[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    stages = [f"{first} to {last} {name}" if first < last else f"{first} {name}" for name, first, last in spans]
    named = "\n".join(textwrap.wrap(", ".join(stages), 52)) if len(spans) > 1 else ""
    grid[-1].set_xlabel(f"epoch (0: before unlearning)\n{named}".strip())
    return figure


def stage_spans(train_log: Sequence[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """The stages of a run in order, each with its first and last epoch. Epoch 0, the base, belongs to none."""
    spans: list[tuple[str, int, int]] = []
    for record in train_log:
        name, epoch = record.get("stage"), number(record.get("epoch"))
        if not name or epoch is None:
            continue
        if spans and spans[-1][0] == clean(name):
            spans[-1] = (spans[-1][0], spans[-1][1], int(epoch))
        else:
            spans.append((clean(name), int(epoch), int(epoch)))
    return spans


@style.styled
def scales_figure(scales: Sequence[dict[str, Any]], band: Band = None, chosen: float | None = None) -> Figure:
    """The adapter at every scale that was measured: memorization accuracy, numbers of sequences, and perplexity.

    Args:
        scales: one record per scale, as returned by scale_search.search.
        band: the range of never-seen text.
        chosen: the scale that was chosen; it is marked.
    """
    log = pd.DataFrame(list(scales)).map(number).replace([np.inf, -np.inf], np.nan)
    log = log.sort_values("scale", ignore_index=True)
    # NaN where it is unknown whether a scale is within the budget: such a scale is drawn filled
    over = log.loc[log.get("within_budget", pd.Series(np.nan, index=log.index)) == 0, "scale"]
    figure, grid = _panels(log, "scale", band, _SCALE_COUNTS, hollow=over)
    if len(grid) == 3:
        perplexities = log["validation_perplexity"].dropna()
        if perplexities.max() > 2 * perplexities.min() > 0:  # a broken model must not flatten the others
            style.log_axis(grid[2], "y", perplexities.min(), perplexities.max())
        if len(over):
            grid[2].plot([], [], linestyle="none", label="over the perplexity budget", **_hollow(INK))
    for axes in grid:
        if chosen is not None:
            axes.axvline(chosen, color=MUTED, linestyle=":", zorder=1)
        style.legend_above(axes)
    if len(log) and log["scale"].max() <= 0:
        grid[-1].invert_xaxis()  # so that the base comes first
    grid[-1].xaxis.set_major_locator(MaxNLocator(7))
    mark = "" if chosen is None else f"; dotted: chosen, {chosen:g}"
    grid[-1].set_xlabel(f"scale of the adapter (0: without it{mark})")
    return figure


def _panels(
    log: pd.DataFrame, by: str, band: Band, counts: _Counts, hollow: "pd.Series[float] | None" = None
) -> tuple[Figure, Any]:
    """Panels that share the x axis `by`: memorization accuracy, numbers of sequences, and perplexity if measured."""
    has_perplexity = "validation_perplexity" in log and log["validation_perplexity"].notna().any()
    figure, grid = style.new_figure(4.1 if has_perplexity else 3.1, rows=3 if has_perplexity else 2)
    lines = [
        (grid[0], "memorization_accuracy_max", "highest", INK, "-"),
        (grid[0], "memorization_accuracy_mean", "mean", AFTER, "--"),
        *((grid[1], *count) for count in counts),
        *([(grid[2], "validation_perplexity", "", INK, "-")] if has_perplexity else []),
    ]
    style.shade(grid[0], band, label="never-seen text")
    for axes, column, label, colour, line in lines:
        if column in log:
            _line(axes, log[[by, column]].dropna().astype(float), hollow, label=label or None, color=colour, ls=line)
    for axes, label in zip(grid, ("memorization\naccuracy", "sequences", "validation\nperplexity"), strict=False):
        axes.set_ylabel(label)
    grid[0].set_ylim(0, 1.05)
    grid[1].set_ylim(bottom=0)
    grid[1].yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if has_perplexity:
        grid[2].yaxis.set_major_locator(MaxNLocator(4))
    figure.align_ylabels()
    return figure, grid


def _line(axes: Axes, points: pd.DataFrame, hollow: "pd.Series[float] | None", **look: Any) -> None:
    """Draw the second column over the first, with dots if there are few, and hollow dots at the x values `hollow`."""
    x, y = (points.iloc[:, i] for i in (0, 1))
    few = len(points) <= 15 or hollow is not None
    axes.plot(x, y, zorder=3, marker="o" if few else "", markersize=3, **look)
    if hollow is not None:
        axes.plot(x[x.isin(hollow)], y[x.isin(hollow)], linestyle="none", zorder=4, **_hollow(look["color"]))


def _hollow(colour: str) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4, "markerfacecolor": SURFACE, "markeredgecolor": colour}
