"""What merging costs in memory, and what the order of merging and quantizing does to recitation.

    python benchmarks/merging/run.py --cache runs/merging --memory --output benchmarks/results/merging.json
    python benchmarks/merging/run.py --cache runs/merging --series sga ascent --output benchmarks/results/merging.json

`--memory` merges a random 2 GB model stored in 500 MB shards (tests/merge_memory.py). A series takes an unlearning
adapter of the embedded default (trained into the cache, minutes, unless it is there), multiplies its delta by the
scales, and measures the forget set in every form of deployment. A scaled adapter is also a weaker one: `stacked` is the
control, and what a form does is its difference from that.

`sga` is the shipped method on tiny-cpu: many steps against a strong retain term. `ascent` has no retain term, full rank
and a small learning rate, and stops at the paper's mean accuracy: it unlearns with a delta a quarter as large, spread
evenly over the weights (and harms the model more), so the delta is small while the unlearning is strong.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from adapter_unlearn import (
    assets,
    load_base,
    load_recipe,
    load_sequences,
    merge,
    models,
    negate,
    score,
    survival,
    unlearn,
)
from adapter_unlearn.weights.rounding import overall

MODEL = "embedded:model"
TWO_GIGABYTES = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 17}
ASCENT = {
    "model": {"name": MODEL, "quantization": "nf4", "dtype": "float32"},
    "data": {"forget": "embedded:forget.jsonl"},
    "adapter": {"r": 128, "alpha": 256},
    "method": {"name": "sga", "threshold": 0.43},
    "training": {"learning_rate": 5e-5, "max_epochs": 80, "batch_size": 16},
    "stop": {"mean_below": 0.33, "extractable": 0, "max_perplexity_increase": None},
}
# Form -> quantization and whether the delta is merged into quantized weights; None is no rounding of weights.
FORMS = {
    "stacked nf4": None,
    "in place nf4": ("nf4", True),
    "in place int8": ("int8", True),
    "merged float32": ("none", False),
    "requantized nf4": ("nf4", False),
    "requantized int8": ("int8", False),
}


def adapter_of(series: str, cache: Path) -> Path:
    folder = cache / series
    if folder.is_dir():
        return folder
    if series == "sga":
        run: Any = load_recipe(["models/tiny-cpu", "methods/sga"], ["--output_dir", str(folder)])
    else:
        run = ASCENT | {"output_dir": str(folder)}
    return unlearn(run)


def deployed(form: str, adapter: Path, place: Path) -> torch.nn.Module:
    if form == "base nf4":
        return load_base(MODEL, "nf4", "float32")
    if form == "stacked nf4":
        return models.stack(load_base(MODEL, "nf4", "float32"), [adapter])
    quantization, in_place = FORMS[form]
    if in_place:
        merged = models.stack(load_base(MODEL, quantization, "float32"), [adapter]).merge_and_unload()
        models.base._keep_canonical_4bit(merged)
        return merged
    with tempfile.TemporaryDirectory(dir=place) as folder:
        result = merge(MODEL, adapter, Path(folder) / "merged", quantization, dtype="float32")
        return load_base(str(result), quantization, "float32")


def measured(model: torch.nn.Module, forget: Any) -> dict[str, float]:
    frame = score(model, forget, batch_size=32)
    return {
        "extractable": int(frame["extractable"].sum()),
        "accuracy_mean": round(float(frame["memorization_accuracy"].mean()), 4),
        "accuracy_max": round(float(frame["memorization_accuracy"].max()), 4),
        "longest_run": int(frame["longest_verbatim_run"].max()),
    }


def rows_of(series: str, scales: list[float], cache: Path) -> list[dict[str, Any]]:
    adapter = adapter_of(series, cache)
    forget = load_sequences(assets.resolve("embedded:forget.jsonl"), models.load_tokenizer(MODEL))
    rows: list[dict[str, Any]] = [
        {"scale": 0.0, "form": "base nf4"} | measured(deployed("base nf4", adapter, cache), forget)
    ]
    for scale in scales:
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            scaled = negate(adapter, Path(folder) / "scaled", scale=scale)
            for form, rounding in FORMS.items():
                row = {"scale": scale, "form": form}
                if rounding is not None:
                    left = overall(survival(MODEL, scaled, rounding[0], "float32", rounding[1]))
                    row |= {key: round(value, 4) for key, value in left.items()}
                rows.append(row | measured(deployed(form, scaled, cache), forget))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def memory(place: Path) -> dict[str, float]:
    script = Path(__file__).parents[2] / "tests" / "merge_memory.py"
    with tempfile.TemporaryDirectory(dir=place) as folder:
        words = [sys.executable, script, folder, str(500 * 10**6), json.dumps(TWO_GIGABYTES)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="where trained adapters are kept")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--series", nargs="*", choices=["sga", "ascent"], default=[])
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a JSON file; what it holds of other parts stays")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    given.cache.mkdir(parents=True, exist_ok=True)
    known = given.output is not None and given.output.is_file()
    result = json.loads(given.output.read_text()) if known else {}
    if given.memory:
        result["memory"] = memory(given.cache)
    for series in given.series:
        result.setdefault("series", {})[series] = rows_of(series, given.scales, given.cache)
    print(json.dumps(result, indent=1))
    if given.output is not None:
        given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
