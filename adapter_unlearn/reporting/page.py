"""HTML pages in one style: each is one self-contained file that works offline, on a phone, a screen and paper.

Ids and names are untrusted input. Everything is escaped, and a content security policy forbids the page to load
anything or to run any script but its own.
"""

import base64
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from adapter_unlearn.reporting import facts, form_names, formatting
from adapter_unlearn.reporting.formatting import clean

FOLDER = Path(__file__).parent


@functools.cache
def environment(autoescape: bool) -> jinja2.Environment:
    """The settings of all templates, which are named by their path below reporting/, and what they may call."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals |= {"fmt": formatting, "facts": facts, "form_names": form_names}
    templates.filters |= {"typeset": typeset, "breakable": breakable, "markdown": formatting.markdown}
    templates.filters["quoted"] = lambda text: json.dumps(clean(text), ensure_ascii=False)
    return templates


def render(template: str, manifest: dict[str, Any], script: str = "", **parts: Any) -> str:
    """Render a page.

    Args:
        template: path of the template below reporting/.
        manifest: may lack any key.
        script: the only JavaScript that may run in the page.
        parts: variables of the template.
    """
    return (
        environment(autoescape=True)
        .get_template(template)
        .render(
            manifest=manifest,
            base_name=clean(facts.base_name(manifest)),
            package=" ".join(
                clean(value) for value in (manifest.get("package") or {"name": "adapter-unlearn"}).values()
            ),
            style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **parts,
        )
    )


def title_and_caption(template: str, figure: str, **variables: Any) -> tuple[str, str]:
    """The first line and the rest of a figure's macro in a template; the text is plain and not yet escaped."""
    words = getattr(environment(autoescape=False).get_template(template).make_module(variables), figure)()
    title, caption = words.split("\n", 1)
    return title, caption.strip()


def limits(adapter: bool = False, flipped: str = "", areas: str = "", quantized: bool = False) -> list[str]:
    """What a reader must not conclude from a report, one item per sentence or two.

    Args:
        adapter: an adapter was measured.
        flipped: the method, if its adapter is a negated copy of one that was fitted to the forget set.
        areas: membership AUCs that are far from chance.
        quantized: the base is quantized, and an adapter was measured.
    """
    template = environment(autoescape=False).get_template("limits.j2")
    return template.render(adapter=adapter, flipped=flipped, areas=areas, quantized=quantized).splitlines()


def typeset(text: str) -> str:
    """Use a real minus sign, and keep a percent sign on the line of its number."""
    text = f"−{text[1:]}" if text.startswith("-") else text
    return text.replace(" %", "\u202f%").replace(" -", " −").replace("[-", "[−").replace(" before)", "\u00a0before)")


def breakable(name: str) -> Markup:
    """Allow a line break after each underscore of a name, so that a long name does not widen a column."""
    return Markup("<wbr>").join(re.split("(?<=_)", name))
