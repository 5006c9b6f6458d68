"""`score` against the definitions, and the one table of forward and generated metrics."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from definitions import NEEDS_ADAPTERS, naive_forward
from helpers import SCHEMES, as_sequences, random_rows
from peft import LoraConfig, get_peft_model

from adapter_unlearn import InputError, RecipeError, load_base, load_sequences, score, scoring
from adapter_unlearn.metrics import FORWARD, METRICS, Sampling
from adapter_unlearn.metrics.prefixes import prefix_curve, worst_of
from adapter_unlearn.metrics.set_level import membership
from adapter_unlearn.models import load_tokenizer
from adapter_unlearn.scoring import greedy


@pytest.fixture(scope="module")
def model(memorizers):
    return load_base(str(memorizers("llama")), "none", "float32")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_equals_the_naive_definition(memorizers, sequences, architecture, quantization):
    model = load_base(str(memorizers(architecture)), quantization, "float32")
    expected = pd.DataFrame([naive_forward(model, sequence) for sequence in sequences])
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


@pytest.mark.parametrize(
    "forget, unseen, quantization",
    [
        (range(0, 32, 6), 2, "none"),
        pytest.param(range(32), 16, "none", marks=pytest.mark.slow),
        pytest.param(range(32), 16, "nf4", marks=pytest.mark.slow),
    ],
    ids=["some", "all", "all-nf4"],
)
def test_the_embedded_default_equals_the_naive_definition(forget, unseen, quantization):
    """Real text, read 12 to 192 times, by the shipped model and tokenizer; beside records that it never read."""
    model = load_base("embedded:model", quantization, "float32")
    tokenizer = load_tokenizer("embedded:model")
    sets = [load_sequences(f"embedded:{name}.jsonl", tokenizer) for name in ("forget", "holdout")]
    sequences = concatenate_datasets([sets[0].select(forget), sets[1].select(range(unseen))])
    assert len(set(map(len, sequences["input_ids"][:7]))) > 1, "there must be padding"
    expected = pd.DataFrame([naive_forward(model, sequence) for sequence in sequences])
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
    expected = [naive_forward(model, sequence, scheme) for sequence in sequences]
    assert frame["log_p_z"].tolist() == pytest.approx([row["log_p_z"] for row in expected], rel=1e-4, abs=1e-5)
    assert frame["p_z"].tolist() == pytest.approx([row["p_z"] for row in expected], rel=1e-3)


def memorizing_adapter(base, rows):
    """A PeftModel that learned these rows by heart."""
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-3)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        if loss < 0.24:  # nearly certain of every token but the rows' first ones
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
    expected = pd.DataFrame([naive_forward(model, sequence) for sequence in known])
    with model.disable_adapter():
        before = np.array([naive_forward(model, sequence)["loss"] for sequence in known])
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
    expected = naive_forward(model, sequences[0])
    assert score(model, sequences, ["forward"])[list(expected)].iloc[0].to_dict() == pytest.approx(
        expected, rel=1e-4, nan_ok=True
    )


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
    total = sum(naive_forward(model, s)["loss"] * (len(s["input_ids"]) - s["scored_from"]) for s in sequences)
    tokens = sum(len(s["input_ids"]) - s["scored_from"] for s in sequences)
    assert scoring.perplexity(frame, sequences) == pytest.approx(math.exp(total / tokens), rel=1e-5)


def test_both_kinds_stand_side_by_side_in_the_order_asked(model):
    rows = [*random_rows(0)[:4], random_rows(0)[0][:8]]  # the last is too short for EL_10
    names = ["rouge_l", "loss", "extraction_likelihood", "extractable_50"]
    frame = score(model, as_sequences(rows), names, batch_size=2)
    assert list(frame) == ["id", "n_tokens", *names, "note"]
    alone = scoring.score(model, as_sequences(rows), ["loss", "extractable_50"])
    pd.testing.assert_frame_equal(frame[["id", "loss"]], alone[["id", "loss"]], atol=1e-5)
    generated = greedy.measure(model, as_sequences(rows), ["rouge_l", "extraction_likelihood"])
    for i in range(4):
        assert frame.loc[i, "rouge_l"] == pytest.approx(generated[i]["rouge_l"])
        assert frame.loc[i, "extraction_likelihood"] == pytest.approx(generated[i]["extraction_likelihood"])
    assert frame.loc[4, ["extraction_likelihood", "extractable_50"]].isna().all()
    assert "extraction_likelihood: " in frame.loc[4, "note"] and "extractable_50: " in frame.loc[4, "note"]


def test_every_metric_of_the_table_is_a_column(model):
    frame = score(model, as_sequences(random_rows(0)[:3]), ["all"])
    assert list(frame) == ["id", "n_tokens", *METRICS, "note"]
    assert "the model's output" not in "".join(frame["note"])


def test_the_curve_of_a_set_is_the_worst_of_its_sequences(model):
    """From the forward that scores them: at each prefix length, against decoding from the definition's prefixes."""
    rows = random_rows(0)
    seen = {}
    score(model, as_sequences(rows), ["loss"], observe=lambda i, predictions: seen.update({i: predictions}))
    curves = worst_of([prefix_curve(seen[i]) for i in range(len(rows))])
    for _, point in curves.iterrows():
        k = int(point["prefix_tokens"])
        long_enough = [i for i, row in enumerate(rows) if len(row) - k >= 20]
        recited = [bool(seen[i].hits[k - 1 :].all()) for i in long_enough]
        assert point["n_sequences"] == len(long_enough) and point["extractable"] == sum(recited)
    assert curves["prefix_tokens"].tolist() == list(range(1, max(map(len, rows)) - 20 + 1))
    assert curves["extractable"].max() > 0
