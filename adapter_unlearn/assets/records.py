"""Fictional private records that can't be guessed, as examples of texts that a model must not recite.

A record has a kind (patient note, bank letter, leaked settings, ...), an opening, and a few facts and remarks in random
order and punctuation. Each has several wordings, with random names, numbers, codes and words in its slots. Records
share their forms but not their contents, so a model that knows the kind still predicts few tokens of an unseen record.
All persons are invented: names are made of syllables, phone numbers start with 555, addresses end in example.org.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from adapter_unlearn.assets import FOLDER

DATA = json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))
"""The word lists, the remarks, and for every kind the wordings of its opening and of each fact."""
WORDS: dict[str, list[str]] = DATA["words"]
REMARKS: list[str] = DATA["remarks"]
JOINTS = (". ", "; ", ", ", " - ", "\n", " / ", "! ")
CAPITALIZING = (". ", "! ")
COMMENTS = ("# ", "// ", "; ", "-- ")  # before a remark in a file of settings


def digits(rng: Random, count: int) -> str:
    """``count`` random digits; the first may be 0."""
    return "".join(rng.choice("0123456789") for _ in range(count))


def letters(rng: Random, count: int, alphabet: str = "ABCDEFGHJKLMNPQRSTUVWXYZ") -> str:
    """``count`` random letters."""
    return "".join(rng.choice(alphabet) for _ in range(count))


def word(rng: Random, shortest: int = 2, longest: int = 3) -> str:
    """An invented, pronounceable word in lower case."""
    return "".join(rng.choice(WORDS["syllable"]) for _ in range(rng.randint(shortest, longest)))


def code(rng: Random) -> str:
    """A reference number in one of several shapes, such as ``KT-40912`` or ``7731/QLM/08``."""
    shapes = (
        lambda: f"{letters(rng, 2)}-{digits(rng, 5)}",
        lambda: f"{digits(rng, 4)}/{letters(rng, 3)}/{digits(rng, 2)}",
        lambda: f"{letters(rng, 1)}{digits(rng, 3)}.{digits(rng, 3)}",
        lambda: f"{digits(rng, 3)}-{letters(rng, 2)}{digits(rng, 2)}",
    )
    return rng.choice(shapes)()


def date(rng: Random) -> str:
    """A day in one of four notations."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), digits(rng, 2)
    name = WORDS["month"][month - 1]
    return rng.choice((f"{day} {name}", f"{name} {day}", f"{day}.{month}.{year}", f"{day}/{month}/{year}"))


SLOTS: dict[str, Callable[[Random], str]] = {
    "name": lambda rng: f"{word(rng).title()} {word(rng).title()}",
    "initial": lambda rng: f"{letters(rng, 1)}. {word(rng).title()}",
    "town": lambda rng: word(rng).title(),
    "street": lambda rng: f"{rng.randint(1, 399)} {word(rng).title()} {rng.choice(WORDS['street_end'])}",
    "phone": lambda rng: f"555-{digits(rng, 4)}",
    "mail": lambda rng: f"{word(rng)}.{word(rng)}@example.org",
    "host": lambda rng: f"{word(rng)}-{rng.randint(1, 99)}.example.org",
    "code": code,
    "secret": lambda rng: letters(rng, 16, "abcdefghkmnpqrstuvwxyz23456789"),
    "date": date,
    "hour": lambda rng: f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}",
    "sum": lambda rng: f"{rng.randint(21, 9876)}.{digits(rng, 2)}",
    "n": lambda rng: str(rng.randint(2, 99)),
    "word": word,
}


class Kind(NamedTuple):
    """A kind of record: wordings of its opening and of each fact, and whether it is a file of settings."""

    openings: list[str]
    facts: list[list[str]]
    settings: bool


KINDS = [Kind(**kind, settings=kind["openings"][0].startswith("#")) for kind in DATA["kinds"]]


class Slots(dict[str, str]):
    """Fills each slot of a template with a new random value."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def __missing__(self, slot: str) -> str:
        return SLOTS[slot](self.rng) if slot in SLOTS else self.rng.choice(WORDS[slot])


def fill(template: str, rng: Random) -> str:
    """Fill the slots of a template, and write ``an`` before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", template.format_map(Slots(rng)))


def draw_record(rng: Random) -> str:
    """One record: an opening, then facts and remarks in random order with random punctuation."""
    kind = rng.choice(KINDS)
    facts = [rng.choice(wordings) for wordings in rng.sample(kind.facts, rng.randint(3, 5))]
    remarks = [rng.choice(COMMENTS) * kind.settings + remark for remark in rng.sample(REMARKS, rng.randint(3, 5))]
    record = fill(rng.choice(kind.openings), rng)
    for template in rng.sample(facts + remarks, len(facts + remarks)):
        joint = "\n" if kind.settings else rng.choice(JOINTS)
        sentence = fill(template, rng)
        record += joint + (sentence[0].upper() + sentence[1:] if joint in CAPITALIZING else sentence)
    return record


def draw_records(seed: int) -> Iterator[str]:
    """An endless stream of records."""
    rng = Random(seed)
    while True:
        yield draw_record(rng)
