"""Every metric as a module of the library `evaluate`, without a hub: made here, not downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np

from adapter_unlearn import scoring
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.metrics.table import METRICS, resolve

if TYPE_CHECKING:
    import torch

    from adapter_unlearn.metrics import Sampling


class MemorizationModule(evaluate.Metric):
    """A metric of the catalogue. It measures a model, so it takes a model and sequences, not predictions.

    evaluate.Metric would write what it is fed with to Arrow files in the cache; this one is fed with nothing.
    """

    metric: str

    def _info(self) -> evaluate.MetricInfo:
        row = METRICS[self.metric]
        return evaluate.MetricInfo(
            description=f"{row.means}; {row.formula}",
            citation=row.source,
            inputs_description="model: a causal language model; sequences: from adapter_unlearn.load_sequences.",
            features=datasets.Features({}),
        )

    def compute(
        self,
        *,
        model: torch.nn.Module | None = None,
        sequences: datasets.Dataset | None = None,
        batch_size: int = 16,
        sampling: Sampling = scoring.DEFAULT_SAMPLING,
        predictions: Any = None,
        references: Any = None,
    ) -> dict[str, Any]:
        """Score every sequence.

        Args:
            model: a causal language model, scored as its adapters are set.
            sequences: see adapter_unlearn.load_sequences.
            batch_size: sequences in one forward.
            sampling: how tokens would be drawn.
            predictions: must be None, like references; evaluate.combine passes both to every module.
            references: must be None.

        Returns:
            The metric's name: its mean over the sequences that it can score; per_sequence: a float a sequence, in the
            order given, NaN where it says nothing.

        Raises:
            RecipeError: model or sequences are missing. InputError: not one sequence can be scored.
            ModelError: the model's output is not finite on any.
        """
        if model is None or sequences is None or predictions is not None or references is not None:
            raise RecipeError(f"{self.metric} measures a model: call compute(model=…, sequences=…)")
        scored = scoring.score(model, sequences, [self.metric], batch_size, sampling=sampling)
        scoring.check_finite(scoring.any_sound(scored), scored["note"])
        values = scored[self.metric].to_numpy(dtype=float)
        return {self.metric: float(np.nanmean(values)), "per_sequence": values.tolist()}

    def add_batch(self, **_: Any) -> None:
        """Refused, like add: there is nothing to collect."""
        raise RecipeError(f"{self.metric} collects no predictions: call compute(model=…, sequences=…)")

    def add(self, **_: Any) -> None:
        """Refused, like add_batch."""
        raise RecipeError(f"{self.metric} collects no predictions: call compute(model=…, sequences=…)")


def module(metric: str) -> MemorizationModule:
    """The `evaluate` module of a metric: module("extractable").compute(model=…, sequences=…).

    Raises:
        RecipeError: there is no such row.
    """
    if len(resolve([metric])) > 1:
        raise RecipeError(f"a module is one metric, not {metric}; score gives several at once")
    return type(metric, (MemorizationModule,), {"metric": metric})()  # evaluate names a module after its class
