"""Drive a model over sequences that it continues greedily, from many prefixes of each at once.

One teacher-forced forward gives the first choice after every prefix, and every prefix's keys and values. Where a first
choice is the text's own next token, the continuation is that of the next longer prefix; so only misses are generated
from. All of them, of all sequences, go in one batch that is synchronous in *position*: at position p, every row that
began at p or before feeds its token number p. So no row is padded and no mask is needed, a row's place in the cache is
its place in the text (which local attention counts on), rows join when their prefix ends and make room when their text
does. A row's prefix is copied once, out of the forward's cache into a buffer of full length that is then written in
place; a cache that grows would copy all of it at every token.

Whether a model goes on from a cache as it does without one is found out: one continuation is checked by one forward
without cache, and if it does not hold, everything is computed without cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from adapter_unlearn import models
from adapter_unlearn.metrics import METRICS, Continuations, NotScorableError
from adapter_unlearn.metrics.continuations import next_miss
from adapter_unlearn.scoring.forward import (
    CHUNK_ELEMENTS,
    batches,
    chunks,
    device_of,
    pad,
    plain,
    rows_per_forward,
    splits,
    vocabulary_of,
)

if TYPE_CHECKING:
    from datasets import Dataset

NOT_FINITE = "the model's output is not finite"

CACHE_BYTES = 2**30
"""Keys and values held at once for the rows being generated, unless the caller says otherwise."""

_holds: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()
"""Model -> length of text up to which it was seen to go on from a cache as it does without one; -1: it does not."""


def measure(
    model: torch.nn.Module,
    sequences: Dataset,
    names: Sequence[str],
    batch_size: int = 16,
    indices: Sequence[int] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> dict[int, dict[str, float | str]]:
    """Measure sequences by what the model writes after their prefixes.

    Args:
        model: a causal language model, with or without adapters; it is measured as its adapters are set.
        sequences: rows of id, input_ids, prefix_tokens, scored_from (see data.load_sequences).
        names: generated metrics; only the prefixes that they need are continued.
        batch_size: sequences whose prefixes are continued together; the numbers do not depend on it.
        indices: which sequences; None takes all.
        cache_bytes: see `continuations`.

    Returns:
        index -> name -> the number, or the reason why there is none.

    """

    def wanted(sequence: dict[str, Any]) -> set[int]:
        shape = len(sequence["input_ids"]), sequence["prefix_tokens"], sequence["scored_from"]
        return {start for name in names if (starts := METRICS[name].starts) for start in starts(*shape)}

    measured: dict[int, dict[str, float | str]] = {}
    for i, found in continuations(model, sequences, wanted, batch_size, indices, cache_bytes):
        measured[i] = {name: NOT_FINITE if found is None else _value(name, found) for name in names}
    return measured


def _value(name: str, found: Continuations) -> float | str:
    try:
        return METRICS[name].function(found)
    except NotScorableError as reason:
        return str(reason)


def continuations(
    model: torch.nn.Module,
    sequences: Dataset,
    wanted: Callable[[dict[str, Any]], Iterable[int]],
    batch_size: int = 16,
    indices: Sequence[int] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Iterator[tuple[int, Continuations | None]]:
    """Yield each index with the model's greedy continuations of that sequence, longest sequences first.

    Args:
        model: a causal language model.
        sequences: rows of input_ids, prefix_tokens, scored_from.
        wanted: sequence -> lengths, from 1 to T-1, of the prefixes to continue.
        batch_size: sequences in one teacher-forced forward, whose prefixes are continued together.
        indices: which sequences; None takes all.
        cache_bytes: bound on the keys and values of the rows generated at once (at least one row; the forward's own,
            of `batch_size` sequences, come on top). Prefixes beyond it wait for the next pass.

    Yields:
        The index, and the continuations, or None where the model's output was not finite.
    """
    with models.evaluating(model), torch.no_grad():
        chosen = range(len(sequences)) if indices is None else indices
        for batch in batches(sequences, chosen, rows_per_forward(model, batch_size)):
            yield from zip(batch, _of_batch(model, [sequences[i] for i in batch], wanted, cache_bytes))


def _of_batch(
    model: torch.nn.Module,
    rows: Sequence[dict[str, Any]],
    wanted: Callable[[dict[str, Any]], Iterable[int]],
    cache_bytes: int,
) -> list[Continuations | None]:
    texts = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
    ids, _ = pad([row["input_ids"] for row in rows], device_of(model))
    length = ids.shape[1]
    shared = _empty_cache(len(rows), length) if _caches(model) else None
    choices, finite = _first_choices(model, ids, shared)
    hits = [choices[i, : len(text) - 1].cpu().numpy() == text[1:] for i, text in enumerate(texts)]
    misses = {(next_miss(hits[i], start), i) for i, row in enumerate(rows) for start in wanted(row)}
    found = sorted((start, i) for start, i in misses if start is not None)
    starts, owners = (np.array(column, dtype=np.int64) for column in (zip(*found) if found else ((), ())))
    # Each row is the text up to the prefix's end and then the model's first choice; what follows is written into it.
    tokens = ids[owners]
    tokens[range(len(found)), starts] = choices[owners, starts - 1]
    ends = np.array([len(texts[i]) for i in owners], dtype=np.int64)
    sound = _write(model, shared, owners, starts, ends, tokens, cache_bytes)
    if shared is not None and len(found) and _holds.get(plain(model), 0) < length:
        longest = int((ends - starts).argmax())
        right = _is_greedy(model, tokens[longest, : ends[longest]], int(starts[longest]))
        _holds[plain(model)] = length if right else -1
        if not right:
            return _of_batch(model, rows, wanted, cache_bytes)
    tails: list[dict[int, np.ndarray]] = [{} for _ in rows]
    broken = {i for i, text in enumerate(texts) if not finite[i, : max(len(text) - 1, 0)].all()}
    broken |= {int(i) for i in owners[~sound.cpu().numpy()]}
    for start, owner, end, written in zip(starts, owners, ends, tokens.cpu().numpy()):
        tails[owner][int(start)] = written[start:end]
    return [
        None if i in broken else Continuations(text, tails[i], hits[i], row["prefix_tokens"], row["scored_from"])
        for i, (row, text) in enumerate(zip(rows, texts))
    ]


def _caches(model: torch.nn.Module) -> bool:
    """Whether keys and values are what this model remembers, as far as is known yet."""
    base = plain(model)
    return not base._is_stateful and _holds.get(base, 0) >= 0


def _write(
    model: torch.nn.Module,
    shared: Cache | None,
    owners: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    tokens: torch.Tensor,
    cache_bytes: int,
) -> torch.Tensor:
    """Continue every row of tokens, in place; returns which rows had finite logits throughout, shape (rows,)."""
    sound = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    if shared is None:  # whole rows are computed at every token
        size = CHUNK_ELEMENTS // (vocabulary_of(model) * max(1, tokens.shape[1]))
    else:
        row_bytes = sum(part[:1].nbytes for layer in shared.layers for part in (layer.keys, layer.values))
        size = min(cache_bytes // row_bytes, CHUNK_ELEMENTS // vocabulary_of(model))
    size = max(1, size)
    for first in range(0, len(tokens), size):  # in order of start: a pass begins with its shortest prefix
        part = slice(first, first + size)
        _write_together(model, shared, owners[part], starts[part], ends[part], tokens[part], sound[part])
    return sound


def _write_together(
    model: torch.nn.Module,
    shared: Cache | None,
    owners: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    tokens: torch.Tensor,
    sound: torch.Tensor,
) -> None:
    cache = None if shared is None else _room(shared, len(tokens))
    active = np.empty(0, dtype=np.int64)  # rows of tokens, in the order of their slots in the cache
    for position in range(starts[0], ends.max() - 1):
        staying = ends[active] > position + 1
        if not staying.all():
            number = staying.sum()
            holes, movers = np.flatnonzero(~staying[:number]), number + np.flatnonzero(staying[number:])
            active[holes] = active[movers]
            active = active[:number]
            if cache is not None:
                _copy(cache, movers, cache, holes, position)
        joining = np.flatnonzero((starts == position) & (ends > position + 1))
        if cache is not None and len(joining):
            _copy(shared, owners[joining], cache, np.arange(len(active), len(active) + len(joining)), position)
        active = np.concatenate((active, joining))
        if not len(active):
            continue
        rows = torch.as_tensor(active, device=tokens.device)
        if cache is None:
            fed = tokens[rows, : position + 1]
        else:
            fed = tokens[rows, position, None]
            for layer in cache.layers:
                layer.filled = position
        features, head = _run(model, fed, cache)
        highest, choice = head(features[:, -1]).float().max(-1)
        tokens[rows, position + 1] = choice.to(tokens.device)
        sound[rows] &= highest.isfinite().to(sound.device)


def _first_choices(model: torch.nn.Module, ids: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The first choice after every prefix, and whether the logits were finite, both (rows, T). Fills the cache.

    Rows are padded on the right, where a causal model can't see it.
    """
    features, head = _run(model, ids, cache)
    flat = features.flatten(0, 1)
    choices, finite = torch.empty_like(ids.flatten()), torch.empty(ids.numel(), dtype=torch.bool)
    for part in chunks(flat, vocabulary_of(model)):
        highest, choice = head(flat[part]).float().max(-1)  # the maximum of what holds a NaN is NaN
        choices[part] = choice.to(ids.device)
        finite[part] = highest.isfinite().cpu()
    return choices.view_as(ids), finite.view(ids.shape)


def _is_greedy(model: torch.nn.Module, tokens: torch.Tensor, start: int) -> bool:
    """Whether every token after the first `start` is the model's first choice, by one forward without cache.

    Rounding differs between the two ways, so a token may also be as good as the first choice: its logit may lie below
    the highest by sqrt(machine epsilon) of the highest's height above the mean (0.03 % in float32, 9 % in bfloat16).
    """
    features, head = _run(model, tokens[None, :-1], None)
    flat = features[0, start - 1 :]
    written = tokens[start:].to(flat.device)
    for part in chunks(flat, vocabulary_of(model)):
        logits = head(flat[part])
        slack = torch.finfo(logits.dtype).eps ** 0.5
        logits = logits.float()
        highest = logits.amax(-1)
        missing = highest - logits.gather(-1, written[part, None])[:, 0]
        if (missing > slack * (highest - logits.mean(-1))).any():
            return False
    return True


def _run(model: torch.nn.Module, ids: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, Any]:
    """Features of shape (rows, tokens, size) and what makes logits of them; no mask, as nothing is padded."""
    base = plain(model)
    options = {"past_key_values": cache, "use_cache": cache is not None}
    if splits(model):
        return base.base_model(input_ids=ids, **options).last_hidden_state, base.get_output_embeddings()
    return base(input_ids=ids, **options).logits, torch.nn.Identity()


class _Layer(DynamicLayer):
    """Keys and values of one layer in buffers of full length: written in place, and read as views."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self.rows, self.length, self.filled = rows, length, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate, once the shape is known."""
        self.keys, self.values = (
            states.new_empty(self.rows, states.shape[1], self.length, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens behind those that are there, in the first rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, end = len(key_states), self.filled + key_states.shape[2]
        self.keys[:rows, :, self.filled : end] = key_states
        self.values[:rows, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.filled


def _empty_cache(rows: int, length: int) -> Cache:
    return Cache(layer_class_to_replicate=partial(_Layer, rows, length))


def _room(shared: Cache, rows: int) -> Cache:
    """An empty cache for as many rows, of the shape of the shared one."""
    layers = []
    for like in shared.layers:
        layers.append(_Layer(rows, like.length))
        layers[-1].lazy_initialization(like.keys, like.values)
    return Cache(layers=layers)


def _copy(source: Cache, rows: np.ndarray, target: Cache, slots: np.ndarray, tokens: int) -> None:
    """Copy the first tokens of some rows of one cache to rows of another (or, where they differ, of the same)."""
    for old, new in zip(source.layers, target.layers):
        from_rows, to_rows = (torch.as_tensor(index, device=old.keys.device) for index in (rows, slots))
        new.keys[to_rows, :, :tokens] = old.keys[from_rows, :, :tokens]
        new.values[to_rows, :, :tokens] = old.values[from_rows, :, :tokens]
