"""Every metric as a module of the `evaluate` library. The modules are defined here; nothing is downloaded."""

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
    """A row of the metrics table. It measures a model: `compute` takes a model and sequences, not predictions.

    evaluate.Metric writes added predictions to Arrow files in the cache. This class refuses them.
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
            model: a causal language model, with the adapters that are active on it.
            sequences: see adapter_unlearn.load_sequences.
            batch_size: sequences per forward.
            sampling: the sampling scheme of p_z.
            predictions: must be None, like references; evaluate.combine passes both to every module.
            references: must be None.

        Returns:
            The metric's name: the mean over the sequences that can be scored. `per_sequence`: one float per sequence,
            in the order given, NaN where there is no score.

        Raises:
            RecipeError: model or sequences are missing, or predictions are given.
            InputError: no sequence can be scored.
            ModelError: the model's output is not finite on any sequence.
        """
        if model is None or sequences is None or predictions is not None or references is not None:
            raise RecipeError(f"{self.metric} measures a model: call compute(model=…, sequences=…)")
        scored = scoring.score(model, sequences, [self.metric], batch_size, sampling=sampling)
        scoring.check_finite(scoring.any_sound(scored), scored["note"])
        values = scored[self.metric].to_numpy(dtype=float)
        return {self.metric: float(np.nanmean(values)), "per_sequence": values.tolist()}

    def add_batch(self, **_: Any) -> None:
        """Not supported, like add.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(f"{self.metric} collects no predictions: call compute(model=…, sequences=…)")

    add = add_batch


def module(metric: str) -> MemorizationModule:
    """The `evaluate` module of a metric: module("extractable").compute(model=…, sequences=…).

    Raises:
        RecipeError: unknown metric, or a group of metrics.
    """
    if len(resolve([metric])) > 1:
        raise RecipeError(f"module {metric!r}: stands for several metrics; name one metric, or call score")
    return type(metric, (MemorizationModule,), {"metric": metric})()  # evaluate names a module after its class
