"""Runs that are really killed or stopped, at random moments, and resumed. Slow; the moments are seeded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import random_rows
from safetensors.torch import load_file

from adapter_unlearn import recipe
from adapter_unlearn.recipe import shipped
from adapter_unlearn.runs import checkpoint_file

pytestmark = pytest.mark.slow

METHODS = {
    "sga": {"name": "sga", "threshold": 0.5, "retain_weight": 0.5, "retain_sequences": 2},
    "tau": {"name": "tau", "threshold": 0.5},
    "match": {"name": "match", "retain_weight": 2.0, "retain_sequences": 4},
}
KILLED = [("sga", 1, seed) for seed in range(6)] + [("tau", 1, seed) for seed in range(7)]
KILLED += [("match", 1, seed) for seed in range(7)]
TWO = [("sga", 2, 0), ("sga", 2, 1), ("tau", 2, 0), ("match", 2, 0), ("match", 2, 1)]
STOPPED = [(method, 1, seed) for method in METHODS for seed in range(5)]


@pytest.fixture(scope="module")
def undisturbed(memorizers, tmp_path_factory):
    """Method and number of processes -> the folder of its recipe and its whole run, and the run's seconds."""
    runs = {}

    def of(method: str, processes: int) -> tuple[Path, float]:
        if (method, processes) not in runs:
            folder = tmp_path_factory.mktemp(f"{method}-{processes}")
            _write_recipe(folder, method, str(memorizers("llama")))
            started = time.monotonic()
            process = start(folder, "whole", processes)
            assert process.wait(300) == 0, (folder / "whole.log").read_text()
            runs[method, processes] = folder, time.monotonic() - started
        return runs[method, processes]

    return of


def _write_recipe(folder: Path, method: str, model: str) -> None:
    sets = {"forget": random_rows(0)[:8], "retain": random_rows(7), "holdout": random_rows(9)}
    sets |= {"validation": random_rows(8, (30, 20, 25))}
    for name, rows in sets.items():
        lines = [f'{{"id": "{name}-{i}", "input_ids": {row}}}\n' for i, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    values = {
        "model": {"name": model, "quantization": "none", "dtype": "float32"},
        "data": {name: str(folder / f"{name}.jsonl") for name in sets} | {"synthetic": 20 * (method == "match")},
        "adapter": {"r": 4, "alpha": 8, "dropout": 0.1},
        "method": METHODS[method],
        "training": {
            "learning_rate": "auto" if method == "match" else 1e-3, "max_epochs": 60, "batch_size": 4,
            "sequences_per_step": 3,
        },
        "stop": {"mean_below": 0.01, "max_perplexity_increase": 500.0, "early": False},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(recipe.to_yaml(recipe.from_mapping(values)))


def start(folder: Path, name: str, processes: int, *flags: str) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own; it writes the folder `name` and `name`.log."""
    words = [sys.executable, str(shipped.folder() / "unlearn.py")]
    if processes > 1:
        words = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        words += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        words += ["--main_process_port", "0", str(shipped.folder() / "unlearn.py")]
    words += ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / name), *flags]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / f"{name}.log").open("ab") as output:
        return subprocess.Popen(words, stdout=output, stderr=output, env=environment, start_new_session=True)


def stop(folder: Path, name: str, seconds: float, processes: int, number: int) -> int:
    """Start a run, send it a signal after so many seconds, and return its exit code."""
    process = start(folder, name, processes)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        workers = psutil.Process(process.pid).children(recursive=True)  # of a launch; they have sessions of their own
        for one in [process, *workers]:
            one.send_signal(number)
        psutil.wait_procs(workers, 120)
    return process.wait(120)


def finish(folder: Path, name: str, processes: int) -> dict[str, torch.Tensor]:
    """Resume a run that is not complete, and return its adapter."""
    if not (folder / name).exists():
        code = start(folder, name, processes, "--resume").wait(300)
        assert code == 0, (folder / f"{name}.log").read_text()
    assert not checkpoint_file.path_of(folder / name).exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(f".{name}.")]
    return load_file(folder / name / "adapter_model.safetensors")


def moment(seconds: float, seed: int) -> float:
    """A moment in a run of so many seconds; the first third is spent on imports."""
    return float(np.random.default_rng(seed).uniform(0.3, 1.0)) * seconds


@pytest.mark.parametrize(("method", "processes", "seed"), KILLED + TWO)
def test_a_killed_run_ends_as_the_undisturbed_one(undisturbed, method, processes, seed):
    folder, seconds = undisturbed(method, processes)
    stop(folder, f"killed-{seed}", moment(seconds, seed), processes, signal.SIGKILL)
    adapter = finish(folder, f"killed-{seed}", processes)
    for name, tensor in load_file(folder / "whole" / "adapter_model.safetensors").items():
        difference = float((tensor - adapter[name]).abs().max())
        assert difference <= (0 if processes == 1 else 1e-6), name


@pytest.mark.parametrize(("method", "processes", "seed"), STOPPED)
def test_a_stopped_run_ends_as_the_undisturbed_one(undisturbed, method, processes, seed):
    folder, seconds = undisturbed(method, processes)
    name, number = f"stopped-{seed}", signal.SIGINT if seed == 0 or (method, seed) in STOPPED_BY_INT else signal.SIGTERM
    code = stop(folder, name, moment(seconds, seed + 100), processes, number)
    assert code in (0, 128 + number, -number), (folder / f"{name}.log").read_text()
    adapter = finish(folder, name, processes)
    for key, tensor in load_file(folder / "whole" / "adapter_model.safetensors").items():
        assert torch.equal(tensor, adapter[key]), key


STOPPED_BY_INT = [("sga", 1), ("match", 1)]
"""With seed 0 of each method, five runs; the other ten get SIGTERM."""
