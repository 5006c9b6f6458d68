"""GA and SGA on the real-text base, at the same mean memorization accuracy: who leaves fewer outliers?

    python benchmarks/real_text/compare.py --base_dir DIR --output_dir RUNS --result benchmarks/results/real_text.json

DIR is what train_base.py made. Every run is `adapter_unlearn.unlearn` with an nf4 base, r = 16, no perplexity budget,
and one stop rule: mean memorization accuracy below a level, 0.33 (the paper's) or 0.25. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adapter_unlearn import unlearn

RETAIN = {"retain_weight": 3.0, "retain_sequences": 64}
RUNS: dict[str, tuple[float, dict[str, Any]]] = {
    "ga": (0.33, {"name": "ga"}),
    "sga 0.7": (0.33, {"name": "sga", "threshold": 0.7}),
    "sga 0.5": (0.33, {"name": "sga", "threshold": 0.5}),
    "sga 0.35": (0.33, {"name": "sga", "threshold": 0.35}),
    "ga to 0.25": (0.25, {"name": "ga"}),
    "sga 0.35 to 0.25": (0.25, {"name": "sga", "threshold": 0.35}),
    "sga 0.5 + retain": (0.33, {"name": "sga", "threshold": 0.5} | RETAIN),
    "ga + retain": (0.33, {"name": "ga"} | RETAIN),
}
SHOWN = (
    "memorization_accuracy_mean", "memorization_accuracy_max", "outliers_high", "outliers_low", "outliers_low_new",
    "longest_verbatim_run_max", "extractable", "extractable_50", "holdout_perplexity", "reference_perplexity",
    "membership_auc_loss",
)  # fmt: skip


def recipe(
    base: Path, method: dict[str, Any], mean_below: float, output_dir: Path, learning_rate: float
) -> dict[str, Any]:
    """One run, as a mapping with a recipe's keys."""
    names = ("forget", "retain", "reference", "validation", "holdout")
    return {
        "model": {"name": str(base / "model"), "quantization": "nf4", "dtype": "float32"},
        "data": {name: str(base / f"{name}.jsonl") for name in names},
        "output_dir": str(output_dir),
        "method": method,
        "training": {"learning_rate": learning_rate, "max_epochs": 250, "batch_size": 16},
        "stop": {"mean_below": mean_below, "max_perplexity_increase": None},
    }


def row(run: Path, form: str) -> dict[str, Any]:
    """What one form of a run came to."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))["forms"][form]
    about = json.loads((run / "unlearning.json").read_text(encoding="utf-8"))
    found = {key: summary[key] for key in SHOWN}
    found |= {f"paper_{key}": summary["paper_bounds"][key] for key in ("outliers_high", "outliers_low")}
    if form == "base":
        return found | {"bounds": summary["bounds"]}
    return found | about["cost"] | {"stopped_because": about["outcome"]["stopped_because"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    given = parser.parse_args()
    rows: dict[str, Any] = {}
    for name, (mean_below, method) in RUNS.items():
        run = given.output_dir / name.replace(" ", "")
        if not (run / "summary.json").is_file():
            unlearn(recipe(given.base_dir, method, mean_below, run, given.learning_rate))
        rows.setdefault("base", row(run, "base"))
        rows[name] = row(run, "stacked")
        result = {"learning_rate": given.learning_rate, "rows": rows}
        given.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
