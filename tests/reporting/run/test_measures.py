"""The rows of the table of measures."""

import pytest
from reporting.builders import (
    DELTA,
    EVERY_FORM,
    MANIFEST,
    complete,
    frame,
    page_of,
    precise,
    results_of,
    summary_of,
    varied,
    with_form,
)

from adapter_unlearn.evaluation.summary import SUMMARIZED, Summary
from adapter_unlearn.metrics.table import METRICS
from adapter_unlearn.reporting import formatting, text_tables
from adapter_unlearn.reporting.run import measures, tables
from adapter_unlearn.reporting.run.card import model_card


def test_every_row_is_read_from_the_summary():
    summary = with_form(complete("base", "merged"), "merged", delta=DELTA)
    shown = [measure.key for measure, _ in measures.rows(summary)]
    assert shown == [measure.key for measure in measures.ALL]


def test_a_row_that_no_form_has_is_left_out():
    shown = {measure.key for measure, _ in measures.rows(summary_of())}
    assert "failing" in shown and "perplexities.test.value" in shown
    assert not any(key.startswith("delta.") for key in shown) and "means.min_k" not in shown


@pytest.mark.parametrize("metric", [name for name in METRICS if name not in SUMMARIZED])
def test_every_further_metric_has_its_rows(metric):
    base = summary_of().base
    holdout = varied(base, holdout_means={metric: -float("inf")}).holdout
    summary = Summary({"base": varied(base, means={metric: 1.5e-31}, holdout=holdout)})
    found = {measure.key: (measure, cells["base"].text) for measure, cells in measures.rows(summary)}
    of, unseen = found[f"means.{metric}"], found[f"holdout.means.{metric}"]
    assert metric in of[0].label and metric in unseen[0].label
    assert (of[1], unseen[1]) == ("1.50e-31", "-∞")
    assert of[0].means and METRICS[metric].means.startswith(of[0].means)
    assert formatting.markdown(of[0].means) in model_card(results_of(summary, sequences=frame({"base": [1.0]})))


def test_a_delta_is_shown_where_it_was_measured():
    summary = with_form(summary_of("base", "stacked", "merged"), "merged", delta=DELTA)
    shown = {measure.key: [cell.text for cell in cells.values()] for measure, cells in measures.rows(summary)}
    assert shown["delta.relative_size"] == ["—", "—", "0.0134"]
    assert shown["delta.projection"] == ["—", "—", "0.987"] and shown["delta.relative_error"] == ["—", "—", "5.31"]
    results = results_of(summary)
    assert "0.0134" in page_of(summary=summary)[0] and "0.0134" in model_card(results)


def test_changes_are_against_the_base_in_the_form_s_own_precision():
    rows = {measure.key: cells for measure, cells in measures.rows(precise(test_perplexity=95.0))}
    cells = rows["perplexities.test.value"]
    assert (cells["merged"].change, cells["requantized_nf4"].change) == ("+6.3 %", "+1.0 %")


def test_what_a_form_is_compared_with_is_said_under_every_table():
    (line,) = measures.comparison_lines(precise())
    for part in ("merged", "bfloat16, not quantized", "3 recited", "100.0", "40.00"):
        assert part in line
    assert measures.comparison_lines(summary_of(*EVERY_FORM)) == []
    text = " ".join(text_tables.render_text(tables.summary_table(precise())).split())
    _, parsed = page_of(summary=precise(), sequences=frame({"base": [0.9], "merged": [0.2]}))
    assert line in text and line in parsed.text and line in model_card(results_of(precise()))


def test_intervals_follow_their_figures():
    rows = {measure.key: cells for measure, cells in measures.rows(complete("base", "stacked"))}
    assert rows["memorization_accuracy_mean"]["stacked"].spread == "[0.187, 0.213]"
    test = rows["perplexities.test.value"]
    assert (test["base"].text, test["base"].spread) == ("100.0", "[38.10, 117.0]")
    assert (test["stacked"].change, test["stacked"].spread) == ("+1.0 %", "[+0.8, +1.6]")
    assert not any(cell.spread for _, cells in measures.rows(summary_of()) for cell in cells.values())


def test_intervals_are_explained_only_where_they_are_shown():
    _, parsed = page_of()
    assert "in brackets" not in parsed.text and "rackets" not in model_card(results_of())
    summary = complete("base", "stacked")
    _, parsed = page_of(summary=summary)
    card = model_card(results_of(summary))
    assert "in brackets" in parsed.text and "rackets" in card
    assert "101.0 +1.0 % [+0.8, +1.6]" in parsed.text and "0.200 [0.187, 0.213]" in parsed.text
    assert r"| 101.0 (+1.0 % \[+0.8, +1.6\]) |" in card and r"| 100.0 \[38.10, 117.0\] |" in card
    wide = model_card(results_of(complete(*EVERY_FORM), MANIFEST))
    assert wide.count(r"| 101.0 (+1.0 % \[+0.8, +1.6\])") == 4
