"""What a run was made from, what it cost and how it ended: the content of unlearning.json. Ids and counts, no text."""

from __future__ import annotations

import contextlib
import platform
import resource
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapter_unlearn import models
from adapter_unlearn.runs import run_folder
from adapter_unlearn.version import __version__
from adapter_unlearn.weights import adapter_files

if TYPE_CHECKING:
    from adapter_unlearn.data import Sets
    from adapter_unlearn.evaluation.criteria import Bounds
    from adapter_unlearn.recipe import Model, Recipe
    from adapter_unlearn.unlearning.stages import Trained
    from adapter_unlearn.unlearning.stopping import Goal

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")


def of_run(
    run: Recipe,
    base: dict[str, Any],
    sets: Sets,
    notes: list[str],
    trained: Trained,
    goal: Goal,
    bounds: Bounds,
    seconds: float,
    processes: int,
) -> dict[str, Any]:
    """The manifest of an unlearning run; `base` is from base_identity."""
    outcome, shipped = trained.outcome, adapter_files.read(trained.folder)
    return _common(run, base, sets, notes, bounds) | {
        "method": run.method,
        "adapter": asdict(run.adapter)
        | {
            "parameters": sum(module.rank * sum(module.shape) for module in shipped.modules.values()),
            "shipped_rank": max(module.rank for module in shipped.modules.values()),
            "bytes": (trained.folder / adapter_files.WEIGHTS).stat().st_size,
        },
        "stages": trained.parts,
        "seed": run.seed,
        "goal": asdict(goal),
        "outcome": {
            "stopped_because": outcome.stopped_because,
            "goal_reached": outcome.goal_reached,
            "kept_epoch": outcome.kept_epoch,
            "validation_perplexity": outcome.log[outcome.kept_epoch]["validation_perplexity"],
        },
        "cost": {
            "seconds": round(seconds, 1),
            "processes": processes,
            "epochs": outcome.log[-1]["epoch"],
            "sequences_ascended": outcome.sequences_ascended,
            "peak_memory_bytes": _peak_memory(),
        },
    }


def of_evaluation(
    run: Recipe,
    base: dict[str, Any],
    sets: Sets,
    notes: list[str],
    bounds: Bounds,
    adapters: Sequence[str | Path],
) -> dict[str, Any]:
    """The manifest of an evaluation of finished adapters."""
    return _common(run, base, sets, notes, bounds) | {
        "adapters": [{"path": str(path), "fingerprint": run_folder.fingerprint(path)} for path in adapters]
    }


def of_interference(
    base: dict[str, Any],
    names: Sequence[str],
    adapters: Sequence[str | Path],
    set_names: Sequence[str],
    sets: Sequence[tuple[Sets, list[str]]],
) -> dict[str, Any]:
    """The manifest of a matrix of adapters and forget sets."""
    return _made() | {
        "base": base,
        "adapters": list(names),
        "adapter_fingerprints": [run_folder.fingerprint(path) for path in adapters],
        "sets": list(set_names),
        "n_sequences": [len(given.forget) for given, _ in sets],
        "notes": [note for _, notes in sets for note in notes],
    }


def of_comparison(about: dict[str, Any]) -> dict[str, Any]:
    """The head of a comparison: what all its runs share."""
    return _made() | about


def _common(run: Recipe, base: dict[str, Any], sets: Sets, notes: list[str], bounds: Bounds) -> dict[str, Any]:
    counts = {
        name: {"n_sequences": len(sequences), "n_documents": len(set(sequences["document"]))}
        for name, sequences in sets.given().items()
    }
    return _made() | {"base": base, "bounds": asdict(bounds), "data": counts | {"notes": notes}}


def _made() -> dict[str, Any]:
    """By what and when."""
    return {
        "package": {"name": "adapter-unlearn", "version": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
    }


def base_identity(model: Model, loaded: Any) -> dict[str, Any]:
    """Which base an adapter belongs to: name, revision, and a fingerprint of its weight files."""
    return {
        "name": model.name,
        "revision": getattr(loaded.config, "_commit_hash", None) or model.revision,
        "fingerprint": run_folder.fingerprint(models.weights_folder(model.name, model.revision)),
        "quantization": model.quantization,
        "dtype": model.dtype,
        "adapter": model.adapter,
    }


def restart_peak_memory() -> None:
    """Forget how much was held before, so that a run's peak is its own where one process makes several."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (peaks := Path("/proc/self/clear_refs")).exists():  # Linux; elsewhere a process's peak only grows
        with contextlib.suppress(OSError):
            peaks.write_text("5", encoding="ascii")


def _peak_memory() -> int:
    """Most bytes held: of the accelerator where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
