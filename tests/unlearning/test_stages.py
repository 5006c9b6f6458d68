"""Stages of task arithmetic and their sum, on models that memorized."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import random_rows

from adapter_unlearn import Data, Model, RecipeError, ScaleSearch, load_base, models, negate_searched, score
from adapter_unlearn.recipe import Training
from adapter_unlearn.unlearning import methods, scale_search, stages, stopping

TRAINING = Training(learning_rate=5e-3, max_epochs=40, batch_size=4)


@pytest.fixture
def run(context):
    def train(model, task, method, folder, goal=None, training=TRAINING, **settings):
        goal = goal or stopping.Goal(mean_below=0.2)
        return stages.run(model, methods.stages(method), context(task, training, goal, **settings), folder)

    return train


def deltas(model, name):
    """Each layer's delta as PEFT itself sees it."""
    return {
        key: m.get_delta_weight(name).detach().double()
        for key, m in model.named_modules()
        if name in getattr(m, "r", {})
    }


def test_ta_ships_its_memorizing_adapter_times_the_scale(problem, run, tmp_path):
    model, task = problem()
    trained = run(model, task, {"name": "ta", "scale": -3.0}, tmp_path, stopping.Goal(mean_below=0.4))
    assert trained.outcome.goal_reached and [part["scale"] for part in trained.parts] == [-3.0]
    models.adapters.add_finished(model, trained.folder, "shipped")
    models.set_scale(model, "default", 1.0)
    fitted, shipped = deltas(model, "default"), deltas(model, "shipped")
    for name, delta in fitted.items():
        assert float((shipped[name] + 3.0 * delta).norm() / delta.norm()) < 1e-6, name
    # fitted: it memorizes still better; negated: it forgets
    with models.active(model, ["default"]):
        assert score(model, task.forget)["loss"].mean() < task.before["loss"].mean()
    with models.active(model, ["shipped"]):
        after = score(model, task.forget)
    assert after["memorization_accuracy"].mean() < 0.4 and after["extractable"].sum() == 0
    assert task.before["extractable"].sum() > 0
    assert after["memorization_accuracy"].mean() == pytest.approx(
        trained.outcome.log[-1]["memorization_accuracy_mean"], abs=1e-6
    )


def test_only_the_last_stage_goes_on_when_its_goal_holds(problem, run, tmp_path):
    model, task = problem()
    method = {"name": "tau", "threshold": 0.5, "ascent_mean_below": 0.5}
    training = Training(learning_rate=5e-3, max_epochs=16, batch_size=5)
    trained = run(model, task, method, tmp_path, stopping.Goal(mean_below=0.1), training, early=False)
    log = trained.outcome.log
    ascent, fit = ([line["memorization_accuracy_mean"] for line in log if line["stage"] == name]
                   for name in ("ascend", "fit"))  # fmt: skip
    assert len(ascent) < 16 and ascent[-1] < 0.5 <= min(ascent[:-1])
    assert len(fit) == 16 and sum(mean < 0.1 for mean in fit) > 1 and trained.outcome.goal_reached


@pytest.mark.parametrize("use_rslora", [False, True])
def test_tau_ships_the_exact_sum_of_both_adapters(problem, run, tmp_path, use_rslora):
    model, task = problem("nf4", use_rslora=use_rslora, alpha=4 if use_rslora else 8)
    method = {"name": "tau", "threshold": 0.5, "ascent_mean_below": 0.45, "scale": -1.0}
    trained = run(model, task, method, tmp_path)
    log = trained.outcome.log
    assert [line["epoch"] for line in log] == list(range(len(log)))
    names = [line["stage"] for line in log]
    assert names[0] is None and names[1:] == sorted(names[1:]) and set(names[1:]) == {"ascend", "fit"}
    last_ascent = names.index("fit") - 1
    assert log[last_ascent]["memorization_accuracy_mean"] < 0.45 <= log[last_ascent - 1]["memorization_accuracy_mean"]
    assert trained.outcome.goal_reached and log[-1]["memorization_accuracy_mean"] < 0.2
    models.adapters.add_finished(model, trained.folder, "shipped")
    models.set_scale(model, "stage_1", 1.0)
    first, second, shipped = (deltas(model, name) for name in ("default", "stage_1", "shipped"))
    for name, delta in first.items():
        assert torch.allclose(shipped[name], delta - second[name], rtol=1e-5, atol=1e-7), name
        assert float(second[name].norm()) > 0
    with models.active(model, ["shipped"]):
        after = score(model, task.forget)
    assert after["memorization_accuracy"].mean() == pytest.approx(log[-1]["memorization_accuracy_mean"], abs=0.02)
    assert after["extractable"].sum() == 0


def test_the_ascent_s_adapter_stays_as_it_is_while_the_second_is_fitted(problem, run, tmp_path):
    model, task = problem("nf4")
    frozen = {}

    def on_epoch(line):
        if line["stage"] == "fit" and not frozen:
            frozen.update({n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n})
            trained = {n for n, p in model.named_parameters() if p.requires_grad}
            assert trained == {n for n, _ in model.named_parameters() if ".stage_1." in n}

    method = {"name": "tau", "threshold": 0.5, "ascent_mean_below": 0.45}
    run(model, task, method, tmp_path, on_epoch=on_epoch)
    assert frozen
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name


def test_auto_takes_the_scale_with_the_fewest_failing_sequences_within_the_budget(problem, run, tmp_path):
    model, task = problem()
    trained = run(model, task, {"name": "ta", "scale": "auto"}, tmp_path, budget=0.3, patience=40)
    (part,) = trained.parts
    by_scale = {row["scale"]: row for row in trained.scales}
    assert {0.0, *scale_search.SCALES} < by_scale.keys(), "the grid is refined"
    allowed = [row for row in trained.scales if row["within_budget"]]
    assert by_scale[part["scale"]] in allowed and by_scale[part["scale"]] == min(allowed, key=stopping.merit)
    last = trained.outcome.log[-1]
    assert last["stage"] == "scale search" and trained.outcome.kept_epoch == last["epoch"]
    models.adapters.add_finished(model, trained.folder, "shipped")
    with models.active(model, ["shipped"]):
        after = score(model, task.forget)
    assert after["memorization_accuracy"].mean() == pytest.approx(last["memorization_accuracy_mean"], abs=0.02)
    assert by_scale[0.0]["memorization_accuracy_mean"] == pytest.approx(task.before["memorization_accuracy"].mean())


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"name": "ta", "scale": 0}, "scale: 0"),
        ({"name": "ta", "scale": "best"}, "a number or auto"),
        ({"name": "ta", "threshold": 0.5}, "ta takes no such parameter"),
        ({"name": "tau", "ascent_mean_below": 1.5}, "ascent_mean_below"),
        ({"name": "tau", "fit_learning_rate": 0.0}, "fit_learning_rate"),
    ],
)
def test_bad_parameters(method, named):
    with pytest.raises(RecipeError, match=named):
        methods.resolve(method)


@pytest.mark.usefixtures("without_figures")
def test_negate_search_ships_the_best_scale_with_its_curve(problem, run, memorizers, write_rows, tmp_path):
    """The memorizing adapter of a TA run, scaled again by search: the figures are those of the files."""
    model, task = problem("nf4")
    run(model, task, {"name": "ta", "scale": -1.0}, tmp_path, stopping.Goal(mean_below=0.7))
    files = {
        "forget": write_rows("forget.jsonl", random_rows(0)),
        "validation": write_rows("validation.jsonl", random_rows(7)),
    }
    searched, best = negate_searched(
        tmp_path / "part_0",
        tmp_path / "searched",
        Model(str(memorizers("llama")), dtype="float32"),
        Data(**files),
        ScaleSearch(max_perplexity_increase=0.3),
    )
    rows = [json.loads(line) for line in (searched / "scale_search.jsonl").read_text().splitlines()]
    allowed = [row for row in rows if row["within_budget"]]
    chosen = min(allowed, key=stopping.merit)
    assert chosen["scale"] == best < 0 and (searched / "figures" / "scales.png").stat().st_size > 1000
    base = load_base(str(memorizers("llama")), "nf4", "float32")
    after = score(models.stack(base, [searched]), task.forget)
    assert after["memorization_accuracy"].mean() == pytest.approx(chosen["memorization_accuracy_mean"], abs=0.02)
    assert json.loads((searched / "arithmetic.json").read_text())["scale"] == best
