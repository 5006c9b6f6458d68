"""Compare the outliers of GA, SGA, TA and TAU at the same mean memorization accuracy, in every deployment form.

    python benchmarks/real_text/compare.py --base_dir DIR --output_dir RUNS --result real_text.json
    python benchmarks/real_text/compare.py --base_dir embedded: --output_dir RUNS --result embedded.json

DIR is the output of train_base.py; `embedded:` is the model shipped with the package. Every run is
`adapter_unlearn.unlearn` on an nf4 base with r = 16, no perplexity budget and one stop rule: the mean memorization
accuracy is below a level, which is 0.33 (the paper's) unless the name of the run states another.
`adapter_unlearn.evaluate` then measures the run in every deployment form. Finished runs are reused, and `--only a b`
selects runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adapter_unlearn import evaluate, unlearn
from adapter_unlearn.recipe import Data, Evaluation, from_mapping

RETAIN = {"retain_weight": 3.0, "retain_sequences": 64}
RUNS: dict[str, tuple[float, dict[str, Any]]] = {
    "ga": (0.33, {"name": "ga"}),
    "sga 0.7": (0.33, {"name": "sga", "threshold": 0.7}),
    "ta": (0.33, {"name": "ta"}),
    "tau": (0.33, {"name": "tau", "threshold": 0.7}),
    "sga 0.5": (0.33, {"name": "sga", "threshold": 0.5}),
    "sga 0.35": (0.33, {"name": "sga", "threshold": 0.35}),
    "ga to 0.25": (0.25, {"name": "ga"}),
    "sga 0.35 to 0.25": (0.25, {"name": "sga", "threshold": 0.35}),
    "sga 0.5 + retain": (0.33, {"name": "sga", "threshold": 0.5} | RETAIN),
    "ga + retain": (0.33, {"name": "ga"} | RETAIN),
}
FORMS = ("stacked", "merged", "requantized_nf4", "requantized_int8")
SETS = ("forget", "retain", "holdout", "validation", "test")
KEYS = (
    "memorization_accuracy_mean", "memorization_accuracy_max", "outliers_high", "outliers_low", "outliers_low_new",
    "longest_verbatim_run_max", "extractable", "extractable_50", "test_perplexity", "holdout_perplexity",
    "membership_auc_loss",
)  # fmt: skip


def recipe_of(
    base: str, method: dict[str, Any], mean_below: float, output_dir: Path, learning_rate: float
) -> dict[str, Any]:
    """The recipe of one run, as a mapping."""
    embedded = base == "embedded:"
    return {
        "model": {"name": f"{base}model" if embedded else f"{base}/model", "quantization": "nf4", "dtype": "float32"},
        "data": {name: f"{base}{'' if embedded else '/'}{name}.jsonl" for name in SETS},
        "output_dir": str(output_dir),
        "method": method,
        "training": {"learning_rate": learning_rate, "max_epochs": 250, "batch_size": 16},
        "stop": {"mean_below": mean_below, "max_perplexity_increase": None},
    }


def figures(form: dict[str, Any]) -> dict[str, Any]:
    """The figures of one form."""
    paper_bounds = form["paper_bounds"]
    own = {key: form[key] for key in KEYS}
    return own | {f"paper_{key}": paper_bounds[key] for key in ("outliers_high", "outliers_low")}


def rows(run: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One row per form, with perplexity ratios to the base in the same precision, and the cost of the run."""
    manifest = json.loads((run / "unlearning.json").read_text(encoding="utf-8"))
    folder = run.with_name(f"{run.name}.forms")
    if not (folder / "summary.json").is_file():
        recipe = from_mapping(options)
        data = Data(recipe.data.forget, holdout=recipe.data.holdout, test=recipe.data.test)
        evaluate(recipe.model, [run], data, Evaluation(forms=list(FORMS)), output_dir=folder)
    forms = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["forms"]
    form_rows = {name: figures(form) for name, form in forms.items()}
    for name, form in forms.items():
        before = form.get("before", forms["base"])
        for key in ("test_perplexity", "holdout_perplexity"):
            form_rows[name][f"{key}_ratio"] = form[key] / before[key]
        form_rows[name] |= {f"delta_{key}": value for key, value in form.get("delta", {}).items()}
    outcome = {"stopped_because": manifest["outcome"]["stopped_because"], "bounds": forms["base"]["bounds"]}
    return {"forms": form_rows} | manifest["cost"] | outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_dir", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--ta_learning_rate", type=float, default=1e-3)
    parser.add_argument("--only", nargs="+", default=list(RUNS), help="names of the runs to make")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"rows": {}}
    if arguments.result.is_file():
        result = json.loads(arguments.result.read_text(encoding="utf-8"))
    for name in arguments.only:
        mean_below, method = RUNS[name]
        run = arguments.output_dir / name.replace(" ", "")
        learning_rate = arguments.ta_learning_rate if name == "ta" else arguments.learning_rate
        options = recipe_of(arguments.base_dir, method, mean_below, run, learning_rate)
        if not (run / "summary.json").is_file():
            unlearn(options)
        result["rows"][name] = {"learning_rate": learning_rate} | rows(run, options)
        arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
