"""`score` against the definitions, written out token by token."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from helpers import CONFIGS, SCHEMES, as_sequences, memorize, random_rows, warped
from peft import LoraConfig, get_peft_model

from adapter_unlearn import InputError, RecipeError, load_base, load_sequences, score, scoring
from adapter_unlearn.metrics import FORWARD, Sampling
from adapter_unlearn.metrics.set_level import membership
from adapter_unlearn.metrics.teacher_forced import loss
from adapter_unlearn.models import load_tokenizer
from adapter_unlearn.scoring import forward


def naive(model, sequence, sampling=(1.0, 40, 1.0)):
    """One forward a token, every definition spelled out; what needs adapters is spelled out in its own test."""
    ids, start, prefix = sequence["input_ids"], sequence["scored_from"], sequence["prefix_tokens"]
    hits, nlls, drawn, surprises = [], [], [], []
    for t in range(1, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:t]])).logits[0, -1:].float()
        log_p = torch.log_softmax(logits.double(), -1)[0]
        hits.append(int(logits.argmax()) == ids[t])
        nlls.append(-float(log_p[ids[t]]))
        drawn.append(float(warped(logits, *sampling)[0, ids[t]]))
        mean = float((log_p.exp() * log_p).sum())
        deviation = math.sqrt((log_p.exp() * log_p**2).sum() - mean**2)
        surprises.append((float(log_p[ids[t]]) - mean) / max(deviation, 0.001))
    counted, suffix = hits[start - 1 :], hits[prefix - 1 :]
    longest = run = 0
    for hit in counted:
        run = run + 1 if hit else 0
        longest = max(longest, run)
    total = len(counted)
    fifth = max(1, int(0.2 * total))
    prefixes = range(start, len(ids) - 20 + 1)
    p_z = math.prod(math.exp(value) for value in drawn[prefix - 1 :])
    loss = sum(nlls[start - 1 :]) / total
    return {
        "memorization_accuracy": sum(counted) / total,
        "exact_memorization": sum(suffix) / len(suffix),
        "extractable": float(all(suffix)),
        "extractable_50": float(all(suffix[:50])) if len(suffix) >= 50 else math.nan,
        "extractable_any_prefix": float(any(all(hits[k - 1 :]) for k in prefixes)) if prefixes else math.nan,
        "longest_verbatim_run": float(longest),
        "extraction_strength": 1 - next(k for k in range(total + 1) if all(counted[k:])) / total,
        "extraction_strength_openunlearning": 1
        - next((k for k in range(total) if all(counted[k:])), total - 1) / total,
        "p_z": p_z,
        "log_p_z": sum(drawn[prefix - 1 :]),
        "np_extractable": float(1 - (1 - p_z) ** 100 >= 0.5),
        "loss": loss,
        "zlib": loss / sequence["zlib_bytes"] if sequence.get("zlib_bytes") else math.nan,
        "min_k": -sum(sorted(nlls[start - 1 :], reverse=True)[:fifth]) / fifth,
        "min_k_plus_plus": sum(sorted(surprises[start - 1 :])[:fifth]) / fifth,
    }


NEEDS_ADAPTERS = {"reference_loss_difference"}


@pytest.fixture(scope="module")
def sequences():
    rows = [*random_rows(0), *random_rows(1, (20, 33, 100))]
    loaded = as_sequences(rows, prefix_tokens=10)
    sizes = [None, *range(20, 20 + len(rows) - 1)]  # as of texts, one of which was not at hand
    return loaded.remove_columns("zlib_bytes").add_column("zlib_bytes", sizes)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_equals_the_naive_definition(memorizers, sequences, architecture, quantization):
    model = load_base(str(memorizers(architecture)), quantization, "float32")
    expected = pd.DataFrame([naive(model, sequence) for sequence in sequences])
    assert {*expected} == {*FORWARD} - NEEDS_ADAPTERS
    for batch_size in (1, 7):
        frame = score(model, sequences, ["forward"], batch_size=batch_size)
        pd.testing.assert_frame_equal(frame[list(expected)], expected, rtol=1e-4, atol=1e-5)
        assert list(frame) == ["id", "n_tokens", *FORWARD, "note"]
        assert list(frame["id"]) == list(sequences["id"])
        assert list(frame["n_tokens"]) == [len(ids) for ids in sequences["input_ids"]]
    accuracies = frame["memorization_accuracy"]
    assert accuracies.max() == 1 and accuracies.min() < 0.2, "the model must know some rows by heart and some not"
    for name in ("extractable", "extractable_any_prefix", "np_extractable"):
        assert 0 < frame[name].sum() < frame[name].count(), name
    assert frame["log_p_z"].isin([-np.inf]).any() and frame["log_p_z"].max() > -0.5
    assert frame["reference_loss_difference"].isna().all() and frame["note"].str.contains("no adapters").all()
    assert "zlib: " in frame["note"][0]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize(
    "forget, unseen", [(range(0, 32, 4), 3), pytest.param(range(32), 16, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_the_embedded_default_equals_the_naive_definition(forget, unseen, quantization):
    """Real text, read 12 to 192 times, by the shipped model and tokenizer; beside records that it never read."""
    model = load_base("embedded:model", quantization, "float32")
    tokenizer = load_tokenizer("embedded:model")
    sets = [load_sequences(f"embedded:{name}.jsonl", tokenizer) for name in ("forget", "holdout")]
    sequences = concatenate_datasets([sets[0].select(forget), sets[1].select(range(unseen))])
    assert len(set(map(len, sequences["input_ids"][:7]))) > 1, "there must be padding"
    expected = pd.DataFrame([naive(model, sequence) for sequence in sequences])
    for batch_size in (1, 7):
        frame = score(model, sequences, ["forward"], batch_size=batch_size)
        pd.testing.assert_frame_equal(frame[list(expected)], expected, rtol=1e-4, atol=1e-5)
    assert expected.notna().any().all(), "every definition says something about some record"
    known, unseen_rows = frame[: len(forget)], frame[len(forget) :]
    assert known["memorization_accuracy"].max() == 1 and unseen_rows["memorization_accuracy"].max() < 0.5
    for name in ("extractable", "extractable_any_prefix", "np_extractable"):
        assert 0 < known[name].sum() < len(known) and not unseen_rows[name].any(), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_sampling_scheme(memorizers, scheme):
    model = load_base(str(memorizers("llama")), "none", "float32")
    sequences = as_sequences(random_rows(0), prefix_tokens=20)
    frame = score(model, sequences, ["log_p_z", "p_z"], sampling=Sampling(*scheme))
    expected = [naive(model, sequence, scheme) for sequence in sequences]
    assert frame["log_p_z"].tolist() == pytest.approx([row["log_p_z"] for row in expected], rel=1e-4, abs=1e-5)
    assert frame["p_z"].tolist() == pytest.approx([row["p_z"] for row in expected], rel=1e-3)


def memorizing_adapter(base, rows):
    """A PeftModel that learned these rows by heart."""
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        if loss < 0.02:  # nearly certain of every token
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_with_an_adapter_that_memorized(memorizers, quantization):
    """The reference is the model with its adapters off; every metric separates memorized from unseen text."""
    rows = random_rows(3, (40, 31, 36, 50, 28, 44))
    model = memorizing_adapter(load_base(str(memorizers("llama")), quantization, "float32"), rows)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    known, unseen = (
        as_sequences(some, prefix_tokens=8).remove_columns("zlib_bytes").add_column("zlib_bytes", [60] * 6)
        for some in (rows, random_rows(4, (40, 31, 36, 50, 28, 44)))
    )
    frame = score(model, known, ["forward"], batch_size=4)
    expected = pd.DataFrame([naive(model, sequence) for sequence in known])
    with model.disable_adapter():
        before = np.array([naive(model, sequence)["loss"] for sequence in known])
    expected["reference_loss_difference"] = expected["loss"] - before
    pd.testing.assert_frame_equal(frame[list(expected)], expected, rtol=1e-4, atol=1e-5)
    assert model.active_adapters == ["default"]
    assert trainable == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    table = membership(frame, score(model, unseen, ["forward"])).set_index("metric")
    # No sequence leaves 50 tokens after its prefix.
    assert set(table.index) == set(FORWARD)
    assert (
        table.index[table["auc"].isna()].tolist() == ["extractable_50"] == table.index[table["n_forget"] == 0].tolist()
    )
    assert (table["auc"].dropna() >= 0.75).all(), table["auc"]
    graded = ["memorization_accuracy", "loss", "zlib", "min_k", "min_k_plus_plus", "reference_loss_difference"]
    assert (table.loc[graded, "auc"] == 1).all() and (table.loc[graded, "tpr_at_1_fpr"] == 1).all()


def test_the_prompt_does_not_count(memorizers):
    row = random_rows(0)[1]
    columns = {"id": ["a"], "document": ["a"], "input_ids": [row], "prefix_tokens": [9], "scored_from": [9]}
    sequences = Dataset.from_dict(columns)
    model = load_base(str(memorizers("llama")), "none", "float32")
    expected = naive(model, sequences[0])
    assert score(model, sequences, ["forward"])[list(expected)].iloc[0].to_dict() == pytest.approx(
        expected, rel=1e-4, nan_ok=True
    )


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
    expected = pd.DataFrame([naive(model, sequence) for sequence in sequences])[list(scoring.DEFAULT_METRICS)]
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
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CHUNK_ELEMENTS", 5 * 128)
    pd.testing.assert_frame_equal(score(model, sequences, ["forward"]), whole, rtol=1e-4)
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
