"""On a CUDA device: the same job in nf4 and bfloat16. Run with `make test ARGS="-m gpu -n 0"`."""

from __future__ import annotations

import json

import pytest

from adapter_unlearn import load_recipe, unlearn

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_the_embedded_default_forgets_on_a_gpu(tmp_path, quantization):
    flags = ["--model.quantization", quantization, "--model.dtype", "bfloat16", "--output_dir", str(tmp_path / "run")]
    run = unlearn(load_recipe(["models/tiny-cpu", "methods/sga"], flags))
    forms = json.loads((run / "summary.json").read_text())["forms"]
    assert forms["base"]["extractable"] > 10 and forms["stacked"]["extractable"] == 0
    assert forms["stacked"]["test_perplexity"] < 1.05 * forms["base"]["test_perplexity"]
