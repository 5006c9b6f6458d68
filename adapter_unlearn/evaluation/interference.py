"""Interference between adapters: every forget set under every combination of the adapters of several requests."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pandas as pd

from adapter_unlearn import models, scoring

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

ALL_SUBSETS_UP_TO = 4
METRICS = ("memorization_accuracy", "extractable", "longest_verbatim_run", "loss")


def subsets(number: int) -> list[tuple[int, ...]]:
    """The combinations of adapters to measure, smallest first.

    All subsets of up to four adapters. Of more adapters: none, each alone, all but one, and all.
    """
    sizes = range(number + 1) if number <= ALL_SUBSETS_UP_TO else (0, 1, number - 1, number)
    return [subset for size in sizes for subset in combinations(range(number), size)]


def interference(
    model: Any,
    adapters: Mapping[str, str],
    sets: Mapping[str, Dataset],
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
) -> pd.DataFrame:
    """Score every forget set under every combination of adapters.

    Args:
        model: a model with all adapters on it; see models.stack.
        adapters: name in the result -> name on the model.
        sets: name in the result -> sequences.
        batch_size: sequences per forward.
        accelerator: shares the sequences among processes.

    Returns:
        One row per (combination, set): adapters (their names joined by " + ", empty for none), n_adapters, set,
        n_sequences, extractable, memorization_accuracy_mean, memorization_accuracy_max, longest_verbatim_run_max,
        loss_mean.

    Raises:
        InputError: no sequence of a set can be scored.
        ModelError: the model's output is not finite on any sequence of a set.
    """
    names, rows = list(adapters), []
    for subset in subsets(len(names)):
        active = [names[i] for i in subset]
        with models.active(model, [adapters[name] for name in active]):
            for name, sequences in sets.items():
                frame = scoring.score(model, sequences, METRICS, batch_size, accelerator)
                scoring.check_finite(scoring.any_sound(frame), frame["note"])
                rows.append({
                    "adapters": " + ".join(active),
                    "n_adapters": len(active),
                    "set": name,
                    "n_sequences": len(frame),
                    "extractable": int(frame["extractable"].sum()),
                    "memorization_accuracy_mean": float(frame["memorization_accuracy"].mean()),
                    "memorization_accuracy_max": float(frame["memorization_accuracy"].max()),
                    "longest_verbatim_run_max": int(frame["longest_verbatim_run"].max()),
                    "loss_mean": float(frame["loss"].mean()),
                })  # fmt: skip
    return pd.DataFrame(rows)
