"""Hostile values and texts, and valid bytes that are damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_helpers import SECRET
from hypothesis import strategies as st

_TEXTS = [
    SECRET, "", " ", "\0", "\x1b]0;title\x07\x1b[2J", "\u202etxt\u2028", "\ud800", "-1", "1e999", "null", "a" * 5000,
    f"{SECRET} " * 50, "../../etc/passwd", "/dev/zero", "~", "%s%n{0.__class__}", "<script>alert(1)</script>",
    "${HOME}",
    "(a+)+$", "__class__", "holdout", "auto", "base", "😀" * 30,
]  # fmt: skip
_NUMBERS = [
    0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**12, 10**400, 0.0, -0.0, 1.5, 1e-320, 1e150, 1e308, float("nan"),
    float("inf"), -float("inf"), True, False, None,
]  # fmt: skip
_PIECES = [
    b"\0" * 8, b"\xff" * 8, b"\xff" * 4, b"\x7f" + b"\xff" * 7, b"[" * 3000, b'{"a":' * 1500, b"9" * 5000,
    b"\\ud800", b'"',
    b"'", b"\n", b"\r", b"\n\n", b",", b":", b"- ", b"\t", b"{", b"}", b"[", b"]", b"null", b"NaN", b"-1e999",
    b"\xef\xbb\xbf",
    b"\x1b[2J", b"\xe2\x80\xae", b"\xc0\x80", b"PK\3\4", b"PAR1", SECRET.encode(), b"&a ", b"*a", b"<<: ",
    b"!!python/name:os.system ",
]  # fmt: skip

texts = st.sampled_from(_TEXTS) | st.text(max_size=30)
leaves = st.sampled_from(_NUMBERS) | texts | st.integers() | st.floats()


def nested(keys: Sequence[str], inner: st.SearchStrategy[Any] = leaves) -> st.SearchStrategy[Any]:
    """Hostile values, some of them lists and mappings."""
    names = st.sampled_from(keys) | texts
    return st.recursive(
        inner, lambda part: st.lists(part, max_size=4) | st.dictionaries(names, part, max_size=4), max_leaves=6
    )


@st.composite
def damaged(draw, valid: bytes) -> bytes:
    """Valid bytes of which some are changed, removed, repeated or replaced."""
    content = bytearray(valid)
    places = st.integers(0, 2**20)
    pieces = st.sampled_from(_PIECES) | st.binary(max_size=9)
    kinds = st.sampled_from(["flip", "insert", "replace", "remove", "repeat", "cut"])
    edits = draw(st.lists(st.tuples(kinds, places, places, pieces), min_size=1, max_size=4))
    for kind, first, second, piece in edits:
        at = first % (len(content) + 1)
        end = min(len(content), at + second % 64)
        if kind == "flip" and at < len(content):
            content[at] ^= 1 + second % 255
        elif kind == "insert":
            content[at:at] = piece
        elif kind == "replace":
            content[at : at + len(piece)] = piece
        elif kind == "remove":
            del content[at:end]
        elif kind == "repeat":
            content[at:at] = content[at:end] * (1 + second % 200)
        elif kind == "cut":
            del content[at:]
    return bytes(content)


@st.composite
def changed(draw, valid: Any, values: st.SearchStrategy[Any]) -> Any:
    """A nested valid value with one to three of its inner values replaced, removed or added."""
    result = _copy(valid)
    for _ in range(draw(st.integers(1, 3))):
        place = result
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or draw(st.integers(0, 3)) == 0:
                kind = draw(st.integers(0, 9))
                if kind == 0:
                    del place[key]
                elif kind == 1 and isinstance(place, dict):
                    place[draw(texts)] = draw(values)
                else:
                    place[key] = draw(values)
                break
            place = place[key]
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list | tuple) else value
