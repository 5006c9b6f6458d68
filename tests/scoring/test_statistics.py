"""A chunk of logits against float64 and against transformers' own sampling, ties and broken logits included."""

from __future__ import annotations

import pytest
import torch
from helpers import SCHEMES, warped

from adapter_unlearn import RecipeError
from adapter_unlearn.metrics import Sampling
from adapter_unlearn.scoring import statistics

EVERY = ("log_p_mean", "log_p_deviation", "sampled_log_p")


def logits_and_labels(seed: int, scale: float = 3.0, rows: int = 300, vocabulary: int = 200):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * scale
    likely = logits.topk(60).indices.gather(1, torch.randint(0, 60, (rows, 1), generator=generator))[:, 0]
    return logits, likely


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sampling_is_that_of_transformers(scheme):
    logits, labels = logits_and_labels(0)
    ours = statistics.of_logits(logits, labels, EVERY, Sampling(*scheme))["sampled_log_p"]
    expected = warped(logits, *scheme).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
    cut = ours.isinf().float().mean()
    assert cut == 0 if scheme[1:] == (None, 1.0) else 0 < cut < 1


@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_tokens_as_likely_as_the_last_are_kept(top_k):
    """Half-precision logits tie all the time."""
    logits, labels = logits_and_labels(1)
    logits = logits.round()
    ours = statistics.of_logits(logits, labels, EVERY, Sampling(1.0, top_k, 1.0))["sampled_log_p"]
    expected = warped(logits, 1.0, top_k, 1.0).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", [(1.0, None, 0.7), (1.0, 20, 0.7), (1.0, 2, 0.7)])
def test_a_nucleus_holds_whole_groups_of_ties(scheme):
    """A token stays while the strictly likelier ones, of those that top-k left, make less than top_p."""
    logits, labels = logits_and_labels(2, rows=100)
    logits = logits.round()
    ours = statistics.of_logits(logits, labels, EVERY, Sampling(*scheme))["sampled_log_p"].exp().tolist()
    for row, label, found in zip(warped(logits, *scheme[:2], 1.0).exp().tolist(), labels.tolist(), ours):
        kept = [p for p in row if p > 0 and sum(q for q in row if q > p) < scheme[2]]
        expected = row[label] / sum(kept) if row[label] in kept else 0
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_over_the_vocabulary(scale, dtype):
    logits, labels = logits_and_labels(3, scale)
    logits = logits.to(dtype)
    ours = statistics.of_logits(logits, labels, EVERY, Sampling())
    log_p = logits.double().log_softmax(-1)
    mean = (log_p.exp() * log_p).sum(-1)
    deviation = (log_p.exp() * (log_p - mean[:, None]) ** 2).sum(-1).sqrt()
    assert ours["hits"].tolist() == (logits.argmax(-1) == labels).tolist()
    torch.testing.assert_close(ours["nll"].double(), -log_p.gather(1, labels[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours["log_p_mean"].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours["log_p_deviation"].double(), deviation, rtol=1e-3, atol=1e-5)


def test_blocks_change_nothing(monkeypatch):
    logits, labels = logits_and_labels(4)
    whole = statistics.of_logits(logits, labels, EVERY, Sampling(top_p=0.9))
    monkeypatch.setattr(statistics, "CPU_BLOCK", 7 * logits.shape[-1])
    parts = statistics.of_logits(logits, labels, EVERY, Sampling(top_p=0.9))
    assert set(whole) == {"hits", "nll", *EVERY}
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name])


def test_only_what_is_needed():
    logits, labels = logits_and_labels(5)
    assert set(statistics.of_logits(logits, labels, (), Sampling())) == {"hits", "nll"}
    assert len(statistics.of_logits(logits[:0], labels[:0], EVERY, Sampling())["sampled_log_p"]) == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_broken_logits_are_no_crash(scheme):
    found = statistics.of_logits(torch.full((2, 64), torch.nan), torch.tensor([0, 1]), EVERY, Sampling(*scheme))
    assert found["nll"].isnan().all()


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}])
def test_sampling_out_of_range(wrong):
    with pytest.raises(RecipeError, match=f"sampling {next(iter(wrong))} is"):
        Sampling(**wrong)
