"""Every selection x forget loss x retain loss, on a 4-bit base that memorized: it trains, it forgets, it ends."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from helpers import as_sequences, random_rows

from adapter_unlearn import RecipeError, load_base, models, score, scoring, unlearn
from adapter_unlearn.evaluation.criteria import PAPER
from adapter_unlearn.metrics.set_level import auc
from adapter_unlearn.pipeline import unlearning_run
from adapter_unlearn.recipe import Training
from adapter_unlearn.unlearning import loop, methods, passes, records, stopping, targets
from adapter_unlearn.unlearning.losses import LOSSES
from adapter_unlearn.unlearning.selection import Known
from adapter_unlearn.unlearning.step import token_levels

RATES = {"me": 1e-2, "undial": 1e-2, "ihl": 1e-2, "match": 1e-2}
ALL = list(itertools.product(methods.SELECTIONS, methods.OPTIONS, ["nll", "kl"]))
# each selection and each loss at least once, in turns with each retain loss; the rest with -m slow
SHORT = [("all", loss, retain) for loss, retain in zip(methods.OPTIONS, itertools.cycle(["kl", "nll"]))]
SHORT += [("threshold", "npo", "nll"), ("band", "simnpo", "kl"), ("top_k", "wga", "kl")]
SHORT += [("band", "match", "kl"), ("top_k", "match", "nll")]


@pytest.fixture
def problem(memorizers):
    def build(quantization="nf4"):
        torch.manual_seed(0)
        model = models.attach(load_base(str(memorizers("llama")), quantization, "float32"), r=4, alpha=8)
        forget, unseen = as_sequences(random_rows(0)), as_sequences(random_rows(7))
        perplexity = scoring.perplexity(score(model, unseen), unseen)
        before, holdout = score(model, forget), score(model, unseen)
        return model, records.Task(forget, before, PAPER, unseen, unseen, perplexity, holdout, unseen)

    return build


def run(model, task, method, goal=None, epochs=12, rate=5e-3, decay=0.0, **rest):
    (stage,) = methods.stages(methods.resolve(method))
    training = Training(learning_rate=rate, learning_rate_decay=decay, max_epochs=epochs, batch_size=5)
    return loop.train(model, stage, task, training, goal or stopping.Goal(), None, Accelerator(), **rest)


def composed(select, loss, retain):
    levels = {"band": {"high": 0.5, "low": 0.1}, "threshold": {"threshold": 0.5}, "top_k": {"top_k": 5}}
    return {"name": "compose", "select": select, "loss": loss, "retain_loss": retain, "retain_weight": 0.2,
            "retain_sequences": 4} | levels.get(select, {})  # fmt: skip


def check(problem, method):
    """It trains every tensor, and recites less where it was to."""
    model, task = problem()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    outcome = run(model, task, method, rate=RATES.get(method.get("loss", method["name"]), 5e-3))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(parameter, before[name]), f"{name} was not trained"
    after = score(model, task.forget)
    assert after["memorization_accuracy"].mean() < task.before["memorization_accuracy"].mean() - 0.1
    assert after["memorization_accuracy"].mean() == pytest.approx(
        outcome.log[outcome.kept_epoch]["memorization_accuracy_mean"], abs=0.02
    )


@pytest.mark.parametrize(("select", "loss", "retain"), SHORT)
def test_selections_and_losses_combine(problem, select, loss, retain):
    check(problem, composed(select, loss, retain))


@pytest.mark.slow
@pytest.mark.parametrize(("select", "loss", "retain"), sorted(set(ALL) - set(SHORT)))
def test_every_selection_and_loss_combine(problem, select, loss, retain):
    check(problem, composed(select, loss, retain))


def test_the_short_list_holds_every_choice():
    for place, choices in enumerate([methods.SELECTIONS, methods.OPTIONS, ["nll", "kl"]]):
        assert {case[place] for case in SHORT} == set(choices)
    assert {case[1] for case in ALL} - {"ascent"} | {"nll", "kl"} == set(LOSSES)


USUAL = ["graddiff", "npo", "simnpo", "ihl", "wga", "undial", "me", "band", "match"]
EQUAL = {
    "graddiff": {"loss": "ascent", "retain_weight": 1.0},
    "band": {"select": "band", "loss": "ascent"},
    "match": {"retain_weight": 5.0, "retain_sequences": 16, "retain_loss": "kl"},
}


@pytest.mark.parametrize("name", USUAL)
def test_the_usual_names_are_rows_of_compose(name):
    """With the same terms, losses and weights: checked on what they select, too."""
    (usual,) = methods.stages(methods.resolve({"name": name}))
    composed = {"name": "compose", "select": "all", "loss": name} | EQUAL.get(name, {})
    (same,) = methods.stages(methods.resolve(composed))
    assert (usual.name, usual.needs_holdout) == (same.name, same.needs_holdout)
    frame = pd.DataFrame({"memorization_accuracy": np.linspace(0, 1, 11), "longest_verbatim_run": np.arange(11.0)})
    known = Known(frame, frame + 0.1, frame / 2)
    for one, other in itertools.zip_longest(usual.terms, same.terms):
        assert (one.name, one.rows, one.loss, one.coefficient, dict(one.options)) == (
            other.name, other.rows, other.loss, other.coefficient, dict(other.options),
        )  # fmt: skip
        picked = [t.select(known, np.random.default_rng(0)).tolist() for t in (one, other)]
        assert picked[0] == picked[1]


def test_kl_keeps_what_ascent_breaks(problem):
    """Held beside the same ascent, KL on never-seen rows leaves them nearer to what the base said."""
    broken = {}
    for weight in (0.0, 3.0):
        model, task = problem("none")
        run(model, task, {"name": "ga", "retain_weight": weight, "retain_loss": "kl"}, epochs=8)
        after = score(model, task.retain, ["loss"])["loss"]
        with models.active(model, []):
            broken[weight] = float((after - score(model, task.retain, ["loss"])["loss"]).abs().mean())
    assert broken[3.0] < broken[0.0] / 2


def test_the_band_ends_when_nothing_is_left_to_select(problem):
    model, task = problem("none")
    outcome = run(model, task, {"name": "band", "high": 0.4, "low": 0.02}, epochs=60)
    assert "no sequence was left to select" in outcome.stopped_because and not outcome.goal_reached
    assert len(outcome.log) < 60 and all(line["n_selected"] > 0 for line in outcome.log[1:])
    last = outcome.log[-1]
    assert last["memorization_accuracy_max"] <= 0.4 < outcome.log[0]["memorization_accuracy_max"]
    assert last["loss"].keys() <= {"forget", "restore"}


def test_a_band_around_everything_changes_nothing(problem):
    model, task = problem("none")
    outcome = run(model, task, {"name": "band", "high": 1.0, "low": 0.0})
    assert outcome.kept_epoch == 0 and len(outcome.log) == 1 and "After epoch 0 no sequence" in outcome.stopped_because


def test_what_was_pushed_too_far_is_raised_again(problem):
    """Ascend on all first; a band from there on only raises, and only to where its lower end lies."""
    model, task = problem("none")
    pushed = run(model, task, {"name": "ga"}, stopping.Goal(mean_below=0.05), epochs=40)
    fallen = (pushed.scored["memorization_accuracy"] < 0.15) & (task.before["memorization_accuracy"] > 0.15)
    assert fallen.sum() > 3
    outcome = run(model, task, {"name": "band", "high": 1.0, "low": 0.15}, epochs=30, start=pushed, adapter="default")
    assert outcome.log[len(pushed.log)]["n_selected"] == fallen.sum()
    assert (outcome.scored["memorization_accuracy"][fallen] >= 0.15).mean() > 0.8


def test_a_control_only_trains_on_what_is_kept(problem):
    model, task = problem("none")
    outcome = run(model, task, {"name": "control", "retain_sequences": 10}, epochs=5)
    assert outcome.sequences_ascended == 0 and len(outcome.log) == 6 and outcome.log[1]["n_selected"] == 0
    assert outcome.log[-1]["loss"].keys() == {"retain"}
    assert score(model, task.retain)["loss"].mean() < np.log(task.validation_perplexity)


def test_matching_comes_to_rest_at_the_twins(problem):
    """From .15 nats a token to the twin's 6.5 to 7.6, and no further, where ascent would have gone past them."""
    model, task = problem("none")
    last = []
    method = {"name": "match", "others": 0.0, "retain_weight": 0.0}
    epochs = 40

    def keep_last(record):
        if record["epoch"] == epochs:
            last.append(score(model, task.forget))

    run(model, task, method, epochs=epochs, rate=2e-2, decay=0.5, early=False, on_epoch=keep_last)
    (after,) = last
    pairs = targets.pair(task.before, task.holdout)
    assert task.before["loss"].max() < 1.0 < 6.0 < task.holdout["loss"].min()
    assert max(abs(after["loss"][row] - task.holdout["loss"][twin]) for row, twin in pairs.items()) < 1.0
    assert 0.2 < auc(-after["loss"].to_numpy(), -task.holdout["loss"].to_numpy()) < 0.8
    assert auc(-task.before["loss"].to_numpy(), -task.holdout["loss"].to_numpy()) == 1.0


def test_levels_to_come_to_are_those_of_the_model_the_stage_starts_from(problem):
    model, task = problem("none")
    (matching,), (ascent,) = methods.match(), methods.ga()
    assert passes.reference_of(model, "default", ascent, task, task.before, 5).twins is None
    outcome = run(model, task, {"name": "ga"}, epochs=3)
    models.attach_next(model, "stage_1")
    pairs = targets.pair(task.before, task.holdout)
    tokens = [len(ids) - 1 for ids in task.forget["input_ids"]]
    found = {}
    for beneath, adapter in (([], "default"), (["default"], "stage_1")):
        expected = targets.levels(pairs, tokens, token_levels(model, task.holdout_sequences, 3, beneath))
        with models.active(model, [*beneath, adapter]):
            found[adapter] = passes.reference_of(model, adapter, matching, task, outcome.scored, 5).twins
        assert [part.levels.shape for part in found[adapter]] == [(n, 2) for n in tokens]
        for one, other in zip(found[adapter], expected):
            assert np.abs(one.levels - other).max() < 1e-3 and one.weights.tolist() == [1.0, 1.0]
    assert np.abs(found["default"][0].levels - found["stage_1"][0].levels).max() > 0.1


def test_the_reference_is_the_model_the_stage_starts_from(problem):
    model, task = problem("none")
    (ascent,) = methods.ga()
    first = passes.reference_of(model, "default", ascent, task, task.before, 5)
    assert first.adapters == []
    outcome = run(model, task, {"name": "ga"}, epochs=3)
    models.attach_next(model, "stage_1")
    second = passes.reference_of(model, "stage_1", ascent, task, outcome.scored, 5)
    assert second.adapters == ["default"]
    tokens = np.array([len(ids) - 1 for ids in task.forget["input_ids"]])
    with models.active(model, ["default"]):
        assert second.log_p == pytest.approx(-score(model, task.forget)["loss"].to_numpy() * tokens, rel=1e-5)
    with models.active(model, []):
        assert first.log_p == pytest.approx(-score(model, task.forget)["loss"].to_numpy() * tokens, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"name": "graddiff"}, r"method\.retain_weight: needs data\.retain"),
        ({"name": "control"}, r"method\.name: needs data\.retain; control trains on nothing else"),
        ({"name": "band"}, r"band takes levels from data\.holdout"),
        ({"name": "compose", "select": "band", "loss": "npo"}, r"compose takes levels from data\.holdout"),
        (
            {"name": "sga", "run_threshold": "holdout"},
            r"sga takes levels from data\.holdout; give that file or numb",
        ),
        ({"name": "match"}, r"method\.retain_weight: needs data\.retain"),
        ({"name": "match", "retain_weight": 0.0}, r"match takes levels from data\.holdout; give that file$"),
        ({"name": "compose", "loss": "match"}, r"compose takes levels from data\.holdout; give that file$"),
    ],
)
def test_a_method_without_the_set_it_needs(write_rows, tmp_path, method, named):
    settings = {"model": {"name": "none"}, "data": {"forget": write_rows("f.jsonl", random_rows(0))},
                "output_dir": str(tmp_path / "run"), "method": method}  # fmt: skip
    with pytest.raises(RecipeError, match=named) as caught:
        unlearn(settings)  # before a model is looked for: there is none of that name
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match=named):
        unlearning_run.resolved(settings)
