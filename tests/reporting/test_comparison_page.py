"""The comparison as people read it: page, terminal, pictures; from synthetic runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from adapter_unlearn.reporting.html import render_comparison
from matplotlib.figure import Figure
from synthetic_runs import SPREAD, finished_run

from adapter_unlearn.evaluation import comparison
from adapter_unlearn.evaluation.comparison import Failed
from adapter_unlearn.pipeline import manifest
from adapter_unlearn.reporting import comparison as shown
from adapter_unlearn.reporting import figures, labels, tables

HOSTILE = "<script>alert(1)</script>|\x1b[31m\u202e{{ 7*7 }}"


def test_names_from_strangers_do_no_harm():
    found = comparison.compare(
        [finished_run(f"r/{HOSTILE}", SPREAD), finished_run("r/b", SPREAD + 0.2)], [Failed(HOSTILE, 0, "x", HOSTILE)]
    )
    page = render_comparison(found, manifest.of_comparison(found.about))
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page and "{{ 7*7 }}" in page
    told = tables.render_text(tables.comparison_table(found))
    assert "\x1b" not in told and "\u202e" not in told
    assert json.dumps(shown.as_json(found, {}))


def test_the_terminal_s_table_fits():
    found = comparison.compare(
        [finished_run(f"r/method-{i}", SPREAD + 0.02 * i, perplexity_ratio=1 + i) for i in range(5)]
    )
    told = tables.render_text(tables.comparison_table(found))
    assert all(len(line) <= 80 or line.startswith("fail:") for line in told.splitlines()) and "method-4" in told


def test_a_line_of_the_page_says_what_it_is():
    runs = [finished_run(f"r/m-seed{seed}", SPREAD + 0.02 * seed, seed, "m") for seed in (0, 1)]
    found = comparison.compare([*runs, finished_run("r/b", SPREAD + 0.2)])
    base, m, b = shown.lines(found)
    names = [column.key for column in shown.columns(found)]
    assert (base.name, m.name, m.seeds, b.seeds) == ("before", "m", "2 seeds", "") and m.is_baseline
    cell = m.cells[names.index("memorization_accuracy_mean")]
    assert cell.text == f"{SPREAD.mean() + 0.01:.3f}" and " to " in cell.change and cell.spread.startswith("[")
    assert (
        base.cells[names.index("test_perplexity_change")].text == ""
        and b.cells[names.index("goal_reached")].text == "yes"
    )
    assert shown.headline(found).startswith("Of 2 methods m leaves the fewest sequences unlike never-seen text, ")


def test_labels_lie_apart_and_in_the_picture():
    rng = np.random.default_rng(0)
    points = rng.uniform(40, 360, (9, 2))
    points[1], points[2] = points[0] + 3, points[0] - 3
    sizes = np.tile([60.0, 12.0], (9, 1))
    line = np.array([[0.0, 200.0], [400.0, 200.0]])
    boxes = labels.place(points, sizes, (0, 0, 400, 400), 8, [line])
    for i, box in enumerate(boxes):
        assert min(box) >= 0 and max(box) <= 400
        assert not box[1] < 200 < box[3], "on the line"
        for other in boxes[:i]:
            assert box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
        for x, y in points:
            assert not (box[0] < x < box[2] and box[1] < y < box[3])


def test_the_picture_tells_every_method_and_the_front():
    runs = [
        finished_run(f"r/m{i}", np.clip(SPREAD + 0.05 * i, 0, 1), perplexity_ratio=1.5 - 0.05 * i) for i in range(6)
    ]
    runs.append(finished_run("r/ruined", SPREAD + 0.3, perplexity_ratio=40.0))
    found = comparison.compare(runs)
    figure = figures.pareto_figure(found.rows[found.rows["form"] == "stacked"])
    assert isinstance(figure, Figure) and len(figure.axes) == 2
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == {f"m{i}" for i in range(6)} | {"ruined"}
        assert axes.get_xscale() == "log", "one ruined model must not flatten the others"
        bounds = axes.get_window_extent()
        for text in axes.texts:
            box = text.get_window_extent()
            assert bounds.x0 - 1 <= box.x0 and box.x1 <= bounds.x1 + 1
    drawn = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    on = found.rows[found.rows["front_holdout"]]
    filled = next(line for line in drawn if line.get_markerfacecolor() == figures.AFTER)
    assert sorted(filled.get_xdata()) == pytest.approx(sorted(1 + on["holdout_perplexity_change"]))
    assert not on["method"].eq("ruined").any()


def test_without_holdout_or_test_there_is_still_a_table():
    runs = [finished_run(name, SPREAD + shift, with_holdout=False) for name, shift in (("a", 0.0), ("b", 0.2))]
    found = comparison.compare(runs)
    assert not found.rows[["front_holdout", "front_test"]].to_numpy().any()
    assert figures.comparison_figures(found.rows) == {}
    page = render_comparison(found, manifest.of_comparison(found.about))
    assert "Side by side" in page and "neighbourhood</th>" not in page and "What forgetting costs" not in page


def test_every_form_has_pictures_of_its_own():
    found = comparison.compare([finished_run("a", SPREAD, forms=("stacked", "merged")), finished_run("b", SPREAD)])
    assert set(figures.comparison_figures(found.rows)) == {
        "pareto_stacked", "pareto_auc_stacked", "pareto_merged", "pareto_auc_merged",
    }  # fmt: skip
