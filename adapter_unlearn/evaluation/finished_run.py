"""Finished runs, read from their folders, and whether their figures may stand side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from adapter_unlearn.errors import RecipeError, RunError
from adapter_unlearn.recipe import as_dict, load_recipe
from adapter_unlearn.runs import run_folder

BASE = "base"
ADAPTER = "adapter_model.safetensors"
"""Of a plain PEFT adapter; said here too, for what reads adapters loads torch."""
SAME_TEXT = 0.25
"""In nats: numeric noise moves the base's loss on a text by a few hundredths, another text by more than this."""
NEEDED = ("id", "form", "n_tokens", "memorization_accuracy", "extractable", "longest_verbatim_run", "loss")


@dataclass(frozen=True)
class Finished:
    """A finished run, or the evaluation of finished adapters, as its folder holds it.

    Attributes:
        folder: where it lies, as the user named it.
        manifest: unlearning.json, or evaluation.json.
        summary: summary.json.
        sequences: a row a (forget sequence, form).
        holdout: the same for never-seen text; empty without.
        membership: a row a (metric, form); empty without a holdout set.
        curves: a row a (prefix length, form); may be empty.
        recipe: the resolved recipe; None for an evaluation.
        weights: what tells the adapter's file from others; None for an evaluation.
        experiment: its name in a matrix of experiments, or None.
    """

    folder: str
    manifest: dict[str, Any]
    summary: dict[str, Any]
    sequences: pd.DataFrame
    holdout: pd.DataFrame
    membership: pd.DataFrame
    curves: pd.DataFrame
    recipe: dict[str, Any] | None = None
    weights: str | None = None
    experiment: str | None = None

    @property
    def seed(self) -> int | None:
        """Of the training; None for an evaluation."""
        return self.manifest.get("seed")

    def of_form(self, form: str) -> dict[str, Any]:
        """A form's aggregates."""
        return self.summary["forms"].get(form) or {}


def read(folder: str | Path, experiment: str | None = None) -> Finished:
    """Read a run folder, or that of an evaluation.

    Raises:
        RunError: it is none, or what lies there can't be read.
    """
    path = Path(folder)
    marks = [name for name in (run_folder.MANIFEST, run_folder.EVALUATION) if (path / name).is_file()]
    if not marks or not (path / "summary.json").is_file():
        raise RunError(f"{folder}: is no finished run (its {run_folder.MANIFEST} or summary.json is missing)")
    try:
        manifest, summary = (
            json.loads((path / name).read_text(encoding="utf-8")) for name in (marks[0], "summary.json")
        )
        _check_schema(folder, summary)
        tables = {name: _table(path / f"{name}.parquet") for name in ("sequences", "holdout", "membership", "curves")}
        recipe, weights = None, None
        if marks[0] == run_folder.MANIFEST:
            recipe = as_dict(load_recipe(path / "recipe.yaml"))
            with (path / ADAPTER).open("rb") as file:
                weights = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, RecipeError) as error:  # what it says might be a text of the user's
        raise RunError(
            f"{folder}: can't be read ({type(error).__name__}); the run is not whole, make it again"
        ) from error
    for name in ("sequences", "holdout"):
        missing = [column for column in NEEDED if column not in tables[name]]
        if missing and (len(tables[name]) or name == "sequences"):
            raise RunError(f"{folder}: {name}.parquet has no column {missing[0]!r}; make the run again")
    if not (isinstance(summary, dict) and isinstance(manifest, dict) and (summary.get("forms") or {}).get(BASE)):
        raise RunError(f"{folder}: summary.json holds no figures of the base; make the run again")
    return Finished(str(folder), manifest, summary, recipe=recipe, weights=weights, experiment=experiment, **tables)


def _check_schema(folder: str | Path, summary: Any) -> None:
    """Refuse a run of an earlier version, whose keys mean something else."""
    version = summary.get("schema_version") if isinstance(summary, dict) else None
    if isinstance(summary, dict) and version != run_folder.SCHEMA_VERSION:
        found = "has no schema_version" if version is None else f"has schema_version {version}"
        raise RunError(
            f"{folder}: its summary.json {found}, so it was made by another version of this package (this one reads"
            f" {run_folder.SCHEMA_VERSION}); make the run again"
        )


def _table(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame()


def comparable(runs: Sequence[Finished]) -> list[Finished]:
    """The runs with their rows in the order of the first one's.

    No run folder holds a text or a hash of one (a short secret is found by hashing guesses). So texts are told apart by
    id, by length, and by the loss the base itself gives them.

    Raises:
        RunError: names the two folders and what differs: base, forget set, holdout set, bounds, prefix length.
    """
    first = runs[0]
    for other in runs[1:]:
        if what := _what_differs(first, other):
            raise RunError(f"{first.folder} and {other.folder}: {what}; compare runs of one base on the same texts")
    return [_in_order_of(first, run) for run in runs]


def _what_differs(first: Finished, other: Finished) -> str | None:
    a, b = (run.manifest.get("base") or {} for run in (first, other))
    prints = [base.get("fingerprint") for base in (a, b)]
    if None not in prints and prints[0] != prints[1]:
        shown = [f"{base.get('name')} with {str(base['fingerprint'])[:15]}…" for base in (a, b)]
        return f"their base models differ ({', '.join(shown)})"
    if bool(a.get("adapter")) != bool(b.get("adapter")):
        return "the base of one carries an adapter and that of the other none"
    exact = precision(first) == precision(other)
    for name, column in (("forget", "sequences"), ("holdout", "holdout")):
        if what := _sets_differ(getattr(first, column), getattr(other, column), exact):
            return f"their {name} sets differ: {what}"
    kinds = [(run.of_form(BASE).get("bounds") or {}).get("kind") for run in (first, other)]
    if kinds[0] != kinds[1]:
        return f"outliers are counted by different bounds ({kinds[0]} and {kinds[1]})"
    lengths = [run.recipe["data"]["prefix_tokens"] for run in (first, other) if run.recipe is not None]
    if len(set(lengths)) > 1:
        return f"their prefixes have different lengths ({lengths[0]} and {lengths[1]} tokens)"
    return None


def _sets_differ(first: pd.DataFrame, other: pd.DataFrame, same_precision: bool) -> str | None:
    a, b = keyed(first, BASE), keyed(other, BASE)
    if len(a) != len(b):
        return f"{len(a)} sequences in the first and {len(b)} in the second"
    if len(only := a.index.difference(b.index)):
        return f"sequence {only[0][0]!r} is in the first only"
    if not len(a):
        return None
    b = b.reindex(a.index)
    if len(odd := a[a["n_tokens"] != b["n_tokens"]]):
        return f"sequence {odd.index[0][0]!r} has another number of tokens"
    if same_precision and len(odd := a[(a["loss"] - b["loss"]).abs() > SAME_TEXT]):
        return f"the base model itself gives sequence {odd.index[0][0]!r} another loss"
    return None


def keyed(frame: pd.DataFrame, form: str) -> pd.DataFrame:
    """A form's rows by id; an id that stands twice is told apart by which time it is."""
    if not len(frame):
        return frame
    one = frame[frame["form"] == form]
    keys = pd.MultiIndex.from_arrays([one["id"].map(str), one.groupby("id").cumcount()], names=["id", "copy"])
    return one.set_axis(keys, axis=0)


def _in_order_of(first: Finished, run: Finished) -> Finished:
    def ordered(frame: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
        if not len(frame):
            return frame
        keys = keyed(like, BASE).index
        parts = [keyed(frame, form).reindex(keys).assign(form=form) for form in dict.fromkeys(frame["form"])]
        return pd.concat(parts, ignore_index=True)

    return replace(
        run,
        sequences=ordered(run.sequences, first.sequences),
        holdout=ordered(run.holdout, first.holdout),
    )


def precision(run: Finished) -> str:
    """How the run's base was loaded."""
    base = run.manifest.get("base") or {}
    return f"{base.get('quantization')}, {base.get('dtype')}"
