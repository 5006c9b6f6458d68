"""Measure the memory that merging takes, and how the order of merging and quantizing affects recitation.

    python benchmarks/merging/run.py --cache runs/merging --memory --output benchmarks/results/merging.json
    python benchmarks/merging/run.py --cache runs/merging --series sga ascent --output benchmarks/results/merging.json

`--memory` merges a random 2 GB model stored in 500 MB shards (tests/weights/merge_memory.py). A series takes an
unlearning adapter of the embedded default, multiplies its delta by each scale, and measures the forget set in every
deployment form. If the cache does not have the adapter, it is trained first, which takes minutes. A scaled adapter is
also weaker, so `stacked` is the control: the effect of a form is its difference from `stacked`.

`sga` is the shipped recipe of tiny-cpu and sga: many steps with a strong retain term. `ascent` has no retain term, full
rank and a small learning rate, and stops at the paper's mean accuracy. Its delta is a quarter as large and spread
evenly over the weights, so it unlearns strongly with a small delta. It also damages the model more.
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
    unlearn,
)
from adapter_unlearn.weights.rounding import overall, survival

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
# Form -> quantization, and whether the delta is merged into quantized weights. None: the weights are not changed.
FORMS = {
    "stacked nf4": None,
    "in place nf4": ("nf4", True),
    "in place int8": ("int8", True),
    "merged float32": ("none", False),
    "requantized nf4": ("nf4", False),
    "requantized int8": ("int8", False),
}


def adapter_of(series: str, cache: Path) -> Path:
    """The folder of a series' adapter, trained if the cache does not have it."""
    folder = cache / series
    if folder.is_dir():
        return folder
    if series == "sga":
        recipe: Any = load_recipe(["models/tiny-cpu.yaml", "methods/sga.yaml"], ["--output_dir", str(folder)])
    else:
        recipe = ASCENT | {"output_dir": str(folder)}
    return unlearn(recipe)


def deploy(form: str, adapter: Path, cache: Path) -> torch.nn.Module:
    """The model in a deployment form."""
    if form == "base nf4":
        return load_base(MODEL, "nf4", "float32")
    if form == "stacked nf4":
        return models.stack(load_base(MODEL, "nf4", "float32"), [adapter])
    quantization, in_place = FORMS[form]
    if in_place:
        merged = models.stack(load_base(MODEL, quantization, "float32"), [adapter]).merge_and_unload()
        models.base._keep_canonical_4bit(merged)
        return merged
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        result = merge(MODEL, [adapter], Path(folder) / "merged", quantization, dtype="float32")
        return load_base(str(result), quantization, "float32")


def measure(model: torch.nn.Module, forget: Any) -> dict[str, float]:
    frame = score(model, forget, batch_size=32)
    return {
        "extractable": int(frame["extractable"].sum()),
        "accuracy_mean": round(float(frame["memorization_accuracy"].mean()), 4),
        "accuracy_max": round(float(frame["memorization_accuracy"].max()), 4),
        "longest_run": int(frame["longest_verbatim_run"].max()),
    }


def rows_of(series: str, scales: list[float], cache: Path) -> list[dict[str, Any]]:
    """One row per scale and form, after one for the base."""
    adapter = adapter_of(series, cache)
    forget = load_sequences(assets.resolve("embedded:forget.jsonl"), models.load_tokenizer(MODEL))
    rows: list[dict[str, Any]] = [
        {"scale": 0.0, "form": "base nf4"} | measure(deploy("base nf4", adapter, cache), forget)
    ]
    for scale in scales:
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            scaled = negate(adapter, Path(folder) / "scaled", scale=scale)
            for form, rounding in FORMS.items():
                row = {"scale": scale, "form": form}
                if rounding is not None:
                    delta = overall(survival(MODEL, scaled, rounding[0], "float32", in_place=rounding[1]))
                    row |= {key: round(value, 4) for key, value in delta.items()}
                rows.append(row | measure(deploy(form, scaled, cache), forget))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def memory(cache: Path) -> dict[str, float]:
    """The peak memory of a merge in a process of its own."""
    script = Path(__file__).parents[2] / "tests" / "weights" / "merge_memory.py"
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, script, folder, str(500 * 10**6), json.dumps(TWO_GIGABYTES)]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder that trained adapters are kept in")
    parser.add_argument("--memory", action="store_true", help="measure the memory of a merge")
    parser.add_argument("--series", nargs="*", choices=["sga", "ascent"], default=[])
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file to update; parts that are not measured are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    arguments.cache.mkdir(parents=True, exist_ok=True)
    exists = arguments.output is not None and arguments.output.is_file()
    result = json.loads(arguments.output.read_text()) if exists else {}
    if arguments.memory:
        result["memory"] = memory(arguments.cache)
    for series in arguments.series:
        result.setdefault("series", {})[series] = rows_of(series, arguments.scales, arguments.cache)
    print(json.dumps(result, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
