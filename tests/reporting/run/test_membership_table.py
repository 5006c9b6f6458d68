"""Membership: AUC and TPR with intervals."""

import pandas as pd
import pytest
from reporting.builders import check_page, frame, membership_of, page_of, results_of, summary_of

from adapter_unlearn.metrics.table import METRICS
from adapter_unlearn.reporting.formatting import Cell
from adapter_unlearn.reporting.run import membership_table
from adapter_unlearn.reporting.run.card import model_card

NAMES = ("base", "stacked")


def test_rows_hold_intervals_where_there_are_some():
    rows = membership_table.rows(membership_of(NAMES))
    assert [row.metric for row in rows] == ["memorization_accuracy", "loss", "min_k"]
    assert rows[0].auc["base"] == Cell("0.943", spread="[0.901, 0.971]")
    assert rows[2].auc["stacked"] == Cell("0.512") and rows[2].tpr["stacked"].text == "0.312"


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_row(metric):
    (row,) = membership_table.rows(membership_of(["base"], [metric]))
    assert row.metric == metric and row.means


@pytest.mark.parametrize(("n", "warned"), [(64, True), (100, False)])
def test_few_never_seen_texts_are_warned_of(n, warned):
    assert ("too few" in membership_table.population_line(membership_of(NAMES, n_holdout=n))) is warned


def test_figures_are_not_shown_twice():
    page, _ = page_of(membership=pd.DataFrame())
    assert "AUC is the chance that a score ranks a text" not in page and "membership AUC by loss" in page
    page, parsed = page_of(membership=membership_of(NAMES))
    check_page(page, parsed)
    assert "AUC is the chance that a score ranks a text" in parsed.text and "still distinguishable" in parsed.text
    assert "0.943 [0.901, 0.971]" in parsed.text and "min_ k" in parsed.text
    assert "membership AUC by loss" not in parsed.text
    alone = {"sequences": frame({"base": [1.0, 0.5]}), "summary": summary_of("base")}
    _, parsed = page_of(membership=membership_of(["base"]), **alone)
    assert "forget set distinguishable" in parsed.text, "nothing has been unlearned"


def test_the_card_has_the_main_metrics():
    card = model_card(results_of(membership=membership_of(NAMES)))
    shares = r"| 0.943 \[0.901, 0.971\] | 0.312 \[0.101, 0.523\] | 0.512 | 0.312 \[0.101, 0.523\] |"
    assert card.count(shares) == 2 and "membership AUC by loss" not in card
    assert membership_table.meaning("min_k") not in card
