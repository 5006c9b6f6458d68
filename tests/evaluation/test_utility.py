"""Scores per task, and their paired change."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from utility_texts import dialogues, write_dialogues

from adapter_unlearn import ModelError, RecipeError
from adapter_unlearn.evaluation.utility import aggregate, compare, measure_utility
from adapter_unlearn.metrics import set_level


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tasks": []}, RecipeError, "no tasks and no replies"),
        ({"limit": 0}, RecipeError, "^limit is 0; give 1 or more"),
        ({"batch_size": 0}, RecipeError, "^batch_size is 0; give 1 or more"),
        ({"tokenizer": None}, ModelError, "no tokenizer"),
    ],
)
def test_bad_arguments(base, tokenizer, task, arguments, error, message):
    with pytest.raises(error, match=message):
        measure_utility(base, **{"tokenizer": tokenizer, "tasks": [task]} | arguments)


def test_compare(base, stacked, tokenizer, task, tmp_path):
    source = write_dialogues(tmp_path / "dialogues.jsonl", dialogues(6))
    before, after = (measure_utility(model, tokenizer, [task], source) for model in (base, stacked))
    scores = compare(before, after.sample(frac=1, random_state=0))  # samples are paired by id, in any order
    names = [("next_words", "acc", 40), ("next_words", "acc_norm", 40), ("replies", "f1", 6)]
    assert [(score.task, score.metric, score.n) for score in scores] == names
    assert [(score.task, score.metric, score.n) for score in aggregate(before)] == names
    for score, alone in zip(scores, aggregate(before), strict=True):
        old, new = (
            frame[(frame["task"] == score.task) & (frame["metric"] == score.metric)]["value"].to_numpy()
            for frame in (before, after)
        )
        assert (score.before, score.value) == (pytest.approx(old.mean()), pytest.approx(new.mean()))
        assert (score.change, *score.change_interval) == pytest.approx(set_level.mean_interval(new - old))
        assert alone.value == pytest.approx(old.mean())
        assert alone.stderr == pytest.approx(old.std(ddof=1) / np.sqrt(len(old)))
    low, high = scores[0].change_interval
    assert low < scores[0].change < high and scores[0].change < 0


@pytest.fixture
def rows():
    return pd.DataFrame({"task": "t", "metric": "acc", "doc_id": ["a", "b", "c"], "value": [1.0, 0.0, 1.0]})


def test_no_change(rows):
    (score,) = compare(rows, rows)
    assert (score.change, *score.change_interval) == (0, 0, 0)


def test_the_order_is_that_of_the_base(rows):
    rows = pd.concat([rows.assign(task="z"), rows])
    assert [score.task for score in compare(rows, rows.iloc[::-1])] == ["z", "t"]


def test_a_single_sample_has_no_error_and_no_interval(rows):
    (score,), (change,) = aggregate(rows[:1]), compare(rows[:1], rows[:1])
    assert (score.value, score.n) == (1, 1) and math.isnan(score.stderr)
    assert change.change == 0 and all(map(math.isnan, change.change_interval))


@pytest.mark.parametrize("side", ["before", "after"])
def test_samples_that_were_measured_only_once(rows, side):
    sides = {"before": rows, "after": rows, side: rows[1:]}
    with pytest.raises(ValueError, match=r"^1 samples"):
        compare(**sides)


def test_scores_are_typed(rows):
    (score,) = compare(rows, rows)
    kinds = {each.name: type(getattr(score, each.name)) for each in dataclasses.fields(score)}
    assert set(kinds.values()) == {str, int, float, tuple} and kinds["n"] is int
