"""The benchmark of real size, on a shrunken shape: that it runs, and that it measures what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from adapter_unlearn.pipeline import experiments

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "real_size" / "run.py"


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("real_size", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_every_figure(tmp_path):
    words = [sys.executable, str(SCRIPT), "--shape", "small", "--repeats", "1", "--result", str(tmp_path / "r.json")]
    subprocess.run(words, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["shape"] == "small" and result["model_bytes"] > 0
    pairs = [*result["scoring"].values(), result["extraction_likelihood"], *result["sga_step"].values()]
    assert len(pairs) == 5
    for pair in pairs:
        assert pair["seconds"] > 0 and pair["bare_seconds"] > 0 and pair["peak_bytes"] > 0
        assert pair["ratio"] == pytest.approx(pair["seconds"] / pair["bare_seconds"])


def test_the_model_is_in_nf4_and_takes_adapters(run):
    from bitsandbytes.nn import Linear4bit

    from adapter_unlearn import Adapter, models, score

    torch.manual_seed(0)
    model = run.build(LlamaConfig(**run.SHAPES["small"]["config"]), torch.device("cpu"), torch.float32)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert all(isinstance(module, Linear4bit) for module in linear if module is not model.lm_head)
    assert all(layer.weight.quant_state is not None for layer in linear if layer is not model.lm_head)
    assert not any(parameter.is_meta for parameter in [*model.parameters(), *model.buffers()])
    adapted = models.attach(model, Adapter(r=4))
    assert score(adapted, run.texts(2, 30, 1024))["loss"].between(4, 12).all(), "the noise of random weights"


def test_every_shape_is_of_multiples_of_64(run):
    for shape in run.SHAPES.values():
        config = LlamaConfig(**shape["config"])
        assert not config.hidden_size % 64 and not config.intermediate_size % 64


@pytest.mark.parametrize("matrix", ["methods", "rates"])
def test_the_matrices_on_real_text_are_planned_as_their_readme_says(matrix, tmp_path):
    folder = ROOT / "benchmarks" / "real_text"
    planned = experiments.plan(folder / f"{matrix}.yaml", tmp_path)
    (said,) = re.findall(rf"`{matrix}.yaml`[^`]*?(\d+) runs", (folder / "README.md").read_text())
    assert len(planned) == int(said)
