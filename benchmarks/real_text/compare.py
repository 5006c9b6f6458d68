"""GA, SGA, TA and TAU at the same mean memorization accuracy: who leaves fewer outliers, in which form?

    python benchmarks/real_text/compare.py --base_dir DIR --output_dir RUNS --result real_text.json
    python benchmarks/real_text/compare.py --base_dir embedded: --output_dir RUNS --result embedded.json

DIR is what train_base.py made; `embedded:` is the model that comes with the package. Every run is
`adapter_unlearn.unlearn` with an nf4 base, r = 16, no perplexity budget, and one stop rule: mean memorization accuracy
below a level, 0.33 (the paper's) unless its name says otherwise. Then `adapter_unlearn.evaluate` measures it in
every deployment form. What is done is not done again; `--only a b` runs some.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adapter_unlearn import Data, Evaluation, Model, evaluate, unlearn
from adapter_unlearn.recipe import from_mapping

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
SHOWN = (
    "memorization_accuracy_mean", "memorization_accuracy_max", "outliers_high", "outliers_low", "outliers_low_new",
    "longest_verbatim_run_max", "extractable", "extractable_50", "test_perplexity", "holdout_perplexity",
    "membership_auc_loss",
)  # fmt: skip


def recipe(
    base: str, method: dict[str, Any], mean_below: float, output_dir: Path, learning_rate: float
) -> dict[str, Any]:
    """One run, as a mapping with a recipe's keys."""
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
    """What one form came to; perplexities also as ratios to the base in the same precision."""
    found = {key: form[key] for key in SHOWN}
    return found | {f"paper_{key}": form["paper_bounds"][key] for key in ("outliers_high", "outliers_low")}


def rows(run: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A row a form, and what the run cost."""
    about = json.loads((run / "unlearning.json").read_text(encoding="utf-8"))
    place = run.with_name(f"{run.name}.forms")
    if not (place / "summary.json").is_file():
        checked = from_mapping(options)
        files = {name: getattr(checked.data, name) for name in ("forget", "holdout", "test")}
        model = Model(checked.model.name, dtype="float32")
        evaluate(model, run, Data(**files), Evaluation(forms=list(FORMS)), output_dir=place)
    forms = json.loads((place / "summary.json").read_text(encoding="utf-8"))["forms"]
    found = {name: figures(form) for name, form in forms.items()}
    for name, form in forms.items():
        before = form.get("before", forms["base"])
        for key in ("test_perplexity", "holdout_perplexity"):
            found[name][f"{key}_ratio"] = form[key] / before[key]
        found[name] |= {f"delta_{key}": value for key, value in form.get("delta", {}).items()}
    ended = {"stopped_because": about["outcome"]["stopped_because"], "bounds": forms["base"]["bounds"]}
    return {"forms": found} | about["cost"] | ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_dir", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--ta_learning_rate", type=float, default=1e-3)
    parser.add_argument("--only", nargs="+", default=list(RUNS))
    given = parser.parse_args()
    result: dict[str, Any] = {"rows": {}}
    if given.result.is_file():
        result = json.loads(given.result.read_text(encoding="utf-8"))
    for name in given.only:
        mean_below, method = RUNS[name]
        run = given.output_dir / name.replace(" ", "")
        learning_rate = given.ta_learning_rate if name == "ta" else given.learning_rate
        options = recipe(given.base_dir, method, mean_below, run, learning_rate)
        if not (run / "summary.json").is_file():
            unlearn(options)
        result["rows"][name] = {"learning_rate": learning_rate} | rows(run, options)
        given.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
