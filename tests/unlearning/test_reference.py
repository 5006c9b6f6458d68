"""The reference model: the base bit for bit, with the frozen adapters, and its cache of hidden states."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from helpers import as_sequences, random_rows

from adapter_unlearn import load_base, models, scoring
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.reference import Reference
from adapter_unlearn.unlearning.step import Part, take_step, trainable
from adapter_unlearn.unlearning.targets import LossState


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_reference_is_a_separately_loaded_base_bit_for_bit(memorizers, adapted, log_likelihoods, quantization):
    model = adapted(quantization).train()
    base = load_base(str(memorizers("llama")), quantization, "float32").eval()
    rows = random_rows(0)[:3]
    features, _, head = scoring.hidden_states(base, rows, [1, 1, 1])
    states = Reference().hidden_states(model, as_sequences(rows), range(3))
    assert torch.equal(states, features.detach())
    assert torch.equal(Reference().logits(model, states[:50], head), head(features[:50]).detach())
    assert model.training and {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }
    with models.active(model, []):
        assert (log_likelihoods(model, rows) == log_likelihoods(base, rows)).all()


def test_a_frozen_adapter_is_part_of_the_reference(memorizers, adapted, tmp_path):
    model = adapted()
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    stacked = models.stack(load_base(str(memorizers("llama")), "none", "float32"), [tmp_path])
    models.attach_next(model, "next")  # it is trained, and `default` is frozen
    rows = random_rows(0)[:3]
    states = Reference(["default"]).hidden_states(model, as_sequences(rows), range(3))
    features, _, _ = scoring.hidden_states(stacked, rows, [1, 1, 1])
    assert torch.allclose(states, features, atol=1e-6)
    assert float((states - Reference().hidden_states(model, as_sequences(rows), range(3))).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["kl", "undial", "match"])
def test_states_are_computed_once_and_change_nothing(adapted, term, some_targets, monkeypatch, name):
    rows = random_rows(0)[:6]
    state = some_targets([len(row) - 1 for row in rows]) if LOSSES[name].matched else LossState()
    forwards, weights = [], []
    forward = scoring.hidden_states
    monkeypatch.setattr(
        scoring, "hidden_states", lambda *args: forwards.append(torch.is_grad_enabled()) or forward(*args)
    )
    for reference, computed in ((Reference(limit=0), 6), (Reference(), 3)):
        model = adapted()
        optimizer = torch.optim.SGD(trainable(model), 0.1)
        part = Part(term(name), as_sequences(rows), reference, state)
        forwards.clear()
        for chosen in ([0, 1, 2, 3], [3, 1, 4, 0], [0, 4, 1, 2]):  # other rows together, in another order
            take_step(model, optimizer, [(part, chosen)], 2, Accelerator())
        assert forwards.count(True) == 6, "three steps of two batches"
        assert forwards.count(False) == computed, "row 4 alone was new in the second step"
        weights.append(torch.cat([p.detach().flatten() for p in trainable(model)]))
    assert torch.allclose(*weights, atol=1e-6)
    assert reference.cache.keys() == {0, 1, 2, 3, 4}


def test_states_beyond_the_limit_are_computed_again(adapted):
    model, rows = adapted(), random_rows(0)[:5]
    whole = Reference().hidden_states(model, as_sequences(rows), range(5))
    sizes = [(len(row) - 1) * 64 * 4 for row in rows]
    limit = sizes[0] + sizes[1] + sizes[4]
    reference = Reference(limit=limit)
    for _ in range(2):
        assert torch.allclose(reference.hidden_states(model, as_sequences(rows), range(5)), whole, atol=1e-6)
    assert sum(state.untyped_storage().nbytes() for state in reference.cache.values()) <= limit
    assert 0 < len(reference.cache) < 5
