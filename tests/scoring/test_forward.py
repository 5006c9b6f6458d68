"""Batches, heads and chunks: the one forward pass behind the forward metrics."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from definitions import NEEDS_ADAPTERS, naive_forward
from helpers import CONFIGS, as_sequences, memorize, random_rows
from peft import LoraConfig, get_peft_model

from adapter_unlearn import load_base, score, scoring
from adapter_unlearn.metrics import FORWARD
from adapter_unlearn.metrics.teacher_forced import loss
from adapter_unlearn.scoring import forward


def test_one_forward_a_batch_whatever_the_metrics(memorizers, sequences):
    model = load_base(str(memorizers("llama")), "none", "float32")
    score(model, sequences, batch_size=4)  # finds out how the output layer can be run
    calls = []
    handle = model.model.register_forward_hook(lambda *_: calls.append(1))
    score(model, sequences, ["forward"], batch_size=4)
    handle.remove()
    assert len(calls) == math.ceil(len(sequences) / 4)


def test_a_second_forward_only_to_compare_with_the_base(memorizers, sequences):
    base = load_base(str(memorizers("llama")), "none", "float32")
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    batches = math.ceil(len(sequences) / 4)

    def forwards(metrics) -> int:
        calls = []
        handle = base.model.register_forward_hook(lambda *_: calls.append(1))
        score(model, sequences, metrics, batch_size=4)
        handle.remove()
        return len(calls)

    forwards(["loss"])  # finds out how the output layer can be run
    assert forwards([name for name in FORWARD if name not in NEEDS_ADAPTERS]) == batches
    assert forwards(["forward"]) == forwards(list(NEEDS_ADAPTERS)) == 2 * batches
    changed = score(model, sequences, ["reference_loss_difference"])["reference_loss_difference"]
    assert (changed != 0).all()
    with model.disable_adapter():
        assert forwards(["forward"]) == batches, "it is its own reference"
        frame = score(model, sequences, ["loss", "reference_loss_difference"])
        assert (frame["reference_loss_difference"] == 0).all()
        assert frame["loss"].tolist() == score(model, sequences, ["loss"])["loss"].tolist(), "the adapters stayed off"
    assert (score(model, sequences, ["loss"])["loss"] != frame["loss"]).all()


def test_batches_are_yielded_as_they_are_run_longest_first(memorizers, sequences):
    model = load_base(str(memorizers("llama")), "none", "float32")
    frame = score(model, sequences, batch_size=4)
    calls = []
    handle = model.model.register_forward_hook(lambda *_: calls.append(1))
    stream = forward.predict_batches(model, sequences, range(len(sequences)), 4)
    batches = [next(stream)]
    assert len(calls) == 1, "a batch comes as soon as it is run"
    batches += list(stream)
    handle.remove()
    lengths = [len(ids) for _, columns, _ in batches for ids in columns["input_ids"]]
    assert lengths == sorted(lengths, reverse=True)
    losses = {i: loss(one) for indices, _, predictions in batches for i, one in zip(indices, predictions)}
    assert losses == frame["loss"].to_dict()
    ((indices, _, predictions),) = forward.predict_batches(model, sequences, [7, 2], 4)
    assert {i: loss(one) for i, one in zip(indices, predictions)} == pytest.approx(
        frame["loss"][[7, 2]].to_dict(), rel=1e-5
    )


def test_a_head_that_does_more_is_left_to_the_model(sequences):
    """Soft-capped logits (Gemma 2) can't be had from the output layer alone; the numbers must be the model's own."""
    from transformers import Gemma2Config

    config = Gemma2Config(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, final_logit_softcapping=2.0, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = memorize(config, random_rows(0), steps=40)
    assert not forward.splits(model)
    frame = score(model, sequences, batch_size=5)
    expected = pd.DataFrame([naive_forward(model, sequence) for sequence in sequences])[list(scoring.DEFAULT_METRICS)]
    pd.testing.assert_frame_equal(frame[list(expected)], expected, rtol=1e-4, atol=1e-5)


def test_every_common_head_is_run_apart(memorizers):
    for architecture in CONFIGS:
        assert forward.splits(load_base(str(memorizers(architecture)), "none", "float32"))


def test_logits_exist_a_chunk_at_a_time(memorizers, sequences, monkeypatch):
    model = load_base(str(memorizers("llama")), "none", "float32")
    whole = score(model, sequences, ["forward"])
    sizes = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_TOKENS", 5)
    pd.testing.assert_frame_equal(score(model, sequences, ["forward"]), whole, rtol=1e-4)
    handle.remove()
    assert max(sizes) <= 5 * 128


def test_the_end_token_is_a_token_like_any_other(memorizers):
    """Padding is known by length: a row full of the padding id 0 scores as it stands, beside a longer one."""
    model = load_base(str(memorizers("llama")), "none", "float32")
    zeros, longer = [0] * 20, random_rows(0)[5]
    alone = score(model, as_sequences([zeros]))
    beside = score(model, as_sequences([zeros, longer]), batch_size=2)
    assert beside["loss"][0] == pytest.approx(alone["loss"][0], rel=1e-5)
    assert beside["n_tokens"][0] == 20


def test_scoring_leaves_the_mode_as_it_was(memorizers, sequences):
    model = load_base(str(memorizers("llama")), "none", "float32").train()
    score(model, sequences, ["loss"])
    assert model.training
    assert not np.isnan(score(model.eval(), sequences, ["loss"])["loss"]).any()
