"""The report's table of sequences."""

from dataclasses import replace

from reporting.builders import HOLDOUT, NO_HOLDOUT, frame, summary_of

from adapter_unlearn.evaluation.criteria import PAPER
from adapter_unlearn.evaluation.summary import Summary
from adapter_unlearn.reporting.run import sequence_rows
from adapter_unlearn.reporting.run.html import MAX_ROWS

SEQUENCES = frame({"base": [0.9, 0.99, 0.8, 0.7], "stacked": [0.05, 0.99, 0.31, 0.2]})


def test_failing_sequences_come_first_and_are_marked():
    worst, total = sequence_rows.rows(SEQUENCES, summary_of(), 3)
    assert total == 4 and [row.id for row in worst] == ["record-0001", "record-0002", "record-0000"]
    marks = [[cell.mark for cell in row.cells[1::2]] for row in worst]
    assert marks == [["high"] * 3, ["high", "", ""], ["low", "", ""]]
    assert not any(cell.mark for row in worst for cell in row.cells[::2]), "the base is not judged"
    every, _ = sequence_rows.rows(SEQUENCES, summary_of(), MAX_ROWS)
    assert every[3].id == "record-0003" and not any(cell.mark for cell in every[3].cells)


def test_marks_follow_the_bounds_of_the_summary():
    paper = Summary({name: replace(form, bounds=PAPER) for name, form in summary_of().forms.items()})
    at_bound = frame({"base": [0.9, 0.9], "stacked": [0.60, 0.15]})
    rows, _ = sequence_rows.rows(at_bound, paper, MAX_ROWS)
    assert [row.cells[1].mark for row in rows] == ["high", "low"], "the paper's bounds are outliers themselves"


def test_a_form_without_the_base_is_no_error():
    rows, total = sequence_rows.rows(frame({"stacked": [0.2, 0.9]}), summary_of(), MAX_ROWS)
    assert total == 2 and rows[0].id == "record-0001"


def test_aggregates_stand_in_the_columns_of_the_sequences():
    cells = sequence_rows.aggregates(HOLDOUT, ["base", "stacked"])
    assert cells["mean"][:4] == ["0.200", "0.217", "0", "0"] and cells["highest"][:4] == ["0.300", "0.350", "", ""]
    assert len(cells["mean"]) == len(cells["highest"]) == 6
    assert sequence_rows.aggregates(NO_HOLDOUT, ["base"]) == {}
