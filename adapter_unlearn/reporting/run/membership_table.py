"""The table of membership: how well each metric distinguishes the forget set from never-seen text, in each form."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from adapter_unlearn.reporting import form_names
from adapter_unlearn.reporting.formatting import Cell, accuracy, count, interval
from adapter_unlearn.reporting.run.measures import meaning

MAIN = ("memorization_accuracy", "loss")
_FEWEST = 100


@dataclass(frozen=True)
class Row:
    """One metric: what it measures, and one cell per form."""

    metric: str
    means: str
    auc: dict[str, Cell]
    tpr: dict[str, Cell]


def rows(membership: pd.DataFrame) -> list[Row]:
    """One row per metric, MAIN first; `membership` as in Report, empty without a holdout set."""
    if membership.empty:
        return []
    forms = form_names.ordered(membership["form"])
    records = {(row["metric"], row["form"]): row for row in membership.to_dict("records")}
    metrics = dict.fromkeys([*(name for name in MAIN if name in set(membership["metric"])), *membership["metric"]])
    return [
        Row(
            metric,
            meaning(metric),
            *({form: _cell(records.get((metric, form), {}), key) for form in forms} for key in ("auc", "tpr_at_1_fpr")),
        )
        for metric in metrics
    ]


def _cell(record: dict[Any, Any], key: str) -> Cell:
    ends = [record.get(f"{key}_{end}") for end in ("low", "high")]
    return Cell(accuracy(record.get(key)), spread=interval(ends, accuracy))


def population_line(membership: pd.DataFrame) -> str:
    """The number of texts compared, and what a small number means for the TPR."""
    n, unseen = int(membership["n_forget"].max()), int(membership["n_holdout"].max())
    line = f"in brackets: 95 % intervals over texts; {count(n)} texts of the forget set, {count(unseen)} never-seen"
    if unseen < _FEWEST:
        line += ", too few for a false positive at 1 % FPR, so the TPR’s interval is too narrow"
    return line
