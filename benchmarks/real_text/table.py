"""Print the rows of a result of compare.py as a Markdown table: python benchmarks/real_text/table.py RESULT.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FORMS = {"stacked": "stacked", "merged": "merged", "requantized_nf4": "requantized, nf4", "requantized_int8": "int8"}
HEADINGS = (
    "method", "form", "MA mean / max", "high", "low (over-forgotten)", "paper high + low", "extractable", "longest run",
    "test perplexity", "holdout perplexity", "AUC of loss", "delta", "kept", "seconds",
)  # fmt: skip


def row(name: str, form: str, figures: dict[str, Any], seconds: str) -> list[str]:
    """The cells of one form of a run."""
    delta = [f"{figures[key]:.3f}" if key in figures else "" for key in ("delta_relative_size", "delta_projection")]
    return [
        name,
        form,
        f"{figures['memorization_accuracy_mean']:.3f} / {figures['memorization_accuracy_max']:.2f}",
        str(figures["outliers_high"]),
        f"{figures['outliers_low']} ({figures['outliers_low_new']})",
        f"{figures['paper_outliers_high']} + {figures['paper_outliers_low']}",
        str(figures["extractable"]),
        str(figures["longest_verbatim_run_max"]),
        f"× {figures['test_perplexity_ratio']:.3f}",
        f"× {figures['holdout_perplexity_ratio']:.3f}",
        f"{figures['membership_auc_loss']:.2f}",
        *delta,
        seconds,
    ]


def table(result: dict[str, Any]) -> str:
    runs = result["rows"]
    first = next(iter(runs.values()))
    rows = [row("base", "nf4", first["forms"]["base"], "")]
    for name, run in runs.items():
        for form, label in FORMS.items():
            method = name if form == "stacked" else ""
            rows.append(row(method, label, run["forms"][form], f"{run['seconds']:.0f}" if form == "stacked" else ""))
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
