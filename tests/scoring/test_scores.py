"""One table of all metrics: of the forward and of what is generated, the reasons of both in one note."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers import as_sequences, random_rows

from adapter_unlearn import RecipeError, load_base, score, scoring
from adapter_unlearn.metrics.prefixes import prefix_curve, worst_of
from adapter_unlearn.metrics.table import GROUPS, METRICS, resolve
from adapter_unlearn.scoring import greedy


@pytest.fixture(scope="module")
def model(memorizers):
    return load_base(str(memorizers("llama")), "none", "float32")


def test_both_kinds_stand_side_by_side_in_the_order_asked(model):
    rows = [*random_rows(0)[:4], random_rows(0)[0][:8]]  # the last is too short for EL_10
    names = ["rouge_l", "loss", "extraction_likelihood", "extractable_50"]
    frame = score(model, as_sequences(rows), names, batch_size=2)
    assert list(frame) == ["id", "n_tokens", *names, "note"]
    alone = scoring.score(model, as_sequences(rows), ["loss", "extractable_50"])
    pd.testing.assert_frame_equal(frame[["id", "loss"]], alone[["id", "loss"]], atol=1e-5)
    generated = greedy.measure(model, as_sequences(rows), ["rouge_l", "extraction_likelihood"])
    for i in range(4):
        assert frame.loc[i, "rouge_l"] == pytest.approx(generated[i]["rouge_l"])
        assert frame.loc[i, "extraction_likelihood"] == pytest.approx(generated[i]["extraction_likelihood"])
    assert frame.loc[4, ["extraction_likelihood", "extractable_50"]].isna().all()
    assert "extraction_likelihood: " in frame.loc[4, "note"] and "extractable_50: " in frame.loc[4, "note"]


def test_words_for_several():
    assert resolve(["all"]) == list(METRICS) and set(resolve(["forward"])) < set(METRICS)
    assert resolve(["loss", "forward"])[0] == "loss" and len(resolve(["loss", "forward"])) == len(GROUPS["forward"])
    with pytest.raises(RecipeError, match=r"unknown metric 'bleurt'.*extraction_likelihood"):
        resolve(["bleurt"])


def test_every_metric_of_the_catalogue_is_a_column(model):
    frame = score(model, as_sequences(random_rows(0)[:3]), ["all"])
    assert list(frame) == ["id", "n_tokens", *METRICS, "note"]
    assert "the model's output" not in "".join(frame["note"])


def test_the_curve_of_a_set_is_the_worst_of_its_sequences(model):
    """From the forward that scores them: at each prefix length, against decoding from the definition's prefixes."""
    rows = random_rows(0)
    seen = {}
    score(model, as_sequences(rows), ["loss"], observe=lambda i, predictions: seen.update({i: predictions}))
    curves = worst_of([prefix_curve(seen[i]) for i in range(len(rows))])
    for _, point in curves.iterrows():
        k = int(point["prefix_tokens"])
        long_enough = [i for i, row in enumerate(rows) if len(row) - k >= 20]
        recited = [bool(seen[i].hits[k - 1 :].all()) for i in long_enough]
        assert point["n_sequences"] == len(long_enough) and point["extractable"] == sum(recited)
    assert curves["prefix_tokens"].tolist() == list(range(1, max(map(len, rows)) - 20 + 1))
    assert curves["extractable"].max() > 0
