"""Methods side by side: page, figures and the terminal's table."""

import json

import numpy as np
import pandas as pd
import pytest
from reporting.builders import NAN, Page, check_page

from adapter_unlearn.evaluation.closeness import pareto_front
from adapter_unlearn.evaluation.comparison import Comparison
from adapter_unlearn.reporting import comparison, terminal
from adapter_unlearn.reporting import style as styles
from adapter_unlearn.reporting.comparison import figures, lines
from adapter_unlearn.reporting.comparison.columns import COLUMNS, columns
from adapter_unlearn.reporting.text_tables import render_text

HOSTILE = "<script>alert(1)</script>|\x1b[31m\u202e{{ 7*7 }}"
MANIFEST = {"base": {"name": "m", "quantization": "nf4"}, "created": "2026-03-02T14:03:11+00:00"}


def row_of(method, form="stacked", n_runs=1, **figures):
    """A row of Comparison.rows; of several runs the seeds range over ± 10 %."""
    values = {"failing": 3.0, "memorization_accuracy_mean": 0.25, "extractable": 0.0, "goal_reached": 1.0}
    values |= {"holdout_perplexity_change": 0.1, "test_perplexity_change": 0.05, "auc_loss": 0.6, "seconds": 134.2}
    values |= {"auc_loss_distance": 0.1, "sequences_ascended": 40.0, "difference": NAN} | figures
    if form == "base":
        values |= dict.fromkeys(("holdout_perplexity_change", "test_perplexity_change", "goal_reached", "seconds"), NAN)
    row = {"method": method, "form": form, "n_runs": n_runs, "seeds": ""} | values
    for key, value in values.items():
        spread = 0.1 * value if n_runs > 1 else 0.0
        row |= {f"{key}_seeds_min": value - spread, f"{key}_seeds_max": value + spread}
        row |= {f"{key}_low": value - 0.02, f"{key}_high": value + 0.02}
    return row


def compared(*rows, failed=None, warnings=()):
    """A Comparison of these rows; the first method is the baseline."""
    table = pd.DataFrame([row_of("base", "base", failing=12.0), *rows])
    for name in ("holdout", "test"):
        front = pareto_front(table["failing"].to_numpy(float), table[f"{name}_perplexity_change"].to_numpy(float))
        table[f"front_{name}"] = front & (table["form"] != "base")
    methods = [row["method"] for row in rows]
    pairs = pd.DataFrame([
        {"first": a, "second": b, "form": "stacked", "duplicate": False, "alike": i == 0}
        | {f"{measure}_{key}": 0.01 for measure in ("memorization_accuracy", "loss")
           for key in ("difference", "difference_low", "difference_high", "distance", "tolerance")}
        for i, a in enumerate(methods) for b in methods[i + 1:]
    ])  # fmt: skip
    run = {"seed": 0, "failed": None, "goal_reached": True, "stopped_because": "The stop rule held.", "seconds": 134.2}
    run |= {"peak_memory_bytes": 5e6, "sequences_ascended": 40, "epochs": 4}
    runs = [run | {"method": name, "folder": f"runs/{name}"} for name in methods]
    if failed is not None:
        runs.append(dict.fromkeys(run, None) | {"method": failed, "seed": 0, "folder": "x", "failed": failed})
    frame = pd.DataFrame(runs).astype({"failed": object, "seed": object})
    about = {"n_sequences": 12, "n_holdout": 8, "base": MANIFEST["base"]}
    return Comparison(table, pairs, frame, methods[0], list(warnings), about)


def test_the_folder_is_written_and_its_page_is_whole(tmp_path):
    both = compared(row_of("sga", n_runs=2), row_of("ga", failing=5.0, difference=0.04), failed="broken")
    comparison.write(tmp_path, both, MANIFEST)
    assert {path.name for path in tmp_path.iterdir()} == set(comparison.FILES)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"pareto_stacked.png", "pareto_auc_stacked.png"}
    values = json.loads((tmp_path / "comparison.json").read_text())
    assert values["baseline"] == "sga" and len(values["rows"]) == 3 and values["rows"][0]["seconds"] is None
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    check_page(page, parsed)
    assert "script" not in parsed.tags and "default-src 'none'" in page and parsed.tags.count("svg") == 2
    for part in ("sga", "ga", "broken, seed 0", "2 seeds", "2 min 14 s", "runs/sga", "identical within noise"):
        assert part in parsed.text


def test_names_from_strangers_do_no_harm():
    hostile = compared(row_of(HOSTILE), row_of("b"), failed=HOSTILE, warnings=[HOSTILE])
    page = comparison.render_comparison(hostile, MANIFEST, figures.pictures(hostile.rows))
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page and "{{ 7*7 }}" in page
    text = render_text(terminal.comparison_table(hostile))
    assert "\x1b" not in text and "\u202e" not in text
    assert json.dumps(lines.as_json(hostile, {}))


def test_the_terminal_s_table_fits(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    many = compared(*(row_of(f"method-{i}", holdout_perplexity_change=1.0 * i, difference=0.04) for i in range(5)))
    text = render_text(terminal.comparison_table(many))
    assert max(map(len, text.splitlines())) <= 80 and "method-4" in text and "2 min 14 s" in text
    terminal.show_comparison(many, "out")
    shown = capsys.readouterr().out
    assert "method-1 minus method-0: accuracy +0.040 [+0.020, +0.060]" in shown and "report.html" in shown


def test_a_line_of_the_page_holds_its_figures():
    both = compared(row_of("m", n_runs=2), row_of("b", failing=5.0, difference=0.04))
    base, m, b = lines.lines(both)
    names = [column.key for column in columns(both)]
    assert (base.name, m.name, m.seeds, b.seeds) == ("before", "m", "2 seeds", "") and m.is_baseline
    cell = m.cells[names.index("memorization_accuracy_mean")]
    assert (cell.text, cell.change, cell.spread) == ("0.250", "0.225 to 0.275", "[0.230, 0.270]")
    assert base.cells[names.index("test_perplexity_change")].text == ""
    assert b.cells[names.index("goal_reached")].text == "yes"
    assert m.cells[names.index("difference")].text == "" and b.cells[names.index("difference")].text == "+0.040"


def test_columns_without_figures_are_left_out():
    shown = {column.key for column in columns(compared(row_of("m")))}
    assert "failing" in shown and "longest_verbatim_run_max" not in shown and "difference" not in shown
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([row_of("m"), row_of("b", failing=5.0)], ("2 methods", "m has", "3 of 12", "+10.0 %")),
        ([row_of("m"), row_of("b"), row_of("c")], ("3 methods", "2 others")),
        ([row_of("m", holdout_perplexity_change=NAN)], ("m: 3 of 12", "+5.0 %")),
    ],
    ids=["best", "ties", "alone"],
)
def test_headline_names_the_best_and_its_cost(rows, parts):
    told = lines.headline(compared(*rows))
    assert all(part in told for part in parts), told


def test_the_figure_shows_every_method_and_the_front():
    rows = [row_of(f"m{i}", failing=2.0 * i, holdout_perplexity_change=0.5 - 0.05 * i) for i in range(6)]
    both = compared(*rows, row_of("ruined", failing=12.0, holdout_perplexity_change=39.0, test_perplexity_change=39.0))
    figure = figures.pareto_figure(both.rows[both.rows["form"] == "stacked"])
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == {f"m{i}" for i in range(6)} | {"ruined"}
        assert axes.get_xscale() == "log" and axes.get_xlabel() and axes.get_ylabel()
        assert axes.xaxis.get_major_formatter()(2.0) == "× 2"
        bounds = axes.get_window_extent()
        for text in axes.texts:
            box = text.get_window_extent()
            assert bounds.x0 - 1 <= box.x0 and box.x1 <= bounds.x1 + 1
    drawn = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    on = both.rows[both.rows["front_holdout"]]
    filled = next(line for line in drawn if line.get_markerfacecolor() == styles.AFTER)
    assert sorted(filled.get_xdata()) == pytest.approx(sorted(1 + on["holdout_perplexity_change"]))
    assert not on["method"].eq("ruined").any()


def test_without_holdout_or_test_there_is_still_a_table():
    bare = dict.fromkeys(("holdout_perplexity_change", "test_perplexity_change"), np.nan)
    both = compared(row_of("a", **bare), row_of("b", **bare))
    assert figures.pictures(both.rows) == []
    parsed = Page(comparison.render_comparison(both, MANIFEST, []))
    assert "svg" not in parsed.tags and "perplexity, change" not in parsed.text and "3" in parsed.text


def test_figures_are_named_by_form():
    forms = [row_of("a", form) for form in ("stacked", "merged")]
    names = [picture.name for picture in figures.pictures(compared(*forms).rows)]
    assert names == ["pareto_stacked", "pareto_auc_stacked", "pareto_merged", "pareto_auc_merged"]
