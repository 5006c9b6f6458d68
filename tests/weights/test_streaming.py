"""Streamed weights against the naive sum, what safetensors reads, and the memory that a merge takes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from merging_helpers import PROPERTY, WARNINGS, save_adapter, weights
from safetensors.torch import load_file, save_file

from adapter_unlearn import merge
from adapter_unlearn.weights import streaming as stream

pytestmark = WARNINGS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, None: None}


def naive(base, adapters, dtype):
    """The definition: every delta formed whole, added to the whole weight in float64, rounded once."""
    tensors = weights(base)
    for folder in adapters:
        config = json.loads((folder / "adapter_config.json").read_text())
        found = load_file(folder / "adapter_model.safetensors")
        for key in [key for key in found if key.endswith("lora_A.weight")]:
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = found[key.replace("lora_A", "lora_B")].double()
            delta = config["lora_alpha"] / config["r"] * b @ found[key].double()
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].double() + delta
    return {key: x.to(dtype or torch.float32) for key, x in tensors.items()}


@PROPERTY
@given(
    block=st.integers(1, 5000),
    shard_bytes=st.sampled_from([1, 20_000, 50_000, 10**9]),
    dtype=st.sampled_from(list(DTYPES)),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3),
    size=st.sampled_from([0.0, 1e-4, 0.1, 2.0]),
)
def test_streamed_is_the_naive_sum(bases, block, shard_bytes, dtype, seeds, size):
    """Whatever the blocks, shards and dtypes: each tensor is the exact sum but for one rounding, or untouched."""
    base = bases("llama")
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", block)
        folder = Path(name)
        adapters = [
            save_adapter(
                folder / f"{i}", base, ["q_proj", "down_proj"][: 1 + seed % 2], seed=seed, size=size, lora_alpha=8 + i
            )
            for i, seed in enumerate(seeds)
        ]
        result = merge(base, adapters, folder / "merged", dtype=dtype, shard_bytes=shard_bytes)
        found, wanted, before = weights(result), naive(base, adapters, DTYPES[dtype]), weights(base)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            if "q_proj" in key or "down_proj" in key:
                spacing = torch.finfo(tensor.dtype).eps * tensor.double().abs() + 1e-12
                assert ((found[key].double() - tensor.double()).abs() <= spacing).all(), key
                assert found[key].dtype == tensor.dtype
            else:
                assert torch.equal(found[key], before[key].to(tensor.dtype)), key
        files = sorted(result.glob("*.safetensors"))
        for file in files:
            data = sum(tensor.nbytes for tensor in load_file(file).values())
            assert data <= shard_bytes or len(load_file(file)) == 1
        if len(files) > 1:
            index = json.loads((result / stream.INDEX).read_text())
            assert index["weight_map"] == {key: file.name for file in files for key in load_file(file)}
            assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
        else:
            assert [file.name for file in files] == [stream.SINGLE]


@PROPERTY
@given(st.data())
def test_the_stream_writes_what_safetensors_reads(data):
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float64]
    shapes = st.lists(st.integers(0, 7), max_size=3)
    made = data.draw(st.lists(st.tuples(st.sampled_from(kinds), shapes), min_size=1, max_size=6))
    tensors = {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, (dtype, shape) in enumerate(made)}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", data.draw(st.integers(1, 20)))
        first, second = Path(name) / "a.safetensors", Path(name) / "b.safetensors"
        save_file(tensors, first)
        copies = [
            stream.Tensor(key, x.dtype, x.shape, lambda x=x: (block for _, block in x.blocks()))
            for key, x in stream.read_headers(first).items()
        ]
        stream.write(second, copies)
        found = load_file(second)
        assert found.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor)


def measured(place, shard_bytes, **sizes):
    script = Path(__file__).with_name("merge_memory.py")
    words = [sys.executable, script, place, str(shard_bytes), json.dumps(sizes)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_memory_is_a_few_blocks(tmp_path):
    sizes = {"vocab_size": 16384, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    found = measured(tmp_path, 110 * 10**6, **sizes)
    assert found["bytes"] > 200e6 and found["shards"] == 2
    assert 0 < found["peak"] < 80e6  # 30 to 40 MB seen; a shard is 110 MB, the largest tensor in float64 134 MB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_a_model_of_two_gigabytes(tmp_path):
    sizes = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 17}
    found = measured(tmp_path, 500 * 10**6, **sizes)
    assert found["bytes"] > 2e9 and found["shards"] >= 4
    assert found["peak"] < 1.2e9
