"""Measure a model in the forms in which it may be deployed: stacked, merged, and merged and quantized again.

`stacked` is measured on the model at hand. The others are made: the adapters are merged into the original weights, in
full precision, and what is measured is that folder, loaded as a user would load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object

from adapter_unlearn import models, scoring
from adapter_unlearn.errors import InputError
from adapter_unlearn.evaluation import utility
from adapter_unlearn.metrics.prefixes import prefix_curve, worst_of
from adapter_unlearn.weights import rounding

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from accelerate import Accelerator
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from adapter_unlearn.data import Sets
    from adapter_unlearn.metrics import Predictions
    from adapter_unlearn.models import Quantization
    from adapter_unlearn.recipe import Form, Model

NEEDED = (
    "memorization_accuracy", "extractable", "extractable_50", "extractable_any_prefix", "longest_verbatim_run", "loss",
)  # fmt: skip
"""What every summary holds; further metrics are columns beside them."""


@dataclass(frozen=True)
class Measurement:
    """One form, measured.

    Attributes:
        form: base, stacked, …
        forget: the forget set's scores, a row a sequence.
        holdout: the same for the holdout set, or None.
        perplexities: name of a set -> its perplexity, over the whole set.
        losses: name of a set -> each sequence's loss, NaN where there is none.
        tokens: name of a set -> how many tokens each of those is the mean over.
        before: the base in this form's precision, where that is not the run's: quantization alone changes perplexity,
            and nobody should take that for the adapter's doing.
        loaded_as: dtype and quantization in words.
        curves: what greedy decoding recites from every prefix length; see prefixes.worst_of.
        utility: downstream tasks and replies, a row a (task, metric, sample); None where none were asked for.
        deltas: what of the adapters' deltas arrives in this form's weights, a row a module (see rounding.survival).
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
        sets: what to score.
        metrics: rows of the metrics table, beside NEEDED.
        batch_size: sequences in one forward.
        accelerator: shares the work among processes.
        tasks: downstream tasks beside the sets; see lm_tasks.score_tasks.
        replies: a file of dialogues, or None; see replies.score_replies.
        limit: only the first so many samples of each task and of the dialogues.
        tokenizer: needed for tasks and replies.
    """

    sets: Sets
    metrics: Sequence[str] = NEEDED
    batch_size: int = 16
    accelerator: Accelerator | None = None
    tasks: Sequence[str] = ()
    replies: str | None = None
    limit: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


def measure(model: torch.nn.Module, form: str, adapters: Sequence[str], how: Measuring) -> Measurement:
    """Score every set with exactly these adapters active.

    Args:
        model: a base model, or one with adapters on it.
        form: its name in the report.
        adapters: names of adapters on the model; none is the base.
        how: the sets, metrics and batch size.

    Raises:
        InputError: no sequence of a set can be scored; ModelError: the model's output is not finite on any.
    """
    wanted = list(dict.fromkeys([*NEEDED, *how.metrics]))

    curves: dict[int, dict[str, np.ndarray]] = {}

    def see(i: int, predictions: Predictions) -> None:
        curves[i] = prefix_curve(predictions)

    def scored(name: str, sequences: Dataset) -> pd.DataFrame:
        chosen = wanted if name in ("forget", "holdout") else ("loss",)
        observe = see if name == "forget" else None
        try:
            frame = scoring.score(model, sequences, chosen, how.batch_size, how.accelerator, observe=observe)
        except InputError as error:
            raise InputError(f"data.{name}: {error}") from error
        scoring.check_finite(scoring.any_sound(frame), frame["note"])
        return frame

    with models.active(model, adapters):
        frames = {name: scored(name, sequences) for name, sequences in how.sets.given().items()}
        able = None
        if how.tasks or how.replies is not None:  # every process measures all of it: lm-eval shares no samples here
            able = utility.measure_utility(
                model, how.tokenizer, how.tasks, how.replies, limit=how.limit, batch_size=how.batch_size
            )
    if how.accelerator is not None and how.accelerator.num_processes > 1:
        curves = dict(gather_object(list(curves.items())))
    others = {name: sequences for name, sequences in how.sets.given().items() if name != "forget"}
    return Measurement(
        form,
        frames["forget"],
        frames.get("holdout"),
        perplexities={name: scoring.perplexity(frames[name], sequences) for name, sequences in others.items()},
        losses={name: frames[name]["loss"].to_numpy(dtype=float) for name in others},
        tokens={name: np.array(scoring.predicted_tokens(sequences)) for name, sequences in others.items()},
        curves=worst_of(curves.values()),
        utility=able,
    )


def needs_merging(forms: Sequence[Form]) -> list[Form]:
    """Those of the forms that are measured on merged weights."""
    return [form for form in forms if form != "stacked"]


def quantization_of(form: Form, stacked: Quantization) -> Quantization:
    """How a form's weights are loaded; `requantized` as the stacked base is, in nf4 where that is not quantized."""
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
    how: Measuring,
) -> list[Measurement]:
    """Measure the forms that are made from merged weights.

    Args:
        base: the model as the recipe names it; its `adapter`, if it carries one, is part of what is unlearned from.
        adapters: those that were merged, without the one that is carried.
        forms: merged, requantized, …
        merged: folder of the base with all adapters merged into it.
        stacked: the base as it was measured for the stacked form.
        how: the sets, metrics and batch size.
    """
    befores: dict[Quantization, Measurement] = {base.quantization: stacked}
    carried = [base.adapter] if base.adapter else []
    trust = base.trust_remote_code
    measured = []
    for form in forms:
        quantization = quantization_of(form, base.quantization)
        if quantization not in befores:
            original: Any = models.load_base(base.name, quantization, base.dtype, base.revision, trust)
            original = models.stack(original, carried) if carried else original
            befores[quantization] = measure(original, "base", models.adapter_names(len(carried)), how)
            del original  # two models at once would not fit where one does
        model = models.load_base(str(merged), quantization, base.dtype, trust_remote_code=trust)
        found = measure(model, form, [], how)
        del model
        deltas = rounding.survival(
            base.name, [*carried, *adapters], quantization, base.dtype, revision=base.revision,
            trust_remote_code=trust, force=True,
        )  # fmt: skip
        before = befores[quantization]
        words = f"{base.dtype}, {'not quantized' if quantization == 'none' else quantization}"
        measured.append(replace(found, before=None if before is stacked else before, loaded_as=words, deltas=deltas))
    return measured
