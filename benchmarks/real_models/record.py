"""Write what a run on a bed of memorize.py showed and cost to a JSON file.

    python benchmarks/real_models/record.py RUN BED benchmarks/results/real_models_NAME.json

Every figure is taken from the run folder: summary.json, unlearning.json, train_log.jsonl, learning_rate_search.jsonl.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

FORMS = ("base", "stacked")
FIGURES = (
    "n_sequences", "failing", "extractable", "memorization_accuracy_mean", "memorization_accuracy_max",
    "longest_verbatim_run_max", "membership_auc_loss", "retain_perplexity_change", "holdout_perplexity_change",
    "holdout_perplexity_change_interval", "validation_perplexity_change", "test_perplexity_change",
    "test_perplexity_change_interval",
)  # fmt: skip


def main() -> None:
    """Read the run and its bed, and write the record."""
    run, bed, file = map(Path, sys.argv[1:])
    forms = read(run / "summary.json")["forms"]
    about = read(run / "unlearning.json")
    log, search = (lines(run / name) for name in ("train_log.jsonl", "learning_rate_search.jsonl"))
    record: dict[str, Any] = {
        "versions": about["versions"],
        "machine": platform.machine(),
        "seed": about["seed"],
        "bed": {key: value for key, value in read(bed / "bed.json").items() if key != "forget"},
        "recipe": (run / "recipe.yaml").read_text(encoding="utf-8").partition("\nadapter:\n")[2],
        "adapter": about["adapter"],
        "stages": about["stages"],
        "cost": about["cost"],
        "search_seconds": sum(row["seconds"] for row in search),
        "search": [{key: row[key] for key in ("learning_rate", "objective", "taken", "seconds")} for row in search],
        "training_seconds": sum(row["seconds"] for row in log[1:]),
        "failing_by_epoch": [row["failing"] for row in log],
        "forms": {name: {key: forms[name].get(key) for key in FIGURES} for name in FORMS},
    }
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read(file: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def lines(file: Path) -> list[Any]:
    """The rows of a JSON lines file; none without it."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


if __name__ == "__main__":
    main()
