"""Measure task arithmetic over its scale: one memorizing adapter, many values of alpha, no training.

    python benchmarks/real_text/ta_curve.py --runs EMBEDDED_TA REAL_TEXT_TA --bases embedded: DIR --result ta_curve.json

The runs are those named `ta` of compare.py. Their adapter is -3 times the memorizing adapter, so alpha is -3 times the
scale that `negate_searched` measures here. The budget is 5 % of validation perplexity.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from adapter_unlearn import negate_searched
from adapter_unlearn.pipeline import ScaleSearch
from adapter_unlearn.recipe import Data, Model

SHIPPED = -3.0
"""The alpha of the runs' adapters."""
ALPHAS = (0.5, -0.25, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0)


def curve(run: Path, base: str) -> list[dict[str, object]]:
    """One row per alpha, in descending order; `taken` marks the one that the search takes."""
    embedded = base == "embedded:"
    files = {name: f"{base}{'' if embedded else '/'}{name}.jsonl" for name in ("forget", "validation", "holdout")}
    with tempfile.TemporaryDirectory() as temporary:
        model = Model(f"{base}model" if embedded else f"{base}/model", dtype="float32")
        scales = [alpha / SHIPPED for alpha in ALPHAS]
        folder, best = negate_searched(run, Path(temporary) / "scaled", model, Data(**files), ScaleSearch(scales))
        rows = [json.loads(line) for line in (folder / "scale_search.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row | {"alpha": round(row.pop("scale") * SHIPPED, 4), "taken": False} for row in rows]
    for row in rows:
        row["taken"] = abs(row["alpha"] - best * SHIPPED) < 1e-3
    return sorted(rows, key=lambda row: -row["alpha"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True)
    parser.add_argument("--bases", nargs="+", required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    names = ["embedded" if base == "embedded:" else "real_text" for base in arguments.bases]
    result = {name: curve(run, base) for name, run, base in zip(names, arguments.runs, arguments.bases)}
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
