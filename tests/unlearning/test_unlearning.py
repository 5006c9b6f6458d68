"""Selection, stop rules, the gradient of a step, and the loop: against definitions, on models that memorized."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from helpers import as_sequences, random_rows
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn import load_base, models, score, scoring
from adapter_unlearn.evaluation.criteria import PAPER
from adapter_unlearn.recipe import Stop, Training
from adapter_unlearn.unlearning import loop, methods, records, stopping
from adapter_unlearn.unlearning.methods import Term
from adapter_unlearn.unlearning.selection import Known, above, at_least, below, most_memorized, sample
from adapter_unlearn.unlearning.step import Part, backward, take_step, trainable

GENERATOR = np.random.default_rng(0)
NLL = Term("forget", "forget", at_least(0.0), "nll")


# --- selection ---


def scores(accuracy, runs=None):
    return pd.DataFrame({"memorization_accuracy": accuracy, "longest_verbatim_run": runs or [0.0] * len(accuracy)})


def known(accuracy, runs=None, before=None, holdout=None):
    frame = scores(accuracy, runs)
    return Known(frame, frame if before is None else scores(before), holdout)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1))
def test_threshold_selects_what_is_memorized_or_the_most_memorized_one(accuracy, threshold):
    selected = at_least(threshold)(known(accuracy), GENERATOR).tolist()
    expected = [i for i, g in enumerate(accuracy) if g >= threshold]
    assert selected == (expected or [accuracy.index(max(accuracy))])


def test_what_cannot_be_scored_is_not_ascended():
    partly = known([math.nan, 0.2, math.nan, 0.9])
    assert at_least(0.0)(partly, GENERATOR).tolist() == [1, 3]
    assert at_least(0.95)(partly, GENERATOR).tolist() == [3]


def test_a_long_run_is_selected_whatever_the_accuracy():
    partly = known([0.1, 0.9, 0.2, math.nan], runs=[9, 2, 8, math.nan])
    assert at_least(0.5, run_threshold=9)(partly, GENERATOR).tolist() == [0, 1]
    assert at_least(0.95, run_threshold=10)(partly, GENERATOR).tolist() == [1]


UNSEEN = scores(np.linspace(0, 0.4, 101).tolist(), runs=[3.0] * 101)
QUANTILES = np.quantile(UNSEEN["memorization_accuracy"], [0.05, 0.95])  # .02 and .38


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20), st.booleans())
def test_the_band_ascends_above_and_raises_what_it_lowered(rows, holdout):
    now, before = zip(*rows)
    low, high = ("holdout", "holdout") if holdout else (0.2, 0.5)
    state = known(now, before=before, holdout=UNSEEN)
    bottom, top = QUANTILES if holdout else (0.2, 0.5)
    expected = [i for i, g in enumerate(now) if g > top]
    assert above(high)(state, GENERATOR).tolist() == expected, "there is no fallback to the most memorized one"
    expected = [i for i, g in enumerate(now) if g < bottom and g < before[i]]
    assert below(low, high)(state, GENERATOR).tolist() == expected


def test_the_band_and_long_runs():
    state = known([0.1, 0.9, math.nan, 0.0], runs=[4, 0, math.nan, 3], before=[0.5, 1, math.nan, 0.5], holdout=UNSEEN)
    assert above(0.5)(state, GENERATOR).tolist() == [1]
    assert above(0.5, "holdout")(state, GENERATOR).tolist() == [0, 1]
    assert below(0.2, 0.5)(state, GENERATOR).tolist() == [0, 3]
    assert below(0.2, 0.5, "holdout")(state, GENERATOR).tolist() == [3], "no row is ascended and descended at once"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 25))
def test_the_most_memorized(accuracy, number):
    selected = most_memorized(number)(known([*accuracy, math.nan]), GENERATOR).tolist()
    best = sorted(range(len(accuracy)), key=lambda i: (-accuracy[i], i))[:number]
    assert selected == sorted(best)


def test_a_sample_has_no_row_twice():
    drawn = sample(8)(known([0.0] * 20), np.random.default_rng(1))
    assert len(set(drawn.tolist())) == 8
    assert sample(8)(known([0.0] * 5), GENERATOR).tolist() == [0, 1, 2, 3, 4]


# --- stop rules ---


def record(mean=0.5, highest=0.9, extractable=1, run=9, high=1, low_new=0, perplexity=10.0):
    return {
        "memorization_accuracy_mean": mean, "memorization_accuracy_max": highest, "extractable": extractable,
        "longest_verbatim_run_max": run, "outliers_high": high, "outliers_low_new": low_new,
        "validation_perplexity": perplexity,
    }  # fmt: skip


def test_all_levels_must_hold():
    goal = stopping.Goal(mean_below=0.4, extractable=0)
    assert not stopping.reached(goal, record(mean=0.3, extractable=1))
    assert not stopping.reached(goal, record(mean=0.4, extractable=0))
    assert stopping.reached(goal, record(mean=0.3, extractable=0))
    assert not stopping.reached(stopping.Goal(), record(mean=0.0))
    assert stopping.reached(stopping.Goal(longest_run=9, max_below=0.91), record())


def test_levels_from_the_holdout():
    holdout = pd.DataFrame({"memorization_accuracy": np.linspace(0, 0.4, 101), "longest_verbatim_run": [3.0] * 101})
    stop = Stop(mean_below="holdout", max_below="holdout", longest_run="holdout", extractable=0)
    goal = stopping.resolve(stop, holdout)
    assert (goal.mean_below, goal.max_below) == (pytest.approx(0.2), pytest.approx(0.38))
    assert (goal.longest_run, goal.extractable) == (3, 0)
    assert stopping.resolve(Stop(), None) == stopping.Goal(mean_below=0.33)


def test_a_level_of_extraction_likelihood_is_asked_for_when_all_else_holds():
    holdout = pd.DataFrame({
        "memorization_accuracy": [0.2, 0.4], "longest_verbatim_run": [3.0, 4.0], "extraction_likelihood": [0.0, 0.1],
    })  # fmt: skip
    goal = stopping.resolve(Stop(mean_below=0.4, extraction_likelihood_below="holdout"), holdout)
    assert goal.extraction_likelihood_below == pytest.approx(0.05)
    open_one = record(mean=0.3)
    assert not stopping.reached(goal, open_one) and stopping.only_extraction_likelihood_is_open(goal, open_one)
    assert not stopping.only_extraction_likelihood_is_open(goal, record(mean=0.5))
    assert stopping.reached(goal, open_one | {"extraction_likelihood_mean": 0.04})
    assert not stopping.reached(goal, open_one | {"extraction_likelihood_mean": 0.05})
    assert stopping.only_extraction_likelihood_is_open(stopping.Goal(extraction_likelihood_below=0.1), record())
    assert not stopping.only_extraction_likelihood_is_open(stopping.Goal(), record())


def test_the_budget():
    assert stopping.within(0.05, record(perplexity=10.5), record())
    assert not stopping.within(0.05, record(perplexity=10.51), record())
    assert not stopping.within(0.05, record(perplexity=math.nan), record())
    assert stopping.within(None, record(perplexity=99), record())
    assert stopping.within(0.05, record(perplexity=None), record(perplexity=None))


@pytest.mark.parametrize(
    ("after", "said"), [(106.0, "+6.0%"), (999.0, "+899.0%"), (1000.0, "10 times the base's"), (6e25, "6e+23 times")]
)
def test_what_is_said_past_the_budget_can_be_read(after, said):
    assert f"was {said}" in stopping.too_far(0.05, {"validation_perplexity": after}, {"validation_perplexity": 100.0})


def test_merit_is_outliers_then_perplexity():
    epochs = [record(high=2, perplexity=1), record(high=0, low_new=1, perplexity=9), record(high=1, perplexity=8)]
    assert min(epochs, key=stopping.merit) is epochs[2]


def test_of_epochs_without_outliers_the_one_that_is_told_apart_least_then_perplexity():
    """Within 0.1 of 0.5 nobody is told apart; a log without a holdout set has no such figure."""
    epochs = [record(perplexity=p) | {"membership_auc_loss": a} for a, p in ((0.8, 1), (0.25, 2), (0.58, 9), (0.41, 8))]
    assert [epochs.index(one) for one in sorted(epochs, key=stopping.merit)] == [3, 2, 1, 0]
    assert stopping.merit(record() | {"membership_auc_loss": None}) == stopping.merit(record())
    assert stopping.merit(record(high=2) | {"membership_auc_loss": 0.5}) > stopping.merit(epochs[0])


def test_without_a_validation_set_the_shortest_run_decides_not_the_lowest_accuracy():
    """Past what never-seen text has, a lower accuracy is damage; with a validation set its perplexity decides first."""
    epochs = [record(mean=0.14, run=15, perplexity=None), record(mean=0.15, run=12, perplexity=None)]
    assert min(epochs, key=stopping.merit) is epochs[1]
    assert min([record(run=15, perplexity=9.0), record(run=12)], key=stopping.merit)["longest_verbatim_run_max"] == 15
    assert min([record(mean=0.4), record(mean=0.3)], key=stopping.merit)["memorization_accuracy_mean"] == 0.3


# --- one step ---


def with_adapter(memorizers, quantization, architecture="llama", **options):
    torch.manual_seed(0)
    base = load_base(str(memorizers(architecture)), quantization, "float32")
    model = models.attach(base, r=4, alpha=8, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


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
def test_the_gradient_is_that_of_the_definition(memorizers, monkeypatch, architecture, quantization, checkpointing):
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CHUNK_ELEMENTS", 7 * 128)
    model = with_adapter(memorizers, quantization, architecture)
    rows = random_rows(0)[:5]
    expected = naive_gradients(model, rows, -1.0)
    score(model, as_sequences(rows))  # a scoring pass must not spoil the gradients after it
    models.train_through(model, checkpointing)
    model.zero_grad()
    tokens = sum(len(row) - 1 for row in rows)
    model.train()
    backward(model, as_sequences(rows), NLL, -1.0 / tokens)
    for name, gradient in gradients(model).items():
        assert float(gradient.norm()) > 0, f"{name} has no gradient"
        difference = float((gradient - expected[name]).norm() / expected[name].norm())
        # int8 multiplies in 8 bits, so that batches of other shapes round otherwise
        assert difference < (0.1 if quantization == "int8" else 1e-3), name


def test_nf4_gradients_are_those_of_the_dequantized_weights(memorizers):
    import bitsandbytes as bnb

    model = with_adapter(memorizers, "nf4")
    rows = random_rows(0)[:5]
    score(model, as_sequences(rows))
    model.zero_grad()
    backward(model, as_sequences(rows), NLL, 1.0)
    quantized = gradients(model)

    plain = with_adapter(memorizers, "none")
    adapters = dict(model.named_parameters())
    layers = dict(model.named_modules())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(adapters[name])
        for name, layer in plain.named_modules():
            if isinstance(layers.get(name), bnb.nn.Linear4bit):
                weight = layers[name].weight
                layer.weight.copy_(bnb.functional.dequantize_4bit(weight.data, weight.quant_state))
    plain.zero_grad()
    backward(plain, as_sequences(rows), NLL, 1.0)
    for name, gradient in gradients(plain).items():
        assert float((quantized[name] - gradient).norm() / gradient.norm()) < 1e-3, name


def test_a_step_is_the_mean_over_all_tokens_whatever_the_batch(memorizers):
    rows = random_rows(0)[:8]
    results = []
    for batch_size in (8, 3, 1):
        model = with_adapter(memorizers, "none")
        optimizer = torch.optim.SGD(trainable(model), 0.1)
        (term,) = methods.sga(0.0)[0].terms
        losses, norm = take_step(
            model, optimizer, [Part(term, as_sequences(rows), range(8))], batch_size, Accelerator()
        )
        results.append((losses["forget"], norm, torch.cat([p.detach().flatten() for p in trainable(model)])))
    for loss, norm, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        assert norm == pytest.approx(results[0][1], rel=1e-4)
        assert torch.allclose(weights, results[0][2], atol=1e-6)
    frame = score(with_adapter(memorizers, "none"), as_sequences(rows))
    tokens = np.array([len(row) - 1 for row in rows])
    assert results[0][0] == pytest.approx((frame["loss"] * tokens).sum() / tokens.sum(), rel=1e-4)


def test_a_step_descends_the_mean_token_loss_and_a_prompt_is_no_part_of_it(memorizers):
    rows, prompts = random_rows(0)[:3], [1, 9, 20]
    columns = {"id": ["a", "b", "c"], "document": ["a", "b", "c"], "input_ids": rows}
    sequences = Dataset.from_dict(columns | {"prefix_tokens": prompts, "scored_from": prompts})
    model = with_adapter(memorizers, "none")
    model.zero_grad()
    tokens = sum(len(row) - prompt for row, prompt in zip(rows, prompts))
    for row, prompt in zip(rows, prompts):
        ids = torch.tensor([row])
        logits = model(input_ids=ids).logits[0, prompt - 1 : -1]
        (-torch.nn.functional.cross_entropy(logits, ids[0, prompt:], reduction="sum") / tokens).backward()
    expected = [parameter.detach() - 0.1 * parameter.grad for parameter in trainable(model)]
    (term,) = methods.sga(0.0)[0].terms
    optimizer = torch.optim.SGD(trainable(model), 0.1)
    take_step(model, optimizer, [Part(term, sequences, range(3))], 2, Accelerator())
    for parameter, wanted in zip(trainable(model), expected):
        assert torch.allclose(parameter, wanted, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing(memorizers):
    model = with_adapter(memorizers, "none")
    before = [parameter.detach().clone() for parameter in trainable(model)]
    poisoned = dataclasses.replace(NLL, coefficient=math.inf)
    optimizer = torch.optim.SGD(trainable(model), 0.1)
    _, norm = take_step(model, optimizer, [Part(poisoned, as_sequences(random_rows(0)[:2]), [0, 1])], 2, Accelerator())
    assert not math.isfinite(norm)
    assert all(torch.equal(a, b) for a, b in zip(before, trainable(model)))


# --- the loop ---


@pytest.fixture
def problem(memorizers):
    """Build a model with a fresh adapter, and the task of making it forget what it memorized."""

    def build(quantization="none", validation=True, **options):
        torch.manual_seed(0)
        model = models.attach(load_base(str(memorizers("llama")), quantization, "float32"), r=4, alpha=8)
        forget, unseen = as_sequences(random_rows(0)), as_sequences(random_rows(7))
        before = score(model, forget)
        perplexity = scoring.perplexity(score(model, unseen), unseen) if validation else None
        task = records.Task(forget, before, PAPER, unseen, unseen if validation else None, perplexity)
        return model, task

    return build


def run(model, task, stage=None, goal=None, budget=None, training=None, **rest):
    stage = stage or methods.sga(0.5)[0]
    goal = goal or stopping.Goal(mean_below=0.1)
    training = training or Training(learning_rate=5e-3, max_epochs=40, batch_size=4)
    return loop.train(model, stage, task, training, goal, budget, Accelerator(), **rest)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("method", [methods.sga(0.5)[0], methods.ga()[0], methods.sga(0.5, retain_weight=1.0)[0]])
def test_every_method_forgets_and_trains_every_tensor(problem, quantization, method):
    model, task = problem(quantization)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    outcome = run(model, task, method)
    assert outcome.goal_reached and outcome.kept_epoch == outcome.log[-1]["epoch"] > 0
    after = score(model, task.forget)
    assert task.before["extractable"].sum() > 0 == after["extractable"].sum()
    assert after["memorization_accuracy"].mean() < 0.1
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(parameter, before[name]), f"{name} was not trained"


def test_the_log_tells_the_run(problem):
    model, task = problem()
    seen = []
    outcome = run(model, task, on_epoch=seen.append)
    assert seen == outcome.log and [line["epoch"] for line in outcome.log] == list(range(len(outcome.log)))
    assert outcome.log[0]["n_selected"] is None and outcome.log[0]["extractable"] == task.before["extractable"].sum()
    for earlier, later in zip(outcome.log, outcome.log[1:]):
        assert 1 <= later["n_selected"] <= len(task.forget)
        assert later["loss"].keys() == {"forget"} and later["gradient_norm"] > 0 and later["seconds"] > 0
        assert earlier["validation_perplexity"] > 0
    selected = [line["n_selected"] for line in outcome.log[1:]]
    expected = int((task.before["memorization_accuracy"] >= 0.5).sum())
    assert selected[0] == expected and outcome.sequences_ascended == sum(selected)


def test_selection_shrinks_to_the_most_memorized_one(problem):
    model, task = problem()
    outcome = run(model, task, methods.sga(0.5)[0], goal=stopping.Goal(mean_below=0.03))
    assert outcome.log[-1]["n_selected"] == 1


def test_base_comes_back_bit_for_bit(problem):
    model, task = problem("nf4")
    ids = torch.tensor([random_rows(0)[0]])
    with torch.no_grad(), models.active(model, []):
        before = model(input_ids=ids).logits
    run(model, task)
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, before)
        with models.active(model, []):
            assert torch.equal(model(input_ids=ids).logits, before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


def test_past_its_budget_the_best_epoch_is_kept(problem):
    model, task = problem()
    outcome = run(model, task, methods.ga()[0], stopping.Goal(mean_below=0.0), budget=0.05)
    assert "past its budget" in outcome.stopped_because and not outcome.goal_reached
    assert f"The adapter of epoch {outcome.kept_epoch} was kept" in outcome.stopped_because
    allowed = [line for line in outcome.log if stopping.within(0.05, line, outcome.log[0])]
    assert outcome.log[-1] not in allowed
    best = min(allowed, key=stopping.merit)
    assert best["epoch"] == outcome.kept_epoch
    now = score(model, task.forget)["memorization_accuracy"].mean()
    assert now == pytest.approx(best["memorization_accuracy_mean"])


def test_a_run_that_explodes_keeps_what_it_had(problem):
    model, task = problem()
    training = Training(learning_rate=1e30, max_epochs=5, optimizer="sgd")
    outcome = run(model, task, methods.ga()[0], training=training)
    assert "not finite" in outcome.stopped_because and outcome.kept_epoch == 0
    pd.testing.assert_frame_equal(score(model, task.forget), task.before)


def test_a_run_stops_on_extraction_likelihood(problem):
    model, task = problem()
    goal = stopping.Goal(mean_below=0.4, extraction_likelihood_below=0.01)
    outcome = run(model, task, methods.ga()[0], goal)
    assert outcome.goal_reached
    measured = [line for line in outcome.log if "extraction_likelihood_mean" in line]
    assert all(line["memorization_accuracy_mean"] < 0.4 for line in measured)
    assert measured[-1] is outcome.log[-1] and measured[-1]["extraction_likelihood_mean"] < 0.01
    now = score(model, task.forget, ["extraction_likelihood"])["extraction_likelihood"].mean()
    assert now == pytest.approx(measured[-1]["extraction_likelihood_mean"], abs=1e-9)


def test_epochs_run_out(problem):
    model, task = problem(validation=False)
    outcome = run(model, task, training=Training(learning_rate=1e-5, max_epochs=2))
    assert outcome.stopped_because.startswith("2 epochs passed") and outcome.log[-1]["validation_perplexity"] is None


def test_not_early_all_epochs_are_trained_and_the_best_of_those_where_the_goal_holds_is_kept(problem):
    """Though the epochs before it would have fewer outliers: ascent goes on to avoid what it was to forget."""
    model, task = problem()
    goal = stopping.Goal(mean_below=0.2)
    training = Training(learning_rate=5e-3, max_epochs=16, batch_size=5)
    outcome = run(model, task, methods.ga()[0], goal, training=training, early=False)
    assert len(outcome.log) == 17 and outcome.goal_reached
    assert outcome.stopped_because.startswith("16 epochs passed, all were to be trained. The adapter of epoch")
    held = [line for line in outcome.log if stopping.reached(goal, line)]
    best = min(held, key=stopping.merit)
    assert stopping.merit(min(outcome.log, key=stopping.merit)) < stopping.merit(best), "one that it does not hold in"
    assert outcome.kept_epoch == best["epoch"] and len(held) > 3
    now = score(model, task.forget)
    assert now["memorization_accuracy"].mean() == pytest.approx(best["memorization_accuracy_mean"], abs=1e-6)
    assert now["loss"].tolist() == pytest.approx(outcome.scored["loss"].tolist(), rel=1e-4)
    model, task = problem()
    assert run(model, task, methods.ga()[0], goal, training=training).kept_epoch == held[0]["epoch"]


def test_not_early_and_never_reached(problem):
    model, task = problem()
    training = Training(learning_rate=5e-3, max_epochs=12, batch_size=5)
    outcome = run(model, task, methods.ga()[0], stopping.Goal(mean_below=0.0), training=training, early=False)
    assert len(outcome.log) == 13 and not outcome.goal_reached
    assert outcome.kept_epoch == min(outcome.log, key=stopping.merit)["epoch"] < 12
    assert outcome.stopped_because.startswith("12 epochs passed before the stop rule held.")


def test_not_early_and_held_for_a_while_only(problem, monkeypatch):
    """Epochs in which the goal no longer holds are not kept, though they have fewer outliers."""
    model, task = problem()
    monkeypatch.setattr(stopping, "reached", lambda goal, record: record["epoch"] in (2, 3))
    training = Training(learning_rate=5e-3, max_epochs=8, batch_size=5)
    outcome = run(model, task, methods.ga()[0], training=training, early=False)
    assert len(outcome.log) == 9 and outcome.goal_reached
    assert outcome.kept_epoch == min(outcome.log[2:4], key=stopping.merit)["epoch"]
    assert min(outcome.log, key=stopping.merit)["epoch"] > 3


def test_not_early_keeps_to_the_budget(problem):
    """An epoch past it is not kept, whether the goal holds in it or not."""
    model, task = problem()
    training = Training(learning_rate=5e-3, max_epochs=12, batch_size=5)
    goal = stopping.Goal(mean_below=0.5)
    unbound = run(model, task, methods.ga()[0], goal, training=training, early=False)
    increases = [line["validation_perplexity"] / unbound.log[0]["validation_perplexity"] - 1 for line in unbound.log]
    held = [i for i, line in enumerate(unbound.log) if stopping.reached(goal, line)]
    budget = sorted(increases[i] for i in held)[len(held) // 2] + 1e-6
    model, task = problem()
    outcome = run(model, task, methods.ga()[0], goal, budget, training=training, early=False, patience=99)
    within = [i for i in held if increases[i] <= budget]
    assert 0 < len(within) < len(held) and len(outcome.log) == 13 and outcome.goal_reached
    assert outcome.kept_epoch == min(within, key=lambda i: stopping.merit(outcome.log[i]))


@given(st.floats(0, 1), st.integers(1, 60))
def test_the_learning_rate_falls_in_a_line_and_never_to_nothing(decay, epochs):
    training = Training(learning_rate_decay=decay, max_epochs=epochs)
    shares = [loop.remaining(epoch, training) for epoch in range(epochs)]
    assert shares == sorted(shares, reverse=True) and 0 < shares[-1] <= shares[0] == 1
    falling = decay * epochs
    for epoch, share in enumerate(shares):
        if epoch <= epochs - falling:
            assert share == pytest.approx(1.0)
        else:
            assert share == pytest.approx((epochs - epoch) / falling)


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_each_epoch_steps_with_what_remains_of_the_learning_rate(problem, monkeypatch, optimizer, kind):
    """Of the stage's own, where it has one; and a second stage starts from the whole again."""
    step, seen = kind.step, []
    monkeypatch.setattr(
        kind, "step", lambda self, *a, **k: (seen.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1]
    )
    model, task = problem()
    training = Training(learning_rate=1e-4, learning_rate_decay=0.5, max_epochs=4, optimizer=optimizer, batch_size=5)
    training = dataclasses.replace(training, sequences_per_step=5)
    first = run(model, task, methods.ga()[0], training=training)
    assert seen == pytest.approx([1e-4] * 6 + [0.5e-4] * 2), "two steps an epoch"
    seen.clear()
    run(model, task, dataclasses.replace(methods.ga()[0], learning_rate=1e-3), training=training, start=first)
    assert seen == pytest.approx([1e-3] * 6 + [0.5e-3] * 2)


def test_a_falling_learning_rate_is_another_run(problem):
    def weights(decay):
        model, task = problem()
        training = Training(learning_rate=1e-3, learning_rate_decay=decay, max_epochs=3)
        outcome = run(model, task, methods.ga()[0], training=training)
        assert outcome.kept_epoch == 3
        return torch.cat([parameter.detach().flatten() for parameter in trainable(model)])

    steady, late, always = weights(0.0), weights(0.5), weights(1.0)
    assert 0 < float((steady - late).norm()) < float((steady - always).norm())


def test_nothing_to_forget(problem):
    model, task = problem()
    outcome = run(model, task, goal=stopping.Goal(mean_below=1.0))
    assert outcome.goal_reached and len(outcome.log) == 1 and "before training" in outcome.stopped_because


def test_several_steps_an_epoch(problem):
    model, task = problem()
    steps = []
    optimizer_step = torch.optim.AdamW.step
    torch.optim.AdamW.step = lambda self, *a, **k: (steps.append(1), optimizer_step(self, *a, **k))[1]
    try:
        run(model, task, methods.ga()[0], training=Training(max_epochs=2, sequences_per_step=4))
    finally:
        torch.optim.AdamW.step = optimizer_step
    assert len(steps) == 2 * math.ceil(len(task.forget) / 4)


def test_a_seed_is_a_run(problem):
    def weights(seed):
        model, task = problem()
        run(model, task, methods.sga(0.5, None, 1.0, 4)[0], training=Training(max_epochs=3), seed=seed)
        return torch.cat([parameter.detach().flatten() for parameter in trainable(model)])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
