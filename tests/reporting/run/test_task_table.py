"""Downstream tasks and replies."""

from dataclasses import replace

import pytest
from reporting.builders import (
    EVERY_FORM,
    HOSTILE,
    check_page,
    complete,
    frame,
    page_of,
    results_of,
    summary_of,
    with_form,
)
from reporting.run.test_tables import check_text

from adapter_unlearn.reporting.run import tables, task_table
from adapter_unlearn.reporting.run.card import model_card
from adapter_unlearn.reporting.text_tables import render_text


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), EVERY_FORM], ids=len)
def test_tasks_are_shown_with_their_change(names):
    long = "a-task-with-a-long-name-of-its-own"
    summary = complete(*names, tasks=[("piqa", "acc_norm"), (long, HOSTILE)])
    assert [(task.task, task.n) for task, _ in task_table.rows(summary)] == [("piqa", 1838), (long, 1838)]
    text = render_text(tables.tasks_table(summary))
    check_text(text)
    assert "piqa, acc_norm" in " ".join(text.split()) and "(1,838)" in text and "…" not in text
    page, parsed = page_of(summary=summary, sequences=frame({form: [1.0, 0.5] for form in names}))
    check_page(page, parsed)
    card = model_card(results_of(summary))
    assert "0.512 ± 0.011" in parsed.text and "0.512 ± 0.011" in card and "1,838 samples" in parsed.text
    assert ("0.508 −0.004 [−0.015, +0.004]" in parsed.text) == (len(names) > 1)
    assert card.count(r"0.508 (-0.004 \[-0.015, +0.004\])") == 2 * (len(names) - 1)
    assert ("0.508 -0.004 [-0.015, +0.004]" in text) == (len(names) == 2), "the terminal has room for one form"
    assert "0.508" in text or names == ("base",)


def test_a_single_sample_and_a_form_without_tasks_are_no_errors():
    summary = with_form(complete("base", "stacked", "merged"), "merged", tasks=())
    one, *others = summary.base.tasks
    summary = with_form(summary, "base", tasks=(replace(one, stderr=float("nan")), *others))
    cells = dict(task_table.rows(summary))[task_table.Task("piqa", "acc_norm", 1838)]
    assert (cells["base"].spread, cells["merged"].text) == ("", "—")
    assert task_table.rows(summary_of()) == []
