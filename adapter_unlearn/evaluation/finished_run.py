"""Finished runs, read from their folders."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from adapter_unlearn.errors import RunError
from adapter_unlearn.evaluation import run_checks, summary
from adapter_unlearn.evaluation.summary import Summary
from adapter_unlearn.recipe import Recipe, load_recipe
from adapter_unlearn.runs import run_folder

ADAPTER = "adapter_model.safetensors"
"""The weights of a plain PEFT adapter. Repeated here because the module that reads adapters imports torch."""
COSTS = ("seconds", "peak_memory_bytes", "sequences_ascended", "epochs")


@dataclass(frozen=True)
class Finished:
    """A finished run, or a finished evaluation, as its folder holds it.

    Attributes:
        folder: its path, as the user gave it.
        manifest: unlearning.json, or evaluation.json.
        summary: summary.json.
        sequences: one row per (forget sequence, form).
        holdout: the same for the holdout set; empty without one.
        membership: one row per (metric, form); empty without a holdout set.
        recipe: the resolved recipe; None for an evaluation.
        weights: hash of the adapter's file; None for an evaluation.
        experiment: its name in a matrix of experiments, or None.
    """

    folder: str
    manifest: dict[str, Any]
    summary: Summary
    sequences: pd.DataFrame
    holdout: pd.DataFrame
    membership: pd.DataFrame
    recipe: Recipe | None = None
    weights: str | None = None
    experiment: str | None = None

    @property
    def seed(self) -> int | None:
        """The training seed; None for an evaluation."""
        return self.manifest.get("seed")

    @property
    def costs(self) -> dict[str, float | None]:
        """Cost of the training, and whether its stop rule held; None where the manifest does not say."""
        cost, outcome = (self.manifest.get(key) or {} for key in ("cost", "outcome"))
        return {key: cost.get(key) for key in COSTS} | {"goal_reached": outcome.get("goal_reached")}

    @property
    def precision(self) -> str:
        """How the base was loaded."""
        base = self.manifest.get("base") or {}
        return f"{base.get('quantization')}, {base.get('dtype')}"


def read(folder: str | Path, experiment: str | None = None) -> Finished:
    """Read the folder of a run or of an evaluation.

    Raises:
        RunError: the folder is neither, another version of the package wrote it, or a file can't be read.
    """
    path = Path(folder)
    manifests = [name for name in (run_folder.MANIFEST, run_folder.EVALUATION) if (path / name).is_file()]
    if not manifests or not (path / "summary.json").is_file():
        raise RunError(
            f"{folder}: not a finished run, {run_folder.MANIFEST} or summary.json is missing; name the folder of a"
            " finished run"
        )
    recipe, weights = None, None
    try:
        manifest, values = (run_checks.read_json(path / name) for name in (manifests[0], "summary.json"))
        _check_schema(folder, values)
        aggregates = summary.from_json(values)
        sequences = run_checks.read_table(path / "sequences.parquet")
        holdout, membership = (_table(path / f"{name}.parquet") for name in ("holdout", "membership"))
        run_checks.check_manifest(manifest)
        run_checks.check_summary(aggregates)
        run_checks.check_tables(aggregates, sequences, holdout, membership)
        if manifests[0] == run_folder.MANIFEST:
            recipe = load_recipe(path / "recipe.yaml")
            if not (path / ADAPTER).is_file():
                raise FileNotFoundError
            with (path / ADAPTER).open("rb") as file:
                weights = hashlib.file_digest(file, "sha256").hexdigest()
        return Finished(str(folder), manifest, aggregates, sequences, holdout, membership, recipe, weights, experiment)
    except RunError:
        raise
    except Exception as error:  # a damaged file raises errors of many types, and their messages might quote a text
        raise RunError(
            f"{folder}: can't be read ({type(error).__name__}); a file of the run is damaged, make the run again"
        ) from error


def _check_schema(folder: str | Path, values: dict[str, Any]) -> None:
    """Refuse a run of another version, whose keys have other meanings."""
    if (version := values.get("schema_version")) != run_folder.SCHEMA_VERSION:
        state = "has no schema_version" if version is None else f"has schema_version {version}"
        raise RunError(
            f"{folder}: summary.json {state}, so another version of this package wrote it (this one reads"
            f" {run_folder.SCHEMA_VERSION}); make the run again"
        )


def _table(path: Path) -> pd.DataFrame:
    """A table that a run has only with a holdout set."""
    return run_checks.read_table(path) if path.exists() or path.is_symlink() else pd.DataFrame()


def rows_by_id(frame: pd.DataFrame, form: str) -> pd.DataFrame:
    """The rows of a form, indexed by id and occurrence: an id may occur more than once."""
    if not len(frame):
        return frame
    rows = frame[frame["form"] == form]
    keys = pd.MultiIndex.from_arrays([rows["id"].map(str), rows.groupby("id").cumcount()], names=["id", "copy"])
    return rows.set_axis(keys, axis=0)
