"""Greedy continuations of sequences from many of their prefixes at once, and the metrics computed from them.

One teacher-forced forward pass gives the first choice after every prefix, and the keys and values of every prefix.
Where the first choice is the next token of the text, the continuation is that of the next longer prefix. So only misses
are generated from.

All misses of all sequences of a batch are generated together, in steps of *position*: at position p, every row that
began at p or before feeds its token p. So no row is padded and no mask is needed, and a row's place in the cache is its
place in the text, which local attention relies on. Rows join when their prefix ends and leave when their text does. A
row's prefix is copied once, from the cache of the forward pass to a buffer of full length that is written in place. A
growing cache would be copied at every token.

Some models do not continue from a cache as they do without one. One continuation per model is checked by a forward pass
without cache; if it differs, everything is computed without cache.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from adapter_unlearn import models, progress
from adapter_unlearn.metrics import METRICS, Continuations, compute
from adapter_unlearn.metrics.continuations import next_miss
from adapter_unlearn.scoring import forward

if TYPE_CHECKING:
    from datasets import Dataset

NOT_FINITE = "the model's output is not finite"

CACHE_BYTES = 2**30
"""Default limit on the keys and values of the rows that are generated at once."""

_checked_length: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()
"""Model -> longest text for which the cache was checked; -1 if the check failed."""


def measure(
    model: torch.nn.Module,
    sequences: Dataset,
    names: Sequence[str],
    batch_size: int = 16,
    indices: Sequence[int] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> dict[int, dict[str, float | str]]:
    """Compute generated metrics.

    Args:
        model: a causal language model, with or without adapters; it is scored with the adapters that are active.
        sequences: rows of id, input_ids, prefix_tokens, scored_from (see data.load_sequences).
        names: generated metrics; only the prefixes that they need are continued.
        batch_size: sequences whose prefixes are continued together; the numbers do not depend on it.
        indices: the sequences to score; None takes all.
        cache_bytes: see `continuations`.

    Returns:
        index -> metric -> its value, or the reason why there is none.
    """

    def prefixes(sequence: dict[str, Any]) -> set[int]:
        shape = len(sequence["input_ids"]), sequence["prefix_tokens"], sequence["scored_from"]
        return {start for name in names if (starts := METRICS[name].starts) for start in starts(*shape)}

    values: dict[int, dict[str, float | str]] = {}
    with progress.bar("generate", len(sequences) if indices is None else len(indices), "seq") as bar:
        for i, continued in continuations(model, sequences, prefixes, batch_size, indices, cache_bytes):
            values[i] = dict.fromkeys(names, NOT_FINITE) if continued is None else compute(names, continued)
            bar.update()
    return values


def continuations(
    model: torch.nn.Module,
    sequences: Dataset,
    prefixes: Callable[[dict[str, Any]], Iterable[int]],
    batch_size: int = 16,
    indices: Sequence[int] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Iterator[tuple[int, Continuations | None]]:
    """Yield each index with the model's greedy continuations of that sequence, longest sequences first.

    Args:
        model: a causal language model.
        sequences: rows of input_ids, prefix_tokens, scored_from.
        prefixes: sequence -> lengths of the prefixes to continue, from 1 to T - 1.
        batch_size: sequences in one teacher-forced forward pass, whose prefixes are continued together.
        indices: the sequences to continue; None takes all.
        cache_bytes: limit on the keys and values of the rows that are generated at once, at least one row. Those of the
            forward pass, for `batch_size` sequences, come on top. Further prefixes are left to the next pass.

    Yields:
        The index, and the continuations, or None where the model's output was not finite.
    """
    with models.evaluating(model), torch.no_grad():
        order = range(len(sequences)) if indices is None else indices
        for batch in forward.batches(sequences, order, forward.rows_per_forward(model, batch_size)):
            yield from zip(batch, _continue_batch(model, [sequences[i] for i in batch], prefixes, cache_bytes))


def _continue_batch(
    model: torch.nn.Module,
    rows: Sequence[dict[str, Any]],
    prefixes: Callable[[dict[str, Any]], Iterable[int]],
    cache_bytes: int,
) -> list[Continuations | None]:
    texts = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
    ids, _ = forward.pad([row["input_ids"] for row in rows], forward.device_of(model))  # (rows, T of the longest)
    length = ids.shape[1]
    shared = _empty_cache(len(rows), length) if _uses_cache(model) else None
    # ---- one teacher-forced forward pass: where does the model miss?
    choices, finite = _first_choices(model, ids, shared)  # both (rows, T)
    hits = [choices[i, : len(text) - 1].cpu().numpy() == text[1:] for i, text in enumerate(texts)]
    misses = {(next_miss(hits[i], start), i) for i, row in enumerate(rows) for start in prefixes(row)}
    pairs = sorted((start, i) for start, i in misses if start is not None)
    starts, owners = (np.array(column, dtype=np.int64) for column in (zip(*pairs) if pairs else ((), ())))
    # ---- generate from the misses; each line holds the prefix, then the first choice, then what is generated
    tokens = ids[owners]  # (misses, T)
    tokens[range(len(pairs)), starts] = choices[owners, starts - 1]
    ends = np.array([len(texts[i]) for i in owners], dtype=np.int64)
    sound = _generate(model, shared, owners, starts, ends, tokens, cache_bytes)  # (misses,)
    # ---- check the cache once per model and length
    if shared is not None and len(pairs) and _checked_length.get(forward.plain(model), 0) < length:
        longest = int((ends - starts).argmax())
        correct = _is_greedy(model, tokens[longest, : ends[longest]], int(starts[longest]))
        _checked_length[forward.plain(model)] = length if correct else -1
        if not correct:
            return _continue_batch(model, rows, prefixes, cache_bytes)
    # ---- back to sequences
    tails: list[dict[int, np.ndarray]] = [{} for _ in rows]
    broken = {i for i, text in enumerate(texts) if not finite[i, : max(len(text) - 1, 0)].all()}
    broken |= {int(i) for i in owners[~sound.cpu().numpy()]}
    for start, owner, end, line in zip(starts, owners, ends, tokens.cpu().numpy()):
        tails[owner][int(start)] = line[start:end]
    return [
        None if i in broken else Continuations(text, tails[i], hits[i], row["prefix_tokens"], row["scored_from"])
        for i, (row, text) in enumerate(zip(rows, texts))
    ]


def _uses_cache(model: torch.nn.Module) -> bool:
    """Whether the model is run with a cache: its state is keys and values, and no check has failed."""
    base = forward.plain(model)
    return not base._is_stateful and _checked_length.get(base, 0) >= 0


def _generate(
    model: torch.nn.Module,
    shared: Cache | None,
    owners: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    tokens: torch.Tensor,
    cache_bytes: int,
) -> torch.Tensor:
    """Generate every row of tokens in place; returns which rows had finite logits throughout, shape (rows,)."""
    sound = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    if shared is None:  # every step computes whole rows
        size = forward.CHUNK_ELEMENTS // (forward.vocabulary_of(model) * max(1, tokens.shape[1]))
    else:
        row_bytes = sum(part[:1].nbytes for layer in shared.layers for part in (layer.keys, layer.values))
        size = min(cache_bytes // row_bytes, forward.CHUNK_ELEMENTS // forward.vocabulary_of(model))
    size = max(1, size)
    for first in range(0, len(tokens), size):  # sorted by start: a pass begins with its shortest prefix
        part = slice(first, first + size)
        _generate_together(model, shared, owners[part], starts[part], ends[part], tokens[part], sound[part])
    return sound


def _generate_together(
    model: torch.nn.Module,
    shared: Cache | None,
    owners: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    tokens: torch.Tensor,
    sound: torch.Tensor,
) -> None:
    cache = None if shared is None else _cache_like(shared, len(tokens))
    active = np.empty(0, dtype=np.int64)  # index into tokens of each slot of the cache
    for position in range(starts[0], ends.max() - 1):
        # ---- rows whose text ends leave; the last rows move to their slots
        staying = ends[active] > position + 1
        if not staying.all():
            number = staying.sum()
            holes, movers = np.flatnonzero(~staying[:number]), number + np.flatnonzero(staying[number:])
            active[holes] = active[movers]
            active = active[:number]
            if cache is not None:
                _copy(cache, movers, cache, holes, position)
        # ---- rows whose prefix ends here join
        joining = np.flatnonzero((starts == position) & (ends > position + 1))
        if cache is not None and len(joining):
            _copy(shared, owners[joining], cache, np.arange(len(active), len(active) + len(joining)), position)
        active = np.concatenate((active, joining))
        if not len(active):
            continue
        # ---- one token for each active row
        rows = torch.as_tensor(active, device=tokens.device)
        if cache is None:
            inputs = tokens[rows, : position + 1]  # (active, position + 1)
        else:
            inputs = tokens[rows, position, None]  # (active, 1)
            for layer in cache.layers:
                layer.filled = position
        features, head = _run(model, inputs, cache)  # (active, tokens, hidden)
        highest, choice = head(features[:, -1]).float().max(-1)  # (active,)
        tokens[rows, position + 1] = choice.to(tokens.device)
        sound[rows] &= highest.isfinite().to(sound.device)


def _first_choices(model: torch.nn.Module, ids: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The first choice after every prefix, and whether its logits were finite, both (rows, T). Fills the cache.

    Rows are padded on the right, which a causal model does not see.
    """
    features, head = _run(model, ids, cache)
    flat = features.flatten(0, 1)  # (rows * T, hidden)
    choices, finite = torch.empty_like(ids.flatten()), torch.empty(ids.numel(), dtype=torch.bool)
    for part in forward.chunks(flat, forward.vocabulary_of(model)):
        highest, choice = head(flat[part]).float().max(-1)  # the maximum is NaN if a logit is
        choices[part] = choice.to(ids.device)
        finite[part] = highest.isfinite().cpu()
    return choices.view_as(ids), finite.view(ids.shape)


def _is_greedy(model: torch.nn.Module, tokens: torch.Tensor, start: int) -> bool:
    """Whether every token after the first `start` is the model's first choice, by one forward pass without cache.

    Rounding differs between the two ways, so near ties are accepted: a logit may be below the highest by the fraction
    sqrt(machine epsilon) of the distance from the highest to the mean (0.03 % in float32, 9 % in bfloat16).
    """
    features, head = _run(model, tokens[None, :-1], None)
    flat = features[0, start - 1 :]
    generated = tokens[start:].to(flat.device)
    for part in forward.chunks(flat, forward.vocabulary_of(model)):
        logits = head(flat[part])
        slack = torch.finfo(logits.dtype).eps ** 0.5
        logits = logits.float()
        highest = logits.amax(-1)
        missing = highest - logits.gather(-1, generated[part, None])[:, 0]
        if (missing > slack * (highest - logits.mean(-1))).any():
            return False
    return True


def _run(model: torch.nn.Module, ids: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, Any]:
    """Features, shape (rows, tokens, hidden), and the head that maps them to logits. No mask: nothing is padded."""
    base = forward.plain(model)
    if forward.splits(model):
        features = base.base_model(input_ids=ids, **_cache_options(base.base_model, cache)).last_hidden_state
        return features, base.get_output_embeddings()
    return base(input_ids=ids, **_cache_options(base, cache)).logits, torch.nn.Identity()


def _cache_options(model: torch.nn.Module, cache: Cache | None) -> dict[str, Any]:
    """How a model's forward takes a cache: transformers 5.24 renamed the parameter `past_key_values` to `cache`."""
    known = inspect.signature(type(model).forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache, "use_cache": cache is not None}


class _Layer(DynamicLayer):
    """Keys and values of one layer in buffers of full length, written in place and read as views."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self.rows, self.length, self.filled = rows, length, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers, of shape (rows, heads, length, head size)."""
        self.keys, self.values = (
            states.new_empty(self.rows, states.shape[1], self.length, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens to the first rows; returns the keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, end = len(key_states), self.filled + key_states.shape[2]
        self.keys[:rows, :, self.filled : end] = key_states
        self.values[:rows, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_seq_length(self) -> int:
        """The number of tokens so far."""
        return self.filled


def _empty_cache(rows: int, length: int) -> Cache:
    return Cache(layer_class_to_replicate=partial(_Layer, rows, length))


def _cache_like(shared: Cache, rows: int) -> Cache:
    """An empty cache with the shapes of the shared one, for another number of rows."""
    layers = []
    for like in shared.layers:
        layers.append(_Layer(rows, like.length))
        layers[-1].lazy_initialization(like.keys, like.values)
    return Cache(layers=layers)


def _copy(source: Cache, rows: np.ndarray, target: Cache, slots: np.ndarray, tokens: int) -> None:
    """Copy the first tokens of rows of one cache to slots of another, or to other slots of the same cache."""
    for old, new in zip(source.layers, target.layers):
        from_rows, to_rows = (torch.as_tensor(index, device=old.keys.device) for index in (rows, slots))
        new.keys[to_rows, :, :tokens] = old.keys[from_rows, :, :tokens]
        new.values[to_rows, :, :tokens] = old.values[from_rows, :, :tokens]
