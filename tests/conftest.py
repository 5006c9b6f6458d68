"""Tiny models that really memorize: trained here, in seconds, on random rows repeated to different degrees."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

torch.set_num_threads(1)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

VOCABULARY = 128
LENGTHS = (24, 32, 40, 28, 36, 64, 31, 27, 64, 30)

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=2,
        n_positions=128,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def random_rows(seed: int, lengths=LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def as_sequences(rows, prefix_tokens=50, **columns):
    from adapter_unlearn import load_sequences

    table = [{"id": f"row-{i}", "input_ids": row} for i, row in enumerate(rows)]
    return load_sequences(table, prefix_tokens=prefix_tokens, **columns)


def memorize(config, rows, seed=0, steps=150):
    """A model of this shape that has memorized the first rows most and the last hardly."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for step in range(steps):
        known = [row for i, row in enumerate(rows) if step % (1 + i) == 0]
        longest = max(map(len, known))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in known])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in known])
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def memorizers(tmp_path_factory):
    """Architecture -> folder of a model that memorized `random_rows(0)` to different degrees."""
    folders = {}

    def folder(architecture: str):
        if architecture not in folders:
            model = memorize(CONFIGS[architecture], random_rows(0))
            folders[architecture] = tmp_path_factory.mktemp(architecture) / "model"
            model.save_pretrained(folders[architecture])
        return folders[architecture]

    return folder


@pytest.fixture
def write_rows(tmp_path):
    """Write rows of token ids as a JSONL file; returns its path."""

    def write(name: str, rows) -> str:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"id": f"{name}-{i}", "input_ids": row}) + "\n" for i, row in enumerate(rows))
        )
        return str(path)

    return write
