"""Every checkpoint of OpenUnlearning's trainers, measured as our own models are, and the best trade-off of each.

    python benchmarks/openunlearning/score_theirs.py --base_dir BASE --runs RUNS \\
        --result benchmarks/results/openunlearning_trainers.json

BASE is what benchmarks/real_text/train_base.py made, RUNS what train_theirs.py left. A checkpoint is its weights in the
base's own architecture, in float32 on a CPU, with no adapter. Bounds are the holdout set's under the base; ratios of
perplexity are to the base. The best trade-off of a trainer, over all its rates and epochs, is the fewest outliers (high
and new low) among those whose validation perplexity is at most 1.05 × the base's, of several the one with the least;
where none is within, the one with the least product of validation and neighbourhood ratios. Beside it stands the one
with the fewest outliers at any price. The test set chooses nothing, and is measured for the chosen only.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file

from adapter_unlearn import load_sequences, scoring
from adapter_unlearn.evaluation import criteria
from adapter_unlearn.evaluation.criteria import Bounds
from adapter_unlearn.evaluation.forms import Measurement, Measuring, measure
from adapter_unlearn.metrics import set_level
from adapter_unlearn.models import load_base
from adapter_unlearn.pipeline import loading
from adapter_unlearn.recipe import Data, Model

BUDGET = 1.05
SETS = ("forget", "holdout", "validation")
STEPS_AN_EPOCH = 2


def row(m: Measurement, base: Measurement, bounds: Bounds) -> dict[str, Any]:
    """One model in figures."""
    assert m.holdout is not None and base.holdout is not None
    accuracy, unseen = (frame["memorization_accuracy"].to_numpy(dtype=float) for frame in (m.forget, m.holdout))
    before = base.forget["memorization_accuracy"].to_numpy(dtype=float)
    limit = int(base.holdout["longest_verbatim_run"].max())
    return {
        "memorization_accuracy_mean": float(accuracy.mean()),
        "memorization_accuracy_max": float(accuracy.max()),
        **{f"outliers_{key}": n for key, n in asdict(criteria.count_outliers(accuracy, before, bounds)).items()},
        "longest_verbatim_run_max": int(m.forget["longest_verbatim_run"].max()),
        "longer_than_holdout": int((m.forget["longest_verbatim_run"] > limit).sum()),
        "extractable": int(m.forget["extractable"].sum()),
        "extractable_any_prefix": int(m.forget["extractable_any_prefix"].sum()),
        "membership_auc_memorization_accuracy": set_level.auc(accuracy, unseen),
        "membership_auc_loss": set_level.auc(*(-f["loss"].to_numpy(dtype=float) for f in (m.forget, m.holdout))),
        **{f"{name}_perplexity": value for name, value in m.perplexities.items()},
        **{f"{name}_perplexity_ratio": value / base.perplexities[name] for name, value in m.perplexities.items()},
    }


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The best trade-off, with the rule that found it; the docstring above says which there are."""
    within = [found for found in rows if found["validation_perplexity_ratio"] <= BUDGET]
    if within:
        return least_conspicuous(within) | {"rule": f"fewest outliers within {BUDGET} × validation perplexity"}
    return min(rows, key=product) | {"rule": "least product of perplexity ratios, none was within the budget"}


def least_conspicuous(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fewest high and new low outliers; of several the one with the least validation perplexity."""
    return min(rows, key=lambda f: (f["outliers_high"] + f["outliers_low_new"], f["validation_perplexity_ratio"]))


def product(found: dict[str, Any]) -> float:
    return found["validation_perplexity_ratio"] * found["holdout_perplexity_ratio"]


def put(model: torch.nn.Module, checkpoint: Path) -> None:
    """A checkpoint's weights into the model; what is tied to another weight is not in the file."""
    missing, unexpected = model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    assert not unexpected and set(missing) <= set(model._tied_weights_keys or ()), (missing, unexpected)


def test_perplexity(model: torch.nn.Module, rows: Dataset) -> float:
    return scoring.perplexity(scoring.score(model, rows, ["loss"]), rows)


def steps(run: Path) -> list[int]:
    """Of the checkpoints of a run, in order."""
    return sorted(int(place.name.removeprefix("checkpoint-")) for place in run.glob("checkpoint-*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base_dir", "runs", "result"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    where = str(given.base_dir / "model")
    files = {name: str(given.base_dir / f"{name}.jsonl") for name in SETS}
    loaded, _ = loading.load(Model(where, quantization="none", dtype="float32"), Data(**files))
    model: Any = load_base(where, "none", "float32", device="cpu")
    how = Measuring(loaded)
    base = measure(model, "base", [], how)
    test = load_sequences(given.base_dir / "test.jsonl")
    before = test_perplexity(model, test)
    bounds = criteria.criteria_of("holdout", base.holdout).bounds
    found: dict[str, Any] = {
        "bounds": {"low": bounds.low, "high": bounds.high},
        "holdout_longest_verbatim_run_max": int(base.holdout["longest_verbatim_run"].max()),
        "base": row(base, base, bounds) | {"test_perplexity": before},
        "best": {},
        "at_any_price": {},
        "runs": [],
    }
    for run in sorted(place.parent for place in given.runs.glob("*/run.json")):
        about = json.loads((run / "run.json").read_text(encoding="utf-8"))
        rows = []
        for step in steps(run):
            put(model, run / f"checkpoint-{step}")
            figures = row(measure(model, run.name, [], how), base, bounds)
            rows.append({"epoch": step // STEPS_AN_EPOCH, "step": step} | figures)
        found["runs"].append({key: value for key, value in about.items() if key != "log"} | {"checkpoints": rows})
        print(run.name, flush=True)
    for trainer in dict.fromkeys(run["trainer"] for run in found["runs"]):
        mine = [run for run in found["runs"] if run["trainer"] == trainer]
        cost = ("trainer", "learning_rate", "seconds", "peak_bytes", "peak_bytes_before_training")
        rows = [{key: run[key] for key in cost} | point for run in mine for point in run["checkpoints"]]
        found["best"][trainer], found["at_any_price"][trainer] = best(rows), least_conspicuous(rows)
        for kind in ("best", "at_any_price"):
            chosen = found[kind][trainer]
            put(model, given.runs / f"{trainer}-{chosen['learning_rate']:g}" / f"checkpoint-{chosen['step']}")
            chosen["test_perplexity"] = test_perplexity(model, test)
            chosen["test_perplexity_ratio"] = chosen["test_perplexity"] / before
    found["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    given.result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
