"""Compare the cost of scoring, of an SGA step and of extraction likelihood with bare passes of a full-size model.

    python benchmarks/real_size/run.py --result benchmarks/results/real_size.json                   # 8B, a GPU of 24 GB
    python benchmarks/real_size/run.py --shape small --result small.json                            # any machine

The model has the shape of Llama 3.1 8B and random weights, and is built in nf4 one layer at a time. Its outputs are
noise, but their cost is that of a trained model. Random weights memorize nothing, so extraction likelihood generates
from every prefix, which is its worst case. Every figure is the median of `--repeats`; bare and our own passes
alternate.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from bitsandbytes.nn import Linear4bit, Params4bit
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig

from adapter_unlearn import load_sequences, models, scoring
from adapter_unlearn.metrics import FORWARD
from adapter_unlearn.recipe import Adapter
from adapter_unlearn.scoring import greedy
from adapter_unlearn.unlearning import methods, step

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "config": {
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
        "score": (64, 200), "step": (16, 200), "el": (8, 200),
    },
    "small": {
        "config": {
            "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        },
        "score": (8, 40), "step": (4, 40), "el": (2, 40),
    },
}  # fmt: skip


def build(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Build a model with random weights and all linear layers but the output layer in nf4.

    The whole model never exists in full precision.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and child is not model.lm_head:
                setattr(parent, name, _random_linear(child, device, dtype))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                values = torch.ones if "norm" in type(module).__name__.lower() else _random
                new = values(parameter.shape, device=device, dtype=dtype)
                setattr(module, name, torch.nn.Parameter(new, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its buffers are computed and not loaded
    model.is_loaded_in_4bit = True  # peft checks this attribute
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


def _random(shape: Any, **options: Any) -> torch.Tensor:
    return torch.randn(shape, **options).mul_(0.02)


def _random_linear(like: torch.nn.Linear, device: torch.device, dtype: torch.dtype) -> Linear4bit:
    with torch.device("meta"):
        layer = Linear4bit(
            like.in_features, like.out_features, bias=False, compute_dtype=dtype, compress_statistics=True,
            quant_type="nf4",
        )  # fmt: skip
    weight = _random(
        (like.out_features, like.in_features), device="cpu" if device.type == "cpu" else device, dtype=dtype
    )
    layer.weight = Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
    ).to(device)  # fmt: skip
    layer.support_avx512bf16_for_cpu = False  # see models.base._keep_canonical_4bit
    return layer


def texts(number: int, length: int, vocabulary: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, vocabulary, (number, length), generator=generator).tolist()
    return load_sequences([{"id": str(i), "input_ids": row} for i, row in enumerate(rows)])


class Meter:
    """Measures the duration and the peak memory of calls."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def pair(self, ours: Callable[[], Any], bare: Callable[[], Any], tokens: int) -> dict[str, float]:
        """Medians of alternating calls of both; the first call of each is not counted."""
        seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        peaks = {}
        for turn in range(self.repeats + 1):
            for name, call in (("ours", ours), ("bare", bare)):
                duration, peak = self.once(call)
                if turn:
                    seconds[name].append(duration)
                    peaks[name] = peak
        median = {name: statistics.median(values) for name, values in seconds.items()}
        return {
            "seconds": median["ours"], "bare_seconds": median["bare"], "ratio": median["ours"] / median["bare"],
            "tokens_per_second": tokens / median["ours"], "peak_bytes": peaks["ours"],
            "bare_peak_bytes": peaks["bare"],
        }  # fmt: skip

    def once(self, call: Callable[[], Any]) -> tuple[float, int]:
        """Seconds and peak bytes of one call."""
        with self._peak() as peak:
            started = time.perf_counter()
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            duration = time.perf_counter() - started
        return duration, peak[0]

    @contextmanager
    def _peak(self) -> Iterator[list[int]]:
        peak = [0]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            yield peak
            peak[0] = torch.cuda.max_memory_allocated()
            return
        stop = threading.Event()

        def sample() -> None:
            while not stop.is_set():
                peak[0] = max(peak[0], _resident())
                stop.wait(0.02)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield peak
        finally:
            stop.set()
            thread.join()


def _resident() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def bare_forward(model: torch.nn.Module, sequences: Dataset, batch_size: int) -> None:
    """Run the model over the same batches and discard the logits."""
    with torch.no_grad():
        for batch in scoring.batches(sequences, range(len(sequences)), batch_size):
            ids = torch.tensor(sequences[batch]["input_ids"], device=scoring.device_of(model))
            scoring.plain(model)(input_ids=ids, use_cache=False)


def bare_step(model: torch.nn.Module, sequences: Dataset, batch_size: int) -> None:
    """Forward, loss and backward of transformers, which hold the float32 logits of a whole batch."""
    model.zero_grad()
    for batch in scoring.batches(sequences, range(len(sequences)), batch_size):
        ids = torch.tensor(sequences[batch]["input_ids"], device=scoring.device_of(model))
        scoring.plain(model)(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def measure_scoring(model: torch.nn.Module, sequences: Dataset, meter: Meter, batch_size: int) -> dict[str, Any]:
    tokens = sum(map(len, sequences["input_ids"]))

    def score(metrics: tuple[str, ...]) -> Callable[[], Any]:
        return lambda: scoring.score(model, sequences, metrics, batch_size)

    def bare() -> None:
        bare_forward(model, sequences, batch_size)

    forward = tuple(name for name in FORWARD if name not in ("zlib", "reference_loss_difference"))
    return {
        "default_metrics": meter.pair(score(scoring.DEFAULT_METRICS), bare, tokens),
        "all_forward_metrics": meter.pair(score(forward), bare, tokens),
    }


def measure_step(model: Any, sequences: Dataset, meter: Meter, batch_size: int, checkpointing: bool) -> dict[str, Any]:
    models.train_through(model, checkpointing)
    model.train()
    optimizer = torch.optim.AdamW(step.trainable(model), 1e-4)
    (stage,) = methods.stages(methods.resolve({"name": "ga"}))
    parts = [(step.Part(stage.terms[0], sequences), range(len(sequences)))]
    accelerator = Accelerator()
    return meter.pair(
        lambda: step.take_step(model, optimizer, parts, batch_size, accelerator),
        lambda: bare_step(model, sequences, batch_size),
        sum(map(len, sequences["input_ids"])),
    )


def measure_el(model: torch.nn.Module, sequences: Dataset, meter: Meter, batch_size: int) -> dict[str, Any]:
    names = ["extraction_likelihood"]
    result = meter.pair(
        lambda: greedy.measure(model, sequences, names, batch_size),
        lambda: bare_forward(model, sequences, batch_size),
        sum(map(len, sequences["input_ids"])),
    )
    return result | {"generated_tokens_at_most": sum(n * (n - 1) // 2 for n in map(len, sequences["input_ids"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=8)
    arguments = parser.parse_args()
    device = Accelerator().device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    shape = SHAPES[arguments.shape]
    meter = Meter(device, arguments.repeats)
    model = build(LlamaConfig(**shape["config"]), device, dtype)
    model_bytes = torch.cuda.memory_allocated() if device.type == "cuda" else _resident()
    vocabulary = shape["config"]["vocab_size"]
    result: dict[str, Any] = {
        "shape": arguments.shape,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "dtype": str(dtype),
        "batch_size": arguments.batch_size,
        "repeats": arguments.repeats,
        "model_bytes": model_bytes,
    }
    result["scoring"] = measure_scoring(model, texts(*shape["score"], vocabulary), meter, arguments.batch_size)
    result["extraction_likelihood"] = measure_el(model, texts(*shape["el"], vocabulary), meter, arguments.batch_size)
    adapted = models.attach(model, Adapter(r=16, alpha=32))
    forget = texts(*shape["step"], vocabulary)
    result["sga_step"] = {
        "plain": measure_step(adapted, forget, meter, arguments.batch_size, checkpointing=False),
        "checkpointing": measure_step(adapted, forget, meter, arguments.batch_size, checkpointing=True),
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
