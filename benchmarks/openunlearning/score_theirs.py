"""Score every checkpoint of OpenUnlearning's trainers as our own models are scored, and find each trainer's best one.

    python benchmarks/openunlearning/score_theirs.py --base_dir BASE --runs RUNS \\
        --result benchmarks/results/openunlearning_trainers.json

BASE is the output of benchmarks/real_text/train_base.py, and RUNS that of train_theirs.py. The weights of a checkpoint
are loaded into the architecture of the base, in float32 on a CPU and without adapters. The bounds are those of the
holdout set under the base, and perplexity ratios are relative to the base.

The best checkpoint of a trainer, over all its learning rates and epochs, is the one with the fewest outliers (high and
over-forgotten) among those with at most 1.05 times the validation perplexity of the base; ties go to the lowest
validation perplexity. If no checkpoint is within this budget, it is the one with the smallest product of validation and
holdout perplexity ratios. The checkpoint with the fewest outliers regardless of perplexity is reported as well. The
test set selects nothing and is measured for the selected checkpoints only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file

from adapter_unlearn import load_sequences, scoring
from adapter_unlearn.data import Sets
from adapter_unlearn.evaluation.criteria import Criteria, count_outliers, criteria_of
from adapter_unlearn.evaluation.forms import Measurement, Measuring, measure
from adapter_unlearn.metrics import set_level
from adapter_unlearn.models import load_base

BUDGET = 1.05
SETS = ("forget", "holdout", "validation")
STEPS_PER_EPOCH = 2
WITHIN_BUDGET = f"fewest outliers within {BUDGET} × validation perplexity"
OVER_BUDGET = "least product of perplexity ratios, none was within the budget"


def row(m: Measurement, base: Measurement, criteria: Criteria) -> dict[str, Any]:
    """The figures of one model."""
    assert m.holdout is not None and criteria.longest_run is not None
    accuracy, holdout = (frame["memorization_accuracy"].to_numpy(dtype=float) for frame in (m.forget, m.holdout))
    before = base.forget["memorization_accuracy"].to_numpy(dtype=float)
    outliers = dataclasses.asdict(count_outliers(accuracy, before, criteria.bounds))
    return {
        "memorization_accuracy_mean": float(accuracy.mean()),
        "memorization_accuracy_max": float(accuracy.max()),
        **{f"outliers_{kind}": number for kind, number in outliers.items()},
        "longest_verbatim_run_max": int(m.forget["longest_verbatim_run"].max()),
        "longer_than_holdout": int((m.forget["longest_verbatim_run"] > criteria.longest_run).sum()),
        "extractable": int(m.forget["extractable"].sum()),
        "extractable_any_prefix": int(m.forget["extractable_any_prefix"].sum()),
        "membership_auc_memorization_accuracy": set_level.auc(accuracy, holdout),
        "membership_auc_loss": set_level.auc(*(-f["loss"].to_numpy(dtype=float) for f in (m.forget, m.holdout))),
        **{f"{name}_perplexity": value for name, value in m.perplexities.items()},
        **{f"{name}_perplexity_ratio": value / base.perplexities[name] for name, value in m.perplexities.items()},
    }


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The best checkpoint and the rule that selected it; see the module's docstring."""
    within = [row for row in rows if row["validation_perplexity_ratio"] <= BUDGET]
    if within:
        return fewest_outliers(within) | {"rule": WITHIN_BUDGET}
    return min(rows, key=perplexity_product) | {"rule": OVER_BUDGET}


def fewest_outliers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row with the fewest high and over-forgotten outliers; ties go to the lowest validation perplexity."""
    return min(rows, key=lambda r: (r["outliers_high"] + r["outliers_low_new"], r["validation_perplexity_ratio"]))


def perplexity_product(row: dict[str, Any]) -> float:
    return row["validation_perplexity_ratio"] * row["holdout_perplexity_ratio"]


def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's weights into the model; weights tied to another one are not in the file."""
    missing, unexpected = model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    assert not unexpected and set(missing) <= set(model._tied_weights_keys or ()), (missing, unexpected)


def test_perplexity(model: torch.nn.Module, rows: Dataset) -> float:
    return scoring.perplexity(scoring.score(model, rows, ["loss"]), rows)


def steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, in order."""
    return sorted(int(folder.name.removeprefix("checkpoint-")) for folder in run.glob("checkpoint-*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base_dir", "runs", "result"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = str(arguments.base_dir / "model")
    sets = {key: load_sequences(arguments.base_dir / f"{key}.jsonl") for key in SETS}
    model: Any = load_base(name, "none", "float32", device="cpu")
    measuring = Measuring(Sets(**sets))
    base = measure(model, "base", [], measuring)
    test = load_sequences(arguments.base_dir / "test.jsonl")
    before = test_perplexity(model, test)
    criteria = criteria_of("holdout", base.holdout)
    result: dict[str, Any] = {
        "bounds": {"low": criteria.bounds.low, "high": criteria.bounds.high},
        "holdout_longest_verbatim_run_max": criteria.longest_run,
        "base": row(base, base, criteria) | {"test_perplexity": before},
        "best": {},
        "at_any_price": {},
        "runs": [],
    }
    for run in sorted(file.parent for file in arguments.runs.glob("*/run.json")):
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        rows = []
        for step in steps(run):
            load_weights(model, run / f"checkpoint-{step}")
            figures = row(measure(model, run.name, [], measuring), base, criteria)
            rows.append({"epoch": step // STEPS_PER_EPOCH, "step": step} | figures)
        result["runs"].append({key: value for key, value in record.items() if key != "log"} | {"checkpoints": rows})
        print(run.name, flush=True)
    for trainer in dict.fromkeys(run["trainer"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["trainer"] == trainer]
        keys = ("trainer", "learning_rate", "seconds", "peak_bytes", "peak_bytes_before_training")
        rows = [{key: run[key] for key in keys} | checkpoint for run in runs for checkpoint in run["checkpoints"]]
        result["best"][trainer], result["at_any_price"][trainer] = best(rows), fewest_outliers(rows)
        for kind in ("best", "at_any_price"):
            chosen = result[kind][trainer]
            load_weights(
                model, arguments.runs / f"{trainer}-{chosen['learning_rate']:g}" / f"checkpoint-{chosen['step']}"
            )
            chosen["test_perplexity"] = test_perplexity(model, test)
            chosen["test_perplexity_ratio"] = chosen["test_perplexity"] / before
    result["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    arguments.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
