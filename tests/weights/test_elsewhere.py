"""What arithmetic and merging write loads with plain transformers and PEFT, in a process without this package."""

from __future__ import annotations

import subprocess
import sys

import torch
from merging_helpers import IDS, TARGETS, WARNINGS, merged_logits, save_adapter, stacked_logits, three

from adapter_unlearn import combine, compress, merge, negate

pytestmark = WARNINGS

CODE = """
import sys
sys.modules["adapter_unlearn"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, *folders = sys.argv[1:]
for folder in folders:
    adapted = folder.endswith("adapter")
    model = AutoModelForCausalLM.from_pretrained(base if adapted else folder, dtype=None if adapted else "auto")
    model = PeftModel.from_pretrained(model, folder).eval() if adapted else model.eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    torch.save(model(input_ids=torch.arange(60).reshape(2, 30)).logits.detach().float(), f"{folder}/logits.pt")
"""


def test_results_load_in_a_process_without_this_package(bases, tmp_path):
    """One process for all: its imports take most of the time."""
    llama, gpt2 = bases("llama"), bases("gpt2")
    one, two, _ = three(tmp_path, llama, [*TARGETS["llama"], "lm_head"])  # the second: a rank by pattern, rsLoRA
    adapters = [
        negate(one, tmp_path / "negated_adapter"),
        negate(two, tmp_path / "scaled_adapter", 2.0),
        combine([one, two], [1.0, -2.0], tmp_path / "combined_adapter"),
        compress(one, tmp_path / "compressed_adapter", rank=2),
    ]
    untying = save_adapter(tmp_path / "gpt2", gpt2, [*TARGETS["gpt2"], "wte"])
    kinds = ["none", "nf4", "int8"]
    merged = [merge(gpt2, untying, tmp_path / kind, kind, shard_bytes=50_000) for kind in kinds]
    strict = ["-W", "error::UserWarning", "-W", "error::RuntimeWarning"]
    command = [sys.executable, *strict, "-c", CODE, *map(str, [llama, *adapters, *merged])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for result in adapters:
        expected = stacked_logits(llama, [result])
        torch.testing.assert_close(torch.load(result / "logits.pt"), expected, atol=1e-5, rtol=1e-5)
    for kind, result in zip(kinds, merged):
        assert len([*result.glob("*.safetensors")]) > 1
        torch.testing.assert_close(torch.load(result / "logits.pt"), merged_logits(result, kind), atol=1e-4, rtol=0)
    assert IDS.tolist() == torch.arange(60).reshape(2, 30).tolist(), "the process runs the oracles' tokens"
