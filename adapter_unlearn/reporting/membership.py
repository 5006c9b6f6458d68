"""Whether one can tell that the forget set was trained on: a row a metric, AUC and TPR at 1 % FPR in each form."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from adapter_unlearn.reporting import forms
from adapter_unlearn.reporting.formatting import accuracy, count, interval
from adapter_unlearn.reporting.measures import Cell, meaning

MEANS = (
    "An AUC is the chance that a figure ranks a text of the forget set above a never-seen one, so 0.5 tells nothing,"
    " and far below it tells as much as far above; the TPR at 1 % FPR is the share of the forget set that is found out"
    " while at most 1 % of the never-seen texts are wrongly taken for it."
)
MAIN = ("memorization_accuracy", "loss")
_FEWEST = 100


@dataclass(frozen=True)
class Row:
    """One metric: what it means, and a cell a form."""

    metric: str
    means: str
    auc: dict[str, Cell]
    tpr: dict[str, Cell]


def rows(found: pd.DataFrame | None) -> list[Row]:
    """A row a metric, the two that everybody looks at first, then in the catalogue's order; `found` as in Report."""
    if found is None or found.empty:
        return []
    names = forms.ordered(found["form"])
    cells = {(row["metric"], row["form"]): row for row in found.to_dict("records")}
    table = []
    for metric in dict.fromkeys([*(name for name in MAIN if name in set(found["metric"])), *found["metric"]]):
        columns = {form: cells.get((metric, form), {}) for form in names}
        auc, tpr = ({form: _cell(column, key) for form, column in columns.items()} for key in ("auc", "tpr_at_1_fpr"))
        table.append(Row(metric, meaning(metric), auc, tpr))
    return table


def _cell(figures: dict[Any, Any], key: str) -> Cell:
    ends = [figures.get(f"{key}_{end}") for end in ("low", "high")]
    return Cell(accuracy(figures.get(key)), spread=interval(ends, accuracy))


def population_line(found: pd.DataFrame) -> str:
    """How many texts stand against how many, and what few of them do to the TPR."""
    n, unseen = int(found["n_forget"].max()), int(found["n_holdout"].max())
    told = f"in brackets: 95 % intervals over texts; {count(n)} of the forget set against {count(unseen)} never-seen"
    if unseen < _FEWEST:
        told += ", so few that at 1 % FPR none of them may be taken for it; there the TPR’s interval is too narrow"
    return told
