"""One optimizer step: its gradient against the definition, for every loss, in models that memorized."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from helpers import as_sequences, random_rows

from adapter_unlearn import load_base, models, score, scoring
from adapter_unlearn.scoring import forward
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.losses import function_of, values_of
from adapter_unlearn.unlearning.reference import Reference
from adapter_unlearn.unlearning.step import Part, backward, losses, take_step, trainable
from adapter_unlearn.unlearning.targets import LossState

# --- cross-entropy ---


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def naive_gradients(model, rows, coefficient):
    """coefficient x mean token loss, one sequence at a time, through the model's own forward."""
    model.zero_grad()
    tokens = sum(len(row) - 1 for row in rows)
    for row in rows:
        ids = torch.tensor([row])
        logits = model(input_ids=ids).logits[0, :-1].float()
        (coefficient * torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / tokens).backward()
    return gradients(model)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_the_gradient_is_that_of_the_definition(adapted, term, monkeypatch, architecture, quantization, checkpointing):
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_TOKENS", 7)
    model = adapted(quantization, architecture, std=0.02)
    rows = random_rows(0)[:5]
    expected = naive_gradients(model, rows, -1.0)
    score(model, as_sequences(rows))  # a scoring pass must not spoil the gradients after it
    models.train_through(model, checkpointing)
    model.zero_grad()
    tokens = sum(len(row) - 1 for row in rows)
    model.train()
    backward(model, Part(term("nll"), as_sequences(rows)), range(5), -1.0 / tokens)
    for name, gradient in gradients(model).items():
        assert float(gradient.norm()) > 0, f"{name} has no gradient"
        difference = float((gradient - expected[name]).norm() / expected[name].norm())
        # int8 multiplies in 8 bits, so that batches of other shapes round otherwise
        assert difference < (0.1 if quantization == "int8" else 1e-3), name


def test_nf4_gradients_are_those_of_the_dequantized_weights(adapted, term):
    import bitsandbytes as bnb

    model = adapted("nf4", std=0.02)
    rows = random_rows(0)[:5]
    part = Part(term("nll"), as_sequences(rows))
    score(model, part.sequences)
    model.zero_grad()
    backward(model, part, range(5), 1.0)
    quantized = gradients(model)

    plain = adapted(std=0.02)
    parameters = dict(model.named_parameters())
    layers = dict(model.named_modules())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(parameters[name])
        for name, layer in plain.named_modules():
            if isinstance(layers.get(name), bnb.nn.Linear4bit):
                weight = layers[name].weight
                layer.weight.copy_(bnb.functional.dequantize_4bit(weight.data, weight.quant_state))
    plain.zero_grad()
    backward(plain, part, range(5), 1.0)
    for name, gradient in gradients(plain).items():
        assert float((quantized[name] - gradient).norm() / gradient.norm()) < 1e-3, name


def test_a_step_is_the_mean_over_all_tokens_whatever_the_batch(adapted, stage):
    rows = random_rows(0)[:8]
    results = []
    for batch_size in (8, 3, 1):
        model = adapted()
        optimizer = torch.optim.SGD(trainable(model), 0.1)
        (ascent,) = stage("ga").terms
        batches = [(Part(ascent, as_sequences(rows)), range(8))]
        losses, norm = take_step(model, optimizer, batches, batch_size, Accelerator())
        results.append((losses["forget"], norm, torch.cat([p.detach().flatten() for p in trainable(model)])))
    for loss, norm, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        assert norm == pytest.approx(results[0][1], rel=1e-4)
        assert torch.allclose(weights, results[0][2], atol=1e-6)
    frame = score(adapted(), as_sequences(rows))
    tokens = np.array([len(row) - 1 for row in rows])
    assert results[0][0] == pytest.approx((frame["loss"] * tokens).sum() / tokens.sum(), rel=1e-4)


def test_a_step_descends_the_mean_token_loss_and_a_prompt_is_no_part_of_it(adapted, stage):
    rows, prompts = random_rows(0)[:3], [1, 9, 20]
    columns = {"id": ["a", "b", "c"], "document": ["a", "b", "c"], "input_ids": rows}
    sequences = Dataset.from_dict(columns | {"prefix_tokens": prompts, "scored_from": prompts})
    model = adapted()
    model.zero_grad()
    tokens = sum(len(row) - prompt for row, prompt in zip(rows, prompts))
    for row, prompt in zip(rows, prompts):
        ids = torch.tensor([row])
        logits = model(input_ids=ids).logits[0, prompt - 1 : -1]
        (-torch.nn.functional.cross_entropy(logits, ids[0, prompt:], reduction="sum") / tokens).backward()
    expected = [parameter.detach() - 0.1 * parameter.grad for parameter in trainable(model)]
    (ascent,) = stage("ga").terms
    optimizer = torch.optim.SGD(trainable(model), 0.1)
    take_step(model, optimizer, [(Part(ascent, sequences), range(3))], 2, Accelerator())
    for parameter, stepped in zip(trainable(model), expected):
        assert torch.allclose(parameter, stepped, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing(adapted, term):
    model = adapted()
    before = [parameter.detach().clone() for parameter in trainable(model)]
    poisoned = dataclasses.replace(term("nll"), coefficient=math.inf)
    optimizer = torch.optim.SGD(trainable(model), 0.1)
    batches = [(Part(poisoned, as_sequences(random_rows(0)[:2])), [0, 1])]
    _, norm = take_step(model, optimizer, batches, 2, Accelerator())
    assert not math.isfinite(norm)
    assert all(torch.equal(a, b) for a, b in zip(before, trainable(model)))


# --- every loss ---


def naive_targets(logits, labels, state, row):
    """The k-th target for the token with the k-th value, one column after the other; then the sequence's weights."""
    targets = torch.zeros(len(labels), 4)
    targets[:, 2:] = torch.tensor(state.duals.weights[row])
    now = values_of(logits.detach(), labels).tolist()
    for column in (0, 1):
        ranked = sorted(range(len(labels)), key=lambda t: now[t][column])
        for k, t in enumerate(ranked):
            targets[t, column] = float(state.values[row][k, column])
    return targets


def call(name, logits, labels, reference, targets, **options):
    others = [reference] if LOSSES[name].reference else []
    others += [targets[:, :2], targets[:, 2:]] if LOSSES[name].matched else []
    return function_of(name, options)(logits, labels, *others)


def naive_loss(model, base, rows, name, options, state):
    """The mean over tokens or sequences, one sequence at a time, with a second model as the reference."""
    total, count = 0.0, 0
    for i, row in enumerate(rows):
        ids = torch.tensor([row])
        logits, labels = model(input_ids=ids).logits[0, :-1], ids[0, 1:]
        with torch.no_grad():
            reference = base(input_ids=ids).logits[0, :-1]
        if LOSSES[name].over == "tokens":
            targets = naive_targets(logits, labels, state, i)
            total = total + call(name, logits, labels, reference, targets, **options).sum()
            count += len(labels)
            continue
        log_p, log_q = (z.log_softmax(-1).gather(1, labels[:, None]).sum()[None] for z in (logits, reference))
        others = [log_q] if LOSSES[name].reference else []
        total = total + function_of(name, options)(log_p, torch.tensor([len(labels)]), *others).sum()
        count += 1
    return total / count


def state_of(name, state):
    return state if LOSSES[name].matched else LossState()


CASES = [(name, "llama", "none", False) for name in sorted(LOSSES)]
CASES += [("npo", "gpt_neox", "nf4", True), ("kl", "gpt_neox", "nf4", True), ("undial", "llama", "nf4", False)]
CASES += [("match", "gpt_neox", "nf4", True), ("match", "llama", "nf4", False)]


@pytest.mark.parametrize(("name", "architecture", "quantization", "checkpointing"), CASES)
def test_a_step_follows_the_gradient_of_the_definition(
    memorizers,
    adapted,
    term,
    some_targets,
    log_likelihoods,
    monkeypatch,
    name,
    architecture,
    quantization,
    checkpointing,
):
    """Whatever the chunks and batches; the reference is a second model that was loaded for this test alone."""
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_TOKENS", 7)
    model = adapted(quantization, architecture)
    base = load_base(str(memorizers(architecture)), quantization, "float32")
    rows = random_rows(0)[:5]
    options = {"npo": {"beta": 0.05}, "wga": {"alpha": 0.3}, "match": {"others": 0.7}}.get(name, {})
    state = some_targets([len(row) - 1 for row in rows])
    value = naive_loss(model, base, rows, name, options, state)
    expected = torch.autograd.grad(value, trainable(model))
    with models.active(model, []):
        reference = Reference([], log_likelihoods(model, rows))
    models.train_through(model, checkpointing)
    optimizer = torch.optim.SGD(trainable(model), 0.0)
    part = Part(term(name, **options), as_sequences(rows), reference, state_of(name, state))
    taken, norm = take_step(model.train(), optimizer, [(part, range(5))], 2, Accelerator())
    assert taken["forget"] == pytest.approx(float(value.detach()), rel=1e-3)
    forward_only = losses(model.eval(), [(part, range(5))], 2, Accelerator())
    assert forward_only == pytest.approx(taken, rel=1e-5)
    assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in expected)), rel=1e-3)
    for parameter, gradient in zip(trainable(model), expected):
        assert float(gradient.norm()) > 0
        assert float((parameter.grad - gradient).norm() / gradient.norm()) < 2e-3


@pytest.mark.parametrize("name", ["kl", "npo", "simnpo", "undial", "match"])
def test_batches_do_not_matter(adapted, term, some_targets, log_likelihoods, name):
    rows = random_rows(0)[:8]
    state = state_of(name, some_targets([len(row) - 1 for row in rows]))
    results = []
    for batch_size in (8, 3, 1):
        model = adapted()
        with models.active(model, []):
            reference = Reference([], log_likelihoods(model, rows))
        batches = [(Part(term(name), as_sequences(rows), reference, state), range(8))]
        losses, norm = take_step(model, torch.optim.SGD(trainable(model), 0.1), batches, batch_size, Accelerator())
        results.append((losses["forget"], norm, torch.cat([p.detach().flatten() for p in trainable(model)])))
    for loss, norm, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-4)
        assert norm == pytest.approx(results[0][1], rel=1e-4)
        assert torch.allclose(weights, results[0][2], atol=1e-5)


def test_a_loss_over_sequences_is_a_mean_over_them_and_a_prompt_is_no_part_of_it(adapted, term):
    """And a row that is all prompt does not count; the weights of two terms are those of their means."""
    rows, prompts = random_rows(0)[:4], [1, 9, 20, 28]
    columns = {"id": list("abcd"), "document": list("abcd"), "input_ids": rows}
    sequences = Dataset.from_dict(columns | {"prefix_tokens": prompts, "scored_from": prompts})
    assert len(rows[3]) == 28, "the last row is all prompt"
    model = adapted()
    terms = []
    for row, prompt in list(zip(rows, prompts))[:3]:
        ids = torch.tensor([row])
        logits = model(input_ids=ids).logits[0, prompt - 1 : -1]
        log_p = logits.log_softmax(-1).gather(1, ids[0, prompt:, None]).sum()
        terms.append(function_of("simnpo")(log_p[None], torch.tensor([len(row) - prompt])).sum() / 3)
        tokens = sum(len(row) - prompt for row, prompt in zip(rows[:3], prompts))
        terms.append(2.0 * -log_p / tokens)
    expected = torch.autograd.grad(sum(terms), trainable(model))
    keep = dataclasses.replace(term("nll"), name="keep", coefficient=2.0)
    batches = [(Part(term("simnpo"), sequences, Reference([], np.full(4, np.nan))), range(4))]
    batches.append((Part(keep, sequences), range(4)))
    losses, _ = take_step(model, torch.optim.SGD(trainable(model), 0.0), batches, 2, Accelerator())
    assert losses.keys() == {"forget", "keep"}
    assert losses["forget"] == pytest.approx(float(sum(terms[::2]).detach()), rel=1e-4)
    for parameter, gradient in zip(trainable(model), expected):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_match_sorts_within_each_sequence_and_a_prompt_is_no_part_of_it(memorizers, adapted, term, some_targets):
    """Rows of other lengths, in another order, one of them all prompt: each keeps its own targets."""
    rows, prompts = random_rows(0)[:4], [1, 9, 20, 28]
    columns = {"id": list("abcd"), "document": list("abcd"), "input_ids": rows}
    sequences = Dataset.from_dict(columns | {"prefix_tokens": prompts, "scored_from": prompts})
    lengths = [len(row) - prompt for row, prompt in zip(rows, prompts)]
    assert lengths[3] == 0
    state = some_targets(lengths)
    model, base = adapted(), load_base(str(memorizers("llama")), "none", "float32")
    total = 0.0
    for i, (row, prompt) in enumerate(zip(rows[:3], prompts)):
        ids, kept = torch.tensor([row]), slice(prompt - 1, len(row) - 1)
        logits, reference = model(input_ids=ids).logits[0, kept], base(input_ids=ids).logits[0, kept].detach()
        targets = naive_targets(logits, ids[0, prompt:], state, i)
        total = total + call("match", logits, ids[0, prompt:], reference, targets).sum() / sum(lengths)
    expected = torch.autograd.grad(total, trainable(model))
    batches = [(Part(term("match"), sequences, state=state), [3, 1, 2, 0])]
    losses, _ = take_step(model, torch.optim.SGD(trainable(model), 0.0), batches, 2, Accelerator())
    assert losses["forget"] == pytest.approx(float(total.detach()), rel=1e-4)
    for parameter, gradient in zip(trainable(model), expected):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_step_on_nothing_changes_nothing(adapted, term, some_targets, name):
    sequences = Dataset.from_dict(
        {"id": ["a"], "document": ["a"], "input_ids": [[1, 2, 3]], "prefix_tokens": [3], "scored_from": [3]}
    )
    model = adapted()
    batches = [(Part(term(name), sequences, Reference([], np.zeros(1)), state_of(name, some_targets([0]))), [0])]
    taken = take_step(model, torch.optim.SGD(trainable(model), 0.1), batches, 2, Accelerator())
    assert taken == ({"forget": 0.0}, 0.0)


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"]], ids=" ".join)
@pytest.mark.parametrize("name", ["kl", "npo", "match"])
def test_an_output_layer_that_is_trained_too(memorizers, adapted, term, some_targets, log_likelihoods, name, targets):
    """Then the reference's output layer is the base's, and a sequence's tokens weigh its gradient as well."""
    base = load_base(str(memorizers("llama")), "none", "float32")
    model = adapted(target_modules=targets)
    rows = random_rows(0)[:3]
    state = some_targets([len(row) - 1 for row in rows])
    value = naive_loss(model, base, rows, name, {}, state)
    expected = torch.autograd.grad(value, trainable(model))
    with models.active(model, []):
        reference = Reference([], log_likelihoods(model, rows))
    batches = [(Part(term(name), as_sequences(rows), reference, state_of(name, state)), range(3))]
    losses, _ = take_step(model, torch.optim.SGD(trainable(model), 0.0), batches, 2, Accelerator())
    assert losses["forget"] == pytest.approx(float(value.detach()), rel=1e-4)
    for parameter, gradient in zip(trainable(model), expected):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "npo", "match"])
def test_logits_exist_a_chunk_at_a_time(adapted, term, some_targets, monkeypatch, name):
    model = adapted()
    sizes = []
    handle = (
        scoring.plain(model).get_output_embeddings().register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
    )
    forward.splits(model)
    sizes.clear()
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_TOKENS", 5)
    rows = random_rows(0)[:4]
    state = state_of(name, some_targets([len(row) - 1 for row in rows]))
    backward(model, Part(term(name), as_sequences(rows), Reference([], np.zeros(4)), state), range(4), 1.0)
    handle.remove()
    assert max(sizes) <= 5 * 128 and len(sizes) > 2 * 100 / 5
