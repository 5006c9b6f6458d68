"""Every loss against its formula, its gradient and its limits, and the table that describes it."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn.unlearning import losses
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.losses import function_of, values_of

TOKENS = sorted(name for name, loss in LOSSES.items() if loss.over == "tokens")
SEQUENCES = sorted(name for name, loss in LOSSES.items() if loss.over == "sequences")


def probabilities(logits):
    weights = [math.exp(z - max(logits)) for z in logits]
    return [w / sum(weights) for w in weights]


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def naive_match(logits, label, reference, targets, others=1.0):
    """The weighted distances of the label's log-probability and margin to their targets, and the divergence.

    Args:
        targets: of log-probability and margin, then the weights of both.
    """
    margin = logits[label] - max(logits[:label] + logits[label + 1 :])
    misses = (math.log(probabilities(logits)[label]) - targets[0], margin - targets[1])
    distance = sum(weight * huber(miss) for weight, miss in zip(targets[2:], misses))
    p, q = (probabilities(z[:label] + z[label + 1 :]) for z in (logits, reference))
    return distance + others * sum(b * math.log(b / a) for a, b in zip(p, q))


def naive(name, logits, label, reference, targets, **options):
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
        "match": lambda: naive_match(logits, label, reference, targets, **options),
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
    targets = scale * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(n, 2, generator=generator, dtype=torch.float64) + 0.5
    return logits, labels, reference, torch.cat([targets, weights], 1)


def call(name, logits, labels, reference, targets, **options):
    others = [reference] if LOSSES[name].reference else []
    others += [targets[:, :2], targets[:, 2:]] if LOSSES[name].matched else []
    return function_of(name, options)(logits, labels, *others)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in TOKENS]
    + [("wga", {"alpha": 0.3}), ("wga", {"alpha": 0.0}), ("undial", {"strength": 1.5})]
    + [("match", {"others": 0.0}), ("match", {"others": 2.5})],
)
def test_a_loss_over_tokens_is_its_formula(name, options):
    for seed in range(5):
        logits, labels, reference, targets = tensors(seed=seed)
        values = call(name, logits, labels, reference, targets, **options)
        rows = zip(logits.tolist(), labels.tolist(), reference.tolist(), targets.tolist())
        assert values.tolist() == pytest.approx([naive(name, *row, **options) for row in rows], rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in SEQUENCES] + [("npo", {"beta": 1.0}), ("simnpo", {"beta": 0.7, "margin": 0.4})],
)
def test_a_loss_over_sequences_is_its_formula(name, options):
    log_p, lengths = [-0.2, -3.0, -40.0, -9.0], [3, 1, 20, 200]
    reference = [-0.1, -5.0, -12.0, -9.0]
    others = [torch.tensor(reference, dtype=torch.float64)] if LOSSES[name].reference else []
    function = function_of(name, options)
    values = function(torch.tensor(log_p, dtype=torch.float64), torch.tensor(lengths), *others).tolist()
    expected = [naive_sequence(name, *row, **options) for row in zip(log_p, lengths, reference)]
    assert values == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", sorted(set(TOKENS) - {"me"}))  # which asks for every entry to be as likely
def test_entries_that_the_model_rules_out_count_nothing(name):
    logits, labels, reference, targets = tensors()
    padded = [torch.cat([z, torch.full((len(z), 2), -math.inf, dtype=z.dtype)], 1) for z in (logits, reference)]
    for z in (logits, padded[0]):
        z.requires_grad_()
    expected = call(name, logits, labels, reference, targets)
    values = call(name, padded[0], labels, padded[1], targets)
    assert values.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), z)[0] for loss, z in ((expected, logits), (values, padded[0]))]
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
    losses.wga(logits, labels, alpha=0.5).sum().backward()

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
    assert torch.autograd.gradcheck(lambda z: function_of(name)(z, lengths, *others), (log_p,))


CERTAIN = 1e4  # in float32 every other token's probability is exactly 0
LIMITS = {  # loss at p(label) = 1, and where another token is certain; vocabulary 4, reference uniform, targets 0
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
    values = call(name, logits, torch.tensor([1, 1]), torch.zeros(2, 4), torch.tensor([[0.0, 0, 1, 1]] * 2))
    assert values.tolist() == pytest.approx(LIMITS[name], rel=1e-3, abs=1e-6)
    values.sum().backward()
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
    targets = torch.tensor([[-2.0, -1.0, 1.0, 1.0]])
    loss = call("match", leaf.float(), torch.tensor([1]), reference.float(), targets)
    loss.sum().backward()
    assert loss.isfinite().all() and leaf.grad.isfinite().all()
    label = float(leaf.grad[0, 1])
    # a label that is too likely, or beats its rivals, is lowered; one that is too unlikely is raised
    assert label < 0 if certain == 2 else label > 0
    if certain is None and known is None:
        # targets: -2 and -1; now: -log 4 and 0; the others already have their shares
        first = (-math.log(4) + 2) * 0.75 + 1.0
        assert label == pytest.approx(first, rel=1e-2)
    # a constant added to all logits changes nothing
    assert float(leaf.grad.float().sum()) == pytest.approx(0, abs=2e-2)


@given(st.integers(0, 10_000), st.floats(0, 5))
def test_match_is_at_its_minimum_where_the_targets_are_met(seed, others):
    """No loss and no gradient, whichever shares the label has: only the other tokens' proportions are kept."""
    logits, labels, _, targets = tensors(seed=seed)
    reference = logits.clone()
    reference.scatter_(1, labels[:, None], 7.0)  # the reference's own label does not count
    logits.requires_grad_()
    targets[:, :2] = values_of(logits.detach(), labels)
    loss = call("match", logits, labels, reference, targets, others=others)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0] * len(labels), abs=1e-12)
    assert float(logits.grad.abs().max()) < 1e-9


def test_the_margin_is_positive_where_the_label_is_the_argmax():
    logits, labels, *_ = tensors(n=200)
    values = values_of(logits, labels)
    assert ((values[:, 1] > 0) == (logits.argmax(-1) == labels)).all()
    assert torch.allclose(values[:, 0], logits.log_softmax(-1).gather(1, labels[:, None])[:, 0])


@pytest.mark.parametrize("name", SEQUENCES)
def test_likelihoods_of_one_and_of_zero(name):
    log_p = torch.tensor([0.0, -1e6], requires_grad=True)
    others = [torch.tensor([0.0, 0.0])] if LOSSES[name].reference else []
    values = function_of(name)(log_p, torch.tensor([100, 100]), *others)
    beta = LOSSES[name].options["beta"].default
    assert values.tolist() == pytest.approx([2 / beta * math.log(2), 0.0])
    values.sum().backward()
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
    losses.npo(now, torch.ones(1), torch.tensor([reference], dtype=torch.float64), beta).sum().backward()
    weight = 2 / (1 + math.exp(min(beta * (reference - log_p), 700)))
    assert float(now.grad) == pytest.approx(weight, rel=1e-9)


def test_npo_tends_to_gradient_ascent_as_beta_goes_to_zero():
    log_p = torch.tensor([-1.0, -50.0, -300.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-2.0, -5.0, -1.0], dtype=torch.float64)
    gaps = []
    for beta in (1.0, 0.1, 0.01, 1e-3, 1e-6):
        (gradient,) = torch.autograd.grad(losses.npo(log_p, torch.ones(3), reference, beta).sum(), log_p)
        gaps.append(float((gradient - 1).abs().max()))
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.9 and gaps[-1] < 1e-3


def test_simnpo_s_margin_and_length():
    one = torch.tensor([-7.0])
    simnpo = function_of("simnpo")
    for margin in (0.0, 0.5):
        loss = losses.simnpo(one, torch.tensor([7]), 2.0, margin)
        assert float(loss) == pytest.approx(math.log(1 + math.exp(margin - 2.0)))
    assert torch.allclose(simnpo(one, torch.tensor([7])), simnpo(3 * one, torch.tensor([21])))


# --- the table ---


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_describes_its_function(name):
    """The options are the keyword parameters, and only the table has their defaults."""
    row, parameters = LOSSES[name], inspect.signature(getattr(losses, name)).parameters
    inputs = ["logits", "labels"] if row.over == "tokens" else ["log_p", "lengths"]
    if row.reference:
        inputs.append("reference" if row.over == "tokens" else "reference_log_p")
    inputs += ["targets", "weights"] if row.matched else []
    assert list(parameters) == [*inputs, *row.options]
    assert all(parameter.default is parameter.empty for parameter in parameters.values())
    for key, option in row.options.items():
        option.check(key, option.default)
        assert function_of(name).keywords[key] == option.default
        assert function_of(name, {key: 0.25}).keywords[key] == 0.25


def test_tables_are_readable_without_torch():
    """So that a mistyped option is reported before anything heavy is loaded."""
    code = "import sys; from adapter_unlearn.unlearning import methods; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
