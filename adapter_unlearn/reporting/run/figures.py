"""The figures of a run: a table of what is drawn when. Report and PNG files come from it.

To add a figure, add a row here, and its title and caption in captions.j2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from adapter_unlearn.evaluation.summary import BASE
from adapter_unlearn.metrics.prefixes import LEAVES
from adapter_unlearn.reporting.images import Picture
from adapter_unlearn.reporting.page import title_and_caption
from adapter_unlearn.reporting.run.form_figures import deltas_figure, prefixes_figure
from adapter_unlearn.reporting.run.log_figures import epochs_figure, scales_figure, stage_spans
from adapter_unlearn.reporting.run.results import RunResults
from adapter_unlearn.reporting.run.sequence_figures import MAX_DRAWN, histogram_figure, memorization_figure

_ONCE, _NEVER = ("",), ()


@dataclass(frozen=True)
class Row:
    """One kind of figure.

    Attributes:
        name: of its file; `{form}` stands for the form.
        forms: the forms for each of which it is drawn; _ONCE for a figure of all forms, _NEVER if there is no data.
        draw: from the results and a form.
    """

    name: str
    forms: Callable[[RunResults], Sequence[str]]
    draw: Callable[[RunResults, str], Figure]


FIGURES = (
    Row("memorization_{form}", lambda results: results.after or (BASE,),
        lambda results, form: memorization_figure(results.report.sequences, results.band, form)),
    Row("histogram", lambda results: _ONCE,
        lambda results, _: histogram_figure(results.report.sequences, results.report.holdout, results.band)),
    Row("prefixes", lambda results: _ONCE if len(results.report.curves) else _NEVER,
        lambda results, _: prefixes_figure(results.report.curves)),
    Row("epochs", lambda results: _ONCE if results.train_log else _NEVER,
        lambda results, _: epochs_figure(results.train_log, results.band, results.kept_epoch)),
    Row("scales", lambda results: _ONCE if results.scales else _NEVER,
        lambda results, _: scales_figure(results.scales, results.band, results.chosen_scale)),
    Row("deltas", lambda results: _ONCE if len(results.report.deltas) else _NEVER,
        lambda results, _: deltas_figure(results.report.deltas)),
)  # fmt: skip


def pictures(results: RunResults) -> list[Picture]:
    """Draw every figure that the results have data for, in the order of the report."""
    drawn, sequences = [], results.report.sequences
    about = {"results": results, "spans": stage_spans(results.train_log), "leaves": LEAVES, "max_drawn": MAX_DRAWN}
    for row in FIGURES:
        for form in row.forms(results):
            about |= {"form": form, "sequences": sequences[sequences["form"] == form]}
            words = title_and_caption("run/captions.j2", row.name.removesuffix("_{form}"), **about)
            drawn.append(Picture(row.name.format(form=form), *words, row.draw(results, form)))
    return drawn
