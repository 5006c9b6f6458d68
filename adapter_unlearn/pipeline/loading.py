"""Load the sets of a run, check them against the model, and compare them with one another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_unlearn import data, models
from adapter_unlearn.data import Sets
from adapter_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from adapter_unlearn.recipe import Data, Model, Source

log = logging.getLogger(__name__)


def load(model: Model, texts: Data) -> tuple[Sets, list[str]]:
    """Load every set that is given, and check it against the model.

    Args:
        model: whose tokenizer is used, and whose vocabulary and length the sets must fit.
        texts: the sources.

    Returns:
        The sets, and notes on what they share, by id.

    Raises:
        InputError: a source can't be used; ModelError: there is no such model.
    """
    where = (model.name, model.revision, model.trust_remote_code)
    config = models.load_config(*where).get_text_config()
    tokenizer = models.load_tokenizer(*where)
    sets = Sets(**{
        name: _load_set(getattr(texts, name), tokenizer, texts, config.vocab_size)
        for name in ("forget", "retain", "holdout", "validation", "test")
        if getattr(texts, name) is not None
    })  # fmt: skip
    positions = getattr(config, "max_position_embeddings", None)
    for name, sequences in sets.given().items():
        longest = max(map(len, sequences["input_ids"]))
        if positions is not None and longest > positions:
            raise InputError(
                f"data.{name}: a sequence has {longest} tokens and the model takes {positions}; lower data.max_tokens"
            )
    return sets, _notes(sets)


def _load_set(source: Source, tokenizer: Any, texts: Data, vocab_size: int) -> Dataset:
    # Paths, not strings: of several strings nobody could say whether they are names of files or texts.
    places: list[Any] = [source] if isinstance(source, str) else [Path(place) for place in source]
    return data.load_sequences(
        places if len(places) > 1 else places[0],
        tokenizer,
        max_tokens=texts.max_tokens,
        stride=texts.stride,
        prefix_tokens=texts.prefix_tokens,
        vocab_size=vocab_size,
    )


def _notes(sets: Sets) -> list[str]:
    """What a user should know about the data, by id: near-duplicates, and forget texts that stand elsewhere too."""
    found = [("forget rows resemble each other", data.duplicates(sets.forget))]
    for name, sequences in sets.given().items():
        if name != "forget":
            found.append((f"forget rows also stand in {name}", data.overlaps(sets.forget, sequences)))
    notes = []
    for what, pairs in found:
        if pairs:
            shown = ", ".join(f"{a} / {b}" for a, b in pairs[:10])
            more = f" and {len(pairs) - 10} more" if len(pairs) > 10 else ""
            notes.append(f"{len(pairs)} pairs of {what} (20 tokens or more in a row): {shown}{more}")
    for note in notes:
        log.warning(note)
    return notes
