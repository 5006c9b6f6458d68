"""Figures as PNG files for the run folder and as themed SVG for a page.

The SVG's colours are CSS variables, so one drawing suits a light page, a dark page and print. Its text stays text, in
the page's font: small, searchable and sharp. Everything that refers to something outside the file is removed.
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from adapter_unlearn.reporting import style

DPI = 160


@dataclass(frozen=True)
class Picture:
    """A figure with the name of its file, a heading, and a caption that says what is drawn."""

    name: str
    title: str
    caption: str
    figure: Figure

    @property
    def drawing(self) -> Markup:
        """The figure as an SVG element."""
        return svg(self.figure, self.name, f"{self.title}. {self.caption}")


def write_pngs(folder: Path, pictures: Iterable[Picture]) -> None:
    """Write folder/figures/NAME.png for every picture; creates `figures`."""
    (folder / "figures").mkdir()
    for picture in pictures:
        (folder / "figures" / f"{picture.name}.png").write_bytes(png(picture.figure))


def png(figure: Figure) -> bytes:
    """The figure on a light background."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an <svg> element for a page that defines the colour variables; `name` makes its ids unique."""
    stream = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "svg.image_inline": True}
    with matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = stream.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = _lighter(_own_ids(drawing, name))
    for colour, variable in style.VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    view_box = re.search(r'viewBox="([\d. ]+)"', drawing)
    opening = f'<svg viewBox="{view_box[1] if view_box else ""}" role="img" aria-label="{escape(description)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, drawing, count=1))


def _lighter(drawing: str) -> str:
    """Halve the size of the drawing: no font names, two decimals, one style attribute for a group of equal dots."""
    drawing = drawing.replace("font-family: 'DejaVu Sans'; ", "")
    # only inside tags: the text of a figure keeps its digits
    drawing = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), drawing)
    return re.sub(r"<g((?: [^>]*)?)>((?:\s*<use [^>]*/>)+)\s*</g>", _one_style, drawing)


def _one_style(group: re.Match[str]) -> str:
    styles = set(re.findall(r' style="[^"]*"', group[2]))
    if len(styles) != 1:
        return group[0]
    style = styles.pop()
    return f"<g{group[1]}{style}>{group[2].replace(style, '')}</g>"


def _own_ids(drawing: str, name: str) -> str:
    """Prefix all ids, and the references to them, with the figure's name."""
    drawing = drawing.replace("xlink:href", "href")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
