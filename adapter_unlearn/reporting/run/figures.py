"""The figures of a run: a table of what is drawn when, with titles and captions. Report and PNG files come from it.

To add a figure, add a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from adapter_unlearn.evaluation.summary import BASE
from adapter_unlearn.metrics.prefixes import LEAVES
from adapter_unlearn.reporting import form_names
from adapter_unlearn.reporting.formatting import accuracy, clean, count, factor, plural
from adapter_unlearn.reporting.images import Picture
from adapter_unlearn.reporting.run.form_figures import deltas_figure, prefixes_figure
from adapter_unlearn.reporting.run.log_figures import epochs_figure, scales_figure, stage_spans
from adapter_unlearn.reporting.run.results import RunResults
from adapter_unlearn.reporting.run.sequence_figures import MAX_DRAWN, histogram_figure, memorization_figure

_ONCE, _NEVER = ("",), ()
_Words = str | Callable[[RunResults, str], str]


@dataclass(frozen=True)
class Row:
    """One kind of figure.

    Attributes:
        name: of its file; `{form}` stands for the form.
        forms: the forms for each of which it is drawn; _ONCE for a figure of all forms, _NEVER if there is no data.
        draw: from the results and a form.
        title: the heading, or a function of the results and the form.
        caption: what is drawn, likewise.
    """

    name: str
    forms: Callable[[RunResults], Sequence[str]]
    draw: Callable[[RunResults, str], Figure]
    title: _Words
    caption: _Words


def pictures(results: RunResults) -> list[Picture]:
    """Draw every figure that the results have data for, in the order of the report."""

    def text(words: _Words, form: str) -> str:
        return words if isinstance(words, str) else words(results, form)

    return [
        Picture(row.name.format(form=form), text(row.title, form), text(row.caption, form), row.draw(results, form))
        for row in FIGURES
        for form in row.forms(results)
    ]


def _sequences_title(results: RunResults, form: str) -> str:
    several = f" ({form_names.title(form)})" if len(results.after) > 1 else ""
    return f"Every sequence{', before and after' if form != BASE else ''}{several}"


def _sequences_caption(results: RunResults, form: str) -> str:
    caption = f"Each sequence is an open circle{' and, after unlearning, a filled circle' if form != BASE else ''}."
    if results.band:
        low, high = map(accuracy, results.band)
        caption += f" Shaded: {low} to {high}, the range of 90 % of never-seen text."
    now = results.summary.forms[form]
    if now.before is not None and now.loaded_as:
        caption += f" Before: the base as it was first loaded, and not in {clean(now.loaded_as)} like this form."
    rows = results.report.sequences[results.report.sequences["form"] == form]
    if missing := int(rows["memorization_accuracy"].isna().sum()):
        caption += (
            f" {plural(missing, 'sequence')} could not be scored and {'is' if missing == 1 else 'are'} not drawn."
        )
    if (n := rows["id"].nunique()) > MAX_DRAWN:
        caption += f" Of {count(n)} sequences, the most memorized and an even sample of the others are drawn."
    return caption


def _epochs_caption(results: RunResults, form: str) -> str:
    caption = "Selected: the sequences trained on in that epoch."
    spans = stage_spans(results.train_log)
    if len(spans) > 1:
        stages = [
            f"{name} (epoch{f's {first} to' if first < last else ''} {last}"
            + (", at the chosen scale)" if name == "scale search" else ")")
            for name, first, last in spans
        ]
        caption += f" Vertical lines separate the stages: {', then '.join(stages)}."
        for part in (results.manifest.get("stages") or [])[:-1]:
            caption += f" How {clean(part.get('stage') or 'a stage')} ended: {clean(part.get('ended') or '')}"
    return f"{caption} {clean((results.manifest.get('outcome') or {}).get('stopped_because') or '')}".strip()


def _scales_caption(results: RunResults, form: str) -> str:
    caption = (
        "The final adapter, multiplied by different factors without further training. At 0 the model is as it was"
        " without this adapter."
    )
    over = sum(1 for record in results.scales if record.get("within_budget") is False)
    if over:
        caption += f" Hollow: {plural(over, 'scale')} over the perplexity budget."
    if results.chosen_scale is not None:
        caption += f" Chosen: {factor(results.chosen_scale)}, with the fewest outliers within the budget."
    return caption


FIGURES = (
    Row(
        "memorization_{form}", lambda results: results.after or (BASE,),
        lambda results, form: memorization_figure(results.report.sequences, results.band, form),
        _sequences_title, _sequences_caption,
    ),
    Row(
        "histogram", lambda results: _ONCE,
        lambda results, _: histogram_figure(results.report.sequences, results.report.holdout, results.band),
        "Distribution of memorization",
        "The share of sequences at each level of memorization accuracy. After successful unlearning, the forget set is"
        " distributed like never-seen text.",
    ),
    Row(
        "prefixes", lambda results: _ONCE if len(results.report.curves) else _NEVER,
        lambda results, _: prefixes_figure(results.report.curves),
        "Recitation by prefix length",
        "The model continues prefixes of every length greedily. Above: of how many sequences it recites all the rest;"
        " shaded, how many are long enough. Below: the most tokens it recites of any sequence before its first mistake."
        f" Prefixes that leave fewer than {LEAVES} tokens are left out, because so few can be guessed.",
    ),
    Row(
        "epochs", lambda results: _ONCE if results.train_log else _NEVER,
        lambda results, _: epochs_figure(results.train_log, results.band, results.kept_epoch),
        "The run by epoch", _epochs_caption,
    ),
    Row(
        "scales", lambda results: _ONCE if results.scales else _NEVER,
        lambda results, _: scales_figure(results.scales, results.band, results.chosen_scale),
        "The adapter at other scales", _scales_caption,
    ),
    Row(
        "deltas", lambda results: _ONCE if len(results.report.deltas) else _NEVER,
        lambda results, _: deltas_figure(results.report.deltas),
        "What remains in the weights",
        "For each module: the size of the adapter’s delta relative to its weights, and the share of the delta that"
        " remains in each form (its projection). At 1 all of it remains; at 0 rounding has undone the unlearning.",
    ),
)  # fmt: skip
