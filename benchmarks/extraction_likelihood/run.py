"""Compare the time that our EL_10 takes with `generate` from every prefix, batched and with a KV cache.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/extraction_likelihood/run.py --output extraction_likelihood.json

Small models are trained on 32 rows of real text until their mean memorization accuracy is 0.3, 0.6 and 0.9. Two naive
implementations of the definition are timed:

- `reference`: all sequences are cut at the same prefix length, with one `generate` per length and no padding. The
  papers' reference implementations do this; here all sequences are in one batch.
- `padded`: prefixes of similar lengths share a batch and are padded on the left. Several batch sizes are tried and the
  fastest is used. This is the fastest way to use `generate` that we found; we know of no implementation that does it.

The implementations are timed in turn, A B C A B C …, and medians are compared, because timings vary. The work of a
naive implementation depends only on the number and the length of the sequences, so each of its repeats uses the model
of another level. On that model its values are compared with ours: sequences may differ only if two logits are almost
equal somewhere (float32 rounding). A cell of the output is a (model, number, length, level). Cells that the output file
already has are replaced; all other cells are kept.
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
from adapter_unlearn.models import load_tokenizer
from adapter_unlearn.scoring.greedy import measure

N = 10
LONGEST = 200
ROWS = 32
EL = "extraction_likelihood"


def texts() -> list[list[int]]:
    """Rows of 200 tokens of general text and records, cut from the files of the embedded default."""
    tokenizer = load_tokenizer("embedded:model")
    rows: list[list[int]] = []
    for name in ("test", "validation"):
        sequences = load_sequences(resolve(f"embedded:{name}.jsonl"), tokenizer)
        ids = [token for row in sequences["input_ids"] for token in row]
        rows += [ids[start : start + LONGEST] for start in range(0, len(ids) - LONGEST, LONGEST)]
    return rows[:ROWS]


def embedded() -> torch.nn.Module:
    return load_base("embedded:model", "none", "float32", device="cpu")


def gpt_neo() -> torch.nn.Module:
    """A GPT-Neo of four layers, every second one with local attention."""
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


def train_to_levels(model: torch.nn.Module, rows: list[list[int]], levels: list[float]) -> dict[float, torch.nn.Module]:
    """Train the model on the rows; return a copy at each level of mean accuracy."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ids = torch.tensor(rows)
    copies = {}
    for level in sorted(levels):
        while accuracy(model, rows) < level:
            model.train()
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.eval()
        copies[level] = copy.deepcopy(model).requires_grad_(False)
    return {level: copies[level] for level in levels}


def overlap(generated: list[int], true: list[int]) -> float:
    """The share of the generated n-grams that occur in the true continuation."""
    grams = {tuple(true[i : i + N]) for i in range(len(true) - N + 1)}
    return sum(tuple(generated[i : i + N]) in grams for i in range(len(generated) - N + 1)) / (len(true) - N + 1)


def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, new: int) -> torch.Tensor:
    config = GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=None, bos_token_id=None, pad_token_id=0, use_cache=True
    )
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]


def naive(model: torch.nn.Module, rows: list[list[int]], layout: str, batch_size: int) -> list[float]:
    """EL_10 of rows of one length T by definition: generate from each of the T - 10 prefixes."""
    length = len(rows[0])
    starts = [(t, i) for t in range(1, length - N + 1) for i in range(len(rows))]
    size = min(batch_size, len(rows)) if layout == "same" else batch_size
    shares: list[list[float]] = [[] for _ in rows]
    for first in range(0, len(starts), size):
        batch = starts[first : first + size]
        longest = max(t for t, _ in batch)
        ids, mask = (torch.zeros(len(batch), longest, dtype=torch.long) for _ in range(2))
        for row, (t, i) in enumerate(batch):
            ids[row, longest - t :] = torch.tensor(rows[i][:t])
            mask[row, longest - t :] = 1
        generated = generate(model, ids, mask, length - min(t for t, _ in batch)).tolist()
        for (t, i), tokens in zip(batch, generated):
            shares[i].append(overlap(tokens[: length - t], rows[i][t:]))
    return [sum(row) / len(row) for row in shares]


def ours(model: torch.nn.Module, rows: list[list[int]]) -> list[float]:
    values = measure(model, sequences_of(rows), [EL], batch_size=len(rows))
    return [float(values[i][EL]) for i in range(len(rows))]


def timed(function: Callable[[], list[float]]) -> tuple[float, list[float]]:
    started = time.perf_counter()
    values = function()
    return time.perf_counter() - started, values


def table(cells: list[dict[str, Any]]) -> str:
    lines = ["model     sequences  tokens    MA  x reference  x padded"]
    for cell in cells:
        lines.append(
            f"{cell['model']:<9} {cell['sequences']:>9} {cell['tokens']:>7} {cell['memorization_accuracy']:>5.2f} "
            f"{cell['ratio_to_reference']:>12.1f} {cell['ratio_to_padded']:>9.1f}"
        )
    return "\n".join(lines)


def compare(
    name: str, models: dict[float, torch.nn.Module], rows: list[list[int]], padded: list[int], repeats: int
) -> list[dict[str, Any]]:
    """Time all implementations; return one cell per level."""
    levels = list(models)
    seconds_by_size = {size: timed(partial(naive, models[levels[0]], rows, "padded", size))[0] for size in padded}
    best = min(seconds_by_size, key=seconds_by_size.__getitem__)
    reference_s: list[float] = []
    padded_s: list[float] = []
    ours_s: dict[float, list[float]] = {level: [] for level in levels}
    difference = {}
    for repeat in range(repeats):
        level = levels[repeat % len(levels)]
        seconds, values = timed(partial(naive, models[level], rows, "same", len(rows)))
        reference_s.append(seconds)
        padded_s.append(timed(partial(naive, models[level], rows, "padded", best))[0])
        for other in levels:
            seconds, own_values = timed(partial(ours, models[other], rows))
            ours_s[other].append(seconds)
            if other == level:
                difference[level] = np.abs(np.array(values) - np.array(own_values))
    naive_medians = statistics.median(reference_s), statistics.median(padded_s)
    return [
        {
            "model": name,
            "sequences": len(rows),
            "tokens": len(rows[0]),
            "level": level,
            "memorization_accuracy": round(accuracy(models[level], rows), 3),
            "our_seconds": [round(value, 2) for value in ours_s[level]],
            "reference_seconds": [round(value, 2) for value in reference_s],
            "padded_seconds": [round(value, 2) for value in padded_s],
            "padded_batch_size": best,
            "padded_tried": {str(size): round(value, 2) for size, value in seconds_by_size.items()},
            "ratio_to_reference": round(naive_medians[0] / statistics.median(ours_s[level]), 1),
            "ratio_to_padded": round(naive_medians[1] / statistics.median(ours_s[level]), 1),
            "rows_equal": int((difference[level] < 1e-9).sum()) if level in difference else None,
            "largest_difference": float(difference[level].max()) if level in difference else None,
        }
        for level in levels
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--levels", nargs="+", type=float, default=[0.9, 0.6, 0.3])
    parser.add_argument("--numbers", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 128, 200])
    parser.add_argument(
        "--padded",
        nargs="+",
        type=int,
        default=[128, 256, 512],
        help="batch sizes to try for the padded implementation",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    all_rows = texts()
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    if arguments.output and arguments.output.exists():
        before = json.loads(arguments.output.read_text())["cells"]
        cells = {(c["model"], c["sequences"], c["tokens"], c["level"]): c for c in before}
    for name in arguments.models:
        models = train_to_levels(MODELS[name](), all_rows, arguments.levels)
        ours(models[arguments.levels[0]], all_rows[:2])
        for number in arguments.numbers:
            for length in arguments.lengths:
                rows = [row[:length] for row in all_rows[:number]]
                for cell in compare(name, models, rows, arguments.padded, arguments.repeats):
                    cells[name, number, length, cell["level"]] = cell
                print(table(list(cells.values())), flush=True)
                if arguments.output:
                    result = {"threads": arguments.threads, "torch": torch.__version__, "cells": list(cells.values())}
                    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
