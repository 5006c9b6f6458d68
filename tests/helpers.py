"""What several test modules share: tiny models that really memorize, short recipes, sampling schemes, launches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adapter_unlearn.metrics import Predictions
from adapter_unlearn.reporting.run import figures

VOCABULARY = 128
TRIAL_STEPS = 3
"""Of a trial of a learning rate, where two runs must try the same."""
LENGTHS = (24, 32, 40, 28, 36, 64, 31, 27, 64, 30)

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=2,
        n_positions=128,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


PATH = (Path(__file__).parent, Path(__file__).parents[1])
"""Where a process of its own finds the helpers and the package."""


def random_rows(seed: int, lengths=LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def as_sequences(rows, prefix_tokens=50, **columns):
    from adapter_unlearn import load_sequences

    table = [{"id": f"row-{i}", "input_ids": row} for i, row in enumerate(rows)]
    return load_sequences(table, prefix_tokens=prefix_tokens, **columns)


def memorize(config, rows, seed=0, steps=150):
    """A model of this shape that has memorized the first rows most and the last hardly."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for step in range(steps):
        known = [row for i, row in enumerate(rows) if step % (1 + i) == 0]
        longest = max(map(len, known))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in known])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in known])
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


SCHEMES = [(1.0, 40, 1.0), (0.7, None, 0.9), (1.3, 10, 0.8), (1.0, None, 1.0), (2.0, 3, 1.0), (0.5, 500, 0.3)]


def warped(logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float) -> torch.Tensor:
    """Log-probabilities under the scheme as generation in transformers draws, in float64."""
    if temperature != 1:
        logits = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        logits = TopKLogitsWarper(top_k)(None, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return logits.double().log_softmax(-1)


def write_rows(folder: Path, name: str, rows) -> str:
    """Write rows of token ids as a JSONL file; returns its path."""
    path = folder / name
    path.write_text("".join(json.dumps({"id": f"{name}-{i}", "input_ids": row}) + "\n" for i, row in enumerate(rows)))
    return str(path)


def tiny_run(model, folder: Path, name: str, method: dict, **training) -> dict:
    """A recipe that unlearns rows that `memorize` taught the model; the run is written to folder/name."""
    return {
        "model": {"name": str(model), "quantization": "none", "dtype": "float32"},
        "data": {
            "forget": write_rows(folder, "forget.jsonl", random_rows(0)[:8]),
            "retain": write_rows(folder, "retain.jsonl", random_rows(7, (30, 20, 25))),
            "validation": write_rows(folder, "validation.jsonl", random_rows(8, (30, 20, 25))),
        },
        "output_dir": str(folder / name),
        "adapter": {"r": 4, "alpha": 8},
        "method": method,
        "training": {"learning_rate": 3e-3, "max_epochs": 60, "batch_size": 4} | training,
        "stop": {"mean_below": 0.08, "max_perplexity_increase": None},
    }


def draw_no_figures(monkeypatch) -> None:
    """The folders of runs hold no figures."""
    monkeypatch.setattr(figures, "pictures", lambda results: [])


def launch(script: Path, *words: str, processes: int, path: Sequence[Path] = PATH, cwd: Path | None = None) -> str:
    """Run a script under accelerate with that many CPU processes; return what it printed.

    `path` is where it finds modules first, `cwd` its working directory.
    """
    several = ["--multi_gpu"] if processes > 1 else []  # --cpu would silently run one process
    command = [sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(script), *words],
        capture_output=True, text=True, env=environment, cwd=cwd, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def predictions_of(pattern: str, prefix_tokens: int = 1, scored_from: int = 1, nll=None, **statistics) -> Predictions:
    """One prediction per character: `x` is a hit, `.` a miss."""
    hits = np.array([mark == "x" for mark in pattern], dtype=bool)
    nll = np.ones(len(hits)) if nll is None else np.array(nll)
    return Predictions(hits, nll, prefix_tokens, scored_from, **statistics)


def with_all_statistics(pattern: str) -> Predictions:
    """The same, with every statistic that a metric may need."""
    nll = [0.01 if mark == "x" else 6.0 for mark in pattern]
    n = len(nll)
    statistics = {"log_p_mean": np.full(n, -3.0), "log_p_deviation": np.full(n, 1.5), "zlib_bytes": 80}
    return predictions_of(pattern, nll=nll, sampled_log_p=-np.array(nll), reference_nll=np.full(n, 2.0), **statistics)
