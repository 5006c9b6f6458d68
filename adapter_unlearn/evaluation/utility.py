"""What a model can still do besides: task scores and dialogue replies, and their change against the base, paired.

Every number exists per sample first. The base and the model with adapters answer the same samples, so a change is the
mean of differences within samples, and its interval is far narrower than the two intervals of the two scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from adapter_unlearn.errors import ModelError, RecipeError
from adapter_unlearn.evaluation.lm_tasks import SEED, score_tasks
from adapter_unlearn.evaluation.replies import score_replies

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

COLUMNS = ["task", "metric", "doc_id", "value"]

_BLOCK = 2**22  # indices drawn at once: 32 MiB, however many samples and resamples


def measure_utility(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Sequence[str] = (),
    replies: str | Path | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = SEED,
) -> pd.DataFrame:
    """Measure the loaded model as its adapters are set: call it within `models.active`, once for each form.

    Nothing is shared among processes: every one that calls it measures everything.

    Args:
        model: a causal language model, with or without adapters, in eval mode. It is neither copied nor changed.
        tokenizer: the model's; it is not changed.
        tasks: names of lm-eval tasks, `paper` or `quick`, or task files (see lm_tasks.score_tasks).
        replies: a file of dialogues (see replies.score_replies).
        limit: only the first so many samples of each task and of the dialogues.
        batch_size: texts in one forward.
        seed: of few-shot examples and of tasks that shuffle; lm-eval's own default, so that its figures come out.

    Returns:
        A row a (task, metric, sample): task, metric, doc_id (str), value.

    Raises:
        RecipeError: nothing to measure, a number out of range, an unknown task, lm-eval not installed.
        InputError: a task file, a task's data or the file of dialogues can't be used.
        ModelError: there is no tokenizer.
    """
    if not tasks and replies is None:
        raise RecipeError("utility: no tasks and no replies; name at least one task or a file of dialogues")
    for name, value in {"limit": limit, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise RecipeError(f"{name} is {value}; give 1 or more")
    if tokenizer is None:
        raise ModelError("utility needs text, and the model has no tokenizer that loads; add it to the model's folder")
    frames = []
    if tasks:
        frames.append(score_tasks(model, tokenizer, tasks, limit=limit, batch_size=batch_size, seed=seed))
    if replies is not None:
        scores = score_replies(model, tokenizer, replies, limit=limit, batch_size=batch_size)
        frames.append(scores.assign(task="replies", metric="f1", value=scores["f1"]))
    return pd.concat([frame[COLUMNS] for frame in frames], ignore_index=True)


def aggregate(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a (task, metric): value (the mean over samples), stderr (of that mean; NaN for one sample), n."""
    grouped = rows.groupby(["task", "metric"], sort=False)["value"]
    return grouped.agg(value="mean", stderr="sem", n="size").reset_index()


def compare(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The change of every score, sample by sample.

    Args:
        before: rows of `measure_utility`, of the base.
        after: the same of the model with adapters, on the same samples.

    Returns:
        A row a (task, metric): task, metric, before, after, change, low, high (95 %, see paired_change), n.

    Raises:
        ValueError: the two hold different samples.
    """
    keys = ["task", "metric", "doc_id"]
    both = before.merge(after, on=keys, how="outer", sort=False, validate="one_to_one", indicator="side")
    if len(odd := both[both["side"] != "both"]):
        raise ValueError(f"{len(odd)} samples were measured only once; measure both with the same tasks and limit")
    found: list[dict[str, Any]] = []
    for task, metric in before[keys[:2]].drop_duplicates().itertuples(index=False):
        pairs = both[(both["task"] == task) & (both["metric"] == metric)]
        old, new = pairs["value_x"].to_numpy(dtype=float), pairs["value_y"].to_numpy(dtype=float)
        change, low, high = paired_change(old, new)
        found.append(
            {
                "task": task,
                "metric": metric,
                "before": float(old.mean()),
                "after": float(new.mean()),
                "change": change,
                "low": low,
                "high": high,
                "n": len(pairs),
            }
        )
    return pd.DataFrame(found, columns=["task", "metric", "before", "after", "change", "low", "high", "n"])


def paired_change(
    before: npt.ArrayLike, after: npt.ArrayLike, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of after - before, and the bounds of its percentile bootstrap interval over samples.

    Args:
        before: a value a sample.
        after: the same samples' values.
        resamples: how often the samples are drawn anew, with replacement; both values of a sample go together.
        level: the interval's share of the resampled means.
        seed: of the draws.

    Returns:
        (difference, low, high). Where no sample changed, all three are 0: the interval knows only what it saw.

    Raises:
        ValueError: no samples, or a different number before and after.
    """
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if old.shape != new.shape or old.ndim != 1 or not old.size:
        raise ValueError(f"paired values are needed, got shapes {old.shape} and {new.shape}")
    differences, n = new - old, old.size
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    means = np.concatenate(
        [
            differences[generator.integers(n, size=(min(rows, resamples - start), n))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(differences.mean()), float(low), float(high)
