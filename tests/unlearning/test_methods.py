"""The table of methods, and every selection x forget loss x retain loss on a 4-bit base that memorized."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import random_rows

from adapter_unlearn import RecipeError, models, recipe, score, unlearn
from adapter_unlearn.metrics.set_level import auc
from adapter_unlearn.recipe import Training
from adapter_unlearn.unlearning import loop, losses, methods, stopping, targets
from adapter_unlearn.unlearning.loss_table import LOSSES, LossRow
from adapter_unlearn.unlearning.options import Option
from adapter_unlearn.unlearning.selection import SELECTIONS, Known
from adapter_unlearn.unlearning.targets import holdout_values

RATES = {"me": 1e-2, "undial": 1e-2, "ihl": 1e-2, "match": 1e-2}
ALL = list(itertools.product(SELECTIONS, methods.FORGET_LOSSES, methods.RETAIN_LOSSES))
# each selection and each loss at least once, in turns with each retain loss; the rest with -m slow
SHORT = [("all", loss, retain) for loss, retain in zip(methods.FORGET_LOSSES, itertools.cycle(["kl", "nll"]))]
SHORT += [("threshold", "npo", "nll"), ("band", "simnpo", "kl"), ("top_k", "wga", "kl")]
SHORT += [("band", "match", "kl"), ("top_k", "match", "nll")]


@pytest.fixture
def run(context):
    def train(model, task, method, goal=None, epochs=12, rate=5e-3, decay=0.0, start=None, **settings):
        (stage,) = methods.stages(method)
        training = Training(learning_rate=rate, learning_rate_decay=decay, max_epochs=epochs, batch_size=5)
        return loop.train(model, stage, context(task, training, goal, **settings), start=start)

    return train


def composed(select, loss, retain):
    levels = {"band": {"high": 0.5, "low": 0.1}, "threshold": {"threshold": 0.5}, "top_k": {"top_k": 5}}
    return {"name": "compose", "select": select, "loss": loss, "retain_loss": retain, "retain_weight": 0.2,
            "retain_sequences": 4} | levels.get(select, {})  # fmt: skip


def check(problem, run, method, epochs=12):
    """It trains every tensor, and lowers the forget set's memorization accuracy."""
    model, task = problem("nf4")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    outcome = run(model, task, method, epochs=epochs, rate=RATES.get(method.get("loss", method["name"]), 5e-3))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(parameter, before[name]), f"{name} was not trained"
    after = score(model, task.forget)
    assert after["memorization_accuracy"].mean() < task.before["memorization_accuracy"].mean() - 0.1
    assert after["memorization_accuracy"].mean() == pytest.approx(
        outcome.log[outcome.kept_epoch]["memorization_accuracy_mean"], abs=0.02
    )


@pytest.mark.parametrize(("select", "loss", "retain"), SHORT)
def test_selections_and_losses_combine(problem, run, select, loss, retain):
    check(problem, run, composed(select, loss, retain), epochs=8)


@pytest.mark.slow
@pytest.mark.parametrize(("select", "loss", "retain"), sorted(set(ALL) - set(SHORT)))
def test_every_selection_and_loss_combine(problem, run, select, loss, retain):
    check(problem, run, composed(select, loss, retain))


def test_the_short_list_holds_every_choice():
    for place, choices in enumerate([SELECTIONS, methods.FORGET_LOSSES, methods.RETAIN_LOSSES]):
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
    known = Known(np.random.default_rng(0), frame, frame + 0.1, frame / 2)
    for one, other in itertools.zip_longest(usual.terms, same.terms):
        assert (one.name, one.rows, one.loss, one.coefficient, dict(one.options)) == (
            other.name, other.rows, other.loss, other.coefficient, dict(other.options),
        )  # fmt: skip
        if one.rows == "forget":
            assert one.select(known).tolist() == other.select(known).tolist()
        else:
            assert one.select.keywords == other.select.keywords


def test_kl_keeps_what_ascent_breaks(problem, run):
    """Held beside the same ascent, KL on never-seen rows leaves them nearer to what the base said."""
    broken = {}
    for weight in (0.0, 3.0):
        model, task = problem()
        run(model, task, {"name": "ga", "retain_weight": weight, "retain_loss": "kl"}, epochs=8)
        after = score(model, task.retain, ["loss"])["loss"]
        with models.active(model, []):
            broken[weight] = float((after - score(model, task.retain, ["loss"])["loss"]).abs().mean())
    assert broken[3.0] < broken[0.0] / 2


def test_the_band_ends_when_nothing_is_left_to_select(problem, run):
    model, task = problem()
    outcome = run(model, task, {"name": "band", "high": 0.4, "low": 0.02}, epochs=60)
    assert "no sequence was left to select" in outcome.stopped_because and not outcome.goal_reached
    assert len(outcome.log) < 60 and all(line["n_selected"] > 0 for line in outcome.log[1:])
    last = outcome.log[-1]
    assert last["memorization_accuracy_max"] <= 0.4 < outcome.log[0]["memorization_accuracy_max"]
    assert last["loss"].keys() <= {"forget", "restore"}


def test_a_band_around_everything_changes_nothing(problem, run):
    model, task = problem()
    outcome = run(model, task, {"name": "band", "high": 1.0, "low": 0.0})
    assert outcome.kept_epoch == 0 and len(outcome.log) == 1 and "epoch 0 " in outcome.stopped_because


def test_what_was_pushed_too_far_is_raised_again(problem, run):
    """Ascend on all first; a band from there on only raises, and only to where its lower end lies."""
    model, task = problem()
    pushed = run(model, task, {"name": "ga"}, stopping.Goal(mean_below=0.05), epochs=40)
    fallen = (pushed.scored["memorization_accuracy"] < 0.15) & (task.before["memorization_accuracy"] > 0.15)
    assert fallen.sum() > 3
    outcome = run(model, task, {"name": "band", "high": 1.0, "low": 0.15}, epochs=30, start=pushed)
    assert outcome.log[len(pushed.log)]["n_selected"] == fallen.sum()
    assert (outcome.scored["memorization_accuracy"][fallen] >= 0.15).mean() > 0.8


def test_a_control_only_trains_on_what_is_kept(problem, run):
    model, task = problem()
    outcome = run(model, task, {"name": "control", "retain_sequences": 10}, epochs=5)
    assert outcome.sequences_ascended == 0 and len(outcome.log) == 6 and outcome.log[1]["n_selected"] == 0
    assert outcome.log[-1]["loss"].keys() == {"retain"}
    assert score(model, task.retain)["loss"].mean() < np.log(task.validation_perplexity)


def test_match_trains_up_to_its_targets_and_no_further(problem, run):
    """From .15 nats per token to the match's 6.5 to 7.6, where ascent would have gone past them."""
    model, task = problem()
    last = []
    method = {"name": "match", "others": 0.0, "retain_weight": 0.0}
    epochs = 40

    def keep_last(record):
        if record["epoch"] == epochs:
            last.append(score(model, task.forget))

    run(model, task, method, epochs=epochs, rate=2e-2, decay=0.5, early=False, on_epoch=keep_last)
    (after,) = last
    matches = targets.match_sequences(task.before, task.holdout_scores)
    assert task.before["loss"].max() < 1.0 < 6.0 < task.holdout_scores["loss"].min()
    assert max(abs(after["loss"][row] - task.holdout_scores["loss"][match]) for row, match in matches.items()) < 1.0
    assert 0.2 < auc(-after["loss"].to_numpy(), -task.holdout_scores["loss"].to_numpy()) < 0.8
    assert auc(-task.before["loss"].to_numpy(), -task.holdout_scores["loss"].to_numpy()) == 1.0


def test_targets_are_those_of_the_model_the_stage_starts_from(problem, run, stage, context):
    model, task = problem()
    settings = context(task, Training(batch_size=5))
    (ascent,) = loop.prepare(model, stage("ga"), settings, "default", task.before)
    assert type(ascent.state) is targets.LossState, "ascent keeps no state"
    outcome = run(model, task, {"name": "ga"}, epochs=3)
    models.attach_next(model, "stage_1")
    matches = targets.match_sequences(task.before, task.holdout_scores)
    tokens = [len(ids) - 1 for ids in task.forget["input_ids"]]
    states = {}
    for frozen, adapter in (([], "default"), (["default"], "stage_1")):
        expected = targets.target_values(matches, tokens, holdout_values(model, task.holdout, 3, frozen))
        with models.active(model, [*frozen, adapter]):
            part, _ = loop.prepare(model, stage("match"), settings, adapter, outcome.scored)
        states[adapter] = part.state.values
        assert [values.shape for values in part.state.values] == [(n, 2) for n in tokens]
        assert (part.state.duals.weights == 1.0).all() and (part.state.duals.offsets == 0.0).all()
        for one, other in zip(part.state.values, expected):
            assert np.abs(one - other).max() < 1e-3
    assert np.abs(states["default"][0] - states["stage_1"][0]).max() > 0.1


def test_the_reference_is_the_model_the_stage_starts_from(problem, run, stage, context, log_likelihoods):
    model, task = problem()
    settings = context(task, Training(batch_size=5))
    (first,) = loop.prepare(model, stage("ga"), settings, "default", task.before)
    assert first.reference.frozen == []
    outcome = run(model, task, {"name": "ga"}, epochs=3)
    models.attach_next(model, "stage_1")
    (second,) = loop.prepare(model, stage("ga"), settings, "stage_1", outcome.scored)
    assert second.reference.frozen == ["default"]
    for part in (first, second):
        with models.active(model, part.reference.frozen):
            expected = log_likelihoods(model, task.forget["input_ids"])
        assert part.reference.log_p == pytest.approx(expected, rel=1e-5)


# --- the table ---


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_resolves_to_its_defaults_and_describes_them(name):
    options = methods.METHODS[name].options
    resolved = methods.resolve({"name": name})
    assert resolved == {"name": name} | {key: option.default for key, option in options.items()}
    assert list(resolved) == ["name", *options]
    assert all(option.text for option in options.values())
    description = methods.describe(name).splitlines()
    assert [line.split()[0] for line in description[1:]] == list(options)


def test_options_of_selections_and_losses_have_names_of_their_own():
    """Otherwise one key of compose would set two things."""
    of_selections = {key for row in SELECTIONS.values() for key in row.options}
    of_losses = {key for row in LOSSES.values() for key in row.options}
    assert not of_selections & of_losses and not (of_selections | of_losses) & methods.RETAIN.keys()


def test_a_loss_is_a_function_and_a_row(monkeypatch, problem, run):
    """A method is one row more."""

    def flat(logits, labels, floor):
        return losses.wga(logits, labels, 1.0).clamp_min(-floor)

    monkeypatch.setitem(LOSSES, "flat", LossRow(options={"floor": Option(1.0, "where the loss ends", 0.5)}))
    monkeypatch.setattr(losses, "flat", flat, raising=False)
    monkeypatch.setitem(methods.METHODS, "flat", methods._method("Weighted ascent with a floor", loss="flat"))
    assert methods.resolve({"name": "flat"}) == methods.resolve({"name": "ga"}) | {"name": "flat", "floor": 1.0}
    with pytest.raises(RecipeError, match=r"method\.floor: 0\.25 is out of range"):
        methods.resolve({"name": "flat", "floor": 0.25})
    model, task = problem()
    outcome = run(model, task, {"name": "flat", "floor": 3.0}, epochs=2)
    assert outcome.log[-1]["loss"].keys() == {"forget"} and outcome.log[-1]["gradient_norm"] > 0


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        pytest.param(Option(1.0, ""), True, "a number", id="a boolean is no number"),
        pytest.param(Option(1.0, ""), "1", "a number", id="text"),
        pytest.param(Option(1.0, ""), float("nan"), "a number", id="nan"),
        pytest.param(Option(1.0, ""), None, "a number", id="null"),
        pytest.param(Option(1, "", kind=int), 1.5, "a whole number", id="fraction"),
        pytest.param(Option(1, "", kind=int, words=("holdout",), null=True), "paper",
                     "a whole number or holdout or null", id="other word"),
        pytest.param(Option("a", "", kind=None, words=("a", "b")), 1, "a or b", id="number for a word"),
        pytest.param(Option(1.0, "", 0, 1), 1.5, "0 to 1", id="too large"),
        pytest.param(Option(1.0, "", 0.5), 0.25, "0.5 or more", id="too small"),
    ],
)  # fmt: skip
def test_an_option_refuses_other_values(option, value, expected):
    with pytest.raises(RecipeError, match=rf"method\.key: .*{expected}") as caught:
        option.check("key", value)
    assert "\n" not in str(caught.value)
    option.check("key", option.default)


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
        methods.check_sets(recipe.from_mapping(settings))
