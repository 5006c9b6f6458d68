"""Every metric as a module of the library `evaluate`: the numbers of `score`, no hub, nothing left in a cache."""

from __future__ import annotations

import os
import subprocess
import sys

import evaluate
import numpy as np
import pytest
from helpers import as_sequences, random_rows

from adapter_unlearn import InputError, RecipeError, load_base, score
from adapter_unlearn.evaluation.modules import module
from adapter_unlearn.metrics.table import METRICS


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(memorizers):
    return load_base(str(memorizers("llama")), "none", "float32")


@pytest.fixture(scope="module")
def sequences():
    return as_sequences(random_rows(0), prefix_tokens=10)


@pytest.mark.parametrize("name", METRICS)
def test_a_module_gives_the_numbers_of_score(model, sequences, name):
    metric = module(name)
    assert isinstance(metric, evaluate.Metric) and metric.name == name
    assert METRICS[name].means in metric.description and metric.citation == METRICS[name].source
    if name in ("zlib", "reference_loss_difference"):
        with pytest.raises(InputError, match=r"tokenizer|no adapters"):
            metric.compute(model=model, sequences=sequences)
        return
    expected = score(model, sequences, [name])[name]
    result = metric.compute(model=model, sequences=sequences)
    assert result["per_sequence"] == pytest.approx(expected.tolist(), nan_ok=True)
    assert result[name] == pytest.approx(np.nanmean(expected))


def test_modules_combine(model, sequences):
    together = evaluate.combine([module("loss"), module("extractable")]).compute(model=model, sequences=sequences)
    assert set(together) == {"loss", "extractable", "loss_per_sequence", "extractable_per_sequence"}
    assert len(together["loss_per_sequence"]) == len(sequences)


def test_a_module_measures_a_model():
    metric = module("loss")
    for wrong in ({}, {"predictions": [[1]], "references": [[1]]}, {"model": object()}):
        with pytest.raises(RecipeError, match="compute\\(model=…, sequences=…\\)"):
            metric.compute(**wrong)
    for collect in (metric.add, metric.add_batch):
        with pytest.raises(RecipeError, match="collects no predictions"):
            collect(predictions=[[1]], references=[[1]])
    with pytest.raises(RecipeError, match="unknown metric"):
        module("bleurt")
    with pytest.raises(RecipeError, match="one metric"):
        module("all")


ALONE = """
import sys, warnings
warnings.simplefilter("error")
from adapter_unlearn import load_base, load_sequences
from adapter_unlearn.evaluation.modules import module
model = load_base(sys.argv[1], "none", "float32")
result = module("loss").compute(model=model, sequences=load_sequences([{"id": "zaphod", "input_ids": [77] * 30}]))
assert result["loss"] > 0
print("scored")
"""


def test_nothing_is_left_in_a_cache(memorizers, tmp_path):
    """In a process of its own, because the HF libraries read their environment once. Without a hub, too."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    environment = inherited | {"HOME": str(home), "HF_HOME": str(home / "hf"), "TMPDIR": str(temporary)}
    environment |= {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ALONE, str(memorizers("llama"))]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "scored", done.stderr
    left = [path for folder in (home, temporary) for path in folder.rglob("*") if path.is_file()]
    assert left == []
