"""Task arithmetic over its scale: one memorizing adapter, many alphas, nothing trained.

    python benchmarks/real_text/ta_curve.py --runs EMBEDDED_TA REAL_TEXT_TA --bases embedded: DIR --result ta_curve.json

The runs are `ta` of compare.py, whose adapter is -3 times the memorizing one; so its alpha is -3 times the scale that
`negate_searched` finds here. The budget is 5 % of validation perplexity.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from adapter_unlearn import Data, Model, ScaleSearch, negate_searched

SHIPPED = -3.0
ALPHAS = (0.5, -0.25, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0)


def curve(run: Path, base: str) -> list[dict[str, object]]:
    embedded = base == "embedded:"
    files = {name: f"{base}{'' if embedded else '/'}{name}.jsonl" for name in ("forget", "validation", "holdout")}
    with tempfile.TemporaryDirectory() as place:
        model = Model(f"{base}model" if embedded else f"{base}/model", dtype="float32")
        search = ScaleSearch([alpha / SHIPPED for alpha in ALPHAS])
        folder, best = negate_searched(run, Path(place) / "scaled", model, Data(**files), search)
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
    given = parser.parse_args()
    names = ["embedded" if base == "embedded:" else "real_text" for base in given.bases]
    result = {name: curve(run, base) for name, run, base in zip(names, given.runs, given.bases)}
    given.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
