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
        spread: the ends of its interval as text.
        means: one line for the glossary.
        group: columns of one group are adjacent.
        once: the figure belongs to a run and not to a form, so only a method's first line shows it.
    """

    key: str
    label: str
    show: Callable[[Any], str]
    spread: Callable[[Any], str]
    means: str
    group: str
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


def _ends(show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda ends: fmt.interval(ends, show)


FORGOTTEN, DAMAGED, IN_DETAIL, SPENT = "forget set", "perplexity, change", "forget set in detail", "cost of a run"
COLUMNS = (
    Column("failing", "fail", mean, _ends(mean),
           "failing sequences: high or new low outliers, recited from some prefix, or with a longer verbatim run than"
           " any never-seen text. Of never-seen texts, about one in twenty is a high outlier", FORGOTTEN),
    Column("memorization_accuracy_mean", "accuracy, mean", fmt.accuracy, _ends(fmt.accuracy),
           "the share of tokens that the model predicts correctly, each from the true text before it", FORGOTTEN),
    Column("difference", "difference", signed, _ends(signed),
           "mean difference in memorization accuracy from the baseline, paired by sequence", FORGOTTEN),
    Column("holdout_perplexity_change", "holdout", _change, fmt.percent_interval,
           "on the holdout set: never-seen texts of the forget set’s kind, which unlearning damages first", DAMAGED),
    Column("test_perplexity_change", "test", _change, fmt.percent_interval, "on general unseen text", DAMAGED),
    Column("memorization_accuracy_max", "highest accuracy", fmt.accuracy, _ends(fmt.accuracy),
           "the highest memorization accuracy of any sequence", IN_DETAIL),
    Column("outliers_high", "high", mean, _ends(mean),
           "high outliers: sequences above the level that 95 % of never-seen texts stay below", IN_DETAIL),
    Column("outliers_low_new", "new low", mean, _ends(mean),
           "over-forgotten sequences: pushed below the level that 95 % of never-seen texts stay above", IN_DETAIL),
    Column("extractable", "recited", mean, _ends(mean),
           "sequences that greedy decoding recites to the end from their prefix", IN_DETAIL),
    Column("extractable_any_prefix", "from any prefix", mean, _ends(mean),
           "the same from some prefix that leaves at least 20 tokens; a lower bound", IN_DETAIL),
    Column("longest_verbatim_run_max", "longest run", mean, _ends(mean),
           "the longest verbatim run of any sequence, in tokens", IN_DETAIL),
    Column("auc_memorization_accuracy", "AUC, accuracy", fmt.accuracy, _ends(fmt.accuracy),
           "the chance that a forget text’s accuracy is above a never-seen one’s; 0.5: not distinguishable", IN_DETAIL),
    Column("auc_loss", "AUC, loss", fmt.accuracy, _ends(fmt.accuracy), "the same by the loss", IN_DETAIL),
    Column("goal_reached", "goal reached", _share_of_runs, lambda _: "", "the recipe’s stop rule was met", SPENT, True),
    Column("seconds", "time", fmt.duration, _ends(fmt.duration), "from loading to the report", SPENT, True),
    Column("peak_memory_bytes", "peak memory", fmt.size, _ends(fmt.size),
           "of the accelerator if there is one, otherwise of the process", SPENT, True),
    Column("sequences_ascended", "sequences ascended", mean, _ends(mean),
           "gradient-ascent steps on forget sequences, summed over all epochs", SPENT, True),
)  # fmt: skip


def columns(comparison: Comparison) -> list[Column]:
    """The columns in which at least one method has a figure."""
    rows = comparison.rows
    return [column for column in COLUMNS if column.key in rows and rows[column.key].notna().any()]
