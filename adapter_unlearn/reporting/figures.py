"""The figures people want, as matplotlib Figures: no pyplot, no display, no global state left behind.

Small on purpose (4.8 inches): shown 370 pixels wide on a phone their 9-point letters are still read. Before and after
differ by marker and place as well as by colour, and the colours, after Okabe and Ito, are told apart by everybody.
"""

import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from adapter_unlearn.evaluation.closeness import pareto_front
from adapter_unlearn.reporting import forms, interference, labels
from adapter_unlearn.reporting.formatting import accuracy, clean, count, number, shorten

INK, MUTED, GRID, LINK, SURFACE = "#22262b", "#5b6470", "#dde1e6", "#cfd4da", "#fefefe"
BEFORE, AFTER, UNSEEN, BAND = "#c9510c", "#0b6fb5", "#6d7680", "#e6e9ec"
GREEN, PURPLE, OCHRE = "#0a7a5a", "#94497f", "#8a6a00"
FORM_MARKS = ((AFTER, "o"), (GREEN, "s"), (PURPLE, "^"), (OCHRE, "D"), (INK, "v"))
_STYLES = ("-", "-.", ":", "-", "-.")
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
def histogram_figure(sequences: pd.DataFrame, holdout: pd.DataFrame, band: Band = None) -> Figure:
    """How MA is spread: the forget set before, then in each form, then never-seen text, one above the other."""
    panels = []
    names = forms.ordered(sequences["form"])
    for form in names:
        label = f"forget set {forms.heading(form, names)}"
        panels.append((label, BEFORE if form == forms.BASE else AFTER, forms.values(sequences, form)))
    unseen = forms.values(holdout, forms.BASE)
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
    """The run epoch by epoch in panels that share the epoch axis: MA, how many sequences are left, perplexity.

    Where there are several stages, a line stands between one and the next, and the axis names their epochs.
    """
    spans = stage_spans(train_log)
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
        for _, first, _ in spans[1:]:
            axes.axvline(first - 0.5, color=LINK, linewidth=1.5, zorder=1)
        if kept_epoch is not None:
            axes.axvline(kept_epoch, color=MUTED, linestyle=":", zorder=1, label="kept" if axes is grid[1] else None)
        _legend_above(axes)
    grid[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    told = ", ".join(f"{first} to {last} {name}" if first < last else f"{first} {name}" for name, first, last in spans)
    named = "\n".join(textwrap.wrap(told, 52)) if len(spans) > 1 else ""
    grid[-1].set_xlabel(f"epoch (0: before unlearning)\n{named}".strip())
    figure.align_ylabels()
    return figure


def stage_spans(train_log: Sequence[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """The stages of a run in their order, each with its first and last epoch; the base belongs to none."""
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


@_styled
def scales_figure(scales: Sequence[dict[str, Any]], band: Band = None, chosen: float | None = None) -> Figure:
    """What an adapter does at each scale it was measured at, in panels that share the axis of scales.

    Args:
        scales: records of a search, as scale_search.search gives them.
        band: where 90 % of never-seen text lies in MA.
        chosen: the scale that was taken; it is marked.
    """
    found = pd.DataFrame(list(scales))
    log = found.map(number).replace([np.inf, -np.inf], np.nan).sort_values("scale", ignore_index=True)
    # NaN and not False where nothing is known: only a scale that is said to be past the budget is drawn so
    past = log.loc[log.get("within_budget", pd.Series(np.nan, index=log.index)) == 0, "scale"]
    has_perplexity = "validation_perplexity" in log and log["validation_perplexity"].notna().any()
    figure, grid = _figure(4.3 if has_perplexity else 3.2, rows=3 if has_perplexity else 2)
    lines = [
        (grid[0], "memorization_accuracy_max", "highest", INK, "-"),
        (grid[0], "memorization_accuracy_mean", "mean", AFTER, "--"),
        (grid[1], "outliers_high", "outliers, high", INK, "-"),
        (grid[1], "outliers_low_new", "newly low", AFTER, "--"),
        (grid[1], "extractable", "recited", BEFORE, ":"),
    ]
    _shade(grid[0], band, label="never-seen text")
    grid[0].set_ylim(0, 1.05)
    grid[0].set_ylabel("memorization\naccuracy")
    grid[1].set_ylabel("sequences")
    grid[1].yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if has_perplexity:
        lines.append((grid[2], "validation_perplexity", "", INK, "-"))
        grid[2].set_ylabel("validation\nperplexity")
        perplexities = log["validation_perplexity"].dropna()
        if perplexities.max() > 2 * perplexities.min() > 0:  # one ruined model must not flatten all the others
            _log_axis(grid[2], perplexities)
    for axes, column, label, colour, style in lines:
        _line(axes, log, column, label or None, colour, style, by="scale", hollow=past)
    grid[1].set_ylim(bottom=0)
    for axes in grid:
        if chosen is not None:
            axes.axvline(chosen, color=MUTED, linestyle=":", zorder=1)
        if len(past) and has_perplexity and axes is grid[-1]:
            open_dot = {"marker": "o", "markersize": 4, "markerfacecolor": SURFACE, "markeredgecolor": INK}
            axes.plot([], [], linestyle="none", label="past the perplexity budget", **open_dot)
        _legend_above(axes)
    if len(log) and log["scale"].max() <= 0:
        grid[-1].invert_xaxis()  # from the base on, as a run is read
    grid[-1].xaxis.set_major_locator(MaxNLocator(7))
    told = "" if chosen is None else f"; dotted: chosen, {chosen:g}"
    grid[-1].set_xlabel(f"scale of the adapter (0: without it{told})")
    figure.align_ylabels()
    return figure


def _log_axis(axes: Axes, found: "pd.Series[float]") -> None:
    """A logarithmic y axis with a few plain numbers on it, however narrow or wide the span of what is drawn."""
    axes.set_yscale("log")
    wide = found.max() > 50 * found.min()  # a locator with several ticks a decade gives none where decades are many
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if found.max() > 1e6 * found.min():  # how far beyond is all the same, and out of the picture
        axes.set_ylim(0.5 * found.min(), 1e6 * found.min())


def _legend_above(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        above = {"loc": "lower left", "bbox_to_anchor": (0, 0.96), "ncols": 3}
        axes.legend(**above, handlelength=1.8, columnspacing=1.4, borderpad=0)


def _line(
    axes: Axes,
    log: pd.DataFrame,
    column: str,
    label: str | None,
    colour: str,
    style: str,
    by: str = "epoch",
    hollow: "pd.Series[float] | None" = None,
) -> None:
    """One column over another; with dots where they are few, and hollow ones at the places named."""
    if column not in log:
        return
    points = log[[by, column]].dropna().astype(float)
    few = len(points) <= 15 or hollow is not None
    marks: dict[str, Any] = {"marker": "o", "markersize": 3} if few else {}
    axes.plot(points[by], points[column], color=colour, linestyle=style, label=label, zorder=3, **marks)
    if hollow is not None:
        points = points[points[by].isin(hollow)]
        open_dots: dict[str, Any] = {
            "marker": "o",
            "markersize": 4,
            "markerfacecolor": SURFACE,
            "markeredgecolor": colour,
        }
        axes.plot(points[by], points[column], linestyle="none", zorder=4, **open_dots)


@_styled
def prefixes_figure(curves: pd.DataFrame) -> Figure:
    """Over the length of the prefix: how many sequences are recited to the end, and the longest stretch recited.

    `curves` as in Report: prefixes that leave too few tokens to judge are not in it.
    """
    names = forms.ordered(curves["form"])
    figure, (recited, stretch) = _figure(3.6, rows=2)
    once = curves.drop_duplicates("prefix_tokens").sort_values("prefix_tokens")
    recited.fill_between(
        once["prefix_tokens"], once["n_sequences"], step="mid", color=BAND, linewidth=0, label="long enough"
    )
    marks = itertools.cycle((colour, style) for (colour, _), style in zip(FORM_MARKS, _STYLES, strict=True))
    for name, (colour, style) in zip(names, _with_base(names, marks), strict=True):
        one = curves[curves["form"] == name].sort_values("prefix_tokens")
        drawn: dict[str, Any] = {"color": colour, "linestyle": style, "zorder": 3, "clip_on": False}
        label = forms.heading(name, names)
        recited.plot(one["prefix_tokens"], one["extractable"], label=label, **drawn)
        stretch.plot(one["prefix_tokens"], one["recited_max"], **drawn)
    recited.set_ylabel("sequences recited\nto the end")
    stretch.set_ylabel("longest stretch\nrecited (tokens)")
    for axes in (recited, stretch):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    stretch.set_xlabel("tokens of the prefix")
    stretch.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.4, borderaxespad=0.1)
    figure.align_ylabels()
    return figure


def _with_base(names: Sequence[str], marks: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """A colour and line style a form; before is always drawn as it is in every other figure."""
    return [(BEFORE, "--") if name == forms.BASE else next(marks) for name in names]


@_styled
def deltas_figure(deltas: pd.DataFrame) -> Figure:
    """Module by module from the first layer to the last: the delta's size, and how much of it arrives in each form."""
    modules = by_depth(deltas["module"])
    place = {module: i + 1 for i, module in enumerate(modules)}
    names = forms.ordered(deltas["form"])
    figure, (sizes, shares) = _figure(3.4, rows=2)
    dot = float(np.clip(30 / np.sqrt(max(len(modules), 1)), 1.8, 4.5))
    # the size is the adapter's and the original weights', so it is the same in every form
    once = deltas.drop_duplicates("module")
    sizes.plot(once["module"].map(place), once["relative_size"], "o", color=INK, markersize=dot, zorder=3)
    sizes.set_ylabel("delta's size\n/ weights' size")
    if (once["relative_size"] > 0).any():
        _log_axis(sizes, once["relative_size"][once["relative_size"] > 0])
    shares.axhline(1, color=MUTED, linewidth=1, zorder=1)
    for name, (colour, marker) in zip(names, itertools.cycle(FORM_MARKS), strict=False):
        one = deltas[deltas["form"] == name]
        drawn: dict[str, Any] = {"color": colour, "marker": marker, "markersize": dot, "linestyle": "none"}
        shares.plot(one["module"].map(place), one["projection"], label=forms.title(name), zorder=3, **drawn)
    shares.set_ylabel("share that\narrives")
    arrived = deltas["projection"].dropna()
    shares.set_ylim(min([0.0, *(1.1 * arrived)]), max([1.15, *(1.1 * arrived)]))
    marks = {"handletextpad": 0.3, "columnspacing": 1.2, "borderaxespad": 0.1, "markerscale": max(1.0, 4 / dot)}
    figure.legend(loc="outside upper left", ncols=3 if len(names) <= 3 else 2, **marks)
    starts: dict[int | None, int] = {}
    for module in modules:
        starts.setdefault(_layer(module), place[module])
    layers = [(layer, start) for layer, start in starts.items() if layer is not None]
    step = max(1, -(-len(layers) // 10))
    shares.set_xticks([start for _, start in layers[::step]], [str(layer) for layer, _ in layers[::step]])
    shares.set_xlabel("module, by layer" if layers else "module")
    figure.align_ylabels()
    return figure


def by_depth(modules: Iterable[str]) -> list[str]:
    """Module names from input to output: embeddings, the layers by number, the head; within a layer as given."""
    depth = {module: _layer(module) for module in map(str, modules)}

    def key(module: str) -> tuple[int, int]:
        layer = depth[module]
        if layer is not None:
            return 1, layer
        return (2 if module.rsplit(".")[-1] in ("lm_head", "embed_out", "score") else 0), 0

    return sorted(depth, key=key)


def _layer(module: str) -> int | None:
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    return int(found[1]) if found else None


@_styled
def interference_figure(rows: pd.DataFrame) -> Figure:
    """Every subset of adapters, a line each: how much of every forget set is recited, and its mean MA.

    Left, filled circles say which adapters are on; right of them a cell a forget set, the darker the more recited.
    `rows` as for write.interference.
    """
    matrix = interference.matrix(rows)
    panels = [
        ("recited", matrix.extractable, matrix.share, count),
        ("mean accuracy", matrix.accuracy, matrix.accuracy, accuracy),
    ]
    k, n = len(matrix.adapters), len(matrix.sets)
    beside = k + 2 * n <= 10
    longest = max(map(len, _labels([*matrix.adapters, *matrix.sets])), default=0)
    figure = Figure(
        figsize=(WIDTH, (0.27 * len(matrix.subsets) + 0.09 * longest + 0.9) * (1 if beside else 2)),
        layout="constrained",
    )
    columns = [0.65 * max(k, 1), 0.8 * n, n] if beside else [0.65 * max(k, 1), n]
    grid = figure.subplots(1 if beside else 2, len(columns), squeeze=False, width_ratios=columns)
    for i, (name, cells, heat, show) in enumerate(panels):
        if i == 0 or not beside:
            _switches(grid[0 if beside else i, 0], matrix)
        _heat(grid[0, i + 1] if beside else grid[i, 1], name, matrix, cells, heat, show)
    figure.align_xlabels()
    return figure


def _switches(axes: Axes, matrix: "interference.Matrix") -> None:
    """A circle an adapter and subset, filled where it is on."""
    for x, adapter in enumerate(matrix.adapters):
        for y, subset in enumerate(matrix.subsets):
            is_on = adapter in subset
            axes.plot(
                x, y, "o", markersize=7, markeredgewidth=1, markeredgecolor=INK if is_on else LINK,
                markerfacecolor=INK if is_on else SURFACE,
            )  # fmt: skip
    axes.set_ylabel("which adapters are on")
    _named_columns(axes, matrix.adapters, len(matrix.subsets), "adapter")


def _heat(
    axes: Axes, name: str, matrix: "interference.Matrix", cells: pd.DataFrame, heat: pd.DataFrame, show: Any
) -> None:
    for y in range(len(matrix.subsets)):
        for x in range(len(matrix.sets)):
            part = number(heat.iat[y, x])
            strength = 0.0 if part is None else 0.75 * min(max(part, 0.0), 1.0)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=BEFORE, alpha=strength, linewidth=0))
            axes.text(x, y, show(cells.iat[y, x]), ha="center", va="center", fontsize=9)
    axes.set_title(name, fontsize=9.5, loc="left")
    axes.set_ylabel("")
    _named_columns(axes, matrix.sets, len(matrix.subsets), "forget set")


def _named_columns(axes: Axes, names: Sequence[str], n_rows: int, label: str) -> None:
    axes.grid(False)
    axes.set_xlim(-0.5, max(len(names), 1) - 0.5)
    axes.set_ylim(n_rows - 0.5, -0.5)
    labels = _labels(names)
    slanted = {"rotation": 40, "ha": "right"} if max(map(len, labels), default=0) <= 12 else {"rotation": 90}
    axes.set_xticks(range(len(names)), labels, **slanted)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(label)


def _labels(names: Sequence[str]) -> list[str]:
    return [shorten(clean(name), 24) for name in names]


PARETO = {
    "failing": "sequences unlike\nnever-seen text",
    "auc_loss_distance": "AUC of loss,\ndistance from 0.5",
}


@_styled
def pareto_figure(rows: pd.DataFrame, forgetting: str = "failing") -> Figure:
    """What methods forget against what it costs, a panel a kind of text; best is below and left, the front a line.

    Args:
        rows: of Comparison.rows, those of one form.
        forgetting: the column of the upright axis, one of PARETO.
    """
    costs = [
        (f"{name}_perplexity_change", label)
        for name, label in (("holdout", "neighbourhood"), ("test", "general text, test"))
        if np.isfinite(rows[f"{name}_perplexity_change"]).any()
    ]
    figure = Figure(figsize=(WIDTH, 2.75 * max(len(costs), 1)), layout="constrained")
    grid = figure.subplots(max(len(costs), 1), 1, squeeze=False)[:, 0]
    drawn = []
    for axes, (column, label) in zip(grid, costs):
        points = rows[np.isfinite(rows[column]) & np.isfinite(rows[forgetting])]
        drawn.append((points, column, _trade(axes, points, column, forgetting)))
        axes.set_xlabel(f"perplexity against the base, {label}")
        axes.set_ylabel(PARETO[forgetting])
    figure.align_ylabels()
    figure.draw_without_rendering()  # the layout must be settled before names find their places
    figure.set_layout_engine("none")
    for axes, (points, column, lines) in zip(grid, drawn):
        x, y = 1 + points[column].to_numpy(float), points[forgetting].to_numpy(float)
        _name_points(axes, points["method"], x, y, lines)
    return figure


def _trade(axes: Axes, points: pd.DataFrame, column: str, forgetting: str) -> list[np.ndarray]:
    """Dots, filled on the front and hollow off it; thin lines from the least to the greatest of several seeds.

    Returns the corners of every line that was drawn, each of shape (m, 2).
    """
    x, y = 1 + points[column].to_numpy(float), points[forgetting].to_numpy(float)
    axes.grid(True, color=GRID, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=3)
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
        if chosen.any():  # the layout takes an empty line for a dot far outside
            dots: dict[str, Any] = {"markersize": 6, "markerfacecolor": fill, "markeredgecolor": edge, "clip_on": False}
            axes.plot(x[chosen], y[chosen], "o", zorder=3, **dots)
    return lines


def _limits(axes: Axes, x: np.ndarray, y: np.ndarray, forgetting: str) -> None:
    """Room around the points for their names; a logarithmic axis where one ruined model would flatten the others."""
    least, most = min(1.0, x.min()), max(1.005, x.max())
    if most > 3:
        axes.set_xscale("log")
        room = (most / least) ** 0.18
        axes.set_xlim(least / room**0.5, most * room)
        wide = most > 50 * least
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = most - least
        axes.set_xlim(least - 0.12 * room, most + 0.25 * room)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"× {value:,.4g}")
    top = max(float(y.max()), 1 if forgetting == "failing" else 0.05)
    axes.set_ylim(-0.06 * top, 1.18 * top)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=forgetting == "failing"))


def _name_points(axes: Axes, names: Iterable[str], x: np.ndarray, y: np.ndarray, lines: list[np.ndarray]) -> None:
    """Each point's name beside it, with a line where there was no room next to it."""
    shown = [shorten(clean(name), 22) for name in names]
    texts = [axes.text(0, 0, name, fontsize=9, zorder=4) for name in shown]
    boxes = [text.get_window_extent() for text in texts]
    points = axes.transData.transform(np.column_stack([x, y]))
    area, gap = axes.get_window_extent(), 6.0 * axes.figure.dpi / 72
    sizes = np.array([[box.width, box.height] for box in boxes])
    found = labels.place(
        points, sizes, (area.x0, area.y0, area.x1, area.y1), gap, [axes.transData.transform(line) for line in lines]
    )
    back = axes.transData.inverted()
    for text, point, box in zip(texts, points, found):
        left, bottom = back.transform(box[:2])
        text.set_position((float(left), float(bottom)))
        text.set_verticalalignment("bottom")
        end = labels.nearest(point, box)
        if np.hypot(*(np.array(end) - point)) > 1.8 * gap:
            lead = back.transform(np.array([point, end]))
            axes.plot(lead[:, 0], lead[:, 1], color=MUTED, linewidth=0.7, zorder=2)


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
    holdout: pd.DataFrame,
    summary: dict[str, Any],
    train_log: Sequence[dict[str, Any]] = (),
    kept_epoch: int | None = None,
    scales: Sequence[dict[str, Any]] = (),
    chosen_scale: float | None = None,
    deltas: pd.DataFrame | None = None,
    curves: pd.DataFrame | None = None,
) -> dict[str, Figure]:
    """Every figure the results give, by the name of its file, in the order of the report."""
    band = forms.holdout_band(holdout) or forms.summary_band(summary)
    made = forms.after(sequences["form"]) or [forms.BASE]
    figures = {f"memorization_{form}": memorization_figure(sequences, band, form) for form in made}
    figures["histogram"] = histogram_figure(sequences, holdout, band)
    if curves is not None and len(curves):
        figures["prefixes"] = prefixes_figure(curves)
    if train_log:
        figures["epochs"] = epochs_figure(train_log, band, kept_epoch)
    if scales:
        figures["scales"] = scales_figure(scales, band, chosen_scale)
    if deltas is not None and len(deltas):
        figures["deltas"] = deltas_figure(deltas)
    return figures


def comparison_figures(rows: pd.DataFrame) -> dict[str, Figure]:
    """Forgetting against cost for every form of Comparison.rows, told by counts and, where there is one, by AUC."""
    figures = {}
    for form in forms.after(rows["form"]):
        one = rows[rows["form"] == form]
        for forgetting in PARETO:
            costs = one[["holdout_perplexity_change", "test_perplexity_change"]].to_numpy(float)
            if np.isfinite(costs).any() and np.isfinite(one[forgetting]).any():
                name = "pareto" if forgetting == "failing" else "pareto_auc"
                figures[f"{name}_{form}"] = pareto_figure(one, forgetting)
    return figures
