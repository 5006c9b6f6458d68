"""Run a model over sequences: batches, padding, and the one forward that every forward metric is computed from.

The output layer dominates memory: at a vocabulary of 128,256 the float32 logits of 16 x 200 tokens take 1.6 GB. The
transformer therefore runs without its output layer, and that layer runs on chunks of tokens. Some models scale or
soft-cap their logits; a comparison with the model's own logits detects this, and the model's own forward is then used,
one sequence at a time.

Beyond the model and its transformer's activations, scoring with all metrics stays within 256 MiB on a CPU and 512 MiB
on an accelerator, whatever the vocabulary and the number of rows (benchmarks/scoring measures it on a CPU).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adapter_unlearn import models
from adapter_unlearn.metrics import Predictions, Sampling
from adapter_unlearn.scoring import statistics

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK_ELEMENTS = 2**25
"""Logits computed at once: 128 MiB in float32, whatever the vocabulary."""

DEFAULT_SAMPLING = Sampling()

Head = Callable[[torch.Tensor], torch.Tensor]

_splits: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


def predict(
    model: torch.nn.Module,
    sequences: Dataset,
    indices: Sequence[int],
    batch_size: int,
    needs: Collection[str] = (),
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Iterator[tuple[int, Predictions]]:
    """Yield each index with the model's predictions for that sequence, longest sequences first.

    Args:
        model: a causal language model; it is in evaluation mode until the last one is yielded.
        sequences: see data.load_sequences.
        indices: which of them.
        batch_size: sequences in one forward.
        needs: which optional attributes of Predictions to fill (Metric.needs); reference_nll takes a second forward.
        sampling: the scheme of sampled_log_p.
    """
    for batch, _, seen in predictions_by_batch(model, sequences, indices, batch_size, needs, sampling):
        yield from zip(batch, seen)


def predictions_by_batch(
    model: torch.nn.Module,
    sequences: Dataset,
    indices: Sequence[int],
    batch_size: int,
    needs: Collection[str],
    sampling: Sampling,
) -> Iterator[tuple[list[int], dict[str, list[Any]], list[Predictions]]]:
    """Yield a batch's indices, its columns, and what the model predicted."""
    with models.evaluating(model):
        for batch in batches(sequences, indices, rows_per_forward(model, batch_size)):
            columns = sequences[batch]
            yield batch, columns, _predictions(model, columns, needs, sampling)


@torch.no_grad()  # not inference_mode: its tensors may be cached in a quantized layer and then can't be trained through
def _predictions(
    model: torch.nn.Module, batch: dict[str, list[Any]], needs: Collection[str], sampling: Sampling
) -> list[Predictions]:
    rows = batch["input_ids"]
    seen = _observe(model, rows, needs, sampling)
    if "reference_nll" in needs and (before := _without_adapters(model, rows, seen)) is not None:
        seen |= {"reference_nll": before}
    ends = np.cumsum([max(len(row) - 1, 0) for row in rows])
    parts = [
        {name: values[start:end] for name, values in seen.items()} for start, end in zip([0, *ends.tolist()], ends)
    ]
    texts = batch.get("zlib_bytes", [None] * len(rows))
    return [
        Predictions(**part, prefix_tokens=prefix, scored_from=start, zlib_bytes=size)
        for part, prefix, start, size in zip(parts, batch["prefix_tokens"], batch["scored_from"], texts)
    ]


def _observe(
    model: torch.nn.Module, rows: Sequence[Sequence[int]], needs: Collection[str], sampling: Sampling
) -> dict[str, np.ndarray]:
    """One forward: name of a statistic -> its values, row after row."""
    features, labels, head = hidden_states(model, rows)
    parts = [
        statistics.of_logits(head(features[part]), labels[part], needs, sampling)
        for part in chunks(features, vocabulary_of(model)) or [slice(0)]
    ]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def _without_adapters(
    model: torch.nn.Module, rows: Sequence[Sequence[int]], seen: dict[str, np.ndarray]
) -> np.ndarray | None:
    """The nll with every adapter off; None on a model that has none."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        return None
    if all(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer)):
        return seen["nll"]  # it is its own reference; and to switch off once more would end in switching on
    with models.active(model, []):
        return _observe(model, rows, (), DEFAULT_SAMPLING)["nll"]


def predicted_tokens(sequences: Dataset) -> list[int]:
    """How many tokens of each sequence are predicted and counted."""
    return np.maximum(_lengths(sequences) - np.array(sequences["scored_from"], dtype=int), 0).tolist()


def batches(sequences: Dataset, indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Split indices into batches of like length, longest first: little padding, and memory peaks at once."""
    order = _order(sequences, indices)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _order(sequences: Dataset, indices: Sequence[int]) -> list[int]:
    rows = np.asarray(indices, dtype=int)
    return rows[np.lexsort((rows, -_lengths(sequences.select(indices))))].tolist()


def _lengths(sequences: Dataset) -> np.ndarray:
    """Tokens of each sequence, shape (n,), without making a Python list of a single one."""
    batches = sequences.select_columns("input_ids").with_format("arrow").iter(batch_size=1000)
    lengths = [batch["input_ids"].combine_chunks().value_lengths().to_numpy() for batch in batches]
    return np.concatenate([np.zeros(0, dtype=int), *lengths])


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad rows of token ids.

    Padding is known by length alone, never by its id, so a tokenizer whose pad token is its end token hides nothing.

    Returns:
        input_ids and attention_mask, both int64 of shape (rows, longest).
    """
    longest = max(1, *map(len, rows))
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.as_tensor(row)
        mask[i, : len(row)] = 1
    return input_ids.to(device), mask.to(device)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's input embeddings lie, so where token ids must go."""
    return plain(model).get_input_embeddings().weight.device


def plain(model: torch.nn.Module) -> Any:
    """The transformers model itself; adapters live inside its layers, so they act all the same."""
    peft_model: Any = model
    return peft_model.get_base_model() if hasattr(model, "get_base_model") else model


def rows_per_forward(model: torch.nn.Module, batch_size: int) -> int:
    """batch_size, or 1 for a model whose output layer can't be run apart: its forward gives all logits at once."""
    return batch_size if splits(model) else 1


def hidden_states(
    model: torch.nn.Module, rows: Sequence[Sequence[int]], starts: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor, Head]:
    """Run the model up to its output layer.

    Args:
        model: a causal language model.
        rows: token ids.
        starts: index of each row's first token to predict; None predicts all but the first.

    Returns:
        features: shape (predictions, hidden), row after row, no padding.
        labels: the tokens to predict, shape (predictions,).
        head: maps some features to their logits, shape (some, vocabulary).
    """
    input_ids, mask = pad(rows, device_of(model))
    base = plain(model)
    if splits(model):
        features = base.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
        head: Head = base.get_output_embeddings()
    else:
        features = base(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        head = _identity
    predicted = mask[:, 1:].bool()
    for row, start in enumerate(starts or ()):
        predicted[row, : start - 1] = False
    return features[:, :-1][predicted.to(features.device)], input_ids[:, 1:][predicted].to(features.device), head


def _identity(logits: torch.Tensor) -> torch.Tensor:
    return logits


def splits(model: torch.nn.Module) -> bool:
    """Whether transformer then output layer gives exactly the model's own logits; found out once a model."""
    base = plain(model)
    if base not in _splits:
        _splits[base] = _splits_exactly(base)
    return _splits[base]


def _splits_exactly(base: Any) -> bool:
    head = base.get_output_embeddings()
    if head is None or base.base_model is base:
        return False
    with models.evaluating(base), torch.no_grad():
        ids = torch.arange(1, 9, device=device_of(base)).remainder(base.config.get_text_config().vocab_size)[None]
        mask = torch.ones_like(ids)
        own = base(input_ids=ids, attention_mask=mask, use_cache=False).logits
        hidden = base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden.shape[-1] == head.weight.shape[-1] and torch.equal(head(hidden).float(), own.float())


def chunks(features: torch.Tensor, vocabulary: int) -> list[slice]:
    """Slices of the features that keep the logits computed at once under CHUNK_ELEMENTS."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, len(features), size)]


def vocabulary_of(model: torch.nn.Module) -> int:
    """Number of token ids the model knows."""
    return int(plain(model).config.get_text_config().vocab_size)
