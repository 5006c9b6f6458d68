"""What a merge of a large model costs, in a process of its own: python merge_memory.py DIR SHARD_BYTES SIZES_AS_JSON.

It writes a bfloat16 Llama of random weights and an adapter of all its linear layers into DIR, block by block, merges
them there, and prints one line of JSON: `peak` is anonymous memory (RssAnon of /proc/self/status, every 2 ms) beyond
that of Python, torch and everything that a first, small merge imported.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path

import torch
from transformers import LlamaConfig

from adapter_unlearn import merge, models
from adapter_unlearn.weights import streaming as stream

torch.set_num_threads(1)
SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}


def anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024


def random_tensor(key, shape, generator):
    def values():
        for start in range(0, shape[0], 64):
            block = torch.randn(min(64, shape[0] - start), *shape[1:], generator=generator)
            yield (block * 0.02).bfloat16()

    return stream.Tensor(key, "BF16", tuple(shape), values)


def build(folder: Path, shard_bytes: int, sizes: dict[str, int]) -> tuple[str, Path, int]:
    """Write base and adapter; return their folders and the bytes of the base's weights."""
    folder.mkdir(parents=True)
    config = LlamaConfig(**sizes, num_attention_heads=2, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    skeleton = models.skeleton(config, "it")
    generator = torch.Generator().manual_seed(0)
    tensors = [random_tensor(name, x.shape, generator) for name, x in skeleton.named_parameters()]
    stream.write_sharded(folder, tensors, shard_bytes)
    factors = []
    for name, module in skeleton.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            for side, shape in (("A", (8, module.in_features)), ("B", (module.out_features, 8))):
                factors.append(random_tensor(f"base_model.model.{name}.lora_{side}.weight", shape, generator))
    adapter = folder.with_name(f"{folder.name}-adapter")
    adapter.mkdir()
    stream.write(adapter / "adapter_model.safetensors", factors)
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    (adapter / "adapter_config.json").write_text(json.dumps(lora))
    return str(folder), adapter, sum(tensor.size for tensor in tensors)


def main(place: Path, shard_bytes: int, sizes: dict[str, int]) -> None:
    small, small_adapter, _ = build(place / "small", 10**6, SMALL)
    base, adapter, size = build(place / "base", shard_bytes, sizes)
    merge(small, small_adapter, place / "small-merged", dtype="float32")
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    merge(base, adapter, place / "merged", shard_bytes=shard_bytes)
    seconds = time.monotonic() - started
    done.set()
    watcher.join()
    shards = len(list((place / "base").glob("*.safetensors")))
    print(json.dumps({"bytes": size, "shards": shards, "peak": peak[0] - before, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
