"""Figures as SVG."""

import re

from reporting.builders import SEQUENCES, matrix_of

from adapter_unlearn.reporting import images
from adapter_unlearn.reporting.interference.figures import interference_figure
from adapter_unlearn.reporting.run.sequence_figures import memorization_figure


def test_svg_keeps_every_digit_of_its_text():
    drawn = images.svg(interference_figure(matrix_of(["a"], ["s"], lambda on, _: 0 if on else 7)), "i", "d")
    assert ">0.900<" in drawn and ">0.200<" in drawn


def test_svg_follows_the_page():
    drawing = images.svg(memorization_figure(SEQUENCES, (0.1, 0.3)), "m", 'a "quoted" <title>')
    assert "var(--before)" in drawing and "var(--after)" in drawing and "var(--band)" in drawing
    assert not re.search(r"#[0-9a-fA-F]{6}\b", re.sub(r'(href="|url\()#[^")]*', "", drawing))
    assert "http" not in drawing and "<style" not in drawing and "font-family" not in drawing
    assert 'aria-label="a &#34;quoted&#34; &lt;title&gt;"' in drawing
