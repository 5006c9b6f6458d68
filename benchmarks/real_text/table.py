"""The rows of a result of compare.py as a Markdown table: python benchmarks/real_text/table.py RESULT.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FORMS = {"stacked": "stacked", "merged": "merged", "requantized_nf4": "requantized, nf4", "requantized_int8": "int8"}
HEADINGS = (
    "method", "form", "MA mean / max", "high", "low (new)", "paper high + low", "extractable", "longest run",
    "test", "neighbourhood", "AUC of loss", "delta", "arrives", "seconds",
)  # fmt: skip


def row(name: str, form: str, found: dict[str, Any], seconds: str) -> list[str]:
    delta = [f"{found[key]:.3f}" if key in found else "" for key in ("delta_relative_size", "delta_projection")]
    return [
        name,
        form,
        f"{found['memorization_accuracy_mean']:.3f} / {found['memorization_accuracy_max']:.2f}",
        str(found["outliers_high"]),
        f"{found['outliers_low']} ({found['outliers_low_new']})",
        f"{found['paper_outliers_high']} + {found['paper_outliers_low']}",
        str(found["extractable"]),
        str(found["longest_verbatim_run_max"]),
        f"× {found['test_perplexity_ratio']:.3f}",
        f"× {found['holdout_perplexity_ratio']:.3f}",
        f"{found['membership_auc_loss']:.2f}",
        *delta,
        seconds,
    ]


def table(result: dict[str, Any]) -> str:
    runs = result["rows"]
    first = next(iter(runs.values()))
    rows = [row("base", "nf4", first["forms"]["base"], "")]
    for name, run in runs.items():
        for form, label in FORMS.items():
            shown = name if form == "stacked" else ""
            rows.append(row(shown, label, run["forms"][form], f"{run['seconds']:.0f}" if form == "stacked" else ""))
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
