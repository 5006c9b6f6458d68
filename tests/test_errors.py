"""What messages show of names and values that users and strangers give."""

from __future__ import annotations

import pytest

from adapter_unlearn.errors import HIDDEN, LONGEST, InputError, path_name, printable, word


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "\x9b31m", "\u202eabc", "a\u2028b", "\ud800", "\0", "\x7f"])
def test_nothing_unprintable_is_left(text):
    assert printable(text).isprintable() and "\\" in printable(text)
    assert str(InputError(f"file {text}")).isprintable()


def test_printable_text_stays():
    assert printable("Größe, 東京 🦊") == "Größe, 東京 🦊"
    assert str(InputError("one\n  line")) == "one line"


def test_a_long_name_leaves_the_place_and_the_fix():
    message = str(InputError(f"adapter: module {'a' * 10**6} does not fit; save it again"))
    assert message.startswith("adapter: ") and message.endswith("; save it again") and len(message) <= LONGEST


@pytest.mark.parametrize(
    "name", ["forget.jsonl", "data/forget.CSV", "/nowhere/texts", "./x", "~/x", "r.yaml", "/tmp/with blank.jsonl"]
)
def test_paths_are_shown(name):
    assert path_name(name) == name


@pytest.mark.parametrize(
    "text",
    ["", "text one", "sk-live-4242", "my notes are in notes.txt", "a@b.com", "and/or", "x" * 5000, "a\0b", "\x1b.txt"],
)
def test_texts_are_not(text):
    assert path_name(text) == HIDDEN and path_name(text, "the source") == "the source"


def test_only_one_short_word_is_shown():
    assert [word(value) for value in ("nf3", 3, "model.name")] == ["nf3", "3", "model.name"]
    assert all(word(value) == HIDDEN for value in ("two words", "x" * 65, "\x1b", ["a", "b"]))
