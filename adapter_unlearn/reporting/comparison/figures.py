"""The figures of a comparison: forgetting against cost. Report and PNG files come from one table."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_unlearn.evaluation.closeness import pareto_front
from adapter_unlearn.reporting import form_names, labels
from adapter_unlearn.reporting.images import Picture
from adapter_unlearn.reporting.page import title_and_caption
from adapter_unlearn.reporting.style import AFTER, MUTED, SURFACE, UNSEEN, log_axis, new_figure, short_names, styled

LABELS = {"failing": "failing\nsequences", "auc_loss_distance": "AUC of loss,\ndistance from 0.5"}
"""Measures of forgetting, and how an axis names them."""
FIGURES = {"pareto": "failing", "pareto_auc": "auc_loss_distance"}
"""Kinds of figures, and what they show against cost. Their titles and captions are in captions.j2."""


def pictures(rows: pd.DataFrame) -> list[Picture]:
    """Draw every figure for every form of Comparison.rows that has data for it."""
    drawn, forms = [], form_names.after(rows["form"])
    for form in forms:
        one = rows[rows["form"] == form]
        costs = one[["holdout_perplexity_change", "test_perplexity_change"]].to_numpy(float)
        for name, column in FIGURES.items():
            if np.isfinite(costs).any() and np.isfinite(one[column]).any():
                words = title_and_caption("comparison/captions.j2", name, form=form, several=len(forms) > 1)
                drawn.append(Picture(f"{name}_{form}", *words, pareto_figure(one, column)))
    return drawn


@styled
def pareto_figure(rows: pd.DataFrame, forgetting: str = "failing") -> Figure:
    """What methods forget against what it costs, one panel per kind of text; a line marks the front.

    Args:
        rows: those of one form in Comparison.rows.
        forgetting: the column on the y axis, one of LABELS.
    """
    costs = [
        (f"{name}_perplexity_change", label)
        for name, label in (("holdout", "holdout set"), ("test", "test set"))
        if np.isfinite(rows[f"{name}_perplexity_change"]).any()
    ]
    n_panels = max(len(costs), 1)
    figure, grid = new_figure(2.75 * n_panels, n_panels, shared=False, grid="both")
    drawn = []
    for axes, (column, label) in zip(grid, costs):
        points = rows[np.isfinite(rows[column]) & np.isfinite(rows[forgetting])]
        drawn.append((points, column, _trade(axes, points, column, forgetting)))
        axes.set_xlabel(f"perplexity against the base, {label}")
        axes.set_ylabel(LABELS[forgetting])
    figure.align_ylabels()
    figure.draw_without_rendering()  # the layout must be final before labels are placed
    figure.set_layout_engine("none")
    for axes, (points, column, lines) in zip(grid, drawn):
        x, y = 1 + points[column].to_numpy(float), points[forgetting].to_numpy(float)
        _name_points(axes, points["method"], x, y, lines)
    return figure


def _trade(axes: Axes, points: pd.DataFrame, column: str, forgetting: str) -> list[np.ndarray]:
    """Draw dots, filled on the front and hollow elsewhere, and thin lines over the range of several seeds.

    Returns:
        The corners of every line drawn, each of shape (m, 2).
    """
    x, y = 1 + points[column].to_numpy(float), points[forgetting].to_numpy(float)
    axes.axvline(1, color=MUTED, linestyle=":", zorder=1)
    _limits(axes, x, y, forgetting)
    lines = []
    for ends, shift in ((column, 1.0), (forgetting, 0.0)):
        low, high = (shift + points[f"{ends}_seeds_{end}"].to_numpy(float) for end in ("min", "max"))
        for start, stop, across, up in zip(low, high, x, y):
            if start < stop:
                lines.append(
                    np.array([[start, up], [stop, up]] if ends == column else [[across, start], [across, stop]])
                )
                axes.plot(lines[-1][:, 0], lines[-1][:, 1], color=MUTED, linewidth=0.9, zorder=2)
    front = pareto_front(x, y)
    order = np.argsort(x[front], kind="stable")
    over, down = x[front][order], y[front][order]
    (_, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    lines.append(np.column_stack([np.append(np.repeat(over, 2), right), np.append(top, np.repeat(down, 2))]))
    axes.plot(lines[-1][:, 0], lines[-1][:, 1], color=AFTER, linewidth=1.2, zorder=2)
    for chosen, fill, edge in ((front, AFTER, AFTER), (~front, SURFACE, UNSEEN)):
        if chosen.any():  # for the layout, an empty line is a dot far outside
            dots: dict[str, Any] = {"markersize": 6, "markerfacecolor": fill, "markeredgecolor": edge, "clip_on": False}
            axes.plot(x[chosen], y[chosen], "o", zorder=3, **dots)
    return lines


def _limits(axes: Axes, x: np.ndarray, y: np.ndarray, forgetting: str) -> None:
    """Leave space for the names of the points; a logarithmic axis where a broken model would flatten the others."""
    least, most = min(1.0, x.min()), max(1.005, x.max())
    if most > 3:
        log_axis(axes, "x", least, most, unit="× ")
        margin = (most / least) ** 0.18
        axes.set_xlim(least / margin**0.5, most * margin)
    else:
        margin = most - least
        axes.set_xlim(least - 0.12 * margin, most + 0.25 * margin)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: f"× {value:,.4g}")
    top = max(float(y.max()), 1 if forgetting == "failing" else 0.05)
    axes.set_ylim(-0.06 * top, 1.18 * top)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=forgetting == "failing"))


def _name_points(axes: Axes, names: Iterable[str], x: np.ndarray, y: np.ndarray, lines: list[np.ndarray]) -> None:
    """Put each point's name beside it, with a leader line if it had to go further away."""
    texts = [axes.text(0, 0, name, fontsize=9, zorder=4) for name in short_names(names, 22)]
    boxes = [text.get_window_extent() for text in texts]
    points = axes.transData.transform(np.column_stack([x, y]))
    area, gap = axes.get_window_extent(), 6.0 * axes.figure.dpi / 72
    sizes = np.array([[box.width, box.height] for box in boxes])
    places = labels.place(
        points, sizes, (area.x0, area.y0, area.x1, area.y1), gap, [axes.transData.transform(line) for line in lines]
    )
    back = axes.transData.inverted()
    for text, point, box in zip(texts, points, places):
        left, bottom = back.transform(box[:2])
        text.set_position((float(left), float(bottom)))
        text.set_verticalalignment("bottom")
        end = labels.nearest(point, box)
        if np.hypot(*(np.array(end) - point)) > 1.8 * gap:
            lead = back.transform(np.array([point, end]))
            axes.plot(lead[:, 0], lead[:, 1], color=MUTED, linewidth=0.7, zorder=2)
