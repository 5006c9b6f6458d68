"""Load the sets of a run, check them against the model, and compare them with one another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adapter_unlearn import data, models
from adapter_unlearn.data import Sets
from adapter_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from adapter_unlearn.recipe import Data, Model, Permissions, Source

log = logging.getLogger(__name__)

_SHOWN = 10


class Loaded(NamedTuple):
    """The sets of a run, and notes on texts that they share, by id."""

    sets: Sets
    notes: list[str]


def load(model: Model, texts: Data, permissions: Permissions) -> Loaded:
    """Load every set that is given, and check it against the model.

    Args:
        model: its tokenizer is used, and the sets must fit its vocabulary and length.
        texts: the sources.
        permissions: for the model.

    Raises:
        InputError: a source can't be used.
        ModelError: there is no such model.
    """
    place = (model.name, model.revision, permissions.trust_remote_code)
    config = models.load_config(*place).get_text_config()
    tokenizer = models.load_tokenizer(*place)
    sets = Sets(**{
        name: _load_set(name, getattr(texts, name), tokenizer, texts, config.vocab_size)
        for name in ("forget", "retain", "holdout", "validation", "test")
        if getattr(texts, name) is not None
    })  # fmt: skip
    positions = getattr(config, "max_position_embeddings", None)
    for name, sequences in sets.given().items():
        longest = max(map(len, sequences["input_ids"]))
        if positions is not None and longest > positions:
            raise InputError(
                f"data.{name}: a sequence has {longest} tokens, but the model takes {positions}; lower data.max_tokens"
            )
    return Loaded(sets, _notes(sets))


def _load_set(name: str, source: Source, tokenizer: Any, texts: Data, vocab_size: int) -> Dataset:
    # Paths instead of strings, because a list of strings could also be a list of texts.
    places: list[Any] = [source] if isinstance(source, str) else [Path(place) for place in source]
    if "" in ([source] if isinstance(source, str) else source):
        raise InputError(f"data.{name}: an empty name is no file; give one")
    try:
        return data.load_sequences(
            places if len(places) > 1 else places[0],
            tokenizer,
            max_tokens=texts.max_tokens,
            stride=texts.stride,
            prefix_tokens=texts.prefix_tokens,
            vocab_size=vocab_size,
        )
    except InputError as error:
        raise InputError(f"data.{name}: {error}") from None


def _notes(sets: Sets) -> list[str]:
    """Near-duplicates in the forget set, and forget texts that are also in other sets, by id."""
    shared = [("forget rows are near-duplicates", data.duplicates(sets.forget))]
    for name, sequences in sets.given().items():
        if name != "forget":
            shared.append((f"forget rows are also in {name}", data.overlaps(sets.forget, sequences)))
    notes = []
    for what, pairs in shared:
        if pairs:
            ids = ", ".join(f"{a} / {b}" for a, b in pairs[:_SHOWN])
            more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
            notes.append(f"{len(pairs)} pairs of {what} (20 or more tokens in a row): {ids}{more}")
    for note in notes:
        log.warning(note)
    return notes
