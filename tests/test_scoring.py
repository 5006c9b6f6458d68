"""`score` against the definitions, written out token by token."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, as_sequences, memorize, random_rows
from datasets import Dataset

from adapter_unlearn import InputError, RecipeError, load_base, score, scoring
from adapter_unlearn.memorization import table


def naive(model, sequence):
    """One forward a token, every definition spelled out."""
    ids = sequence["input_ids"]
    hits, nlls = [], []
    for t in range(1, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:t]])).logits[0, -1].float()
        hits.append(int(logits.argmax()) == ids[t])
        nlls.append(-float(torch.log_softmax(logits.double(), -1)[ids[t]]))
    start, prefix = sequence["scored_from"], sequence["prefix_tokens"]
    counted, suffix = hits[start - 1 :], hits[prefix - 1 :]
    longest = run = 0
    for hit in counted:
        run = run + 1 if hit else 0
        longest = max(longest, run)
    return {
        "memorization_accuracy": sum(counted) / len(counted),
        "extractable": float(all(suffix)),
        "extractable_50": float(all(suffix[:50])) if len(suffix) >= 50 else math.nan,
        "longest_verbatim_run": float(longest),
        "loss": sum(nlls[start - 1 :]) / len(counted),
    }


@pytest.fixture(scope="module")
def sequences():
    rows = [*random_rows(0), *random_rows(1, (20, 33, 100))]
    return as_sequences(rows, prefix_tokens=10)


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_equals_the_naive_definition(memorizers, sequences, architecture, quantization, batch_size):
    model = load_base(str(memorizers(architecture)), quantization, "float32")
    frame = score(model, sequences, batch_size=batch_size)
    expected = pd.DataFrame([naive(model, sequence) for sequence in sequences])
    pd.testing.assert_frame_equal(frame[list(expected)], expected, rtol=1e-4, atol=1e-5)
    assert list(frame["id"]) == list(sequences["id"])
    assert list(frame["n_tokens"]) == [len(ids) for ids in sequences["input_ids"]]
    accuracies = frame["memorization_accuracy"]
    assert accuracies.max() == 1 and accuracies.min() < 0.2, "the model must know some rows by heart and some not"
    assert 0 < frame["extractable"].sum() < len(frame)


def test_the_prompt_does_not_count(memorizers):
    row = random_rows(0)[1]
    columns = {"id": ["a"], "document": ["a"], "input_ids": [row], "prefix_tokens": [9], "scored_from": [9]}
    sequences = Dataset.from_dict(columns)
    model = load_base(str(memorizers("llama")), "none", "float32")
    expected = naive(model, sequences[0])
    assert score(model, sequences)[list(expected)].iloc[0].to_dict() == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_one_forward_a_batch_whatever_the_metrics(memorizers, sequences):
    model = load_base(str(memorizers("llama")), "none", "float32")
    score(model, sequences, batch_size=4)  # finds out how the output layer can be run
    calls = []
    handle = model.model.register_forward_hook(lambda *_: calls.append(1))
    score(model, sequences, list(table.METRICS), batch_size=4)
    handle.remove()
    assert len(calls) == math.ceil(len(sequences) / 4)


def test_a_head_that_does_more_is_left_to_the_model(sequences):
    """Soft-capped logits (Gemma 2) can't be had from the output layer alone; the numbers must be the model's own."""
    from transformers import Gemma2Config

    config = Gemma2Config(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, final_logit_softcapping=2.0, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = memorize(config, random_rows(0), steps=40)
    assert not scoring.splits(model)
    frame = score(model, sequences, batch_size=5)
    expected = pd.DataFrame([naive(model, sequence) for sequence in sequences])
    pd.testing.assert_frame_equal(frame[list(expected)], expected, rtol=1e-4, atol=1e-5)


def test_every_common_head_is_run_apart(memorizers):
    for architecture in CONFIGS:
        assert scoring.splits(load_base(str(memorizers(architecture)), "none", "float32"))


def test_logits_exist_a_chunk_at_a_time(memorizers, sequences, monkeypatch):
    model = load_base(str(memorizers("llama")), "none", "float32")
    whole = score(model, sequences)
    sizes = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 5 * 128)
    pd.testing.assert_frame_equal(score(model, sequences), whole, rtol=1e-5)
    handle.remove()
    assert max(sizes) <= 5 * 128


def test_what_cannot_be_scored_is_nan_with_a_note(memorizers):
    model = load_base(str(memorizers("llama")), "none", "float32")
    frame = score(model, as_sequences([[5], *random_rows(0)]))
    assert math.isnan(frame["memorization_accuracy"][0]) and "fewer than 2 tokens" in frame["note"][0]
    assert math.isnan(frame["extractable_50"][1]) and "50 needed" in frame["note"][1]
    assert frame["memorization_accuracy"][1:].notna().all()
    with pytest.raises(InputError, match="no sequence can be scored"):
        score(model, as_sequences([[5], [6]]))


def test_unknown_metric(memorizers, sequences):
    with pytest.raises(RecipeError, match="unknown metric 'bleurt'"):
        score(load_base(str(memorizers("llama")), "none", "float32"), sequences, ["bleurt"])


def test_perplexity_weighs_by_tokens(memorizers, sequences):
    model = load_base(str(memorizers("llama")), "none", "float32")
    frame = score(model, sequences, ["loss"])
    total = sum(naive(model, s)["loss"] * (len(s["input_ids"]) - s["scored_from"]) for s in sequences)
    tokens = sum(len(s["input_ids"]) - s["scored_from"] for s in sequences)
    assert scoring.perplexity(frame, sequences) == pytest.approx(math.exp(total / tokens), rel=1e-5)


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
