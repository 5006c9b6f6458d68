"""Manifests: what a run was made from, what it cost and how it ended, as in unlearning.json. No text, only ids."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapter_unlearn import models
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import adapter_files

if TYPE_CHECKING:
    from adapter_unlearn.evaluation.criteria import Criteria
    from adapter_unlearn.pipeline.loading import Loaded
    from adapter_unlearn.recipe import Model, Recipe
    from adapter_unlearn.unlearning.stages import Trained
    from adapter_unlearn.unlearning.stopping import Goal

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds of a run, and the number of its processes."""

    seconds: float
    processes: int


def of_run(
    run: Recipe, base: dict[str, Any], loaded: Loaded, criteria: Criteria, trained: Trained, goal: Goal, cost: Cost
) -> dict[str, Any]:
    """The manifest of an unlearning run; `base` is from base_identity."""
    outcome, shipped = trained.outcome, adapter_files.read(trained.folder)
    return common(base, loaded, criteria) | {
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
            "seconds": round(cost.seconds, 1),
            "processes": cost.processes,
            "epochs": outcome.log[-1]["epoch"],
            "sequences_ascended": outcome.sequences_ascended,
            "peak_memory_bytes": _peak_memory(),
        },
    }


def of_interference(base: dict[str, Any], adapters: dict[str, str | Path], sets: dict[str, Loaded]) -> dict[str, Any]:
    """The manifest of a matrix of adapters and forget sets, both by their names in the table."""
    return _head() | {
        "base": base,
        "adapters": list(adapters),
        "adapter_fingerprints": [run_folder.fingerprint(path) for path in adapters.values()],
        "sets": list(sets),
        "n_sequences": [len(loaded.sets.forget) for loaded in sets.values()],
        "notes": [note for loaded in sets.values() for note in loaded.notes],
    }


def of_scores(base: dict[str, Any], adapters: Sequence[str | Path], metrics: Sequence[str]) -> dict[str, Any]:
    """The manifest of scores; `base` is from base_identity."""
    return _head() | {"base": base, "adapters": run_folder.identities(adapters), "metrics": list(metrics)}


def of_comparison(about: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a comparison; `about` is what all its runs share."""
    return _head() | about


def common(base: dict[str, Any], loaded: Loaded, criteria: Criteria) -> dict[str, Any]:
    """What the manifests of a run and of an evaluation begin with; `base` is from base_identity."""
    counts: dict[str, Any] = {
        name: {"n_sequences": len(sequences), "n_documents": len(set(sequences["document"]))}
        for name, sequences in loaded.sets.given().items()
    }
    data = counts | {"notes": loaded.notes}
    return _head() | {"base": base, "bounds": asdict(criteria.bounds), "data": data}


def _head() -> dict[str, Any]:
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
    return run_folder.provenance() | {"versions": versions}


def base_identity(model: Model, loaded: Any) -> dict[str, Any]:
    """Name, revision, fingerprint and precision of a base model."""
    return {
        "name": model.name,
        "revision": getattr(loaded.config, "_commit_hash", None) or model.revision,
        "fingerprint": run_folder.fingerprint(models.weights_folder(model.name, model.revision)),
        "quantization": model.quantization,
        "dtype": model.dtype,
        "adapter": model.adapter,
    }


def restart_peak_memory() -> None:
    """Reset the peak, so that each run of a process has its own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (peaks := Path("/proc/self/clear_refs")).exists():  # Linux; on other systems the peak only grows
        with contextlib.suppress(OSError):
            peaks.write_text("5", encoding="ascii")


def _peak_memory() -> int | None:
    """Peak bytes of the accelerator, or of the process without one; None on Windows."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
