"""Test the real-size benchmark on a small shape, and the experiment matrices of the real-text benchmark."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from adapter_unlearn.pipeline import experiments
from adapter_unlearn.recipe import Adapter

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "real_size" / "run.py"


@pytest.fixture(scope="module")
def real_size():
    spec = importlib.util.spec_from_file_location("real_size", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_every_figure(real_size, tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    words = ["--shape", "small", "--repeats", "1", "--result", str(file)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    real_size.main()
    result = json.loads(file.read_text())
    assert result["shape"] == "small" and result["model_bytes"] > 0
    pairs = [*result["scoring"].values(), result["extraction_likelihood"], *result["sga_step"].values()]
    assert len(pairs) == 5
    for pair in pairs:
        assert pair["seconds"] > 0 and pair["bare_seconds"] > 0 and pair["peak_bytes"] > 0
        assert pair["ratio"] == pytest.approx(pair["seconds"] / pair["bare_seconds"])


def test_the_model_is_in_nf4_and_takes_adapters(real_size):
    from bitsandbytes.nn import Linear4bit

    from adapter_unlearn import models, score

    torch.manual_seed(0)
    model = real_size.build(LlamaConfig(**real_size.SHAPES["small"]["config"]), torch.device("cpu"), torch.float32)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert all(isinstance(module, Linear4bit) for module in linear if module is not model.lm_head)
    assert all(layer.weight.quant_state is not None for layer in linear if layer is not model.lm_head)
    assert not any(parameter.is_meta for parameter in [*model.parameters(), *model.buffers()])
    adapted = models.attach(model, Adapter(r=4))
    loss = score(adapted, real_size.texts(2, 30, 1024))["loss"]
    assert loss.between(4, 12).all()  # random weights: near log(1024) = 6.9


def test_every_size_is_a_multiple_of_64(real_size):
    for shape in real_size.SHAPES.values():
        config = LlamaConfig(**shape["config"])
        assert not config.hidden_size % 64 and not config.intermediate_size % 64


@pytest.mark.parametrize("matrix", ["methods", "rates"])
def test_a_matrix_has_the_number_of_runs_that_its_readme_states(matrix, tmp_path):
    folder = ROOT / "benchmarks" / "real_text"
    runs = experiments.plan(folder / f"{matrix}.yaml", tmp_path)
    (number,) = re.findall(rf"`{matrix}.yaml`[^`]*?(\d+) runs", (folder / "README.md").read_text())
    assert len(runs) == int(number)
