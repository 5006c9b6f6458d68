"""The columns of the comparison of methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adapter_unlearn.evaluation.comparison import Comparison
from adapter_unlearn.reporting import formatting as fmt


@dataclass(frozen=True)
class Column:
    """One figure of every method.

    Attributes:
        key: a column of Comparison.rows.
        label: the heading.
        show: the figure as text.
        group: columns of one group are adjacent.
        spread: the ends of its interval as text; None shows each end as the figure.
        once: the figure belongs to a run and not to a form, so only a method's first line shows it.
    """

    key: str
    label: str
    show: Callable[[Any], str]
    group: str
    spread: Callable[[Any], str] | None = None
    once: bool = False


def mean(value: Any) -> str:
    """A count, or the mean of counts over seeds."""
    known = fmt.number(value)
    return fmt.DASH if known is None else fmt.count(known) if known == round(known) else f"{known:,.1f}"


def signed(value: Any) -> str:
    """A difference with three digits, always signed."""
    known = fmt.number(value)
    return fmt.DASH if known is None else f"{known + 0.0:+.3f}"


def _change(value: Any) -> str:
    known = fmt.number(value)
    return fmt.percent(known, 0 if known is not None and abs(known) >= 1 else 1)


def _share_of_runs(value: Any) -> str:
    known = fmt.number(value)
    return fmt.DASH if known is None else "yes" if known == 1 else "no" if known == 0 else f"{known:.0%} of seeds"


FORGOTTEN, DAMAGED, IN_DETAIL, SPENT = "forget set", "perplexity, change", "forget set in detail", "cost of a run"
COLUMNS = (
    Column("failing", "fail", mean, FORGOTTEN),
    Column("memorization_accuracy_mean", "accuracy, mean", fmt.accuracy, FORGOTTEN),
    Column("difference", "difference", signed, FORGOTTEN),
    Column("holdout_perplexity_change", "holdout", _change, DAMAGED, fmt.percent_interval),
    Column("test_perplexity_change", "test", _change, DAMAGED, fmt.percent_interval),
    Column("memorization_accuracy_max", "highest accuracy", fmt.accuracy, IN_DETAIL),
    Column("outliers_high", "high", mean, IN_DETAIL),
    Column("outliers_low_new", "new low", mean, IN_DETAIL),
    Column("extractable", "recited", mean, IN_DETAIL),
    Column("extractable_any_prefix", "from any prefix", mean, IN_DETAIL),
    Column("longest_verbatim_run_max", "longest run", mean, IN_DETAIL),
    Column("auc_memorization_accuracy", "AUC, accuracy", fmt.accuracy, IN_DETAIL),
    Column("auc_loss", "AUC, loss", fmt.accuracy, IN_DETAIL),
    Column("goal_reached", "goal reached", _share_of_runs, SPENT, once=True),
    Column("seconds", "time", fmt.duration, SPENT, once=True),
    Column("peak_memory_bytes", "peak memory", fmt.size, SPENT, once=True),
    Column("sequences_ascended", "sequences ascended", mean, SPENT, once=True),
)
"""What each of them means is said in comparison.html.j2."""


def columns(comparison: Comparison) -> list[Column]:
    """The columns in which at least one method has a figure."""
    rows = comparison.rows
    return [column for column in COLUMNS if column.key in rows and rows[column.key].notna().any()]
