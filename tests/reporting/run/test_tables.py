"""Tables for the terminal, and what show_report prints."""

import re

import numpy as np
import pytest
from reporting.builders import (
    ALL_FORMS,
    DELTA,
    EVERY_FORM,
    HOLDOUT,
    HOSTILE,
    NAN,
    NO_HOLDOUT,
    SEQUENCES,
    complete,
    curves_of,
    flat,
    frame,
    results_of,
    summary_of,
)

from adapter_unlearn.reporting import terminal
from adapter_unlearn.reporting.run import measures, tables
from adapter_unlearn.reporting.run.verdict import verdict
from adapter_unlearn.reporting.text_tables import render_text


def check_text(text):
    """80 columns, and nothing that a terminal would obey."""
    assert max(map(len, text.splitlines()), default=0) <= 80
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)


def test_proof_table_shows_before_and_after_beside_never_seen_text():
    text = render_text(tables.proof_table(SEQUENCES, HOLDOUT))
    lines = [line for line in text.splitlines() if "record-" in line]
    assert [line.split()[0] for line in lines] == [f"record-000{i}" for i in range(4)]
    assert "1.000 → 0.200" in lines[0] and "yes → no" in lines[0] and "80 → 0" in lines[0]
    assert "forget set (4)" in text and "1 → 0" in text
    assert "never seen (3)" in text and "0.300 → 0.350" in text


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), ALL_FORMS, EVERY_FORM], ids=len)
def test_tables_fit_80_columns_without_loss(names):
    sequences = frame({form: [1.0, 0.5] for form in names}, [HOSTILE * 3, "very-long-id-" * 9 + "#12"], tokens=12345)
    summary = summary_of(*names, delta=DELTA)
    proof, totals, checks = map(
        render_text,
        (tables.proof_table(sequences, HOLDOUT), tables.summary_table(summary), tables.verdict_table(verdict(summary))),
    )
    for text in (proof, totals, checks):
        check_text(text)
    assert "12,345" in proof and "#12" in proof and "…" not in totals
    for measure, cells in measures.rows(summary):
        assert all(cell.text in totals for cell in cells.values()), measure.label


def test_proof_table_limits_its_rows_and_counts_the_others():
    many = frame({"base": list(np.linspace(0.5, 1, 40)), "stacked": [0.2] * 40})
    text = render_text(tables.proof_table(many, NO_HOLDOUT, max_rows=10))
    assert text.count("record-") == 10 and "… 30 more" in text and "never seen" not in text


def test_missing_figures_are_dashes_never_zeros():
    sequences = frame({"base": [NAN, 0.9], "stacked": [NAN, NAN]})
    text = render_text(tables.proof_table(sequences, NO_HOLDOUT))
    assert "— → —" in text and "0.900 → —" in text and "nan" not in text


def test_summary_table_shows_changes_of_what_was_measured():
    text = render_text(tables.summary_table(summary_of()))
    assert "101.0 +1.0 %" in text and "42.00 +5.0 %" in text
    text = render_text(tables.summary_table(summary_of("base", "stacked", perplexities={})))
    assert "+" not in text and "42.00" not in text


@pytest.mark.parametrize(("names", "shown"), [(("base", "stacked"), True), (EVERY_FORM, False)])
def test_changes_carry_their_interval_if_it_fits(names, shown):
    text = render_text(tables.summary_table(complete(*names)))
    check_text(text)
    assert "+1.0 %" in text and ("[+0.8, +1.6]" in text) is shown and ("[" in text) is shown


def test_the_terminal_shows_tasks_and_prefixes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    curves = curves_of({"base": [[True] * 30], "stacked": [[True] * 30]})
    terminal.show_report(results_of(complete("base", "stacked"), curves=curves).report)
    shown = flat(capsys.readouterr().out)
    assert "piqa, acc_norm (1,838) 0.512 ± 0.011 0.508 -0.004" in shown
    assert "fail At least 1 sequence" in shown
    terminal.show_report(results_of(summary_of(extractable_any_prefix=None)).report)
    shown = flat(capsys.readouterr().out)
    assert "piqa" not in shown and "unknown Recitation from other prefixes" in shown
