"""The style of all figures: colours, fonts, and the parts that several of them share.

Figures are matplotlib `Figure` objects made without pyplot, so no display is needed and no global state changes.
They are 4.8 inches wide: on a phone, at 370 pixels, their 9-point text can still be read. Before and after differ in
marker and position as well as in colour. The colours follow Okabe and Ito and suit colour-blind readers.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from adapter_unlearn.reporting.formatting import clean, shorten
from adapter_unlearn.reporting.frames import Band

INK, MUTED, GRID, LINK, SURFACE = "#22262b", "#5b6470", "#dde1e6", "#cfd4da", "#fefefe"
BEFORE, AFTER, UNSEEN, BAND = "#c9510c", "#0b6fb5", "#6d7680", "#e6e9ec"
GREEN, PURPLE, OCHRE = "#0a7a5a", "#94497f", "#8a6a00"
FORM_MARKS = ((AFTER, "o"), (GREEN, "s"), (PURPLE, "^"), (OCHRE, "D"), (INK, "v"))
WIDTH = 4.8
_STYLE_SHEET = Path(__file__).parent / "figures.mplstyle"
_COLOURS = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED) | dict.fromkeys(
    ("text.color", "axes.labelcolor", "legend.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK
)
VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--rule", LINK: "--link", SURFACE: "--surface", BEFORE: "--before",
    AFTER: "--after", UNSEEN: "--unseen", BAND: "--band", GREEN: "--green", PURPLE: "--purple", OCHRE: "--ochre",
}  # fmt: skip
"""The CSS variables that replace the colours in a page."""


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in this style whatever the user's matplotlibrc says, and restore the settings afterwards."""

    @wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(matplotlib.rc_params_from_file(_STYLE_SHEET, use_default_template=False))
            matplotlib.rcParams.update(_COLOURS | {"figure.facecolor": SURFACE})
            return draw(*args, **kwargs)

    return wrapper


def new_figure(height: float, rows: int | None = None, shared: bool = True, grid: str = "y") -> tuple[Figure, Any]:
    """A figure and its axes: one, or an array of `rows` panels that share the x axis; `grid` lines cross that axis."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(rows or 1, 1, sharex=shared, squeeze=False)[:, 0]
    for axes in panels:
        axes.grid(True, axis=grid, color=GRID, linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)
        axes.tick_params(length=3)
    return figure, panels[0] if rows is None else panels


def shade(axes: Axes, band: Band, *, upright: bool = False, label: str = "90 % of never-seen text") -> None:
    """Shade the range of never-seen text along the y axis, or along the x axis if `upright`."""
    if band is not None:
        span = axes.axvspan if upright else axes.axhspan
        span(*band, color=BAND, linewidth=0, zorder=0, label=label)


def log_axis(axes: Axes, which: str, low: float, high: float, unit: str = "") -> None:
    """Make one axis logarithmic with a few plain numbers as ticks, whatever the span of the values.

    Args:
        axes: the axes.
        which: "x" or "y".
        low: the smallest value drawn; positive.
        high: the largest.
        unit: written before every number.
    """
    if high > 1e6 * low:  # cut the axis off: how far beyond a value lies does not matter
        axes.set(**{f"{which}lim": (0.5 * low, 1e6 * low)})
    axes.set(**{f"{which}scale": "log"})
    wide = high > 50 * low  # over many decades, a locator with several ticks per decade shows none
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 1.5, 2, 3, 5, 7)))
    axis.set_major_formatter(lambda value, _: f"{unit}{value:,.4g}")
    axis.set_minor_formatter(NullFormatter())


def legend_above(axes: Axes) -> None:
    """Put the legend of the axes, if there is one, above them."""
    if axes.get_legend_handles_labels()[0]:
        above = {"loc": "lower left", "bbox_to_anchor": (0, 0.96), "ncols": 3}
        axes.legend(**above, handlelength=1.8, columnspacing=1.4, borderpad=0)


def short_names(names: Iterable[str], width: int = 24) -> list[str]:
    """Names from outside, safe and short enough for a label."""
    return [shorten(clean(name), width) for name in names]
