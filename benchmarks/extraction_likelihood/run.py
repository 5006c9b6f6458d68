"""What EL_10 costs, beside the definition at its best: `generate` from every prefix, batched and with a KV cache.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/extraction_likelihood/run.py --output extraction_likelihood.json

Two small models are trained on 32 rows of real text until their mean memorization accuracy is about 0.3, 0.6 and 0.9.
The naive way is run in two layouts, each at several batch sizes, and the fastest of all (found once for each model,
number and length) is what we are compared with:

- `same`: all sequences cut at the same prefix, one `generate` a prefix, no padding; what the reference implementations
  of the papers do, but with as many sequences at once as there are.
- `padded`: prefixes of neighbouring lengths together, padded on the left, as many as the batch size says.

Both ways alternate, A B A B …, and medians are compared, because machines are noisy. Values are compared as well: a
row may differ only where two logits are near a tie somewhere (float32, differences of rounding).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GenerationConfig, GPTNeoConfig

from adapter_unlearn import load_base, load_sequences, score
from adapter_unlearn.assets import resolve
from adapter_unlearn.continuation import measure
from adapter_unlearn.models import load_tokenizer

N = 10
LONGEST = 200
ROWS = 32
EL = "extraction_likelihood"


def texts() -> list[list[int]]:
    """Rows of 200 tokens of general text and records, cut from the embedded default's files."""
    tokenizer = load_tokenizer("embedded:model")
    rows: list[list[int]] = []
    for name in ("holdout", "validation"):
        sequences = load_sequences(resolve(f"embedded:{name}.jsonl"), tokenizer)
        ids = [token for row in sequences["input_ids"] for token in row]
        rows += [ids[start : start + LONGEST] for start in range(0, len(ids) - LONGEST, LONGEST)]
    return rows[:ROWS]


def embedded() -> torch.nn.Module:
    return load_base("embedded:model", "none", "float32", device="cpu")


def gpt_neo() -> torch.nn.Module:
    """Four layers, every other one with local attention."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=3072, hidden_size=256, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]],
        window_size=64, max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
        attention_dropout=0.0, embed_dropout=0.0, resid_dropout=0.0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


MODELS = {"embedded": embedded, "gpt_neo": gpt_neo}


def sequences_of(rows: list[list[int]]) -> Dataset:
    return load_sequences([{"id": f"{i}", "input_ids": row} for i, row in enumerate(rows)])


def accuracy(model: torch.nn.Module, rows: list[list[int]]) -> float:
    return float(score(model, sequences_of(rows), ["memorization_accuracy"])["memorization_accuracy"].mean())


def memorized(model: torch.nn.Module, rows: list[list[int]], levels: list[float]) -> dict[float, torch.nn.Module]:
    """Copies of the model, each trained on the rows until its mean accuracy reaches a level."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ids = torch.tensor(rows)
    found = {}
    for level in sorted(levels):
        while accuracy(model, rows) < level:
            model.train()
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.eval()
        found[level] = copy.deepcopy(model).requires_grad_(False)
    return found


def overlap(written: list[int], true: list[int]) -> float:
    grams = {tuple(true[i : i + N]) for i in range(len(true) - N + 1)}
    return sum(tuple(written[i : i + N]) in grams for i in range(len(written) - N + 1)) / (len(true) - N + 1)


def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, new: int) -> torch.Tensor:
    config = GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=None, bos_token_id=None, pad_token_id=0, use_cache=True
    )
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]


def naive(model: torch.nn.Module, rows: list[list[int]], layout: str, batch_size: int) -> list[float]:
    """EL_10 of rows of one length T, as defined: generate from each of the T - 10 prefixes."""
    length = len(rows[0])
    work = [(t, i) for t in range(1, length - N + 1) for i in range(len(rows))]
    size = min(batch_size, len(rows)) if layout == "same" else batch_size
    shares: list[list[float]] = [[] for _ in rows]
    for first in range(0, len(work), size):
        some = work[first : first + size]
        longest = max(t for t, _ in some)
        ids, mask = torch.zeros(len(some), longest, dtype=torch.long), torch.zeros(len(some), longest, dtype=torch.long)
        for place, (t, i) in enumerate(some):
            ids[place, longest - t :] = torch.tensor(rows[i][:t])
            mask[place, longest - t :] = 1
        written = generate(model, ids, mask, length - min(t for t, _ in some)).tolist()
        for (t, i), tokens in zip(some, written):
            shares[i].append(overlap(tokens[: length - t], rows[i][t:]))
    return [sum(row) / len(row) for row in shares]


def ours(model: torch.nn.Module, rows: list[list[int]]) -> list[float]:
    found = measure(model, sequences_of(rows), [EL], batch_size=len(rows))
    return [float(found[i][EL]) for i in range(len(rows))]


def timed(function: Callable[[], list[float]]) -> tuple[float, list[float]]:
    started = time.perf_counter()
    values = function()
    return time.perf_counter() - started, values


def best_naive(model: torch.nn.Module, rows: list[list[int]], padded: list[int]) -> tuple[dict[str, float], Any]:
    """Seconds of every way, and the fastest."""
    ways = {f"same, {len(rows)}": partial(naive, model, rows, "same", len(rows))}
    ways |= {f"padded, {size}": partial(naive, model, rows, "padded", size) for size in padded}
    seconds = {name: round(timed(way)[0], 2) for name, way in ways.items()}
    fastest = min(seconds, key=seconds.__getitem__)
    return seconds, (fastest, fastest.split(", ")[0], int(fastest.split(", ")[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--levels", nargs="+", type=float, default=[0.9, 0.6, 0.3])
    parser.add_argument("--numbers", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 128, 200])
    parser.add_argument("--padded", nargs="+", type=int, default=[32, 64, 128, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    every = texts()
    cells = []
    for name in given.models:
        levels = memorized(MODELS[name](), every, given.levels)
        for number in given.numbers:
            for length in given.lengths:
                rows = [row[:length] for row in every[:number]]
                tried, (way, layout, size) = best_naive(levels[given.levels[0]], rows, given.padded)
                for level in given.levels:
                    model = levels[level]
                    ours(model, rows[:2])
                    pairs = [
                        (timed(partial(naive, model, rows, layout, size)), timed(partial(ours, model, rows)))
                        for _ in range(given.repeats)
                    ]
                    theirs, us = ([seconds for seconds, _ in side] for side in zip(*pairs))
                    difference = np.abs(np.array(pairs[0][0][1]) - np.array(pairs[0][1][1]))
                    cells.append(
                        {
                            "model": name, "sequences": number, "tokens": length,
                            "memorization_accuracy": round(accuracy(model, rows), 3),
                            "extraction_likelihood": round(float(np.mean(pairs[0][1][1])), 4),
                            "naive_way": way, "naive_seconds": [round(s, 2) for s in theirs],
                            "our_seconds": [round(s, 3) for s in us],
                            "ratio_of_medians": round(statistics.median(theirs) / statistics.median(us), 1),
                            "rows_equal": int((difference < 1e-9).sum()), "largest_difference": float(difference.max()),
                            "naive_ways_tried": tried,
                        }
                    )  # fmt: skip
                    print(json.dumps(cells[-1]), flush=True)
    print("\nmodel     sequences tokens   MA   ratio")
    for cell in cells:
        print(
            f"{cell['model']:<9} {cell['sequences']:>9} {cell['tokens']:>6} {cell['memorization_accuracy']:>5.2f} "
            f"{cell['ratio_of_medians']:>6.1f}"
        )
    if given.output:
        result = {"threads": given.threads, "repeats": given.repeats, "torch": torch.__version__, "cells": cells}
        given.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
