"""The learning-rate search: its rule, its trials and how they are undone, and the run that follows."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch
from helpers import tiny_run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from adapter_unlearn import RecipeError, load_recipe, models, recipe, unlearn
from adapter_unlearn.recipe import Training
from adapter_unlearn.reporting import facts
from adapter_unlearn.unlearning import learning_rate_search, loop, methods, records, stages, stopping, targets
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.losses import function_of

BASE = {"validation_perplexity": 10.0}
AUTO = Training(learning_rate="auto", max_epochs=3, batch_size=5)


# --- the rule ---


def lookup(values: dict[float, tuple[float, float | None]]):
    """A measure that looks up (objective, perplexity), and the rates that it measured."""
    tried = []

    def measure(rate):
        tried.append(rate)
        objective, perplexity = values[rate]
        return {"objective": objective, "validation_perplexity": perplexity, "seconds": 0.0}

    return measure, tried


def test_the_lowest_objective_wins_whatever_the_perplexity():
    measure, tried = lookup({0: (5, 10), 1e-3: (4, 10), 3e-3: (2, 20), 1e-2: (3, 90)})
    rate, rows = learning_rate_search.search(measure, BASE, 0.05, True, [1e-2, 1e-3, 3e-3])
    assert rate == 3e-3 and tried == [0.0, 3e-3, 1e-2, 1e-3] == [row["learning_rate"] for row in rows]
    assert [row["usable"] for row in rows] == [False, True, True, True]
    assert [row["taken"] for row in rows] == [False, True, False, False]


def test_where_larger_rates_are_better_no_smaller_one_is_tried():
    measure, tried = lookup({0: (5, 10), 1e-3: (4, 10), 3e-3: (3, 20), 1e-2: (2, 90)})
    assert learning_rate_search.search(measure, BASE, None, True, [1e-4, 3e-4, 1e-3, 3e-3, 1e-2])[0] == 1e-2
    assert tried == [0.0, 1e-3, 3e-3, 1e-2]


def test_an_ascent_that_keeps_its_budget_at_every_rate_or_at_the_smallest_only():
    rates = [1e-4, 1e-3, 1e-2]
    measure, tried = lookup({0: (-1, 10)} | dict.fromkeys(rates, (-2, 10)))
    assert learning_rate_search.search(measure, BASE, 0.05, False, rates)[0] == 1e-3
    assert 1e-4 not in tried
    measure, _ = lookup({0: (-1, 10), 1e-4: (-2, 10), 1e-3: (-2, 11)})
    assert learning_rate_search.search(measure, BASE, 0.05, False, rates)[0] == 1e-4


def test_of_equal_objectives_the_smallest_rate_wins():
    measure, _ = lookup({0: (5, None), 1e-3: (2, None), 3e-3: (2, None), 1e-2: (2, None)})
    assert learning_rate_search.search(measure, BASE, None, True, [1e-3, 3e-3, 1e-2])[0] == 1e-3


def test_an_ascent_takes_the_second_largest_rate_within_the_budget():
    measure, tried = lookup({0: (-1, 10), 1e-4: (-2, 10.4), 1e-3: (-9, 10.5), 1e-2: (-90, 10.6), 1e-1: (-1, 10)})
    rate, rows = learning_rate_search.search(measure, BASE, 0.05, False, [1e-4, 1e-3, 1e-2, 1e-1])
    assert rate == 1e-4 and tried == [0.0, 1e-2, 1e-3, 1e-4], "the middle one is past the budget"
    assert [(row["usable"], row["taken"]) for row in rows] == [
        (False, False),
        (False, False),
        (True, False),
        (True, True),
    ]
    assert "+6.0%" in rows[1]["because"] and "+5.0%" in rows[1]["because"]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("by_objective", [True, False])
def test_after_a_rate_that_is_not_finite_no_larger_one_is_tried(broken, by_objective):
    measure, tried = lookup({0: (5, 10), 1e-4: (4, 10), 1e-3: (broken, 10), 1e-2: (1, 10)})
    rate, rows = learning_rate_search.search(measure, BASE, 0.05, by_objective, [1e-4, 1e-3, 1e-2])
    assert rate == 1e-4 and tried == [0.0, 1e-3, 1e-4] and "not finite" in rows[1]["because"]


def test_an_objective_that_rose_is_not_usable():
    measure, tried = lookup({0: (1.0, 10), 1e-4: (1.1, 10), 1e-3: (0.9, 10), 3e-3: (2.1, 10), 1e-2: (0.1, 10)})
    rate, rows = learning_rate_search.search(measure, BASE, None, True, [1e-4, 1e-3, 3e-3, 1e-2])
    assert rate == 1e-3 and tried == [0.0, 3e-3, 1e-3, 1e-4]
    assert [row["usable"] for row in rows] == [False, False, True, False]


@pytest.mark.parametrize(("by_objective", "perplexity"), [(True, 10), (False, 11)])
def test_where_none_is_usable_the_smallest_is_taken(by_objective, perplexity):
    measure, _ = lookup({0: (1, 10), 1e-4: (3, perplexity), 1e-3: (3, perplexity)})
    rate, rows = learning_rate_search.search(measure, BASE, 0.05, by_objective, [1e-4, 1e-3])
    assert rate == 1e-4 and len(rows) == 3 and not any(row["usable"] for row in rows)
    assert "0.0001, the smallest," in learning_rate_search.describe(rate, rows)


@pytest.mark.parametrize("rates", [[], [0.0], [1e-3, -1e-3], [math.nan], [math.inf]])
def test_rates_that_are_none(rates):
    with pytest.raises(RecipeError, match="above 0"):
        learning_rate_search.search(lambda rate: pytest.fail("nothing may be measured"), BASE, None, True, rates)


NUMBERS = st.sampled_from([0.5, 0.6, 0.7, 0.8, 2.0, math.nan])


def is_usable(figures, by_objective):
    objective, perplexity = figures
    return objective < 1.0 if by_objective else not math.isnan(objective) and perplexity <= 10.5


@given(st.lists(st.tuples(NUMBERS, st.sampled_from([9.0, 10.5, 10.6])), min_size=1, max_size=6), st.booleans())
def test_no_neighbour_of_the_rate_is_better(figures, by_objective):
    rates = [10.0**i for i in range(len(figures))]
    measure, tried = lookup({0: (1.0, 10.0)} | dict(zip(rates, figures)))
    rate, _ = learning_rate_search.search(measure, BASE, 0.05, by_objective, rates)
    assert len(set(tried)) == len(tried), "each rate once"
    i = rates.index(rate)
    usable = [is_usable(pair, by_objective) for pair in figures]
    assert usable[i] or i == 0
    if by_objective and usable[i]:
        neighbours = [figures[k][0] for k in (i - 1, i + 1) if 0 <= k < len(rates) and usable[k]]
        assert all(figures[i][0] <= value for value in neighbours)


@given(st.integers(0, 5), st.integers(1, 6), st.booleans())
def test_the_rule_where_the_objective_has_one_minimum_and_the_perplexity_grows(best, length, by_objective):
    """Against the definition: the lowest of all, and the second largest of all within the budget."""
    rates = [10.0**i for i in range(length)]
    figures = {rate: (0.1 * abs(i - best), 10.45 + 0.1 * (i - best)) for i, rate in enumerate(rates)}
    measure, _ = lookup({0: (1.0, 10.0)} | figures)
    rate, _ = learning_rate_search.search(measure, BASE, 0.05, by_objective, rates)
    within = [r for r in rates if figures[r][1] <= 10.5]
    assert rate == (min(rates, key=lambda r: figures[r][0]) if by_objective else within[-2:][0])


def one_stage(name, **options):
    return methods.stages({"name": name} | options)[0]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (one_stage("match"), True),
        (one_stage("match", retain_loss="nll"), False),
        (one_stage("match", retain_weight=0.0), False),
        (one_stage("undial"), False),
        (one_stage("undial", retain_weight=1.0), False),
        (one_stage("undial", retain_weight=1.0, retain_loss="kl"), True),
        (one_stage("npo", retain_weight=1.0, retain_loss="kl"), False),
        (one_stage("me", retain_weight=1.0, retain_loss="kl"), False),
        (one_stage("control"), False),
        (one_stage("sga", retain_weight=9.0, retain_loss="kl"), False),
        (one_stage("band"), False),
        (one_stage("wga", retain_weight=9.0, retain_loss="kl"), False),
        (one_stage("ta"), False),
        (one_stage("tau"), False),
    ],
)
def test_the_objective_ranks_rates_where_a_usable_model_minimizes_it(stage, expected):
    assert stage.ranks_rates is expected


# --- measuring ---


@pytest.fixture
def trials(context):
    def build(model, task, stage, training=AUTO, **rest):
        return learning_rate_search.trials(model, stage, context(task, training), **rest)

    return build


def state(model):
    """Everything that a trial could change."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: p.grad is None for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "active": list(model.active_adapters),
        "random": torch.get_rng_state(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        if key == "tensors":
            assert all(torch.equal(tensor, other[key][name]) for name, tensor in one[key].items())
        else:
            assert torch.equal(one[key], other[key]) if key == "random" else one[key] == other[key], key


@pytest.mark.parametrize("stage", [one_stage("match"), one_stage("sga", threshold=0.5), one_stage("ta")])
def test_a_trial_is_undone(problem, trials, stage, monkeypatch):
    monkeypatch.setattr(learning_rate_search, "STEPS", 3)
    model, task = problem(dropout=0.1)
    model.train()
    next(model.modules()).training = False  # a mix of modes, as a model may have
    before = state(model)
    measure = trials(model, task, stage)
    first = measure(1e-2)
    assert_same(before, state(model))
    measure(1e30)
    assert_same(before, state(model))
    assert {**measure(1e-2), "seconds": 0} == {**first, "seconds": 0}, "every rate starts from the same state"
    assert first["objective"] != measure(0.0)["objective"] and first["steps"] == learning_rate_search.STEPS


def test_a_trial_steps_as_training_does(problem, trials, context, monkeypatch):
    """With as many rows as a step has, a trial measures the state in which training would be after as many steps."""
    model, task = problem()
    stage = one_stage("graddiff", retain_sequences=3)
    few = trials(model, task, stage)(1e-2)
    monkeypatch.setattr(learning_rate_search, "ROWS", len(task.forget))
    whole = trials(model, task, stage)(1e-2)
    epochs = learning_rate_search.STEPS  # one step an epoch
    training = Training(learning_rate=1e-2, max_epochs=epochs, batch_size=5)
    outcome = loop.train(model, stage, context(task, training))
    assert outcome.log[-1]["epoch"] == epochs
    assert whole["validation_perplexity"] == pytest.approx(outcome.log[-1]["validation_perplexity"], rel=1e-6)
    assert few["steps"] == whole["steps"] == epochs
    assert few["validation_perplexity"] != whole["validation_perplexity"]


def test_the_rows_of_a_trial(problem, trials, monkeypatch):
    """At most ROWS of each set in a step, from the first selection."""
    monkeypatch.setattr(learning_rate_search, "ROWS", 2)
    model, task = problem()
    batches = []
    take_step = learning_rate_search.take_step
    monkeypatch.setattr(learning_rate_search, "take_step", lambda *args: batches.append(args[2]) or take_step(*args))
    trials(model, task, one_stage("sga", threshold=0.5, retain_weight=1.0, retain_sequences=3))(1e-3)
    assert len(batches) == learning_rate_search.STEPS
    selected = set(np.flatnonzero(task.before["memorization_accuracy"] >= 0.5))
    for (forget, rows), (retain, others) in batches:
        assert (forget.term.rows, retain.term.rows) == ("forget", "retain")
        assert 1 <= len(rows) <= 2 and set(rows) <= selected and len(others) == 2


def test_the_objective_is_that_of_the_terms(problem, trials, monkeypatch):
    """Against the losses' own definition, on all rows. Without dropout."""
    monkeypatch.setattr(learning_rate_search, "JUDGED", 100)
    model, task = problem(dropout=0.5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    stage = one_stage("undial", retain_weight=3.0)
    record = trials(model, task, stage)(0.0)
    model.eval()
    total = {}
    for term, rows in zip(stage.terms, (task.forget, task.retain)):
        values = []
        for row in rows:
            ids, start = torch.tensor([row["input_ids"]]), max(row["scored_from"], 1)
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, start - 1 : -1]
                with models.active(model, []):
                    base = model(input_ids=ids).logits[0, start - 1 : -1]
            loss = LOSSES[term.loss]
            others = [base] if loss.reference else []
            values += function_of(term.loss, term.options)(logits, ids[0, start:], *others).tolist()
        total[term.name] = np.mean(values)
    assert record["loss"] == pytest.approx(total, rel=1e-5) and record["steps"] == 0
    assert record["objective"] == pytest.approx(total["forget"] + 3.0 * total["retain"], rel=1e-5)


def test_dual_weights_are_typical_ones_in_a_trial(problem, trials, monkeypatch):
    """In the objective and in the steps; in a run itself they start at 1."""
    monkeypatch.setattr(learning_rate_search, "STEPS", 3)
    model, task = problem()
    training = dataclasses.replace(AUTO, optimizer="sgd")  # Adam's first steps do not depend on a gradient's size

    def losses(weight):
        monkeypatch.setattr(targets, "TYPICAL_WEIGHT", weight)
        measure = trials(model, task, one_stage("match", retain_weight=1e-9), training)
        return measure(0.0)["loss"]["forget"], measure(1e-3)["loss"]["forget"] / weight

    typical, (once, gently), (thrice, harder) = targets.TYPICAL_WEIGHT, losses(1.0), losses(3.0)
    assert typical > 1 and thrice == pytest.approx(3 * once, rel=1e-6)
    assert harder < gently < once


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_that_explodes_is_a_row(problem, trials, optimizer, monkeypatch):
    monkeypatch.setattr(learning_rate_search, "STEPS", 3)
    model, task = problem()
    measure = trials(model, task, one_stage("match"), dataclasses.replace(AUTO, optimizer=optimizer))
    rate, rows = learning_rate_search.search(measure, records.base_outcome(task).log[0], None, True, [1e-3, 1e30, 1e31])
    assert rate == 1e-3 and [row["learning_rate"] for row in rows] == [0.0, 1e30, 1e-3]
    assert not rows[1]["usable"] and "not finite" in rows[1]["because"]


def test_a_trial_caches_the_reference_s_states_for_itself(problem, trials, context, monkeypatch):
    """Training starts with an empty cache: a state's last bits depend on the batch in which it was computed."""
    monkeypatch.setattr(learning_rate_search, "STEPS", 2)
    model, task = problem()
    references = []
    build = loop.Reference
    monkeypatch.setattr(loop, "Reference", lambda *args: references.append(build(*args)) or references[-1])
    trials(model, task, one_stage("match"))(1e-3)
    of_trials = list(references)
    assert any(reference.cache for reference in of_trials)
    training = dataclasses.replace(AUTO, learning_rate=1e-3)
    loop.train(model, one_stage("match"), context(task, training))
    assert len(references) == 2 * len(of_trials)


# --- a run ---


def tensors(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize(
    ("method", "training"),
    [
        ({"name": "match", "retain_sequences": 4}, {"sequences_per_step": 4, "learning_rate_decay": 0.5}),
        ({"name": "tau", "threshold": 0.5, "ascent_mean_below": 0.45, "retain_weight": 1.0, "retain_sequences": 3}, {}),
    ],
)
def test_a_run_that_searched_its_rates_is_the_run_with_those_rates(
    problem, context, tmp_path, monkeypatch, method, training
):
    monkeypatch.setattr(learning_rate_search, "STEPS", 2)
    auto = dataclasses.replace(AUTO, max_epochs=3, **training)
    plan = methods.stages(method)

    def run(plan, training, name):
        model, task = problem(dropout=0.1)
        (tmp_path / name).mkdir()
        settings = context(task, training, stopping.Goal(mean_below=0.02), 0.3, patience=9, early=False)
        return stages.run(model, plan, settings, tmp_path / name), tensors(model)

    chosen, one = run(plan, auto, "auto")
    rates = [part["learning_rate"] for part in chosen.parts]
    assert all(part["learning_rate_searched"] for part in chosen.parts) and set(rates) <= set(learning_rate_search.GRID)
    assert [row["stage"] for row in chosen.rates if not row["learning_rate"]] == [stage.name for stage in plan]
    fixed = [dataclasses.replace(stage, learning_rate=rate) for stage, rate in zip(plan, rates)]
    repeated, other = run(fixed, dataclasses.replace(auto, learning_rate=7.0), "fixed")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert any(tensor.abs().max() > 0 for name, tensor in one.items() if "lora_B" in name)
    assert not repeated.rates and [part["learning_rate"] for part in repeated.parts] == rates
    assert not any(part["learning_rate_searched"] for part in repeated.parts)
    for ours, theirs in zip(chosen.outcome.log, repeated.outcome.log):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_a_stage_with_a_rate_of_its_own_is_not_searched(problem, context, tmp_path, monkeypatch):
    monkeypatch.setattr(learning_rate_search, "STEPS", 2)
    method = {"name": "tau", "threshold": 0.5, "ascent_mean_below": 0.4, "fit_learning_rate": 2e-3}
    model, task = problem()
    settings = context(task, AUTO, stopping.Goal(mean_below=0.02), 0.3)
    trained = stages.run(model, methods.stages(method), settings, tmp_path)
    assert {row["stage"] for row in trained.rates} == {"ascend"}
    assert trained.parts[1]["learning_rate"] == 2e-3 and not trained.parts[1]["learning_rate_searched"]
    line = facts.learning_rates({"stages": trained.parts})
    assert line.startswith(f"{trained.parts[0]['learning_rate']:g}") and line.endswith("0.002")


def test_where_the_goal_holds_before_training_nothing_is_searched(problem, context, tmp_path):
    model, task = problem()
    settings = context(task, AUTO, stopping.Goal(mean_below=1.0))
    trained = stages.run(model, (one_stage("match"),), settings, tmp_path)
    assert "before training" in trained.outcome.stopped_because and not trained.rates
    assert trained.parts[0]["learning_rate"] is None and not trained.parts[0]["learning_rate_searched"]
    assert facts.learning_rates({"stages": trained.parts}) == ""


@pytest.fixture
def settings(memorizers, tmp_path):
    def build(folder, method, **training):
        run = tiny_run(
            memorizers("llama"), tmp_path, folder, method, **{"learning_rate": "auto", "max_epochs": 3} | training
        )
        return run | {"stop": {"mean_below": 0.02, "max_perplexity_increase": 0.2, "patience": 9}}

    return build


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


UNDIAL = {"name": "undial", "retain_loss": "kl", "retain_weight": 2.0, "retain_sequences": 2}


@pytest.mark.usefixtures("without_figures")
def test_the_run_folder_says_which_rate_was_taken_and_how(settings, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(learning_rate_search, "STEPS", 3)
    with caplog.at_level("INFO", logger="adapter_unlearn"):
        folder = unlearn(settings("auto", UNDIAL))
    (stage,) = json.loads((folder / "unlearning.json").read_text())["stages"]
    rows = lines(folder, "learning_rate_search.jsonl")
    usable = [row for row in rows if row["usable"]]
    best = min(usable, key=lambda row: row["objective"])
    assert stage["learning_rate"] == best["learning_rate"] and stage["learning_rate_searched"] is True
    assert rows[0]["learning_rate"] == 0 and all(row["because"] for row in rows if not row["usable"])
    assert load_recipe(folder / "recipe.yaml").training.learning_rate == "auto"
    messages = [record.getMessage() for record in caplog.records if "Learning rate" in record.getMessage()]
    assert len(messages) == 1 and f" {best['learning_rate']:g} " in messages[0]
    for page in ("report.html", "README.md"):
        assert facts.learning_rates({"stages": [stage]}) in (folder / page).read_text(), page
    other = unlearn(settings("given", UNDIAL, learning_rate=best["learning_rate"]))
    one, two = (load_file(place / "adapter_model.safetensors") for place in (folder, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (other / "learning_rate_search.jsonl").exists()
    assert f"{best['learning_rate']:g}</" in (other / "report.html").read_text()
    assert facts.learning_rates({"stages": [stage]}) not in (other / "report.html").read_text()


# --- what is refused ---


@pytest.mark.parametrize(
    ("method", "gone", "named"),
    [
        ({"name": "sga"}, "validation", "data.validation, or a number"),
        ({"name": "sga"}, "budget", "stop.max_perplexity_increase, or a number"),
        ({"name": "npo"}, "both", "data.validation and stop.max_perplexity_increase"),
        ({"name": "ta"}, "validation", "data.validation"),
        ({"name": "tau", "fit_learning_rate": 1e-3}, "validation", "data.validation"),
    ],
)
def test_an_ascent_without_a_perplexity_budget_is_refused(settings, method, gone, named):
    run = settings("refused", method)
    if gone in ("validation", "both"):
        del run["data"]["validation"]
    if gone in ("budget", "both"):
        run["stop"]["max_perplexity_increase"] = None
    with pytest.raises(RecipeError, match=r"training\.learning_rate: auto") as caught:
        methods.check_sets(recipe.from_mapping(run))
    assert named in str(caught.value) and "\n" not in str(caught.value)
    run["training"]["learning_rate"] = 1e-3
    methods.check_sets(recipe.from_mapping(run))


def test_an_objective_that_ranks_rates_needs_no_validation_set(settings):
    run = settings("allowed", UNDIAL)
    del run["data"]["validation"]
    methods.check_sets(recipe.from_mapping(run))


def test_auto_is_the_only_word(tmp_path):
    path = tmp_path / "recipe.yaml"
    plain = "model: {name: m}\ndata: {forget: f.jsonl}\nmethod: {name: sga}\n"
    path.write_text(plain + "training: {learning_rate: auto}\n")
    assert load_recipe(path).training.learning_rate == "auto"
    assert load_recipe(path, ["--training.learning_rate", "2e-4"]).training.learning_rate == 2e-4
    given = ["--training.learning_rate", "auto"]
    path.write_text(plain)
    assert load_recipe(path, given).training.learning_rate == "auto"
    for wrong in ("soon", "-1", "0", "inf"):
        with pytest.raises(RecipeError, match=r"training\.learning_rate") as caught:
            load_recipe(path, ["--training.learning_rate", wrong])
        assert "\n" not in str(caught.value)
