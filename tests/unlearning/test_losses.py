"""Every loss against its formula, written out; its gradient; its limits; and what a step makes of it in a model."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from helpers import as_sequences, random_rows
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn import load_base, models, score, scoring
from adapter_unlearn.scoring import forward
from adapter_unlearn.unlearning import methods, step
from adapter_unlearn.unlearning.losses import LOSSES, levels, match, npo, simnpo, weighted_ascent
from adapter_unlearn.unlearning.methods import Term
from adapter_unlearn.unlearning.reference import States
from adapter_unlearn.unlearning.selection import at_least
from adapter_unlearn.unlearning.step import Part, backward, take_step, trainable
from adapter_unlearn.unlearning.targets import Twin

TOKENS = sorted(name for name, loss in LOSSES.items() if loss.over == "tokens")
SEQUENCES = sorted(name for name, loss in LOSSES.items() if loss.over == "sequences")


def probabilities(logits):
    weights = [math.exp(z - max(logits)) for z in logits]
    return [w / sum(weights) for w in weights]


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def naive_match(logits, label, reference, wanted, others=1.0):
    """The label's log-probability and margin to what is wanted, weighed; the others' shares to what they were."""
    margin = logits[label] - max(logits[:label] + logits[label + 1 :])
    misses = (math.log(probabilities(logits)[label]) - wanted[0], margin - wanted[1])
    distance = sum(weight * huber(miss) for weight, miss in zip(wanted[2:], misses))
    p, q = (probabilities(z[:label] + z[label + 1 :]) for z in (logits, reference))
    return distance + others * sum(b * math.log(b / a) for a, b in zip(p, q))


def naive(name, logits, label, reference, wanted, **options):
    """One token's loss, from a list of logits."""
    p, q = probabilities(logits), probabilities(reference)
    others = [value for i, value in enumerate(p) if i != label]
    lowered = [z - options.get("strength", 10.0) * (i == label) for i, z in enumerate(reference)]
    return {
        "nll": lambda: -math.log(p[label]),
        "kl": lambda: sum(b * math.log(b / a) for a, b in zip(p, q)),
        "ihl": lambda: 1 + p[label] - max(others),
        "wga": lambda: p[label] ** options.get("alpha", 1.0) * math.log(p[label]),
        "undial": lambda: -sum(b * math.log(a) for a, b in zip(p, probabilities(lowered))),
        "me": lambda: sum(math.log(1 / len(p) / a) / len(p) for a in p),
        "match": lambda: naive_match(logits, label, reference, wanted, **options),
    }[name]()


def naive_sequence(name, log_p, length, reference, **options):
    """One sequence's loss, with probabilities in the place of their logarithms where the paper has them."""
    beta = options.get("beta", {"npo": 0.1, "simnpo": 4.5}[name])
    if name == "npo":
        ratio = math.exp(log_p) / math.exp(reference)
        return 2 / beta * math.log(1 + ratio**beta)
    margin = options.get("margin", 0.0)
    return 2 / beta * math.log(1 + math.exp(beta * log_p / length + margin))


def tensors(n=6, vocabulary=5, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, vocabulary, generator=generator, dtype=torch.float64)
    reference = scale * torch.randn(n, vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (n,), generator=generator)
    wanted = scale * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(n, 2, generator=generator, dtype=torch.float64) + 0.5
    return logits, labels, reference, torch.cat([wanted, weights], 1)


def call(name, logits, labels, reference, wanted, **options):
    others = [reference] if LOSSES[name].reference else []
    others += [wanted[:, :2], wanted[:, 2:]] if LOSSES[name].twin else []
    return LOSSES[name].function(logits, labels, *others, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in TOKENS]
    + [("wga", {"alpha": 0.3}), ("wga", {"alpha": 0.0}), ("undial", {"strength": 1.5})]
    + [("match", {"others": 0.0}), ("match", {"others": 2.5})],
)
def test_a_loss_over_tokens_is_its_formula(name, options):
    for seed in range(5):
        logits, labels, reference, wanted = tensors(seed=seed)
        found = call(name, logits, labels, reference, wanted, **options)
        rows = zip(logits.tolist(), labels.tolist(), reference.tolist(), wanted.tolist())
        assert found.tolist() == pytest.approx([naive(name, *row, **options) for row in rows], rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in SEQUENCES] + [("npo", {"beta": 1.0}), ("simnpo", {"beta": 0.7, "margin": 0.4})],
)
def test_a_loss_over_sequences_is_its_formula(name, options):
    log_p, lengths = [-0.2, -3.0, -40.0, -9.0], [3, 1, 20, 200]
    reference = [-0.1, -5.0, -12.0, -9.0]
    others = [torch.tensor(reference, dtype=torch.float64)] if LOSSES[name].reference else []
    found = (
        LOSSES[name]
        .function(torch.tensor(log_p, dtype=torch.float64), torch.tensor(lengths), *others, **options)
        .tolist()
    )
    expected = [naive_sequence(name, *row, **options) for row in zip(log_p, lengths, reference)]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", sorted(set(TOKENS) - {"me"}))  # which asks for every entry to be as likely
def test_entries_that_the_model_rules_out_count_nothing(name):
    logits, labels, reference, wanted = tensors()
    padded = [torch.cat([z, torch.full((len(z), 2), -math.inf, dtype=z.dtype)], 1) for z in (logits, reference)]
    for z in (logits, padded[0]):
        z.requires_grad_()
    expected, found = call(name, logits, labels, reference, wanted), call(name, *padded[:1], labels, padded[1], wanted)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    gradients = [torch.autograd.grad(values.sum(), z)[0] for values, z in ((expected, logits), (found, padded[0]))]
    torch.testing.assert_close(gradients[1][:, :-2], gradients[0])
    assert not gradients[1][:, -2:].any()


@pytest.mark.parametrize("name", sorted(set(TOKENS) - {"wga"}))
def test_gradients_over_tokens_are_those_of_finite_differences(name):
    logits, labels, *others = tensors()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: call(name, z, labels, *others), (logits,))


def test_the_weight_of_wga_is_held_constant():
    """So finite differences of the loss are not its gradient; those of log p, times p^alpha, are."""
    logits, labels, *_ = tensors()
    p = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    logits.requires_grad_()
    weighted_ascent(logits, labels, alpha=0.5).sum().backward()

    def log_p(z):
        return (p**0.5 * z.log_softmax(-1).gather(1, labels[:, None])[:, 0]).sum()

    expected, h = torch.zeros_like(logits), 1e-6
    for i in range(logits.numel()):
        bump = torch.zeros(logits.numel(), dtype=torch.float64)
        bump[i] = h
        bump = bump.view_as(logits)
        expected.view(-1)[i] = (log_p(logits.detach() + bump) - log_p(logits.detach() - bump)) / (2 * h)
    assert torch.allclose(logits.grad, expected, atol=1e-8)


@pytest.mark.parametrize("name", SEQUENCES)
def test_gradients_over_sequences_are_those_of_finite_differences(name):
    log_p = torch.tensor([-0.5, -3.0, -40.0], dtype=torch.float64, requires_grad=True)
    others = [torch.tensor([-0.4, -5.0, -12.0], dtype=torch.float64)] if LOSSES[name].reference else []
    lengths = torch.tensor([3, 1, 20])
    assert torch.autograd.gradcheck(lambda z: LOSSES[name].function(z, lengths, *others), (log_p,))


CERTAIN = 1e4  # in float32 every other token's probability is exactly 0
LIMITS = {  # loss at p(label) = 1 and at p(label) = 0, another token certain; vocabulary 4, reference uniform, wanted 0
    "nll": (0.0, CERTAIN),
    "kl": (-math.log(4) + CERTAIN * 3 / 4, -math.log(4) + CERTAIN * 3 / 4),
    "ihl": (2.0, 0.0),
    "wga": (0.0, 0.0),
    "me": (-math.log(4) + CERTAIN * 3 / 4, -math.log(4) + CERTAIN * 3 / 4),
    "undial": (CERTAIN, CERTAIN * (2 + math.exp(-10)) / (3 + math.exp(-10))),
    "match": (CERTAIN, 2 * CERTAIN - math.log(3) + CERTAIN * 2 / 3),
}
STEEPEST = {"match": 3}  # two distances and a divergence; the others are one


@pytest.mark.parametrize("name", TOKENS)
def test_limits_are_finite_and_right(name):
    logits = torch.zeros(2, 4)
    logits[0, 1] = logits[1, 2] = CERTAIN
    logits.requires_grad_()
    found = call(name, logits, torch.tensor([1, 1]), torch.zeros(2, 4), torch.tensor([[0.0, 0, 1, 1]] * 2))
    assert found.tolist() == pytest.approx(LIMITS[name], rel=1e-3, abs=1e-6)
    found.sum().backward()
    steepest = float(logits.grad.abs().max())
    assert logits.grad.isfinite().all() and steepest <= STEEPEST.get(name, 1) + 1e-6, "no gradient explodes"
    at_rest = {"nll": [0], "ihl": [0, 1], "wga": [0, 1]}.get(name, [])
    assert all((float(logits.grad[i].abs().max()) < 1e-6) == (i in at_rest) for i in range(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("known", [1, 2, None])
@pytest.mark.parametrize("certain", [1, 2, None])
def test_match_has_a_gradient_wherever_model_and_reference_are_certain(dtype, known, certain):
    """Of the label (1), of another token or of none; from logits in the model's own dtype."""
    leaf, reference = torch.zeros(1, 4, dtype=dtype), torch.zeros(1, 4, dtype=dtype)
    if certain is not None:
        leaf[0, certain] = 3e4
    if known is not None:
        reference[0, known] = 3e4
    leaf.requires_grad_()
    loss = match(leaf.float(), torch.tensor([1]), reference.float(), torch.tensor([[-2.0, -1.0]]), torch.ones(1, 2))
    loss.sum().backward()
    assert loss.isfinite().all() and leaf.grad.isfinite().all()
    label = float(leaf.grad[0, 1])
    # a label that is too likely, or beats its rivals, is lowered; one that is too unlikely is raised
    assert label < 0 if certain == 2 else label > 0
    if certain is None and known is None:
        # wanted: -2 and -1; now: -log 4 and 0; the others already have their shares
        first = (-math.log(4) + 2) * 0.75 + 1.0
        assert label == pytest.approx(first, rel=1e-2)
    # what the logits are all raised by changes nothing
    assert float(leaf.grad.float().sum()) == pytest.approx(0, abs=2e-2)


@given(st.integers(0, 10_000), st.floats(0, 5))
def test_match_rests_where_all_is_as_wanted(seed, others):
    """No loss and no gradient, whichever shares the label has: only the other tokens' proportions are kept."""
    logits, labels, _, wanted = tensors(seed=seed)
    reference = logits.clone()
    reference.scatter_(1, labels[:, None], 7.0)  # the reference's own label does not count
    logits.requires_grad_()
    loss = match(logits, labels, reference, levels(logits.detach(), labels), wanted[:, 2:], others)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0] * len(labels), abs=1e-12)
    assert float(logits.grad.abs().max()) < 1e-9


def test_the_margin_tells_what_is_right():
    logits, labels, *_ = tensors(n=200)
    found = levels(logits, labels)
    assert ((found[:, 1] > 0) == (logits.argmax(-1) == labels)).all()
    assert torch.allclose(found[:, 0], logits.log_softmax(-1).gather(1, labels[:, None])[:, 0])


@pytest.mark.parametrize("name", SEQUENCES)
def test_likelihoods_of_one_and_of_zero(name):
    log_p = torch.tensor([0.0, -1e6], requires_grad=True)
    others = [torch.tensor([0.0, 0.0])] if LOSSES[name].reference else []
    found = LOSSES[name].function(log_p, torch.tensor([100, 100]), *others)
    beta = inspect.signature(LOSSES[name].function).parameters["beta"].default
    assert found.tolist() == pytest.approx([2 / beta * math.log(2), 0.0])
    found.sum().backward()
    assert log_p.grad.tolist() == pytest.approx([1.0 if name == "npo" else 0.01, 0.0])


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_nothing_to_predict_is_no_loss(name):
    """Rows that are all prompt leave no token in a chunk, and no sequence in a mean."""
    shape = (0, 4) if name in TOKENS else (0,)
    scores, reference = torch.zeros(shape, requires_grad=True), torch.zeros(shape)
    nothing = call(name, scores, torch.zeros(0, dtype=torch.long), reference, torch.zeros(0, 4))
    nothing.sum().backward()
    assert nothing.shape == (0,) and nothing.sum().item() == 0 and scores.grad.shape == shape


@given(st.floats(-300, 0), st.floats(-300, 0), st.floats(0.01, 2))
def test_npo_s_weight_is_the_paper_s(log_p, reference, beta):
    """Its gradient is gradient ascent's times 2 p^beta / (p^beta + p_reference^beta)."""
    now = torch.tensor([log_p], dtype=torch.float64, requires_grad=True)
    npo(now, torch.ones(1), torch.tensor([reference], dtype=torch.float64), beta).sum().backward()
    weight = 2 / (1 + math.exp(min(beta * (reference - log_p), 700)))
    assert float(now.grad) == pytest.approx(weight, rel=1e-9)


def test_npo_tends_to_gradient_ascent_as_beta_goes_to_zero():
    log_p = torch.tensor([-1.0, -50.0, -300.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-2.0, -5.0, -1.0], dtype=torch.float64)
    gaps = []
    for beta in (1.0, 0.1, 0.01, 1e-3, 1e-6):
        (gradient,) = torch.autograd.grad(npo(log_p, torch.ones(3), reference, beta).sum(), log_p)
        gaps.append(float((gradient - 1).abs().max()))
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.9 and gaps[-1] < 1e-3


def test_simnpo_s_margin_and_length():
    one = torch.tensor([-7.0])
    assert float(simnpo(one, torch.tensor([7]), beta=2.0)) == pytest.approx(math.log(1 + math.exp(-2.0)))
    assert float(simnpo(one, torch.tensor([7]), 2.0, margin=0.5)) == pytest.approx(math.log(1 + math.exp(-1.5)))
    assert torch.allclose(simnpo(one, torch.tensor([7])), simnpo(3 * one, torch.tensor([21])))


def test_every_method_names_losses_and_options_that_exist():
    assert set(methods.OPTIONS) | {"nll", "kl"} == set(LOSSES) | {"ascent"}
    for name, options in methods.OPTIONS.items():
        if name == "ascent":
            continue
        parameters = inspect.signature(LOSSES[name].function).parameters.values()
        own = {p.name: p.default for p in parameters if p.default is not p.empty}
        assert own == options, "one default, in the table and in the function"


# --- in a model ---


def term(name, **options):
    return Term("forget", "forget", at_least(0.0), name, 1.0, options)


def randomize(model, seed=0):
    """An adapter that does something: at first B is zero, and A has no gradient."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def with_adapter(memorizers, quantization="none", architecture="llama", **options):
    folder = memorizers(architecture)  # training it draws random numbers: first, or the adapter depends on test order
    torch.manual_seed(0)
    base = load_base(str(folder), quantization, "float32")
    return randomize(models.attach(base, r=4, alpha=8, **options))


def log_likelihoods(model, rows):
    frame = score(model, as_sequences(rows), ["loss"])
    return -frame["loss"].to_numpy() * np.array([len(row) - 1 for row in rows])


def some_twins(lengths, seed=0):
    """Levels to come to, every column ascending, on both sides of what the memorizers have; each row weighs its own."""
    generator = np.random.default_rng(seed)
    return [
        Twin(np.sort(generator.normal(-2.0, 3.0, (length, 2)), axis=0), generator.uniform(0.5, 2.0, 2))
        for length in lengths
    ]


def naive_wanted(logits, labels, twin):
    """The k-th of a twin's levels for the token that has the k-th now, one column after the other; then its weights."""
    wanted = torch.zeros(len(labels), 4)
    wanted[:, 2:] = torch.tensor(twin.weights)
    now = levels(logits.detach(), labels).tolist()
    for column in (0, 1):
        ranked = sorted(range(len(labels)), key=lambda t: now[t][column])
        for k, t in enumerate(ranked):
            wanted[t, column] = float(twin.levels[k, column])
    return wanted


def naive_loss(model, base, rows, name, options, twins=None):
    """The mean the docstrings promise, one sequence at a time, with a second model as the reference."""
    total, count = 0.0, 0
    for row, twin in zip(rows, twins or some_twins([len(row) - 1 for row in rows])):
        ids = torch.tensor([row])
        logits, labels = model(input_ids=ids).logits[0, :-1], ids[0, 1:]
        with torch.no_grad():
            reference = base(input_ids=ids).logits[0, :-1]
        if LOSSES[name].over == "tokens":
            wanted = naive_wanted(logits, labels, twin)
            total = total + call(name, logits, labels, reference, wanted, **options).sum()
            count += len(labels)
            continue
        log_p, log_q = (z.log_softmax(-1).gather(1, labels[:, None]).sum()[None] for z in (logits, reference))
        others = [log_q] if LOSSES[name].reference else []
        total = total + LOSSES[name].function(log_p, torch.tensor([len(labels)]), *others, **options).sum()
        count += 1
    return total / count


CASES = [(name, "llama", "none", False) for name in sorted(LOSSES)]
CASES += [("npo", "gpt_neox", "nf4", True), ("kl", "gpt_neox", "nf4", True), ("undial", "llama", "nf4", False)]
CASES += [("match", "gpt_neox", "nf4", True), ("match", "llama", "nf4", False)]


@pytest.mark.parametrize(("name", "architecture", "quantization", "checkpointing"), CASES)
def test_a_step_follows_the_gradient_of_the_definition(
    memorizers, monkeypatch, name, architecture, quantization, checkpointing
):
    """Whatever the chunks and batches; the reference is a second model that was loaded for this test alone."""
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CHUNK_ELEMENTS", 7 * 128)
    model = with_adapter(memorizers, quantization, architecture)
    base = load_base(str(memorizers(architecture)), quantization, "float32")
    rows = random_rows(0)[:5]
    options = {"npo": {"beta": 0.05}, "wga": {"alpha": 0.3}, "match": {"others": 0.7}}.get(name, {})
    value = naive_loss(model, base, rows, name, options)
    expected = torch.autograd.grad(value, trainable(model))
    with models.active(model, []):
        reference = log_likelihoods(model, rows)
    models.train_through(model, checkpointing)
    optimizer = torch.optim.SGD(trainable(model), 0.0)
    twins = some_twins([len(row) - 1 for row in rows])
    part = Part(term(name, **options), as_sequences(rows), range(5), reference, twins)
    losses, norm = take_step(model.train(), optimizer, [part], 2, Accelerator())
    assert losses["forget"] == pytest.approx(float(value.detach()), rel=1e-3)
    assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in expected)), rel=1e-3)
    for parameter, gradient in zip(trainable(model), expected):
        assert float(gradient.norm()) > 0
        assert float((parameter.grad - gradient).norm() / gradient.norm()) < 2e-3


@pytest.mark.parametrize("name", ["kl", "npo", "simnpo", "undial", "match"])
def test_batches_do_not_matter(memorizers, name):
    rows = random_rows(0)[:8]
    twins = some_twins([len(row) - 1 for row in rows])
    results = []
    for batch_size in (8, 3, 1):
        model = with_adapter(memorizers)
        with models.active(model, []):
            part = Part(term(name), as_sequences(rows), range(8), log_likelihoods(model, rows), twins)
        losses, norm = take_step(model, torch.optim.SGD(trainable(model), 0.1), [part], batch_size, Accelerator())
        results.append((losses["forget"], norm, torch.cat([p.detach().flatten() for p in trainable(model)])))
    for loss, norm, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-4)
        assert norm == pytest.approx(results[0][1], rel=1e-4)
        assert torch.allclose(weights, results[0][2], atol=1e-5)


def test_a_loss_over_sequences_is_a_mean_over_them_and_a_prompt_is_no_part_of_it(memorizers):
    """And a row that is all prompt does not count; the weights of two terms are those of their means."""
    rows, prompts = random_rows(0)[:4], [1, 9, 20, 28]
    columns = {"id": list("abcd"), "document": list("abcd"), "input_ids": rows}
    sequences = Dataset.from_dict(columns | {"prefix_tokens": prompts, "scored_from": prompts})
    assert len(rows[3]) == 28, "the last row is all prompt"
    model = with_adapter(memorizers)
    terms = []
    for row, prompt in list(zip(rows, prompts))[:3]:
        ids = torch.tensor([row])
        logits = model(input_ids=ids).logits[0, prompt - 1 : -1]
        log_p = logits.log_softmax(-1).gather(1, ids[0, prompt:, None]).sum()
        terms.append(simnpo(log_p[None], torch.tensor([len(row) - prompt])).sum() / 3)
        tokens = sum(len(row) - prompt for row, prompt in zip(rows[:3], prompts))
        terms.append(2.0 * -log_p / tokens)
    expected = torch.autograd.grad(sum(terms), trainable(model))
    parts = [Part(term("simnpo"), sequences, range(4), np.full(4, np.nan))]
    parts.append(Part(dataclasses.replace(term("nll"), name="keep", coefficient=2.0), sequences, range(4)))
    losses, _ = take_step(model, torch.optim.SGD(trainable(model), 0.0), parts, 2, Accelerator())
    assert losses.keys() == {"forget", "keep"}
    assert losses["forget"] == pytest.approx(float(sum(terms[::2]).detach()), rel=1e-4)
    for parameter, gradient in zip(trainable(model), expected):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_match_sorts_within_each_sequence_and_a_prompt_is_no_part_of_it(memorizers):
    """Rows of other lengths, in another order, one of them all prompt: each keeps its own twin."""
    rows, prompts = random_rows(0)[:4], [1, 9, 20, 28]
    columns = {"id": list("abcd"), "document": list("abcd"), "input_ids": rows}
    sequences = Dataset.from_dict(columns | {"prefix_tokens": prompts, "scored_from": prompts})
    lengths = [len(row) - prompt for row, prompt in zip(rows, prompts)]
    assert lengths[3] == 0
    twins = some_twins(lengths)
    model, base = with_adapter(memorizers), load_base(str(memorizers("llama")), "none", "float32")
    total = 0.0
    for row, prompt, twin in list(zip(rows, prompts, twins))[:3]:
        ids, kept = torch.tensor([row]), slice(prompt - 1, len(row) - 1)
        logits, reference = model(input_ids=ids).logits[0, kept], base(input_ids=ids).logits[0, kept].detach()
        wanted = naive_wanted(logits, ids[0, prompt:], twin)
        total = total + call("match", logits, ids[0, prompt:], reference, wanted).sum() / sum(lengths)
    expected = torch.autograd.grad(total, trainable(model))
    part = Part(term("match"), sequences, [3, 1, 2, 0], None, twins)
    losses, _ = take_step(model, torch.optim.SGD(trainable(model), 0.0), [part], 2, Accelerator())
    assert losses["forget"] == pytest.approx(float(total.detach()), rel=1e-4)
    for parameter, gradient in zip(trainable(model), expected):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_step_on_nothing_changes_nothing(memorizers, name):
    sequences = Dataset.from_dict(
        {"id": ["a"], "document": ["a"], "input_ids": [[1, 2, 3]], "prefix_tokens": [3], "scored_from": [3]}
    )
    model = with_adapter(memorizers)
    part = Part(term(name), sequences, [0], np.array([0.0]), some_twins([0]))
    assert take_step(model, torch.optim.SGD(trainable(model), 0.1), [part], 2, Accelerator()) == ({"forget": 0.0}, 0.0)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_reference_is_a_separately_loaded_base_bit_for_bit(memorizers, quantization):
    model = with_adapter(memorizers, quantization).train()
    base = load_base(str(memorizers("llama")), quantization, "float32").eval()
    rows = random_rows(0)[:3]
    features, _, head = scoring.hidden_states(base, rows, [1, 1, 1])
    states = States().of(model, as_sequences(rows), range(3), [])
    assert torch.equal(states, features.detach())
    assert torch.equal(step._reference_logits(model, states[:50], head, []), head(features[:50]).detach())
    assert model.training and {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }
    with models.active(model, []):
        assert (log_likelihoods(model, rows) == log_likelihoods(base, rows)).all()


def test_a_carried_adapter_is_part_of_the_reference(memorizers, tmp_path):
    randomize(with_adapter(memorizers), seed=5).save_pretrained(str(tmp_path), save_embedding_layers=False)
    model = with_adapter(memorizers, carried=tmp_path)  # with_adapter randomizes both; only the file's is kept
    models.attach_next(model, "next")
    carried = models.stack(load_base(str(memorizers("llama")), "none", "float32"), [tmp_path])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".carried." in name:
                parameter.copy_(dict(carried.named_parameters())[name.replace(".carried.", ".adapter_0.")])
    rows = random_rows(0)[:3]
    states = States().of(model, as_sequences(rows), range(3), ["carried"])
    features, _, _ = scoring.hidden_states(carried, rows, [1, 1, 1])
    assert torch.allclose(states, features, atol=1e-6)
    assert float((states - States().of(model, as_sequences(rows), range(3), [])).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["kl", "undial", "match"])
def test_states_are_computed_once_and_change_nothing(memorizers, monkeypatch, name):
    rows = random_rows(0)[:6]
    twins, forwards, weights = some_twins([len(row) - 1 for row in rows]), [], []
    forward = scoring.hidden_states
    monkeypatch.setattr(
        scoring, "hidden_states", lambda *args: forwards.append(torch.is_grad_enabled()) or forward(*args)
    )
    for states in (None, States()):
        model = with_adapter(memorizers)
        optimizer = torch.optim.SGD(trainable(model), 0.1)
        forwards.clear()
        for chosen in ([0, 1, 2, 3], [3, 1, 4, 0], [0, 4, 1, 2]):  # other rows together, in another order
            part = Part(term(name), as_sequences(rows), chosen, None, twins, states)
            take_step(model, optimizer, [part], 2, Accelerator())
        assert forwards.count(True) == 6, "three steps of two batches"
        assert forwards.count(False) == (6 if states is None else 3), "row 4 alone was new in the second step"
        weights.append(torch.cat([p.detach().flatten() for p in trainable(model)]))
    assert torch.allclose(*weights, atol=1e-6)
    assert states.kept.keys() == {0, 1, 2, 3, 4}


def test_states_beyond_their_room_are_computed_anew(memorizers):
    model, rows = with_adapter(memorizers), random_rows(0)[:5]
    whole = States().of(model, as_sequences(rows), range(5), [])
    sizes = [(len(row) - 1) * 64 * 4 for row in rows]
    states = States(most=sizes[0] + sizes[1] + sizes[4])
    for _ in range(2):
        assert torch.allclose(states.of(model, as_sequences(rows), range(5), []), whole, atol=1e-6)
    assert sum(state.untyped_storage().nbytes() for state in states.kept.values()) <= sizes[0] + sizes[1] + sizes[4]
    assert 0 < len(states.kept) < 5


def test_an_output_layer_that_is_trained_too(memorizers):
    """Then the reference's output layer is the base's, and a sequence's tokens weigh its gradient as well."""
    base = load_base(str(memorizers("llama")), "none", "float32")
    for name in ("kl", "npo", "match"):
        model = with_adapter(memorizers, target_modules=["q_proj", "lm_head"])
        rows = random_rows(0)[:3]
        value = naive_loss(model, base, rows, name, {})
        expected = torch.autograd.grad(value, trainable(model))
        with models.active(model, []):
            twins = some_twins([len(row) - 1 for row in rows])
            part = Part(term(name), as_sequences(rows), range(3), log_likelihoods(model, rows), twins)
        losses, _ = take_step(model, torch.optim.SGD(trainable(model), 0.0), [part], 2, Accelerator())
        assert losses["forget"] == pytest.approx(float(value.detach()), rel=1e-4)
        for parameter, gradient in zip(trainable(model), expected):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "npo", "match"])
def test_logits_exist_a_chunk_at_a_time(memorizers, monkeypatch, name):
    model = with_adapter(memorizers)
    sizes = []
    handle = (
        scoring.plain(model).get_output_embeddings().register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
    )
    forward.splits(model)
    sizes.clear()
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CHUNK_ELEMENTS", 5 * 128)
    rows = random_rows(0)[:4]
    backward(model, as_sequences(rows), term(name), 1.0, [], np.zeros(4), some_twins([len(row) - 1 for row in rows]))
    handle.remove()
    assert max(sizes) <= 5 * 128 and len(sizes) > 2 * 100 / 5
