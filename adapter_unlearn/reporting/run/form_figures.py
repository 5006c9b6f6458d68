"""Figures that compare forms: recitation by prefix length, and what of the delta remains in the weights."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_unlearn.evaluation.summary import BASE
from adapter_unlearn.reporting import form_names
from adapter_unlearn.reporting.style import BAND, BEFORE, FORM_MARKS, INK, MUTED, log_axis, new_figure, styled

_LINES = ("-", "-.", ":", "-", "-.")


@styled
def prefixes_figure(curves: pd.DataFrame) -> Figure:
    """By prefix length: the number of sequences recited to the end, and the longest stretch recited.

    `curves` is that of Report. Prefixes that leave too few tokens to judge are not in it.
    """
    forms = form_names.ordered(curves["form"])
    figure, (recited, stretch) = new_figure(3.6, rows=2)
    once = curves.drop_duplicates("prefix_tokens").sort_values("prefix_tokens")
    recited.fill_between(
        once["prefix_tokens"], once["n_sequences"], step="mid", color=BAND, linewidth=0, label="long enough"
    )
    marks = itertools.cycle((colour, style) for (colour, _), style in zip(FORM_MARKS, _LINES, strict=True))
    for name in forms:
        colour, style = (BEFORE, "--") if name == BASE else next(marks)
        one = curves[curves["form"] == name].sort_values("prefix_tokens")
        drawn: dict[str, Any] = {"color": colour, "linestyle": style, "zorder": 3, "clip_on": False}
        label = form_names.heading(name, forms)
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


@styled
def deltas_figure(deltas: pd.DataFrame) -> Figure:
    """By module, from the first layer to the last: the delta's size, and the share that remains in each form."""
    modules = by_depth(deltas["module"])
    place = {module: i + 1 for i, module in enumerate(modules)}
    names = form_names.ordered(deltas["form"])
    figure, (sizes, shares) = new_figure(3.4, rows=2)
    dot = float(np.clip(30 / np.sqrt(max(len(modules), 1)), 1.8, 4.5))
    # relative to the original weights, so the size is the same in every form
    once = deltas.drop_duplicates("module")
    sizes.plot(once["module"].map(place), once["relative_size"], "o", color=INK, markersize=dot, zorder=3)
    sizes.set_ylabel("delta's size\n/ weights' size")
    positive = once.loc[once["relative_size"] > 0, "relative_size"]
    if len(positive):
        log_axis(sizes, "y", positive.min(), positive.max())
    shares.axhline(1, color=MUTED, linewidth=1, zorder=1)
    for name, (colour, marker) in zip(names, itertools.cycle(FORM_MARKS), strict=False):
        one = deltas[deltas["form"] == name]
        drawn: dict[str, Any] = {"color": colour, "marker": marker, "markersize": dot, "linestyle": "none"}
        shares.plot(one["module"].map(place), one["projection"], label=form_names.title(name), zorder=3, **drawn)
    shares.set_ylabel("share that\nremains")
    remaining = deltas["projection"].dropna()
    shares.set_ylim(min([0.0, *(1.1 * remaining)]), max([1.15, *(1.1 * remaining)]))
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
    """Module names from input to output: embeddings, layers by number, head; in the given order within a layer."""
    depth = {module: _layer(module) for module in map(str, modules)}

    def key(module: str) -> tuple[int, int]:
        layer = depth[module]
        if layer is not None:
            return 1, layer
        return (2 if module.rsplit(".")[-1] in ("lm_head", "embed_out", "score") else 0), 0

    return sorted(depth, key=key)


def _layer(module: str) -> int | None:
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    return int(match[1]) if match else None
