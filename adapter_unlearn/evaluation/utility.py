"""Utility: scores on downstream tasks and dialogue replies, and their paired change against the base.

Every score exists per sample first. The base and the model with adapters answer the same samples, so a change is the
mean of the differences within samples. Its interval is far narrower than the intervals of the two scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from adapter_unlearn.errors import ModelError, RecipeError
from adapter_unlearn.evaluation.lm_tasks import score_tasks
from adapter_unlearn.evaluation.replies import score_replies
from adapter_unlearn.evaluation.summary import TaskScore
from adapter_unlearn.metrics import set_level

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def measure_utility(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Sequence[str] = (),
    replies: str | Path | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Measure a model with the adapters that are active on it.

    With several processes, every process measures everything.

    Args:
        model: a causal language model, with or without adapters, in eval mode. It is neither copied nor changed.
        tokenizer: the model's; it is not changed.
        tasks: names of lm-eval tasks, `paper` or `quick`, or task files; see lm_tasks.score_tasks.
        replies: a file of dialogues; see replies.score_replies.
        limit: use only the first samples of each task and the first dialogues, at most this many.
        batch_size: texts per forward.

    Returns:
        One row per (task, metric, sample): task, metric, doc_id (str), value.

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
        raise ModelError("utility needs text, but the model has no tokenizer that loads; add one to the model's folder")
    frames = []
    if tasks:
        frames.append(score_tasks(model, tokenizer, tasks, limit=limit, batch_size=batch_size))
    if replies is not None:
        frames.append(score_replies(model, tokenizer, replies, limit=limit, batch_size=batch_size))
    return pd.concat(frames, ignore_index=True)


def aggregate(rows: pd.DataFrame) -> tuple[TaskScore, ...]:
    """Mean and standard error of each (task, metric); the standard error is NaN for a single sample.

    Args:
        rows: of `measure_utility`.
    """
    scores = []
    for (task, metric), group in rows.groupby(["task", "metric"], sort=False):
        mean, stderr = group["value"].agg(["mean", "sem"]).to_numpy(dtype=float)
        scores.append(TaskScore(str(task), str(metric), len(group), float(mean), float(stderr)))
    return tuple(scores)


def compare(before: pd.DataFrame, after: pd.DataFrame) -> tuple[TaskScore, ...]:
    """The paired change of each (task, metric).

    Args:
        before: rows of `measure_utility` for the base.
        after: the same for the model with adapters, on the same samples.

    Raises:
        ValueError: the two hold different samples.
    """
    keys = ["task", "metric", "doc_id"]
    both = before.merge(after, on=keys, how="left", validate="one_to_one", indicator="side")
    if unpaired := len(before) + len(after) - 2 * int((both["side"] == "both").sum()):
        raise ValueError(f"{unpaired} samples were measured only once; measure both with the same tasks and limit")
    scores = []
    for (task, metric), pairs in both.groupby(["task", "metric"], sort=False):
        old, new = (pairs[column].to_numpy(dtype=float) for column in ("value_x", "value_y"))
        change = set_level.mean_interval(new - old)
        scores.append(
            TaskScore(
                str(task), str(metric), len(pairs), float(new.mean()), before=float(old.mean()),
                change=change.value, change_interval=change.interval,
            )
        )  # fmt: skip
    return tuple(scores)
