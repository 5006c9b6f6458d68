"""The figures of a run, and when each of them is drawn."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from reporting.builders import (
    EVERY_FORM,
    HOLDOUT,
    MANIFEST,
    NAN,
    NO_HOLDOUT,
    SEQUENCES,
    check_page,
    curves_of,
    deltas_of,
    frame,
    log_of,
    page_of,
    precise,
    results_of,
    scales_of,
    staged,
    summary_of,
)

from adapter_unlearn.reporting import images, style
from adapter_unlearn.reporting.run import figures
from adapter_unlearn.reporting.run.form_figures import by_depth, deltas_figure, prefixes_figure
from adapter_unlearn.reporting.run.log_figures import epochs_figure, scales_figure, stage_spans
from adapter_unlearn.reporting.run.sequence_figures import histogram_figure, memorization_figure


def names_of(**parts):
    return [picture.name for picture in figures.pictures(results_of(**parts))]


@pytest.mark.parametrize(
    ("names", "holdout"), [(("base",), NO_HOLDOUT), (("base", "stacked"), NO_HOLDOUT), (EVERY_FORM, HOLDOUT)]
)
def test_every_figure_has_labelled_axes_and_renders(names, holdout):
    pictures = figures.pictures(
        results_of(
            summary_of(*names), MANIFEST, staged(log_of(3)), scales_of([-3, -1, 0]), holdout=holdout,
            sequences=frame({form: [1.0, NAN, 0.5] for form in names}), deltas=deltas_of(names),
            curves=curves_of({form: [[True] * 30] for form in names}),
        )
    )  # fmt: skip
    after = names[1:] or names
    once = ["histogram", "prefixes", "epochs", "scales", "deltas"]
    assert [picture.name for picture in pictures] == [f"memorization_{form}" for form in after] + once
    assert len({picture.title for picture in pictures}) == len(pictures)
    for picture in pictures:
        axes = picture.figure.axes
        assert picture.caption.strip().endswith((".", ")")), picture.name
        assert all(panel.get_ylabel() for panel in axes) and axes[-1].get_xlabel(), picture.name
        assert all(text.get_fontsize() >= 9 for panel in axes for text in panel.get_xticklabels()), picture.name
        assert images.png(picture.figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("prefixes", {"curves": curves_of({"base": [[True] * 30]})}),
        ("epochs", {"train_log": log_of(1)}),
        ("scales", {"scales": scales_of([-1, 0])}),
        ("deltas", {"deltas": deltas_of(["stacked"])}),
    ],
)
def test_a_figure_without_data_is_not_drawn(name, parts):
    always = ["memorization_stacked", "histogram"]
    assert names_of(**parts) == [*always, name]
    assert names_of() == always
    if name in ("prefixes", "deltas"):
        assert names_of(**{key: table.iloc[:0] for key, table in parts.items()}) == always


@pytest.mark.parametrize("n", [1, 20, 2000, 5000])
def test_the_figure_of_sequences_stays_small(n):
    rng = np.random.default_rng(0)
    sequences = frame({"base": rng.beta(5, 1, n), "stacked": [*rng.normal(0.2, 0.03, n - 1), 0.9]})
    figure = memorization_figure(sequences, (0.1, 0.3))
    assert len(images.svg(figure, "m", "d")) < 300_000
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert max(drawn["after"]) == 0.9, "the worst sequence is drawn however many there are"


def test_the_caption_of_sequences_says_what_is_drawn():
    n = 2005
    sequences = frame({form: [NAN, *[0.5] * (n - 1)] for form in ("base", "merged")})
    results = results_of(precise(), sequences=sequences)
    (caption,) = (p.caption for p in figures.pictures(results) if p.name == "memorization_merged")
    for part in ("0.110 to 0.290", "bfloat16, not quantized", "1 sequence could", "2,005 sequences"):
        assert part in caption
    (alone,) = (p.caption for p in figures.pictures(results_of(holdout=NO_HOLDOUT)) if p.name.startswith("mem"))
    assert "Shaded" not in alone and "could not" not in alone


def test_prefixes_figure_shows_how_many_and_how_far():
    hits = [np.arange(60) >= start for start in (0, 30, 45)] + [np.ones(25, dtype=bool)]
    curves = curves_of({"base": hits, "stacked": [one & (np.arange(len(one)) % 5 > 0) for one in hits]})
    figure = prefixes_figure(curves.sample(frac=1, random_state=0))
    recited, stretch = ({line.get_label(): line for line in axes.lines} for axes in figure.axes)
    assert list(recited) == ["before", "after"]
    assert recited["before"].get_xdata().tolist() == list(range(1, 42))
    assert recited["before"].get_ydata().tolist() == [2] * 6 + [1] * 24 + [2] * 11
    assert set(recited["after"].get_ydata()) == {0}
    before, after = (line.get_ydata() for line in stretch.values())
    assert before.tolist() == list(range(60, 19, -1)) and max(after) == 4
    page, parsed = page_of(curves=curves)
    check_page(page, parsed)
    every = prefixes_figure(curves_of(dict.fromkeys(EVERY_FORM, hits)))
    styles = [(line.get_color(), line.get_linestyle()) for line in every.axes[0].lines]
    assert len(set(styles)) == 5 and styles[0] == (style.BEFORE, "--")


def test_epochs_without_validation_and_an_empty_log():
    assert len(epochs_figure(log_of(3, perplexity=None)).axes) == len(epochs_figure([]).axes) == 2


def test_stages_are_divided_and_named():
    log = staged(log_of(7))
    assert stage_spans(log) == [("ascend", 1, 4), ("fit", 5, 6), ("scale search", 7, 7)]
    figure = epochs_figure(log, None, 7)
    dividers = {line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1}
    assert dividers == {4.5, 6.5, 7}
    assert figure.axes[-1].get_xlabel().endswith("1 to 4 ascend, 5 to 6 fit, 7 scale search")
    one = [record | {"stage": "ascend" if record["epoch"] else None} for record in log_of(3)]
    assert "ascend" not in epochs_figure(one).axes[-1].get_xlabel()
    stages = [
        {"stage": "ascend", "scale": 1.0, "ended": "It held early."},
        {"stage": "fit", "scale": -1.5, "ended": ""},
    ]
    _, parsed = page_of(train_log=log, manifest=MANIFEST | {"stages": stages})
    assert "ascend (epochs 1 to 4), then fit (epochs 5 to 6), then scale search (epoch 7" in parsed.text
    assert "It held early." in parsed.text and "ascend, then fit times −1.5" in parsed.text


def marks_of(axes):
    """The lines by label, and the x of the hollow dots over them."""
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    hollow = [x for line in axes.lines if line.get_markerfacecolor() == style.SURFACE for x in line.get_xdata()]
    return lines, hollow


def test_scales_figure_marks_the_chosen_and_those_over_the_budget():
    figure = scales_figure(scales_of([-3, -2, -1, -0.5, 0]), (0.1, 0.3), -1.0)
    accuracies, sequences, perplexity = figure.axes
    lines, hollow = marks_of(accuracies)
    assert lines["mean"].get_xdata().tolist() == [-3, -2, -1, -0.5, 0]
    assert lines["mean"].get_ydata()[0] == pytest.approx(0.35) and set(hollow) == {-3, -2}
    assert marks_of(sequences)[0]["new low"].get_ydata().tolist() == [3, 2, 1, 0, 0]
    assert marks_of(sequences)[0]["outliers, high"].get_ydata().tolist() == [2, 3, 4, 5, 5]
    assert "over the perplexity budget" in marks_of(perplexity)[0] and perplexity.get_ylabel()
    assert all([-1.0, -1.0] in [list(line.get_xdata()) for line in axes.lines] for axes in figure.axes)
    assert "chosen, -1" in perplexity.get_xlabel() and perplexity.xaxis_inverted()
    every = scales_figure(scales_of([0, 1], within=lambda scale: True), None, None)
    assert marks_of(every.axes[0])[1] == [] and not every.axes[-1].xaxis_inverted()
    assert "chosen" not in every.axes[-1].get_xlabel()
    assert len(scales_figure(scales_of([-1, 0], perplexity=None)).axes) == 2


def test_the_caption_of_scales_says_what_was_chosen():
    stages = [{"stage": "fit", "adapter": "default", "scale": -1.0, "ended": "The stop rule held."}]
    _, parsed = page_of(scales=scales_of([-3, -2, -1, 0]), manifest=MANIFEST | {"stages": stages})
    assert "2 scales over the perplexity budget" in parsed.text and "Chosen: −1" in parsed.text


@pytest.mark.parametrize("worst", [float("inf"), 1e300, 1e9, 700.0, 150.0])
def test_a_broken_model_does_not_flatten_the_others(worst):
    scales = scales_of([-2, -1, 0])
    scales[0]["validation_perplexity"] = worst
    axes = scales_figure(scales, None, -1.0).axes[-1]
    axes.figure.draw_without_rendering()
    shown = [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    assert len(shown) >= 2 and np.isfinite(axes.get_ylim()).all()
    assert all(axes.get_ylim()[0] < value < axes.get_ylim()[1] for value in (100.0, 102.0)), "the good ones are seen"


def test_modules_are_ordered_by_depth():
    names = ["lm_head", "h.10.b", "h.2.z", "h.2.a", "wte", "h.0.mlp.experts.3.w"]
    assert by_depth(names) == ["wte", "h.0.mlp.experts.3.w", "h.2.z", "h.2.a", "h.10.b", "lm_head"]


def test_deltas_figure_shows_each_form_and_survives_an_empty_delta():
    sizes, shares = deltas_figure(deltas_of(["merged", "requantized_nf4"])).axes
    lines, _ = marks_of(shares)
    assert set(lines) == {"merged", "requantized nf4"} and lines["requantized nf4"].get_ydata().tolist() == [0.9] * 4
    assert sizes.lines[0].get_ydata().tolist() == [0.01] * 4
    assert [text.get_text() for text in shares.get_xticklabels()] == ["2", "10"]
    nothing = deltas_of(["merged"]).assign(relative_size=0.0, projection=np.nan)
    assert images.png(deltas_figure(nothing)).startswith(b"\x89PNG")


def test_histograms_hold_every_set():
    figure = histogram_figure(SEQUENCES, HOLDOUT, (0.1, 0.3))
    counts = [text.get_text().rsplit(" ", 1)[1] for axes in figure.axes for text in axes.texts]
    assert counts == ["(4)", "(4)", "(3)"]


def test_figures_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    images.svg(histogram_figure(SEQUENCES, HOLDOUT, (0.1, 0.3)), "h", "d")
    assert dict(matplotlib.rcParams) == before


def test_the_style_holds_whatever_the_user_has_set():
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        figure = memorization_figure(pd.DataFrame(SEQUENCES))
    axes = figure.axes[0]
    assert axes.yaxis.label.get_size() == 9.5 and axes.get_facecolor() == (0, 0, 0, 0)
    assert not any(axes.spines[side].get_visible() for side in ("top", "right"))
