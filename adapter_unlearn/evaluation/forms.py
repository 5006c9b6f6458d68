"""Measure a model in the forms in which it may be deployed: stacked, merged, and merged and quantized again.

`stacked` is measured on the model in memory. For the other forms the adapters are merged into the original weights in
full precision, and the merged folder is loaded and measured as a user would load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_unlearn import models, progress, scoring
from adapter_unlearn.errors import InputError
from adapter_unlearn.evaluation import utility
from adapter_unlearn.evaluation.summary import BASE
from adapter_unlearn.metrics.prefixes import prefix_curve, worst_of
from adapter_unlearn.recipe import Permissions
from adapter_unlearn.weights import rounding

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from accelerate import Accelerator
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from adapter_unlearn.data import Sets
    from adapter_unlearn.metrics import Predictions
    from adapter_unlearn.recipe import Form, Model, Quantization

NEEDED = (
    "memorization_accuracy", "extractable", "extractable_50", "extractable_any_prefix", "longest_verbatim_run", "loss",
)  # fmt: skip
"""Metrics that every measurement has; all of them come from one forward."""


@dataclass(frozen=True)
class Measurement:
    """The measurement of one form.

    Attributes:
        form: base, stacked, merged, …
        forget: the forget set's scores, one row per sequence.
        holdout: the holdout set's scores, or None.
        perplexities: name of a set -> its perplexity, over the whole set.
        losses: name of a set -> the loss of each sequence, shape (n,); NaN where there is none.
        tokens: name of a set -> the number of tokens that each of these losses is the mean over, shape (n,).
        before: the base in this form's precision where that is not the run's. Quantization alone changes perplexity,
            and that change is not the adapter's.
        loaded_as: dtype and quantization in words.
        curves: what is extractable from every prefix length; see prefixes.worst_of.
        utility: downstream tasks and replies, one row per (task, metric, sample); None where none were measured.
        deltas: how much of the adapters' deltas is in this form's weights, one row per module; see rounding.survival.
    """

    form: str
    forget: pd.DataFrame
    holdout: pd.DataFrame | None
    perplexities: dict[str, float]
    losses: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    before: Measurement | None = None
    loaded_as: str = ""
    curves: pd.DataFrame | None = None
    utility: pd.DataFrame | None = None
    deltas: pd.DataFrame | None = None


@dataclass(frozen=True)
class Measuring:
    """What to measure, and how.

    Attributes:
        sets: the sets to score.
        metrics: further metrics, in addition to NEEDED.
        batch_size: sequences per forward.
        accelerator: shares the sequences among processes.
        tasks: downstream tasks; see lm_tasks.score_tasks.
        replies: a file of dialogues, or None; see replies.score_replies.
        limit: use only the first samples of each task and the first dialogues, at most this many.
        tokenizer: required for tasks and replies.
    """

    sets: Sets
    metrics: Sequence[str] = NEEDED
    batch_size: int = 16
    accelerator: Accelerator | None = None
    tasks: Sequence[str] = ()
    replies: str | None = None
    limit: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


def measure(
    model: torch.nn.Module, form: str, adapters: Sequence[str], measuring: Measuring, only: Sequence[str] | None = None
) -> Measurement:
    """Score sets with exactly these adapters active.

    Args:
        model: a base model, with or without adapters.
        form: the form's name in the report.
        adapters: names of adapters on the model; empty for the base.
        measuring: sets, metrics and batch size.
        only: names of sets, `forget` among them; `completed` scores the others. None scores all.

    Raises:
        InputError: no sequence of a set can be scored.
        ModelError: the model's output is not finite on any sequence of a set.
    """
    names = [name for name in measuring.sets.given() if only is None or name in only]
    curves: dict[int, dict[str, np.ndarray]] = {}

    def add_curve(i: int, predictions: Predictions) -> None:
        curves[i] = prefix_curve(predictions)

    with models.evaluating(model), models.active(model, adapters):
        frames = {
            name: _score_set(model, form, name, measuring, observe=add_curve if name == "forget" else None)
            for name in names
        }
        task_scores = None
        if measuring.tasks or measuring.replies is not None:  # on every process: lm-eval shares no samples here
            task_scores = utility.measure_utility(
                model, measuring.tokenizer, measuring.tasks, measuring.replies,
                limit=measuring.limit, batch_size=measuring.batch_size,
            )  # fmt: skip
    return Measurement(
        form,
        frames["forget"],
        frames.get("holdout"),
        **_of_others(frames, measuring),
        curves=worst_of(models.gathered(curves, measuring.accelerator).values()),
        utility=task_scores,
    )


def completed(
    measurement: Measurement, model: torch.nn.Module, adapters: Sequence[str], measuring: Measuring
) -> Measurement:
    """The measurement with the sets that `measure` left out; arguments as there."""
    missing = [name for name in measuring.sets.given() if name != "forget" and name not in measurement.losses]
    with models.evaluating(model), models.active(model, adapters):
        frames = {name: _score_set(model, measurement.form, name, measuring) for name in missing}
    added = _of_others(frames, measuring)
    order = [name for name in measuring.sets.given() if name != "forget"]
    for key, values in added.items():
        both = getattr(measurement, key) | values
        added[key] = {name: both[name] for name in order}
    return replace(measurement, **added)


def _of_others(frames: dict[str, pd.DataFrame], measuring: Measuring) -> dict[str, Any]:
    """Perplexities, losses and tokens of all sets but the forget set, as in Measurement."""
    sets = {name: sequences for name, sequences in measuring.sets.given().items() if name in frames.keys() - {"forget"}}
    return {
        "perplexities": {name: scoring.perplexity(frames[name], sequences) for name, sequences in sets.items()},
        "losses": {name: frames[name]["loss"].to_numpy(dtype=float) for name in sets},
        "tokens": {name: np.array(scoring.predicted_tokens(sequences)) for name, sequences in sets.items()},
    }


def _score_set(model: torch.nn.Module, form: str, name: str, measuring: Measuring, **options: Any) -> pd.DataFrame:
    """All metrics of forget and holdout set, the loss of any other set."""
    metrics = list(dict.fromkeys([*NEEDED, *measuring.metrics])) if name in ("forget", "holdout") else ["loss"]
    sequences: Dataset = getattr(measuring.sets, name)
    try:
        with progress.phase(f"measure {form}, {name} set"):
            frame = scoring.score(model, sequences, metrics, measuring.batch_size, measuring.accelerator, **options)
    except InputError as error:
        raise InputError(f"data.{name}: {error}") from error
    scoring.check_finite(scoring.any_sound(frame), frame["note"])
    return frame


def needs_merging(forms: Sequence[Form]) -> list[Form]:
    """The forms that are measured on merged weights."""
    return [form for form in forms if form != "stacked"]


def quantization_of(form: Form, stacked: Quantization) -> Quantization:
    """How a form's weights are loaded. `requantized`: like the stacked base, or in nf4 if that is not quantized."""
    if form == "merged":
        return "none"
    if form == "requantized":
        return "nf4" if stacked == "none" else stacked
    return "nf4" if form == "requantized_nf4" else "int8"


def measure_merged(
    base: Model,
    adapters: Sequence[str | Path],
    forms: Sequence[Form],
    merged: Path,
    stacked: Measurement,
    measuring: Measuring,
    trust_remote_code: bool = False,
) -> list[Measurement]:
    """Measure the forms that are made from merged weights.

    Args:
        base: the model as the recipe names it; its `adapter`, if any, is part of the base.
        adapters: the adapters that were merged, without the base's own.
        forms: merged, requantized, …
        merged: folder of the base with all adapters merged into it.
        stacked: the measurement of the base for the stacked form.
        measuring: sets, metrics and batch size.
        trust_remote_code: run Python code that comes with the model.
    """
    bases: dict[Quantization, Measurement] = {base.quantization: stacked}
    frozen = [base.adapter] if base.adapter else []
    measurements = []
    for form in forms:
        quantization = quantization_of(form, base.quantization)
        if quantization not in bases:
            original: Any = models.load_base(base.name, quantization, base.dtype, base.revision, trust_remote_code)
            original = models.stack(original, frozen) if frozen else original
            bases[quantization] = measure(original, BASE, models.adapter_names(len(frozen)), measuring)
            del original  # memory may not hold two models
        model = models.load_base(str(merged), quantization, base.dtype, trust_remote_code=trust_remote_code)
        measurement = measure(model, form, [], measuring)
        del model
        deltas = rounding.survival(
            base, [*frozen, *adapters], quantization, base.dtype,
            permissions=Permissions(force=True, trust_remote_code=trust_remote_code),
        )  # fmt: skip
        before = bases[quantization]
        words = f"{base.dtype}, {'not quantized' if quantization == 'none' else quantization}"
        measurements.append(
            replace(measurement, before=None if before is stacked else before, loaded_as=words, deltas=deltas)
        )
    return measurements
