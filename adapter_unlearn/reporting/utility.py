"""What the model can still do besides: a row a downstream task and metric, a cell a form, changes paired by sample."""

from dataclasses import dataclass
from typing import Any

from adapter_unlearn.reporting import forms
from adapter_unlearn.reporting.formatting import DASH, clean, decimal, interval, number, signed
from adapter_unlearn.reporting.measures import Cell


@dataclass(frozen=True)
class Task:
    """A task's score by one metric, over `n` samples."""

    task: str
    metric: str
    n: float | None


def rows(summary: dict[str, Any]) -> list[tuple[Task, dict[str, Cell]]]:
    """A row a (task, metric) in the order they were measured in; empty where no task was asked for."""
    measured = summary.get("forms") or {}
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for form in forms.ordered(measured):
        for record in (measured[form] or {}).get("utility") or []:
            found.setdefault((clean(record["task"]), clean(record["metric"])), {})[form] = record
    return [
        (
            Task(*name, next((number(record["n"]) for record in records.values()), None)),
            {form: _cell(records[form]) if form in records else Cell(DASH) for form in forms.ordered(measured)},
        )
        for name, records in found.items()
    ]


def _cell(record: dict[str, Any]) -> Cell:
    """A score with its standard error, or a score after with its change and the interval of that."""
    if "value" in record:
        error = number(record.get("stderr"))
        return Cell(decimal(record["value"]), spread="" if error is None else f"± {decimal(error)}")
    spread = interval([record.get("low"), record.get("high")], signed)
    return Cell(decimal(record.get("after")), signed(record.get("change")), spread)
