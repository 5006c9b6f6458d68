"""Run a model over sequences: batches, padding, and the one forward pass that every forward metric is computed from.

The output layer dominates memory: with a vocabulary of 128,256, the float32 logits of 16 x 200 tokens take 1.6 GB.
Therefore the transformer runs without its output layer, and the output layer runs on chunks of tokens. Some models
scale or soft-cap their logits. A comparison with the model's own logits detects them, and they are run as a whole, one
sequence at a time.

Beyond the model and the activations of its transformer, scoring with all metrics stays within 256 MiB on a CPU and
512 MiB on an accelerator, for any vocabulary and any number of rows (measured in benchmarks/scoring on a CPU).
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
"""Number of logits computed at once on an accelerator: 128 MiB in float32."""

CPU_CHUNK_ELEMENTS = 2**21
"""On a CPU: 8 MiB in float32. The C library returns blocks of 32 MiB to the system at once, and every use of a new one
costs page faults, which took as long as the arithmetic."""

CPU_CHUNK_TOKENS = 24
"""On a CPU, at least: a chunk reads the whole output layer, 671 MB in Gemma 3 270M. There it is a block of 24 MiB."""

DEFAULT_SAMPLING = Sampling()

Head = Callable[[torch.Tensor], torch.Tensor]
"""Maps hidden states to logits."""

_splits: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


def predict_batches(
    model: torch.nn.Module,
    sequences: Dataset,
    indices: Sequence[int],
    batch_size: int,
    needs: Collection[str] = (),
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Iterator[tuple[list[int], dict[str, list[Any]], list[Predictions]]]:
    """Yield the indices of a batch, its columns, and the model's predictions; longest sequences first.

    Args:
        model: a causal language model; it is in evaluation mode until the last batch is yielded.
        sequences: see data.load_sequences.
        indices: the sequences to run.
        batch_size: sequences in one forward pass.
        needs: optional attributes of Predictions to fill (Metric.needs); reference_nll takes a second forward pass.
        sampling: the scheme of sampled_log_p.
    """
    with models.evaluating(model):
        for batch in batches(sequences, indices, rows_per_forward(model, batch_size)):
            columns = sequences[batch]
            yield batch, columns, _predictions(model, columns, needs, sampling)


@torch.no_grad()  # not inference_mode: a quantized layer may cache its tensors, which then can't be trained through
def _predictions(
    model: torch.nn.Module, batch: dict[str, list[Any]], needs: Collection[str], sampling: Sampling
) -> list[Predictions]:
    rows = batch["input_ids"]
    values = _token_statistics(model, rows, needs, sampling)  # name -> shape (predicted tokens of all rows,)
    if "reference_nll" in needs and (reference := _reference_nll(model, rows, values["nll"])) is not None:
        values |= {"reference_nll": reference}
    ends = np.cumsum([max(len(row) - 1, 0) for row in rows])
    parts = [{name: part[start:end] for name, part in values.items()} for start, end in zip([0, *ends.tolist()], ends)]
    sizes = batch.get("zlib_bytes", [None] * len(rows))
    return [
        Predictions(**part, prefix_tokens=prefix, scored_from=start, zlib_bytes=size)
        for part, prefix, start, size in zip(parts, batch["prefix_tokens"], batch["scored_from"], sizes)
    ]


def _token_statistics(
    model: torch.nn.Module, rows: Sequence[Sequence[int]], needs: Collection[str], sampling: Sampling
) -> dict[str, np.ndarray]:
    """One forward pass: name of a statistic -> its values, row after row, shape (predicted tokens of all rows,)."""
    features, labels, head = hidden_states(model, rows)  # (predicted tokens, hidden), (predicted tokens,)
    parts = [
        statistics.of_logits(head(features[part]), labels[part], needs, sampling)
        for part in chunks(features, vocabulary_of(model)) or [slice(0)]
    ]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def _reference_nll(model: torch.nn.Module, rows: Sequence[Sequence[int]], nll: np.ndarray) -> np.ndarray | None:
    """The nll with all adapters disabled; None for a model without adapters."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        return None
    if all(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer)):
        return nll  # already disabled; leaving models.active would enable them
    with models.active(model, []):
        return _token_statistics(model, rows, (), DEFAULT_SAMPLING)["nll"]


def predicted_tokens(sequences: Dataset, rows: Sequence[int] | None = None) -> list[int]:
    """The number of predicted tokens that count, for each sequence, or for some rows."""
    if rows is not None:
        columns = sequences[list(rows)]
        return [max(len(ids) - start, 0) for ids, start in zip(columns["input_ids"], columns["scored_from"])]
    batches = sequences.select_columns("input_ids").with_format("arrow").iter(batch_size=1000)
    lengths = [batch["input_ids"].combine_chunks().value_lengths().to_numpy() for batch in batches]  # no Python lists
    starts = np.array(sequences["scored_from"], dtype=int)
    return np.maximum(np.concatenate([np.zeros(0, dtype=int), *lengths]) - starts, 0).tolist()


def batches(sequences: Dataset, indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Split indices into batches of similar length, longest first: little padding, and the memory peak comes first."""
    rows = np.asarray(indices, dtype=int)
    parts = (sequences[rows[start : start + 1000].tolist()] for start in range(0, len(rows), 1000))  # select is slow
    lengths = [len(tokens) for part in parts for tokens in part["input_ids"]]
    order = rows[np.lexsort((rows, -np.array(lengths, dtype=int)))].tolist()
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad rows of token ids.

    Padding is recognized by length, never by its id: a tokenizer may use its end token as pad token.

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
    """The device of the model's input embeddings, to which token ids are moved."""
    return plain(model).get_input_embeddings().weight.device


def plain(model: torch.nn.Module) -> Any:
    """The transformers model inside a PEFT model. Adapters are inside its layers, so they still act."""
    peft_model: Any = model
    return peft_model.get_base_model() if hasattr(model, "get_base_model") else model


def rows_per_forward(model: torch.nn.Module, batch_size: int) -> int:
    """batch_size, or 1 for a model whose output layer can't be run separately and which computes all logits at once."""
    return batch_size if splits(model) else 1


def hidden_states(
    model: torch.nn.Module, rows: Sequence[Sequence[int]], starts: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor, Head]:
    """Run the model up to its output layer.

    Args:
        model: a causal language model.
        rows: token ids.
        starts: index of the first token to predict in each row; None predicts all tokens but the first.

    Returns:
        features: shape (predictions, hidden), row after row, without padding.
        labels: the tokens to predict, shape (predictions,).
        head: maps n features to their logits, shape (n, vocabulary).
    """
    input_ids, mask = pad(rows, device_of(model))
    base = plain(model)
    if splits(model):
        features = base.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
        head: Head = base.get_output_embeddings()  # features: (rows, T, hidden)
    else:
        features = base(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        head = torch.nn.Identity()
    predicted = mask[:, 1:].bool()  # (rows, T - 1)
    for row, start in enumerate(starts or ()):
        predicted[row, : start - 1] = False
    return features[:, :-1][predicted.to(features.device)], input_ids[:, 1:][predicted].to(features.device), head


def splits(model: torch.nn.Module) -> bool:
    """Whether the output layer on top of the transformer gives the model's own logits; tested once per model."""
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
    """Slices of features, shape (n, hidden), with at most CHUNK_ELEMENTS logits each; on a CPU see above."""
    if features.device.type == "cpu":
        size = max(CPU_CHUNK_TOKENS, CPU_CHUNK_ELEMENTS // vocabulary)
    else:
        size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, len(features), size)]


def vocabulary_of(model: torch.nn.Module) -> int:
    """The size of the model's vocabulary."""
    return int(plain(model).config.get_text_config().vocab_size)
