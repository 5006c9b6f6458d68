"""Bases, random adapters and oracles for the tests of merging."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from adapter_unlearn import ModelError, load_base, merge, models

WARNINGS = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]
"""Of PEFT and transformers, on adapters of embeddings."""
PROPERTY = settings(max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj", "embed_tokens"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "embedded": ["q_proj", "up_proj", "o_proj"],
}
IDS = torch.arange(60).reshape(2, 30)
TIED = {
    "head alone": (["HEAD"], {}, True),
    "embedding alone": (["EMBEDDING"], {}, True),
    "both, each its own": (["HEAD", "EMBEDDING"], {}, True),
    "both, tied": (["EMBEDDING"], {"ensure_weight_tying": True}, False),
    "neither": ([], {}, False),
}
"""Targets of an adapter of two tied layers, its options, and whether merging unties them."""


def save_adapter(folder, base, targets, seed=0, size=0.08, **options):
    """A random adapter of the base, as PEFT writes it; `size` is about |delta| / |weight|."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM"} | options
        model = get_peft_model(load_base(base, "none", "float32"), LoraConfig(**options))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=size**0.5 / 2)
        model.save_pretrained(str(folder))
    return folder


def three(tmp_path, base, targets):
    """Adapters of several targets, ranks and scalings."""
    return [
        save_adapter(tmp_path / "a", base, targets),
        save_adapter(tmp_path / "b", base, targets[:1], seed=1, use_rslora=True, rank_pattern={targets[0]: 6}),
        save_adapter(tmp_path / "c", base, targets[1:3], seed=2, alpha_pattern={targets[1]: 3}),
    ]


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits.float()


def merged_logits(folder, quantization="none", dtype="float32"):
    return logits(load_base(str(folder), quantization, dtype))


def stacked_logits(base, adapters):
    return logits(models.stack(load_base(base, "none", "float32"), adapters))


def weights(folder):
    files = sorted(Path(folder).glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def rewrite(folder, tensors):
    """Give a base other tensors."""
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def manifest(folder):
    return json.loads((Path(folder) / "arithmetic.json").read_text())


def assert_refused(tmp_path, reason, *arguments, error=ModelError, **options):
    """One line, and nothing is left."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=reason) as caught:
        merge(*arguments, tmp_path / "out", **options)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
