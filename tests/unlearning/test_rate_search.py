"""The probe of learning rates: the rule of the ladder, that nothing of it stays, and what a run makes of it."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import as_sequences, launch, random_rows
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from adapter_unlearn import RecipeError, load_base, load_recipe, models, score, scoring, unlearn
from adapter_unlearn.evaluation.criteria import PAPER
from adapter_unlearn.pipeline import unlearning_run
from adapter_unlearn.recipe import Training
from adapter_unlearn.reporting import facts
from adapter_unlearn.unlearning import loop, methods, passes, rate_search, records, stages, stopping, targets, trial
from adapter_unlearn.unlearning.losses import LOSSES

BASE = {"validation_perplexity": 10.0}
AUTO = Training(learning_rate="auto", max_epochs=3, batch_size=5)


# --- the rule ---


def ladder(values: dict[float, tuple[float, float | None]]):
    """A measure that looks up (objective, perplexity), and the rates it was asked for."""
    asked = []

    def measure(rate):
        asked.append(rate)
        objective, perplexity = values[rate]
        return {"objective": objective, "validation_perplexity": perplexity, "seconds": 0.0}

    return measure, asked


def test_the_lowest_objective_wins_whatever_the_perplexity():
    measure, asked = ladder({0: (5, 10), 1e-3: (4, 10), 3e-3: (2, 20), 1e-2: (3, 90)})
    rate, rows = rate_search.search(measure, BASE, 0.05, True, [1e-2, 1e-3, 3e-3])
    assert rate == 3e-3 and asked == [0.0, 1e-3, 3e-3, 1e-2] == [row["learning_rate"] for row in rows]
    assert [row["usable"] for row in rows] == [False, True, True, True]


def test_an_ascent_that_keeps_its_budget_at_every_rate_or_at_the_smallest_only():
    rates = [1e-4, 1e-3, 1e-2]
    measure, _ = ladder({0: (-1, 10)} | dict.fromkeys(rates, (-2, 10)))
    assert rate_search.search(measure, BASE, 0.05, False, rates)[0] == 1e-3
    measure, _ = ladder({0: (-1, 10), 1e-4: (-2, 10), 1e-3: (-2, 11)})
    assert rate_search.search(measure, BASE, 0.05, False, rates)[0] == 1e-4


def test_of_equal_objectives_the_smallest_rate_wins():
    measure, _ = ladder({0: (5, None), 1e-3: (4, None), 3e-3: (2, None), 1e-2: (2, None)})
    assert rate_search.search(measure, BASE, None, True, [1e-3, 3e-3, 1e-2])[0] == 3e-3


def test_an_ascent_takes_the_rung_below_the_largest_rate_within_the_budget():
    measure, asked = ladder({0: (-1, 10), 1e-4: (-2, 10.4), 1e-3: (-9, 10.5), 1e-2: (-90, 10.6), 1e-1: (-1, 10)})
    rate, rows = rate_search.search(measure, BASE, 0.05, False, [1e-4, 1e-3, 1e-2, 1e-1])
    assert rate == 1e-4 and asked[-1] == 1e-2, "what is past the budget ends the climb"
    assert [(row["usable"], row["taken"]) for row in rows] == [
        (False, False),
        (True, True),
        (True, False),
        (False, False),
    ]
    assert rows[-1]["because"] == "validation perplexity was +6.0%, past its budget of +5.0%"


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("by_objective", [True, False])
def test_a_rate_that_is_not_finite_ends_the_climb(broken, by_objective):
    measure, asked = ladder({0: (5, 10), 1e-4: (4, 10), 1e-3: (broken, 10), 1e-2: (1, 10)})
    rate, rows = rate_search.search(measure, BASE, 0.05, by_objective, [1e-4, 1e-3, 1e-2])
    assert rate == 1e-4 and asked[-1] == 1e-3 and "not finite" in rows[-1]["because"]


def test_an_objective_that_rose_is_not_usable_and_one_far_above_its_start_ends_the_climb():
    values = {0: (1.0, 10), 1e-4: (1.1, 10), 1e-3: (0.9, 10), 3e-3: (2.1, 10), 1e-2: (0.1, 10)}
    measure, asked = ladder(values)
    rate, rows = rate_search.search(measure, BASE, None, True, [1e-4, 1e-3, 3e-3, 1e-2])
    assert rate == 1e-3 and asked[-1] == 3e-3
    assert [row["usable"] for row in rows] == [False, False, True, False]


@pytest.mark.parametrize(("by_objective", "perplexity"), [(True, 10), (False, 11)])
def test_where_none_is_usable_the_smallest_is_taken_and_told(by_objective, perplexity):
    measure, _ = ladder({0: (1, 10), 1e-4: (3, perplexity), 1e-3: (3, perplexity)})
    rate, rows = rate_search.search(measure, BASE, 0.05, by_objective, [1e-4, 1e-3])
    assert rate == 1e-4 and len(rows) == 2 and not rows[1]["usable"]
    assert "the smallest, was taken though none was found usable" in rate_search.told(rate, rows)


@pytest.mark.parametrize("rates", [[], [0.0], [1e-3, -1e-3], [math.nan], [math.inf]])
def test_rates_that_are_none(rates):
    with pytest.raises(RecipeError, match="above 0"):
        rate_search.search(lambda rate: pytest.fail("nothing may be measured"), BASE, None, True, rates)


NUMBERS = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, math.nan])


@given(st.lists(st.tuples(NUMBERS, st.sampled_from([9.0, 10.5, 10.6])), min_size=1, max_size=6), st.booleans())
def test_the_rule_is_what_it_says(found, by_objective):
    """Against the definition, on every row at once instead of rung by rung."""
    rates = [10.0**i for i in range(len(found))]
    measure, asked = ladder({0: (1.0, 10.0)} | dict(zip(rates, found)))
    rate, _ = rate_search.search(measure, BASE, 0.05, by_objective, rates)
    broken = [not o <= 2.0 if by_objective else math.isnan(o) or p > 10.5 for o, p in found]
    reached = broken.index(True) if any(broken) else len(found)
    good = [(o, r) for r, (o, _) in zip(rates[:reached], found) if not by_objective or o < 1.0]
    expected = rates[0] if not good else min(good)[1] if by_objective else good[-2:][0][1]
    assert rate == expected and asked == [0.0, *rates[: reached + 1]]


def one_stage(name, **options):
    return methods.stages(methods.resolve({"name": name} | options))[0]


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
def test_what_decides(stage, expected):
    assert rate_search.by_objective(stage) is expected


# --- measuring ---


@pytest.fixture
def problem(memorizers):
    def build(validation=True, quantization="none", **options):
        torch.manual_seed(0)
        base = load_base(str(memorizers("llama")), quantization, "float32")
        model = models.attach(base, r=4, alpha=8, **options)
        forget, unseen = as_sequences(random_rows(0)), as_sequences(random_rows(7))
        perplexity = scoring.perplexity(score(model, unseen), unseen) if validation else None
        before, holdout = score(model, forget), score(model, unseen)
        task = records.Task(forget, before, PAPER, unseen, unseen if validation else None, perplexity, holdout, unseen)
        return model, task

    return build


def probing(model, task, stage, training=AUTO, **rest):
    return trial.probing(model, stage, task, training, Accelerator(), **rest)


def state(model):
    """Everything that a probe could leave behind."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
        "asks": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: p.grad is None for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "active": list(model.active_adapters),
        "random": torch.get_rng_state(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
    }


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        if key == "tensors":
            assert all(torch.equal(tensor, other[key][name]) for name, tensor in one[key].items())
        else:
            assert torch.equal(one[key], other[key]) if key == "random" else one[key] == other[key], key


@pytest.mark.parametrize("stage", [one_stage("match"), one_stage("sga", threshold=0.5), one_stage("ta")])
def test_nothing_of_a_probe_stays(problem, stage):
    model, task = problem(dropout=0.1)
    model.train()
    next(model.modules()).training = False  # a mix of modes, as a model may have
    before = state(model)
    measure = probing(model, task, stage)
    first = measure(1e-2)
    same(before, state(model))
    measure(1e30)
    same(before, state(model))
    assert {**measure(1e-2), "seconds": 0} == {**first, "seconds": 0}, "every rate starts from the same state"
    assert first["objective"] != measure(0.0)["objective"] and first["steps"] == rate_search.STEPS


def test_a_probe_steps_as_training_does(problem):
    """What the rate is judged by is the state in which training itself would be after so many steps."""
    model, task = problem()
    stage = one_stage("sga", threshold=0.5, retain_weight=1.0, retain_sequences=3)
    record = probing(model, task, stage, dataclasses.replace(AUTO, sequences_per_step=3))(1e-2)
    whole = probing(model, task, stage)(1e-2)
    epochs = rate_search.STEPS  # one step an epoch
    training = Training(learning_rate=1e-2, max_epochs=epochs, batch_size=5)
    outcome = loop.train(model, stage, task, training, stopping.Goal(), None, Accelerator())
    assert outcome.log[-1]["epoch"] == epochs
    assert outcome.log[-1]["n_selected"] < outcome.log[1]["n_selected"], "it is scored and selected anew"
    assert whole["validation_perplexity"] == pytest.approx(outcome.log[-1]["validation_perplexity"], rel=1e-6)
    assert record["steps"] == epochs and record["validation_perplexity"] != whole["validation_perplexity"]


def test_the_objective_is_that_of_the_terms(problem):
    """Against the losses' own definition, on all rows: there are fewer than a probe is judged by. Without dropout."""
    model, task = problem(dropout=0.5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    stage = one_stage("undial", retain_weight=3.0)
    record = probing(model, task, stage)(0.0)
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
            values += loss.function(logits, ids[0, start:], *others, **term.options).tolist()
        total[term.name] = np.mean(values)
    assert record["loss"] == pytest.approx(total, rel=1e-5) and record["steps"] == 0
    assert record["objective"] == pytest.approx(total["forget"] + 3.0 * total["retain"], rel=1e-5)


def test_twins_count_as_much_as_they_come_to_count_in_a_run(problem, monkeypatch):
    """In the objective and in the steps; in a run itself they begin by counting once."""
    model, task = problem()
    training = dataclasses.replace(AUTO, optimizer="sgd")  # Adam's first steps do not feel how large a gradient is

    def found(weight):
        monkeypatch.setattr(targets, "TYPICAL", weight)
        measure = probing(model, task, one_stage("match", retain_weight=1e-9), training)
        return measure(0.0)["loss"]["forget"], measure(1e-3)["loss"]["forget"] / weight

    typical, (once, gently), (thrice, harder) = targets.TYPICAL, found(1.0), found(3.0)
    assert typical > 1 and thrice == pytest.approx(3 * once, rel=1e-6)
    assert harder < gently < once


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_that_explodes_is_a_row(problem, optimizer):
    model, task = problem()
    measure = probing(model, task, one_stage("match"), dataclasses.replace(AUTO, optimizer=optimizer))
    rate, rows = rate_search.search(measure, records.base_outcome(task).log[0], None, True, [1e-3, 1e30, 1e31])
    assert rate == 1e-3 and [row["learning_rate"] for row in rows] == [0.0, 1e-3, 1e30]
    assert not rows[-1]["usable"] and "not finite" in rows[-1]["because"]


def test_the_reference_s_states_are_the_probe_s_own(problem, monkeypatch):
    """Training finds none: their last bits depend on the batch in which they were computed."""
    model, task = problem()
    made = []
    kept = passes.States
    monkeypatch.setattr(passes, "States", lambda: made.append(kept()) or made[-1])
    probing(model, task, one_stage("match"))(1e-3)
    probes = list(made)
    assert any(states.kept for states in probes)
    training = dataclasses.replace(AUTO, learning_rate=1e-3)
    loop.train(model, one_stage("match"), task, training, stopping.Goal(), None, Accelerator())
    assert len(made) == 2 * len(probes)


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
def test_a_run_that_chose_its_rates_is_the_run_that_was_given_them(problem, tmp_path, monkeypatch, method, training):
    monkeypatch.setattr(rate_search, "STEPS", 3)
    auto = dataclasses.replace(AUTO, max_epochs=3, **training)
    plan = methods.stages(methods.resolve(method))

    def run(plan, training, place):
        model, task = problem(dropout=0.1)
        (tmp_path / place).mkdir()
        goal, budget = stopping.Goal(mean_below=0.02), 0.3
        trained = stages.run(model, plan, task, training, goal, budget, Accelerator(), tmp_path / place, 9, early=False)
        return trained, tensors(model)

    chosen, one = run(plan, auto, "auto")
    found = [part["learning_rate"] for part in chosen.parts]
    assert all(part["learning_rate_searched"] for part in chosen.parts) and set(found) <= set(rate_search.RATES)
    assert [row["stage"] for row in chosen.rates if not row["learning_rate"]] == [stage.name for stage in plan]
    fixed = [dataclasses.replace(stage, learning_rate=rate) for stage, rate in zip(plan, found)]
    given_, other = run(fixed, dataclasses.replace(auto, learning_rate=7.0), "given")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert any(tensor.abs().max() > 0 for name, tensor in one.items() if "lora_B" in name)
    assert not given_.rates and [part["learning_rate"] for part in given_.parts] == found
    assert not any(part["learning_rate_searched"] for part in given_.parts)
    for ours, theirs in zip(chosen.outcome.log, given_.outcome.log):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_a_stage_with_a_rate_of_its_own_is_not_probed(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(rate_search, "STEPS", 2)
    method = {"name": "tau", "threshold": 0.5, "ascent_mean_below": 0.4, "fit_learning_rate": 2e-3}
    model, task = problem()
    plan = methods.stages(methods.resolve(method))
    trained = stages.run(model, plan, task, AUTO, stopping.Goal(mean_below=0.02), 0.3, Accelerator(), tmp_path)
    assert {row["stage"] for row in trained.rates} == {"ascend"}
    assert trained.parts[1]["learning_rate"] == 2e-3 and not trained.parts[1]["learning_rate_searched"]
    assert facts.learning_rates({"stages": trained.parts}) == (
        f"{trained.parts[0]['learning_rate']:g}, found by a probe, then 0.002"
    )


def test_where_the_goal_holds_before_nothing_is_probed(problem, tmp_path):
    model, task = problem()
    trained = stages.run(
        model, (one_stage("match"),), task, AUTO, stopping.Goal(mean_below=1.0), None, Accelerator(), tmp_path
    )
    assert "before training" in trained.outcome.stopped_because and not trained.rates
    assert trained.parts[0]["learning_rate"] is None and not trained.parts[0]["learning_rate_searched"]
    assert facts.learning_rates({"stages": trained.parts}) == ""


@pytest.fixture
def settings(memorizers, write_rows, tmp_path):
    def build(folder, method, **training):
        return {
            "model": {"name": str(memorizers("llama")), "quantization": "none", "dtype": "float32"},
            "data": {
                "forget": write_rows("forget.jsonl", random_rows(0)[:8]),
                "retain": write_rows("retain.jsonl", random_rows(7, (30, 20, 25))),
                "validation": write_rows("validation.jsonl", random_rows(8, (30, 20, 25))),
            },
            "output_dir": str(tmp_path / folder),
            "adapter": {"r": 4, "alpha": 8},
            "method": method,
            "training": {"learning_rate": "auto", "max_epochs": 3, "batch_size": 4} | training,
            "stop": {"mean_below": 0.02, "max_perplexity_increase": 0.2, "patience": 9},
        }

    return build


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


UNDIAL = {"name": "undial", "retain_loss": "kl", "retain_weight": 2.0, "retain_sequences": 2}


def test_the_run_folder_says_which_rate_was_taken_and_how(settings, tmp_path, caplog):
    with caplog.at_level("INFO", logger="adapter_unlearn"):
        folder = unlearn(settings("auto", UNDIAL))
    (stage,) = json.loads((folder / "unlearning.json").read_text())["stages"]
    rows = lines(folder, "learning_rate_search.jsonl")
    usable = [row for row in rows if row["usable"]]
    best = min(usable, key=lambda row: row["objective"])
    assert stage["learning_rate"] == best["learning_rate"] and stage["learning_rate_searched"] is True
    assert rows[0]["learning_rate"] == 0 and all(row["because"] for row in rows if not row["usable"])
    assert load_recipe(folder / "recipe.yaml").training.learning_rate == "auto"
    told = [record.getMessage() for record in caplog.records if "Learning rate" in record.getMessage()]
    assert len(told) == 1 and f"Learning rate {best['learning_rate']:g} was taken" in told[0]
    for page in ("report.html", "README.md"):
        assert f"{best['learning_rate']:g}, found by a probe" in (folder / page).read_text(), page
    other = unlearn(settings("given", UNDIAL, learning_rate=best["learning_rate"]))
    one, two = (load_file(place / "adapter_model.safetensors") for place in (folder, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (other / "learning_rate_search.jsonl").exists()
    assert f"{best['learning_rate']:g}</" in (other / "report.html").read_text()
    assert "found by a probe" not in (other / "report.html").read_text()


def test_two_processes_take_the_same_rate(settings, tmp_path):
    one = unlearn(settings("one", UNDIAL, max_epochs=1))
    launch(settings("two", UNDIAL, max_epochs=1), tmp_path, processes=2)
    two = tmp_path / "two"
    manifests = [json.loads((folder / "unlearning.json").read_text()) for folder in (one, two)]
    assert [manifest["cost"]["processes"] for manifest in manifests] == [1, 2]
    assert manifests[0]["stages"] == manifests[1]["stages"]
    for ours, theirs in zip(
        lines(one, "learning_rate_search.jsonl"), lines(two, "learning_rate_search.jsonl"), strict=True
    ):
        assert ours["objective"] == pytest.approx(theirs["objective"], rel=1e-4)
        assert ours["validation_perplexity"] == pytest.approx(theirs["validation_perplexity"], rel=1e-4)
    expected = load_file(one / "adapter_model.safetensors")
    for name, tensor in load_file(two / "adapter_model.safetensors").items():
        assert float((tensor - expected[name]).abs().max()) < 1e-5, name


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
def test_an_ascent_without_what_judges_it_is_refused(settings, method, gone, named):
    run = settings("refused", method)
    if gone in ("validation", "both"):
        del run["data"]["validation"]
    if gone in ("budget", "both"):
        run["stop"]["max_perplexity_increase"] = None
    with pytest.raises(RecipeError, match=r"training\.learning_rate: auto") as caught:
        unlearning_run.resolved(run)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    run["training"]["learning_rate"] = 1e-3
    unlearning_run.resolved(run)


def test_what_judges_itself_needs_no_validation(settings):
    run = settings("allowed", UNDIAL)
    del run["data"]["validation"]
    assert unlearning_run.resolved(run).training.learning_rate == "auto"


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
