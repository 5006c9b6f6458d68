"""Format numbers and names for people, in one place, so that terminal, report and card show the same digits.

A missing number (None or NaN) is shown as a dash and never as zero: an unmeasured sequence must not look forgotten.
Ids and names are untrusted input: `clean` and `markdown` neutralize them before they reach a terminal or a page.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from adapter_unlearn.errors import printable

DASH = "—"
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$]|:(?=//)|(?<=www)\.)")


@dataclass(frozen=True)
class Cell:
    """One figure as text.

    Attributes:
        text: the figure.
        change: its change against the base, where that is what counts.
        spread: the 95 % interval of the change, or of the figure itself where no change is shown.
    """

    text: str
    change: str = ""
    spread: str = ""


def number(value: Any) -> float | None:
    """A value of a summary or a frame as a float; None where nothing was measured."""
    if not isinstance(value, Real) or math.isnan(value):
        return None
    return float(value)


def accuracy(value: Any) -> str:
    """A share between 0 and 1, with three digits."""
    known = number(value)
    return DASH if known is None else f"{known:.3f}"


def count(value: Any) -> str:
    """A whole number with a thousands separator."""
    known = number(value)
    return DASH if known is None else f"{known:,.0f}"


def decimal(value: Any) -> str:
    """About four significant digits, for perplexities and losses of any size."""
    known = number(value)
    if known is None:
        return DASH
    if math.isinf(known):
        return "∞" if known > 0 else "-∞"
    size = abs(known)
    if size >= 1e7:
        return f"{known:.2e}"
    return f"{known:,.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"


def ratio(value: Any) -> str:
    """Three significant digits, for ratios that may be tiny, such as a delta's size relative to its weights."""
    known = number(value)
    return DASH if known is None else "∞" if math.isinf(known) else f"{known:#.3g}".removesuffix(".")


def metric_value(value: Any) -> str:
    """The mean of any metric: `decimal`, or three significant digits where it is small (p_z may be 1e-40)."""
    known = number(value)
    return ratio(known) if known is not None and 0 < abs(known) < 0.1 else decimal(known)


def signed(value: Any) -> str:
    """A difference, formatted as by `decimal` but always signed; never `-0.000`."""
    known = number(value)
    if known is None:
        return DASH
    size = decimal(abs(known))
    return f"{'-' if known < 0 and size.strip('0.') else '+'}{size}"


def interval(ends: Any, show: Callable[[Any], str]) -> str:
    """`[low, high]`; empty where an end is missing, for example for a single sequence."""
    low, high = (number(end) for end in ends or (None, None))
    return "" if low is None or high is None else f"[{show(low)}, {show(high)}]"


def factor(value: Any) -> str:
    """An adapter's scale, written as in a recipe."""
    known = number(value)
    return DASH if known is None else f"{known:g}"


def yes_no(value: Any) -> str:
    """`yes` for 1 and `no` for 0."""
    known = number(value)
    return DASH if known is None else "yes" if known else "no"


def relative_change(before: Any, after: Any) -> float | None:
    """`after / before - 1`; None where one of them is missing or `before` is not positive and finite."""
    old, new = number(before), number(after)
    return None if old is None or new is None or old <= 0 or math.isinf(old) else new / old - 1


def percent(part: float | None, digits: int = 1) -> str:
    """A relative change in percent, always signed; never `-0.0`."""
    if part is None:
        return DASH
    if math.isinf(part):
        return f"{'+' if part > 0 else '-'}∞ %"
    rounded = round(100 * part, digits) + 0.0
    return f"{rounded:+,.{digits}f} %"


def percent_interval(ends: Any, digits: int = 1) -> str:
    """`[+0.8, +1.6]`: the interval of a change in percent. The percent sign is left to the change shown before it."""
    return interval(ends, lambda part: percent(part, digits).removesuffix(" %"))


def duration(seconds: Any) -> str:
    """Seconds, in the two largest units that apply."""
    known = number(seconds)
    if known is None:
        return DASH
    if known < 60:
        return f"{known:.1f} s" if known < 10 else f"{known:.0f} s"
    minutes, rest = divmod(round(known), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(n_bytes: Any) -> str:
    """Bytes in decimal units, as file managers and model hubs show them."""
    known = number(n_bytes)
    if known is None:
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if known >= scale:
            return f"{known / scale:.1f} {unit}" if known < 100 * scale else f"{known / scale:.0f} {unit}"
    return f"{known:.0f} bytes"


def plural(n: float | None, noun: str) -> str:
    """`1 sequence`, `64 sequences`."""
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def share(n: float, total: float | None, noun: str = "sequence") -> str:
    """`none of the 64 sequences`, `3 of the 64 sequences`. The total may be unknown (None)."""
    if total is None:
        return plural(n, noun) if n else f"no {noun}"
    return f"{count(n) if n else 'none'} of the {plural(total, noun)}"


def clean(text: Any) -> str:
    """A name for people: every character that is not printable is escaped."""
    return printable(text)


def shorten(text: str, width: int) -> str:
    """Shorten text in the middle, because both ends of an id identify it (`record-0012…#3`)."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:] if tail else ''}"


def markdown(text: Any) -> str:
    """Escape text for one line of Markdown, its tables and its embedded HTML, without automatic links."""
    escaped = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", escaped)
