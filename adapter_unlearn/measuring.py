"""Every metric of a set, a row a sequence: those of the one forward, and those of what the model writes by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from adapter_unlearn import continuation, scoring
from adapter_unlearn.memorization import catalogue
from adapter_unlearn.memorization.generated import GENERATED_METRICS
from adapter_unlearn.memorization.sampling import Sampling
from adapter_unlearn.memorization.teacher_forced import Predictions

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from datasets import Dataset


def score(
    model: torch.nn.Module,
    sequences: Dataset,
    metrics: Sequence[str] = scoring.DEFAULT_METRICS,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    sampling: Sampling = scoring.DEFAULT_SAMPLING,
    observe: Callable[[int, Predictions], None] | None = None,
) -> pd.DataFrame:
    """Score every sequence: all forward metrics from one teacher-forced forward, the others from what is generated.

    Args:
        model: a causal language model, with or without adapters; it is scored as its adapters are set.
        sequences: rows of id, input_ids, prefix_tokens, scored_from (see data.load_sequences).
        metrics: names of rows in docs/metrics.md; `forward` stands for all that need no generation, `all` for all.
        batch_size: sequences in one forward; the numbers do not depend on it.
        accelerator: with several processes, each scores its share and all get the whole table.
        sampling: how tokens would be drawn, for p_z and what is made of it.
        observe: called with the index and the predictions of each sequence of this process's share.

    Returns:
        A row a sequence, in the order given: id, n_tokens, a column a metric, and note (why a value is NaN).

    Raises:
        RecipeError: a metric is unknown.
        InputError: not one sequence can be scored by any metric.
    """
    names = catalogue.chosen(metrics)
    generated = [name for name in names if name in GENERATED_METRICS]
    forward = [name for name in names if name not in generated]
    frame = scoring.score(model, sequences, forward, batch_size, accelerator, sampling, observe)
    if not generated:
        return frame
    share = list(range(len(sequences)))
    if accelerator is not None:
        share = share[accelerator.process_index :: accelerator.num_processes]
    by_index = continuation.measure(model, sequences, generated, batch_size, share)
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        by_index = dict(gather_object(list(by_index.items())))
    found = [by_index[i] for i in range(len(sequences))]
    for name in generated:
        frame[name] = [float("nan") if isinstance(row[name], str) else float(row[name]) for row in found]
    frame["note"] = [
        note if note == scoring.NOT_FINITE else "; ".join(filter(None, [note, _reasons(row)]))
        for note, row in zip(frame["note"], found)
    ]
    return frame[["id", "n_tokens", *names, "note"]]


def _reasons(row: dict[str, float | str]) -> str:
    """Why there are no numbers, each reason once, behind the names it is for."""
    by_reason: dict[str, list[str]] = {}
    for name, value in row.items():
        if isinstance(value, str):
            by_reason.setdefault(value, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
