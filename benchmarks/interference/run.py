"""Train one adapter per deletion request, for three requests on the embedded default, and measure all combinations.

    python benchmarks/interference/run.py --output_dir RUNS --result benchmarks/results/interference.json

The forget set is split into three parts; record i goes to part i modulo 3, so each part contains records of every
degree of memorization. Each adapter is trained by `adapter_unlearn.unlearn` on its own part with the recipe of the
demo. `evaluate_interference` then measures every combination of adapters on every part. Finished runs are reused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from adapter_unlearn import assets, evaluate_interference, load_recipe, unlearn
from adapter_unlearn.recipe import Data, Permissions

PARTS = 3


def write_parts(folder: Path) -> list[Path]:
    """Write the forget set as one file per request."""
    lines = Path(assets.resolve("embedded:forget.jsonl")).read_text(encoding="utf-8").splitlines(keepends=True)
    files = [folder / f"request-{i + 1}.jsonl" for i in range(PARTS)]
    for i, file in enumerate(files):
        file.write_text("".join(lines[i::PARTS]), encoding="utf-8")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    files = write_parts(arguments.output_dir)
    recipe = load_recipe(["models/tiny-cpu.yaml", "methods/sga.yaml"])
    adapters = [arguments.output_dir / file.stem for file in files]
    for file, run in zip(files, adapters):
        if not (run / "summary.json").is_file():
            data = dataclasses.replace(recipe.data, forget=str(file))
            unlearn(dataclasses.replace(recipe, data=data, output_dir=str(run)))
    rows = evaluate_interference(
        recipe.model, adapters, Data(forget=list(map(str, files))),
        output_dir=arguments.output_dir / "matrix", permissions=Permissions(overwrite=True),
    )  # fmt: skip
    perplexities = {}
    for run in adapters:
        forms = json.loads((run / "summary.json").read_text(encoding="utf-8"))["forms"]
        perplexities[run.name] = {
            form: {key: forms[form][f"{key}_perplexity"] for key in ("test", "holdout")} for form in forms
        }
    arguments.result.write_text(
        json.dumps({"matrix": rows.to_dict("records"), "perplexities": perplexities}, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
