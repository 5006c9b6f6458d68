"""What scoring costs beside the bare forward passes, and that its memory does not grow with the number of rows.

    python benchmarks/scoring/run.py --rows val_preprefix.npy val_prefix.npy val_suffix.npy --output scoring.json
    python benchmarks/scoring/run.py --rows val_preprefix.npy val_prefix.npy val_suffix.npy --peak

The model has the size of GPT-Neo 125M (vocabulary 50257) and random weights: speed does not depend on their values.
Bare passes and scoring alternate, A B A B …, and medians are compared, because machines are noisy. Peak memory is
measured apart.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPTNeoConfig

from adapter_unlearn import load_sequences, score


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = GPTNeoConfig(hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]])
    return AutoModelForCausalLM.from_config(config).eval()


def bare_passes(model: torch.nn.Module, rows: list[list[int]], batch_size: int) -> None:
    """Every row through the model once, logits thrown away."""
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            ids = torch.tensor(rows[start : start + batch_size])
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def timed(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def high_water() -> int:
    """Peak resident bytes of this process since it was last reset (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


def peaks(model: torch.nn.Module, sequences: Dataset, batch_size: int) -> dict[int, int]:
    """Number of rows -> peak resident bytes while they are scored; a first batch lets the allocator settle."""
    score(model, sequences.select(range(batch_size)), batch_size=batch_size)
    found = {}
    for number in (64, 512):
        Path("/proc/self/clear_refs").write_text("5")
        score(model, sequences.select(range(number)), batch_size=batch_size)
        found[number] = high_water()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", required=True, help=".npy parts of rows of 200 token ids")
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", action="store_true", help="print the peak memory at 64 and at 512 rows")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    every = load_sequences([Path(path) for path in given.rows])
    sequences = every.select(range(given.number))
    model = build_model()
    if given.peak:
        print(json.dumps(peaks(model, every, given.batch_size)))
        return
    rows = [list(row) for row in sequences["input_ids"]]
    bare_passes(model, rows[: given.batch_size], given.batch_size)
    score(model, sequences.select(range(given.batch_size)), batch_size=given.batch_size)
    bare, ours = [], []
    for _ in range(given.repeats):
        bare.append(timed(bare_passes, model, rows, given.batch_size))
        ours.append(timed(lambda: score(model, sequences, batch_size=given.batch_size)))
    result = {
        "rows": given.number,
        "tokens": len(rows[0]),
        "batch_size": given.batch_size,
        "threads": given.threads,
        "bare_seconds": [round(value, 2) for value in bare],
        "score_seconds": [round(value, 2) for value in ours],
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(bare), 3),
    }
    print(json.dumps(result, indent=2))
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
