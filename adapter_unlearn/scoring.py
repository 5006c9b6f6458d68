"""Drive a model over sequences: batches, padding, and one shared forward from which every metric is read.

The output layer is the memory trap: at a vocabulary of 128,256 the float32 logits of 16 x 200 tokens are 1.6 GB. So
the transformer runs without its output layer, and that layer runs on a few tokens at a time. Where a model does more
to its logits than one linear layer (scaling, soft-capping), that is found out by comparing, and the model's own forward
is used, one sequence at a time.

Beyond the model and what its transformer needs for a batch, scoring with all metrics stays within 256 MiB on a CPU and
512 MiB on an accelerator, whatever the vocabulary and the number of rows: one chunk of logits, and the block of it that
token_statistics works on. (benchmarks/scoring measures it on a CPU.)
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from adapter_unlearn import models, token_statistics
from adapter_unlearn.errors import InputError, ModelError
from adapter_unlearn.memorization import table
from adapter_unlearn.memorization.sampling import Sampling
from adapter_unlearn.memorization.teacher_forced import NotScorableError, Predictions

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

CHUNK_ELEMENTS = 2**25
"""Logits computed at once: 128 MiB in float32, whatever the vocabulary."""

NOT_FINITE = "the model's output is not finite"

DEFAULT_METRICS = (
    "memorization_accuracy", "extractable", "extractable_50", "extractable_any_prefix", "longest_verbatim_run", "loss",
)  # fmt: skip
"""Who recites what, and how likely it was; `all` stands for every row of the table."""

DEFAULT_SAMPLING = Sampling()

Head = Callable[[torch.Tensor], torch.Tensor]

_splits: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


def score(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = DEFAULT_METRICS,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    observe: Callable[[int, Predictions], None] | None = None,
) -> pd.DataFrame:
    """Score every sequence from one teacher-forced forward, whatever the number of metrics.

    Args:
        model: a causal language model, with or without adapters; it is scored as its adapters are set.
        sequences: rows of id, input_ids, prefix_tokens, scored_from and perhaps zlib_bytes (see data.load_sequences).
        metrics: names of rows in memorization.table.METRICS, or `all`. One that compares with the model without its
            adapters adds a second forward.
        batch_size: sequences in one forward; the numbers do not depend on it.
        accelerator: with several processes, each scores its share and all get the whole table.
        sampling: how tokens would be drawn, for p_z and what is made of it.
        observe: called with the index and the predictions of each sequence of this process's share, for what is no
            single number.

    Returns:
        A row a sequence, in the order given: id, n_tokens, a column a metric, and note (why a value is NaN).

    Raises:
        RecipeError: a metric is unknown.
        InputError: not one sequence can be scored by any metric.
    """
    columns = list(table.chosen(metrics))
    frame = rows_of(model, sequences, metrics, batch_size, accelerator, sampling, observe)
    check_scorable(bool(frame[columns].notna().any(axis=None)), frame["note"])
    return frame


def rows_of(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = DEFAULT_METRICS,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    observe: Callable[[int, Predictions], None] | None = None,
) -> pd.DataFrame:
    """As `score`, also for a part of a set in which perhaps nothing can be scored.

    Raises:
        RecipeError: a metric is unknown.
    """
    share = list(range(len(sequences)))
    if accelerator is not None:
        share = share[accelerator.process_index :: accelerator.num_processes]
    by_index = dict(stream(model, sequences, metrics, batch_size, sampling, share, observe))
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        by_index = dict(gather_object(list(by_index.items())))
    columns = ["id", "n_tokens", *table.chosen(metrics), "note"]
    return pd.DataFrame([by_index[i] for i in range(len(sequences))], columns=columns)


def stream(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = DEFAULT_METRICS,
    batch_size: int = 16,
    sampling: Sampling = DEFAULT_SAMPLING,
    indices: Sequence[int] | None = None,
    observe: Callable[[int, Predictions], None] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of `score` as they come, each with its sequence's index: longest first, a batch at a time.

    Nothing is kept, so that a set may be larger than its table; write the rows away to keep it so.

    Args:
        model: as for `score`, like the arguments that follow.
        sequences: the rows to score.
        metrics: what to score.
        batch_size: sequences in one forward.
        sampling: how tokens would be drawn.
        indices: which sequences; None is all.
        observe: as for `score`.

    Raises:
        RecipeError: a metric is unknown; it is raised with the first row.
    """
    rows = table.chosen(metrics)
    needs = {need for metric in rows.values() for need in metric.needs}
    share = range(len(sequences)) if indices is None else indices
    for batch, columns, seen in _batch_by_batch(model, sequences, share, batch_size, needs, sampling):
        for i, name, ids, predictions in zip(batch, columns["id"], columns["input_ids"], seen):
            if observe is not None:
                observe(i, predictions)
            yield i, {"id": name, "n_tokens": len(ids), **_row(predictions, rows)}


def check_scorable(known: bool, notes: Iterable[str]) -> None:
    """Refuse a set of which nothing could be scored; that a model is broken is told by check_finite.

    Args:
        known: whether there is a single number that is not NaN.
        notes: the column of that name, or each different note once.

    Raises:
        InputError: no sequence can be scored, and why the first one can't.
    """
    reasons = [] if known else list(notes)
    if reasons and all(note and NOT_FINITE not in note for note in reasons):
        raise InputError(f"no sequence can be scored: {reasons[0]}")


def any_sound(frame: pd.DataFrame) -> bool:
    """Whether there is a number at all of a sequence on which the model's output was finite."""
    return bool(frame.loc[frame["note"] != NOT_FINITE, frame.columns[2:-1]].notna().any(axis=None))


def check_finite(sound: bool, notes: Iterable[str]) -> None:
    """Refuse a table that says nothing because the model is broken; rows may be there that were too short anyway.

    Args:
        sound: from any_sound.
        notes: as for check_scorable.

    Raises:
        ModelError: nothing is sound, and the model's output was not finite on a sequence.
    """
    if not sound and NOT_FINITE in set(notes):
        raise ModelError(f"{NOT_FINITE} on any sequence; the adapter is broken, or dtype float32 is needed")


def perplexity(scored: pd.DataFrame, sequences: Dataset) -> float:
    """exp(total NLL / total predicted tokens) over the whole set.

    Args:
        scored: a frame of `score` with the loss column, its rows those of `sequences`.
        sequences: the rows that were scored.
    """
    tokens = np.array(predicted_tokens(sequences))
    losses = scored["loss"].to_numpy(dtype=float)
    known = tokens > 0
    if not known.any():
        return float("nan")
    return float(np.exp((losses[known] * tokens[known]).sum() / tokens[known].sum()))


def predicted_tokens(sequences: Dataset) -> list[int]:
    """How many tokens of each sequence are predicted and counted."""
    return np.maximum(_lengths(sequences) - np.array(sequences["scored_from"], dtype=int), 0).tolist()


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
    for batch, _, seen in _batch_by_batch(model, sequences, indices, batch_size, needs, sampling):
        yield from zip(batch, seen)


def _batch_by_batch(
    model: torch.nn.Module,
    sequences: Dataset,
    indices: Sequence[int],
    batch_size: int,
    needs: Collection[str],
    sampling: Sampling,
) -> Iterator[tuple[list[int], dict[str, list[Any]], list[Predictions]]]:
    """Yield a batch's indices, its columns, and what the model predicted."""
    was_training = model.training
    model.eval()
    try:
        for batch in batches(sequences, indices, rows_per_forward(model, batch_size)):
            columns = sequences[batch]
            yield batch, columns, _predictions(model, columns, needs, sampling)
    finally:
        model.train(was_training)


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
    features, labels, head = forward(model, rows)
    parts = [
        token_statistics.of_logits(head(features[part]), labels[part], needs, sampling)
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


def _row(predictions: Predictions, metrics: dict[str, table.Metric]) -> dict[str, Any]:
    if not np.isfinite(predictions.nll).all():  # the argmax of NaN is a token like any other: no number would be true
        return dict.fromkeys(metrics, float("nan")) | {"note": NOT_FINITE}
    row: dict[str, Any] = {}
    notes: dict[str, list[str]] = {}
    for name, metric in metrics.items():
        try:
            row[name] = metric.function(predictions)
            if math.isnan(row[name]):
                raise NotScorableError("not a number")
        except NotScorableError as reason:
            row[name] = float("nan")
            notes.setdefault(str(reason), []).append(name)
    row["note"] = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in notes.items())
    return row


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


def forward(
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
    was_training = base.training
    base.eval()
    try:
        with torch.no_grad():
            ids = torch.arange(1, 9, device=device_of(base)).remainder(base.config.get_text_config().vocab_size)[None]
            mask = torch.ones_like(ids)
            own = base(input_ids=ids, attention_mask=mask, use_cache=False).logits
            hidden = base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return hidden.shape[-1] == head.weight.shape[-1] and torch.equal(head(hidden).float(), own.float())
    finally:
        base.train(was_training)


def chunks(features: torch.Tensor, vocabulary: int) -> list[slice]:
    """Slices of the features that keep the logits computed at once under CHUNK_ELEMENTS."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, len(features), size)]


def vocabulary_of(model: torch.nn.Module) -> int:
    """Number of token ids the model knows."""
    return int(plain(model).config.get_text_config().vocab_size)
