"""Compare the cost of scoring with that of bare forward passes, and measure its peak memory at a large vocabulary.

    python benchmarks/scoring/run.py --number 64 --output scoring.json
    python benchmarks/scoring/run.py --peak

The model has the size of GPT-Neo 125M (vocabulary 50,257) and random weights; speed depends neither on their values nor
on those of the tokens, which are random unless `--rows` names some. Bare passes, scoring with the default metrics and
scoring with all metrics are timed in turn, A B C A B C …, and medians are compared, because timings vary. Medians of
processor time are reported as well; other processes affect them less. `--peak` measures the memory that scoring adds to
the transformer without logits, at the vocabulary of Llama 3 (128,256). tests/pipeline/test_scoring_run.py tests
that the memory does not grow with the number of rows.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig

from adapter_unlearn import load_sequences, score
from adapter_unlearn.metrics import Sampling
from adapter_unlearn.scoring import DEFAULT_METRICS

TOKENS = 200


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = GPTNeoConfig(hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]])
    return AutoModelForCausalLM.from_config(config).eval()


def build_wide_model() -> torch.nn.Module:
    """A model of few layers and a large vocabulary in bfloat16, whose memory is mostly logits."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=128256, hidden_size=512, intermediate_size=1024, num_hidden_layers=2)
    return AutoModelForCausalLM.from_config(config).bfloat16().eval()


def bare_passes(model: torch.nn.Module, rows: list[list[int]], batch_size: int) -> None:
    """Run every row through the model once and discard the logits."""
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            ids = torch.tensor(rows[start : start + batch_size])
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall-clock time, and of processor time over all threads."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - processor


def resident(kind: str) -> int:
    """Resident bytes of this process (Linux): VmRSS is the current value, VmHWM the maximum since the last reset."""
    return int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def peak(action: Callable[[], object]) -> int:
    """Peak of the resident bytes that an action adds. It runs once before, to exclude imports and caches."""
    action()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns free memory to the system, so that it does not count
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def above_the_transformer(sequences: Dataset, batch_size: int) -> dict[str, int]:
    """Metrics -> peak bytes that scoring adds to the transformer alone, at a vocabulary of 128,256."""
    model = build_wide_model()
    sequences = sequences.select(range(batch_size))
    ids = torch.tensor(sequences["input_ids"][:])

    def transformer_alone() -> None:
        with torch.no_grad():
            model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    nucleus = {"sampling": Sampling(top_k=None, top_p=0.9)}
    actions: dict[str, Callable[[], object]] = {
        "default metrics": lambda: score(model, sequences, batch_size=batch_size),
        "all metrics": lambda: score(model, sequences, ["all"], batch_size),
        "all metrics, top-p without top-k": lambda: score(model, sequences, ["all"], batch_size, **nucleus),
    }
    alone = peak(transformer_alone)
    return {name: peak(action) - alone for name, action in actions.items()}


def load(paths: list[str] | None, number: int) -> Dataset:
    if paths:
        return load_sequences([Path(path) for path in paths])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50257, (number, TOKENS), generator=generator)
    return load_sequences([{"input_ids": row} for row in ids.tolist()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", help=".npy files with rows of 200 token ids (default: random ids)")
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", action="store_true", help="measure peak memory instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        sequences = load(arguments.rows, arguments.batch_size)
        result = {"bytes_above_the_transformer": above_the_transformer(sequences, arguments.batch_size)}
    else:
        result = times(load(arguments.rows, arguments.number).select(range(arguments.number)), arguments)
    print(json.dumps(result, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def times(sequences: Dataset, arguments: argparse.Namespace) -> dict[str, object]:
    """Time bare passes and scoring in turn."""
    model = build_model()
    rows = [list(row) for row in sequences["input_ids"]]
    runs: dict[str, Callable[[], object]] = {
        "bare": lambda: bare_passes(model, rows, arguments.batch_size),
        "default": lambda: score(model, sequences, DEFAULT_METRICS, arguments.batch_size),
        "all": lambda: score(model, sequences, ["all"], arguments.batch_size),
    }
    bare_passes(model, rows[: arguments.batch_size], arguments.batch_size)
    score(model, sequences.select(range(arguments.batch_size)), ["all"], arguments.batch_size)
    timings: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            timings[name].append(timed(run))
    setting = {
        "rows": arguments.number,
        "tokens": len(rows[0]),
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
    }
    return setting | {
        kind: compare({name: [pair[i] for pair in values] for name, values in timings.items()})
        for i, kind in enumerate(("clock", "processor"))
    }


def compare(seconds: dict[str, list[float]]) -> dict[str, object]:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "ratio_of_medians": {name: round(medians[name] / medians["bare"], 3) for name in ("default", "all")},
    }


if __name__ == "__main__":
    main()
