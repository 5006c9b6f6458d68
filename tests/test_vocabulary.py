"""No word of the earlier vocabulary is left (a term that a reader of PEFT or OpenUnlearning would have to look up)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RETIRED = {
    "verb": r"\bverbs?\b",
    "mend": r"\bmend(s|ed|ing)?\b",
    "rung": r"\brungs?\b",
    "ladder": r"\bladders?\b",
    "told apart": r"\btold apart\b|\btells? apart\b",
    "neighbourhood": r"\bneighbou?rhoods?\b",
    "twin": r"\btwins?\b",
    "levels lent": r"\blent\b",
    "pressure": r"\bpressures?\b",
    "beneath": r"\bbeneath\b",
    "carried adapter": r"\bcarried\b(?! out)",
    "a row a": r"\ba row a\b",
    "who waits": r"\bwho waits\b",
    "newly low": r"\bnewly low\b",
    "rooms": r"\brooms\b",
    "reference set": r"\breference set\b|\breference_(perplexity|set|bounds|band)\b|\bdata\.reference\b",
    "written texts": r"\bdata\.written\b|\bwritten texts?\b",
    "holdout as general text": r"general (unseen )?text \(holdout\)|\bholdout set \(general",
}
NAMES_THE_OLD = {"CHANGELOG.md", "test_vocabulary.py", "composing.py"}
"""Files that must name what was renamed: the list of changes, and the error that names the new key."""


def texts() -> list[Path]:
    folders = ("adapter_unlearn", "recipes", "docs", "tests", "benchmarks", "notebooks")
    suffixes = {".py", ".md", ".yaml", ".ipynb", ".j2"}
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return sorted(path for path in [*inside, *ROOT.glob("*.md")] if path.name not in NAMES_THE_OLD)


def prose(path: Path) -> str:
    """A file's text; of a notebook the sources of its cells, without pictures."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def found(text: str) -> list[str]:
    return [word for word, pattern in RETIRED.items() if re.search(pattern, text, re.IGNORECASE)]


@pytest.mark.parametrize("path", texts(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_retired_word(path):
    assert found(prose(path)) == []


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("unknown verb 'x'; choose another", ["verb"]),
        ("mend the row", ["mend"]),
        ("one row per sequence", []),
        ("a row a sequence, the twin's levels", ["twin", "a row a"]),
        ("perplexity of the neighbourhood", ["neighbourhood"]),
        ("recommended amendments, verbatim, carried out", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_retired_words_are_found(sentence, words):
    assert found(sentence) == words
