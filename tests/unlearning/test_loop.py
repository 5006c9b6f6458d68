"""The training loop, on models that memorized: what it logs, when it stops, and which epoch it keeps."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
import torch
from helpers import random_rows
from hypothesis import given
from hypothesis import strategies as st

from adapter_unlearn import models, score
from adapter_unlearn.recipe import Training
from adapter_unlearn.unlearning import loop, stopping
from adapter_unlearn.unlearning.step import trainable


@pytest.fixture
def run(context, stage):
    def train(model, task, plan=None, goal=None, budget=None, training=None, start=None, **settings):
        training = training or Training(learning_rate=5e-3, max_epochs=40, batch_size=4)
        settings = context(task, training, goal or stopping.Goal(mean_below=0.1), budget, **settings)
        return loop.train(model, plan or stage("sga", threshold=0.5), settings, start=start)

    return train


@pytest.mark.parametrize(
    ("quantization", "name", "options"),
    [
        pytest.param("none", "sga", {"threshold": 0.5}, id="sga"),
        pytest.param("nf4", "ga", {}, id="ga-nf4"),
        pytest.param("nf4", "sga", {"threshold": 0.5, "retain_weight": 1.0}, id="sga-retain-nf4"),
        pytest.param("int8", "sga", {"threshold": 0.5, "retain_weight": 1.0}, id="sga-retain-int8"),
    ],
)
def test_ascent_forgets_and_trains_every_tensor(problem, run, stage, quantization, name, options):
    model, task = problem(quantization)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    outcome = run(model, task, stage(name, **options))
    assert outcome.goal_reached and outcome.kept_epoch == outcome.log[-1]["epoch"] > 0
    after = score(model, task.forget)
    assert task.before["extractable"].sum() > 0 == after["extractable"].sum()
    assert after["memorization_accuracy"].mean() < 0.1
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(parameter, before[name]), f"{name} was not trained"


def test_the_log_tells_the_run(problem, run):
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


def test_selection_shrinks_to_the_most_memorized_one(problem, run, stage):
    model, task = problem()
    outcome = run(model, task, stage("sga", threshold=0.5), goal=stopping.Goal(mean_below=0.03))
    assert outcome.log[-1]["n_selected"] == 1


def test_base_comes_back_bit_for_bit(problem, run):
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


def test_past_its_budget_the_best_epoch_is_kept(problem, run, stage):
    model, task = problem()
    outcome = run(model, task, stage("ga"), stopping.Goal(mean_below=0.0), budget=0.05)
    assert "budget" in outcome.stopped_because and not outcome.goal_reached
    assert f"epoch {outcome.kept_epoch} " in outcome.stopped_because
    allowed = [line for line in outcome.log if stopping.within(0.05, line, outcome.log[0])]
    assert outcome.log[-1] not in allowed
    best = min(allowed, key=stopping.merit)
    assert best["epoch"] == outcome.kept_epoch
    now = score(model, task.forget)["memorization_accuracy"].mean()
    assert now == pytest.approx(best["memorization_accuracy_mean"])


def test_a_run_that_explodes_keeps_what_it_had(problem, run, stage):
    model, task = problem()
    training = Training(learning_rate=1e30, max_epochs=5, optimizer="sgd")
    outcome = run(model, task, stage("ga"), training=training)
    assert "not finite" in outcome.stopped_because and outcome.kept_epoch == 0
    pd.testing.assert_frame_equal(score(model, task.forget), task.before)


def test_a_run_stops_on_extraction_likelihood(problem, run, stage):
    model, task = problem()
    goal = stopping.Goal(mean_below=0.4, extraction_likelihood_below=0.01)
    outcome = run(model, task, stage("ga"), goal)
    assert outcome.goal_reached
    measured = [line for line in outcome.log if "extraction_likelihood_mean" in line]
    assert all(line["memorization_accuracy_mean"] < 0.4 for line in measured)
    assert measured[-1] is outcome.log[-1] and measured[-1]["extraction_likelihood_mean"] < 0.01
    now = score(model, task.forget, ["extraction_likelihood"])["extraction_likelihood"].mean()
    assert now == pytest.approx(measured[-1]["extraction_likelihood_mean"], abs=1e-9)


def test_epochs_run_out(problem, run):
    model, task = problem(validation=False)
    outcome = run(model, task, training=Training(learning_rate=1e-5, max_epochs=2))
    assert outcome.stopped_because.startswith("2 epochs passed") and outcome.log[-1]["validation_perplexity"] is None


def test_not_early_all_epochs_are_trained_and_the_best_of_those_where_the_goal_holds_is_kept(problem, run, stage):
    """Though an epoch before has fewer failing sequences: ascent goes on to avoid what it was to forget."""
    model, task = problem()
    goal = stopping.Goal(mean_below=0.2)
    training = Training(learning_rate=5e-3, max_epochs=16, batch_size=5)
    outcome = run(model, task, stage("ga"), goal, training=training, early=False)
    assert len(outcome.log) == 17 and outcome.goal_reached
    assert outcome.stopped_because.startswith("16 epochs passed, all were to be trained. The adapter of epoch")
    held = [line for line in outcome.log if stopping.reached(goal, line)]
    best = min(held, key=stopping.merit)
    assert stopping.merit(min(outcome.log, key=stopping.merit)) < stopping.merit(best), "an epoch without the goal"
    assert outcome.kept_epoch == best["epoch"] and len(held) > 3
    now = score(model, task.forget)
    assert now["memorization_accuracy"].mean() == pytest.approx(best["memorization_accuracy_mean"], abs=1e-6)
    assert now["loss"].tolist() == pytest.approx(outcome.scored["loss"].tolist(), rel=1e-4)
    model, task = problem()
    assert run(model, task, stage("ga"), goal, training=training).kept_epoch == held[0]["epoch"]


def test_not_early_and_never_reached(problem, run, stage):
    model, task = problem()
    training = Training(learning_rate=5e-3, max_epochs=12, batch_size=5)
    outcome = run(model, task, stage("ga"), stopping.Goal(mean_below=0.0), training=training, early=False)
    assert len(outcome.log) == 13 and not outcome.goal_reached
    assert outcome.kept_epoch == min(outcome.log, key=stopping.merit)["epoch"] < 12
    assert outcome.stopped_because.startswith("12 epochs passed before the stop rule held.")


def test_not_early_and_held_for_a_while_only(problem, run, stage, monkeypatch):
    """Epochs in which the goal no longer holds are not kept, though they have fewer failing sequences."""
    model, task = problem()
    monkeypatch.setattr(stopping, "reached", lambda goal, record: record["epoch"] in (2, 3))
    training = Training(learning_rate=5e-3, max_epochs=8, batch_size=5)
    outcome = run(model, task, stage("ga"), training=training, early=False)
    assert len(outcome.log) == 9 and outcome.goal_reached
    assert outcome.kept_epoch == min(outcome.log[2:4], key=stopping.merit)["epoch"]
    assert min(outcome.log, key=stopping.merit)["epoch"] > 3


def test_not_early_keeps_to_the_budget(problem, run, stage):
    """An epoch past it is not kept, whether the goal holds in it or not."""
    model, task = problem()
    training = Training(learning_rate=5e-3, max_epochs=12, batch_size=5)
    goal = stopping.Goal(mean_below=0.5)
    unbound = run(model, task, stage("ga"), goal, training=training, early=False)
    increases = [line["validation_perplexity"] / unbound.log[0]["validation_perplexity"] - 1 for line in unbound.log]
    held = [i for i, line in enumerate(unbound.log) if stopping.reached(goal, line)]
    budget = sorted(increases[i] for i in held)[len(held) // 2] + 1e-6
    model, task = problem()
    outcome = run(model, task, stage("ga"), goal, budget, training=training, early=False, patience=99)
    within = [i for i in held if increases[i] <= budget]
    assert 0 < len(within) < len(held) and len(outcome.log) == 13 and outcome.goal_reached
    assert outcome.kept_epoch == min(within, key=lambda i: stopping.merit(outcome.log[i]))


@given(st.floats(0, 1), st.integers(1, 60))
def test_the_learning_rate_falls_in_a_line_and_never_to_nothing(decay, epochs):
    training = Training(learning_rate_decay=decay, max_epochs=epochs)
    shares = [loop.decay(epoch, training) for epoch in range(epochs)]
    assert shares == sorted(shares, reverse=True) and 0 < shares[-1] <= shares[0] == 1
    falling = decay * epochs
    for epoch, share in enumerate(shares):
        if epoch <= epochs - falling:
            assert share == pytest.approx(1.0)
        else:
            assert share == pytest.approx((epochs - epoch) / falling)


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_each_epoch_steps_with_what_remains_of_the_learning_rate(problem, run, stage, monkeypatch, optimizer, kind):
    """Of the stage's own, where it has one; and a second stage starts from the whole again."""
    step, seen = kind.step, []
    monkeypatch.setattr(
        kind, "step", lambda self, *a, **k: (seen.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1]
    )
    model, task = problem()
    training = Training(learning_rate=1e-4, learning_rate_decay=0.5, max_epochs=4, optimizer=optimizer, batch_size=5)
    training = dataclasses.replace(training, sequences_per_step=5)
    first = run(model, task, stage("ga"), training=training)
    assert seen == pytest.approx([1e-4] * 6 + [0.5e-4] * 2), "two steps an epoch"
    seen.clear()
    run(model, task, dataclasses.replace(stage("ga"), learning_rate=1e-3), training=training, start=first)
    assert seen == pytest.approx([1e-3] * 6 + [0.5e-3] * 2)


def test_a_falling_learning_rate_is_another_run(problem, run, stage):
    def weights(decay):
        model, task = problem()
        training = Training(learning_rate=1e-3, learning_rate_decay=decay, max_epochs=3)
        outcome = run(model, task, stage("ga"), training=training)
        assert outcome.kept_epoch == 3
        return torch.cat([parameter.detach().flatten() for parameter in trainable(model)])

    steady, late, always = weights(0.0), weights(0.5), weights(1.0)
    assert 0 < float((steady - late).norm()) < float((steady - always).norm())


def test_nothing_to_forget(problem, run):
    model, task = problem()
    outcome = run(model, task, goal=stopping.Goal(mean_below=1.0))
    assert outcome.goal_reached and len(outcome.log) == 1 and "before training" in outcome.stopped_because


def test_several_steps_an_epoch(problem, run, stage):
    model, task = problem()
    steps = []
    optimizer_step = torch.optim.AdamW.step
    torch.optim.AdamW.step = lambda self, *a, **k: (steps.append(1), optimizer_step(self, *a, **k))[1]
    try:
        run(model, task, stage("ga"), training=Training(max_epochs=2, sequences_per_step=4))
    finally:
        torch.optim.AdamW.step = optimizer_step
    assert len(steps) == 2 * math.ceil(len(task.forget) / 4)


def test_a_seed_is_a_run(problem, run, stage):
    def weights(seed):
        model, task = problem()
        run(
            model,
            task,
            stage("sga", threshold=0.5, retain_weight=1.0, retain_sequences=4),
            training=Training(max_epochs=3),
            seed=seed,
        )
        return torch.cat([parameter.detach().flatten() for parameter in trainable(model)])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
