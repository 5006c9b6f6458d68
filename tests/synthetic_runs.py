"""Finished runs without any model, for tests of comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from adapter_unlearn import recipe
from adapter_unlearn.data import Sets
from adapter_unlearn.evaluation.criteria import criteria_of
from adapter_unlearn.evaluation.finished_run import ADAPTER, Finished
from adapter_unlearn.evaluation.forms import Measurement
from adapter_unlearn.evaluation.report import build_report
from adapter_unlearn.evaluation.summary import to_json
from adapter_unlearn.runs import run_folder

SPREAD = np.linspace(0.05, 0.45, 12)
"""Memorization accuracies of which some are failing and some are not."""
UNSEEN = np.linspace(0.1, 0.3, 8)
"""Those of the holdout set: its bounds are 0.11 and 0.29, its longest run is 4."""


def scores(values, name):
    values = np.asarray(values, dtype=float)
    return pd.DataFrame(
        {
            "id": [f"{name}-{i}" for i in range(len(values))],
            "n_tokens": 60,
            "memorization_accuracy": values,
            "extractable": (values >= 0.99).astype(float),
            "extractable_50": np.nan,
            "extractable_any_prefix": (values >= 0.97).astype(float),
            "longest_verbatim_run": np.floor(50 * values**2),
            "loss": 5 * (1 - values),
            "note": "",
        }
    )


def measurement(form, accuracy, unseen=UNSEEN, perplexity_ratio=1.0):
    """A form with these memorization accuracies; with a holdout set, perplexities of holdout and test set too."""
    frames = (
        {} if unseen is None else {"holdout": np.log(30 * perplexity_ratio), "test": np.log(50 * perplexity_ratio**0.5)}
    )
    losses = {name: np.linspace(loss - 0.5, loss + 0.5, 9) for name, loss in frames.items()}
    return Measurement(
        form,
        scores(accuracy, "text"),
        None if unseen is None else scores(unseen, "new"),
        perplexities={name: float(np.exp(values.mean())) for name, values in losses.items()},
        losses=losses,
        tokens={name: np.full(9, 59) for name in losses},
    )


def report(measurements):
    sets = Sets(Dataset.from_dict({"document": list(measurements[0].forget["id"])}))
    return build_report(measurements, sets, criteria_of("holdout", measurements[0].holdout))


def finished_run(
    folder, accuracy, seed=0, method=None, perplexity_ratio=1.1, forms=("stacked",), with_holdout=True, **changes
):
    """A finished run with these memorization accuracies in its first form; each further form is 0.01 higher."""
    unseen = UNSEEN if with_holdout else None
    measurements = [measurement("base", np.linspace(0.5, 1, len(accuracy)), unseen)]
    for i, form in enumerate(forms):
        after = None if unseen is None else unseen * 0.9
        measurements.append(measurement(form, np.asarray(accuracy) + 0.01 * i, after, perplexity_ratio))
    result = report(measurements)
    run = Finished(
        str(folder),
        {
            "base": {"name": "m", "fingerprint": "sha256:1", "quantization": "nf4", "dtype": "float32"},
            "seed": seed,
            "cost": {"seconds": 10.0 + seed, "peak_memory_bytes": 5e6, "sequences_ascended": 40, "epochs": 4},
            "outcome": {"goal_reached": seed == 0, "stopped_because": "The stop rule held."},
            "data": {"test": {"n_sequences": 9}},
        },
        result.summary,
        result.sequences,
        result.holdout,
        result.membership,
        recipe.Recipe(
            recipe.Model(name="m"),
            recipe.Data(forget="f.jsonl"),
            output_dir=str(folder),
            seed=seed,
            method={"name": method or str(folder)},
        ),
        weights=f"{folder}{seed}",
    )
    return replace(run, **changes)


def write_run(run: Finished, folder: Path) -> Path:
    """The files of a run folder that a comparison reads."""
    folder.mkdir(parents=True)
    run_folder.write_json(folder / run_folder.MANIFEST, run.manifest)
    run_folder.write_json(folder / "summary.json", json.loads(json.dumps(to_json(run.summary))))
    for name in ("sequences", "holdout", "membership"):
        getattr(run, name).to_parquet(folder / f"{name}.parquet", index=False)
    settings = replace(run.recipe, output_dir=str(folder), method={"name": "sga"})
    (folder / "recipe.yaml").write_text(recipe.to_yaml(settings))
    (folder / ADAPTER).write_bytes(b"weights")
    return folder
