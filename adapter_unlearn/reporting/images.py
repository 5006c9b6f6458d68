"""Figures as files and as parts of a page: PNG for the run folder, themed SVG for the report.

The SVG's colours become CSS variables, so that one drawing is right on a light page, on a dark one and in print. Its
text stays text in the page's own font: small, searchable, sharp. Everything that points outside the file is taken away.
"""

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from adapter_unlearn.reporting import figures

DPI = 160
_VARIABLES = {
    figures.INK: "--ink",
    figures.MUTED: "--muted",
    figures.GRID: "--rule",
    figures.LINK: "--link",
    figures.SURFACE: "--surface",
    figures.BEFORE: "--before",
    figures.AFTER: "--after",
    figures.UNSEEN: "--unseen",
    figures.BAND: "--band",
    figures.GREEN: "--green",
    figures.PURPLE: "--purple",
    figures.OCHRE: "--ochre",
}


def png(figure: Figure) -> bytes:
    """The figure on light ground, for a folder, a slide or a message."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an <svg> element for a page that defines the colour variables; `name` keeps its ids its own."""
    stream = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "svg.image_inline": True}
    with matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = stream.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = _lighter(_own_ids(drawing, name))
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    view_box = re.search(r'viewBox="([\d. ]+)"', drawing)
    opening = f'<svg viewBox="{view_box[1] if view_box else ""}" role="img" aria-label="{escape(description)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, drawing, count=1))


def _lighter(drawing: str) -> str:
    """The same drawing in half the bytes: no font names, two decimals, the style of equal dots said once."""
    drawing = drawing.replace("font-family: 'DejaVu Sans'; ", "")
    # in the tags only: a figure's text must keep its digits
    drawing = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), drawing)
    return re.sub(r"<g((?: [^>]*)?)>((?:\s*<use [^>]*/>)+)\s*</g>", _one_style, drawing)


def _one_style(group: re.Match[str]) -> str:
    styles = set(re.findall(r' style="[^"]*"', group[2]))
    if len(styles) != 1:
        return group[0]
    style = styles.pop()
    return f"<g{group[1]}{style}>{group[2].replace(style, '')}</g>"


def _own_ids(drawing: str, name: str) -> str:
    """Ids that no other figure of the page has, and references to them."""
    drawing = drawing.replace("xlink:href", "href")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
