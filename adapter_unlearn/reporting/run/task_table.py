"""The table of downstream tasks and replies: one row per (task, metric), with changes paired by sample."""

from dataclasses import dataclass

from adapter_unlearn.evaluation.summary import BASE, Summary, TaskScore
from adapter_unlearn.reporting import form_names
from adapter_unlearn.reporting.formatting import DASH, Cell, clean, decimal, interval, number, signed


@dataclass(frozen=True)
class Task:
    """A task's score by one metric, over `n` samples."""

    task: str
    metric: str
    n: int


def rows(summary: Summary) -> list[tuple[Task, dict[str, Cell]]]:
    """One row per (task, metric), with one cell per form; empty where no tasks were measured."""
    forms = form_names.ordered(summary.forms)
    scores: dict[Task, dict[str, Cell]] = {}
    for form in forms:
        for score in summary.forms[form].tasks:
            task = Task(clean(score.task), clean(score.metric), score.n)
            scores.setdefault(task, dict.fromkeys(forms, Cell(DASH)))[form] = _cell(score, form)
    return list(scores.items())


def _cell(score: TaskScore, form: str) -> Cell:
    """The base's score with its standard error, or another form's score with its change and interval."""
    if form == BASE:
        error = number(score.stderr)
        return Cell(decimal(score.value), spread="" if error is None else f"± {decimal(error)}")
    return Cell(decimal(score.value), signed(score.change), interval(score.change_interval, signed))
