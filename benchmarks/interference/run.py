"""Three deletion requests on the embedded default, an adapter each: which combination silences which texts?

    python benchmarks/interference/run.py --output_dir RUNS --result benchmarks/results/interference.json

The forget set is split in three, by turns, so that each part has records of every degree of memorization. Each adapter
is `adapter_unlearn.unlearn` with the recipe of the demo and its own third; then `evaluate_interference`. What is done
is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from adapter_unlearn import assets, evaluate_interference, load_recipe, unlearn

PARTS = 3


def write_parts(folder: Path) -> list[Path]:
    """The forget set's lines dealt out by turns."""
    lines = Path(assets.resolve("embedded:forget.jsonl")).read_text(encoding="utf-8").splitlines(keepends=True)
    files = [folder / f"request-{i + 1}.jsonl" for i in range(PARTS)]
    for i, file in enumerate(files):
        file.write_text("".join(lines[i::PARTS]), encoding="utf-8")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    given = parser.parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    files = write_parts(given.output_dir)
    recipe = load_recipe(["models/tiny-cpu", "methods/sga"])
    adapters = [given.output_dir / file.stem for file in files]
    for file, run in zip(files, adapters):
        if not (run / "summary.json").is_file():
            data = dataclasses.replace(recipe.data, forget=str(file))
            unlearn(dataclasses.replace(recipe, data=data, output_dir=str(run)))
    rows = evaluate_interference(
        recipe.model.name, adapters, list(map(str, files)), recipe.model.quantization, recipe.model.dtype,
        output_dir=given.output_dir / "matrix", overwrite=True,
    )  # fmt: skip
    costs = {}
    for run in adapters:
        forms = json.loads((run / "summary.json").read_text(encoding="utf-8"))["forms"]
        costs[run.name] = {
            form: {key: forms[form][f"{key}_perplexity"] for key in ("test", "holdout")} for form in forms
        }
    given.result.write_text(
        json.dumps({"matrix": rows.to_dict("records"), "perplexities": costs}, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
