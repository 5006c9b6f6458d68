"""Write our side of the comparison with OpenUnlearning: the token ids that both packages score, and our scores.

    python benchmarks/openunlearning/ours.py --output ours.json

The model is the embedded default in float32 on a CPU. Its forget set, most of which it recites, is compared with its
holdout set, which it never saw. Both sets are scored in two forms: as plain texts, and with the first 50 tokens (half
of a shorter text) as prompt.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from datasets import Dataset

from adapter_unlearn import load_sequences, score
from adapter_unlearn.assets import resolve
from adapter_unlearn.metrics import Predictions
from adapter_unlearn.metrics.membership import min_k, min_k_plus_plus
from adapter_unlearn.metrics.set_level import auc_interval, membership
from adapter_unlearn.models import load_base, load_tokenizer

MODEL = "embedded:model"
SETS = ("forget", "holdout")
FORMS = ("text", "prompt")
METRICS = (
    "extraction_strength_openunlearning", "extraction_strength", "exact_memorization", "loss", "min_k",
    "min_k_plus_plus", "zlib",
)  # fmt: skip
LOW = {"loss", "zlib", "zlib_without_first_token"}
"""Metrics that are low for memorized texts."""


def sequences(form: str, name: str, tokenizer: Any) -> Dataset:
    """Load a set as plain texts, with all tokens but the first scored, or as prompts and completions."""
    plain = load_sequences(resolve(f"embedded:{name}.jsonl"), tokenizer, prefix_tokens=1 if form == "text" else 50)
    if form == "text":
        return plain
    parts = [(ids[:cut], ids[cut:]) for ids, cut in zip(plain["input_ids"], plain["prefix_tokens"])]
    rows = [{"prompt": tokenizer.decode(a), "completion": tokenizer.decode(b)} for a, b in parts]
    return load_sequences(rows, tokenizer)


def score_all(model: torch.nn.Module, rows: Dataset, tokenizer: Any) -> pd.DataFrame:
    """Our metrics per row, with those that only this comparison needs: k = 0.4, and zlib without the first token."""
    at_40: dict[int, tuple[float, float]] = {}

    def observe(index: int, predictions: Predictions) -> None:
        at_40[index] = min_k(predictions, 0.4), min_k_plus_plus(predictions, 0.4)

    frame = score(model, rows, METRICS, observe=observe)
    assert frame["note"].eq("").all()
    frame["min_k_40"], frame["min_k_plus_plus_40"] = zip(*(at_40[i] for i in range(len(rows))))
    texts = [tokenizer.decode(ids[start:]) for ids, start in zip(rows["input_ids"], rows["scored_from"])]
    frame["zlib_without_first_token"] = frame["loss"] / [len(zlib.compress(text.encode())) for text in texts]
    return frame.drop(columns=["n_tokens", "note"])


def aucs(forget: pd.DataFrame, holdout: pd.DataFrame) -> dict[str, float]:
    """The AUC of every metric."""
    values = membership(forget, holdout).set_index("metric")["auc"].to_dict()
    for name in set(forget) - set(values) - {"id"}:
        sign = -1 if name in LOW else 1
        values[name] = auc_interval(sign * forget[name].to_numpy(), sign * holdout[name].to_numpy()).value
    return values


def run() -> dict[str, Any]:
    """The token ids, the scores of each set and the AUC of each metric, by form under `forms`."""
    model, tokenizer = load_base(MODEL, "none", "float32", device="cpu"), load_tokenizer(MODEL)
    forms: dict[str, Any] = {}
    for form in FORMS:
        rows = {name: sequences(form, name, tokenizer) for name in SETS}
        frames = {name: score_all(model, rows[name], tokenizer) for name in SETS}
        forms[form] = {
            "rows": {name: rows[name].select_columns(["input_ids", "scored_from"]).to_dict() for name in SETS},
            "scores": {name: frame.drop(columns="id").to_dict("list") for name, frame in frames.items()},
            "auc": aucs(*frames.values()),
        }
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return {"versions": versions, "forms": forms}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.write_text(json.dumps(run()) + "\n", encoding="utf-8")
