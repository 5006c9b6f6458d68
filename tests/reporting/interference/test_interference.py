"""Several adapters, several forget sets."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from reporting.builders import HOSTILE, MANIFEST, Page, check_page, matrix_of

from adapter_unlearn.reporting import images, interference, terminal
from adapter_unlearn.reporting.interference import figures
from adapter_unlearn.reporting.interference.findings import findings, owners
from adapter_unlearn.reporting.interference.html import render_interference
from adapter_unlearn.reporting.interference.matrix import subset_of, wakes
from adapter_unlearn.reporting.text_tables import render_text


def naive_wakes(rows):
    """The definition: sets, subsets S, adapters a not in S, where both S and S + {a} were measured."""
    recited = {
        (frozenset(name.split(" + ")) if name else frozenset(), of): n
        for name, of, n in zip(rows["adapters"], rows["set"], rows["extractable"], strict=True)
    }
    every = frozenset().union(*(on for on, _ in recited))
    return {
        (of, added, on, n, recited[on | {added}, of])
        for (on, of), n in recited.items()
        for added in every - on
        if (on | {added}, of) in recited and recited[on | {added}, of] > n
    }


@pytest.mark.parametrize("seed", range(8))
def test_wakes_equal_their_definition(seed):
    rng = np.random.default_rng(seed)
    rows = matrix_of(["a", "b", "c"], ["x", "y"], lambda on, name: int(rng.integers(0, 4)))
    rows = rows.sample(frac=1 if seed % 2 else 0.7, random_state=seed)
    cases = wakes(rows)
    as_sets = {(c.set, c.added, subset_of(c.adapters), c.before, c.after) for c in cases}
    assert as_sets == naive_wakes(rows) and len(as_sets) == len(cases)


NAMES = {"adapters": ["one", "two", "three"], "sets": ["first", "second", "third"]}
OWN = dict(zip(NAMES["sets"], NAMES["adapters"], strict=True))


def recited(on, name):
    """Each adapter stops its own set, `two` brings the first set back, and `three` does not work at all."""
    if name == "first" and {"one", "two"} <= on:
        return 2
    return 0 if OWN[name] in on and OWN[name] != "three" else 5


def test_findings_name_the_adapters_and_counts():
    results = findings(matrix_of(*NAMES.values(), recited), owners(NAMES))
    assert [(finding.set, finding.outcome) for finding in results] == [
        ("first", "fail"), ("second", "pass"), ("third", "fail"),
    ]  # fmt: skip
    first, second, third = (finding.sentence for finding in results)
    assert "none of the 8" in first and "(5 without any adapter)" in first and "0 → 2" in first
    assert "two is added to one" in first and "→" not in second
    assert "adapter three" in third and "5 of the 8" in third


def test_findings_without_owners_and_with_holes():
    rows = matrix_of(["a", "b"], ["x"], lambda on, _: 4 - 2 * len(on))
    (alone,) = findings(rows, owners({"adapters": ["a", "b"], "sets": ["x"]}))
    assert alone.outcome == "pass" and "none of the 8" in alone.sentence and "(4 without" in alone.sentence
    (unknown,) = findings(rows[rows["adapters"] != "a"], {"x": "a"})
    assert unknown.outcome == "unknown"
    assert owners({}) == {}


@pytest.mark.parametrize("n", [1, 3, 4])
def test_figure_has_labelled_axes_and_every_cell(n):
    adapters, sets = [f"adapter-{i}" for i in range(n)], [f"a-rather-long-set-{i}" for i in range(n)]
    figure = figures.interference_figure(matrix_of(adapters, sets, lambda on, _: 8 - len(on)))
    assert images.png(figure).startswith(b"\x89PNG")
    heats = [axes for axes in figure.axes if axes.texts]
    assert [len(axes.texts) for axes in heats] == [n * 2**n] * 2
    assert all(axes.get_xlabel() for axes in figure.axes) and figure.axes[0].get_ylabel()
    assert all(text.get_fontsize() >= 9 for axes in figure.axes for text in [*axes.texts, *axes.get_xticklabels()])
    figure.draw_without_rendering()
    for axes in heats:  # neighbours must not run into one another
        boxes = [text.get_window_extent() for text in axes.texts[:n]]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
        assert heats[0].texts[0].get_text() == "8" and heats[1].texts[0].get_text() == "1.000"


def test_the_folder_is_written_and_its_page_is_whole(tmp_path):
    rows = matrix_of(*NAMES.values(), recited)
    interference.write(tmp_path, rows, MANIFEST | NAMES)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "interference.parquet"), rows)
    values = json.loads((tmp_path / "interference.json").read_text())
    assert values["rows"] == rows.to_dict("records") and len(values["findings"]) == 3
    assert {(case["set"], case["added"], case["adapters"]) for case in values["wakes"]} == {
        ("first", "two", "one"),
        ("first", "two", "one + three"),
    }
    assert (tmp_path / "figures" / "interference.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    check_page(page, parsed)
    assert "script" not in parsed.tags and "script-src" not in page and "default-src 'none'" in page
    assert "two is added to one" in parsed.text and "none (the base model)" in parsed.text
    assert page.count('class="heat own"') == 2 * 3 * 4, "half of the subsets hold a set's own adapter"
    assert page.count('class="heat') == 2 * 3 * 8 and "--heat: 62%" in page


def test_hostile_names_of_adapters_and_sets_stay_text():
    names = {"adapters": [HOSTILE], "sets": [HOSTILE + "2"]}
    rows = matrix_of(*names.values(), lambda on, _: len(on))
    page = render_interference(rows, names, figures.picture(rows))
    assert "script" not in Page(page).tags and "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize("stem", ["a", "a-deletion-request-of-2026-"], ids=["short", "long"])
def test_the_table_fits_80_columns(stem, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    adapters, sets = ([f"{stem}{kind}{i}" for i in range(3)] for kind in ("adapter", "set"))
    rows = matrix_of(adapters, sets, lambda on, name: 8 if len(on) == 2 else 0)
    text = render_text(terminal.interference_table(rows, sets))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("1.000") == 9 and text.count("0.200") == 15 and "none (the base model)" in text
    terminal.show_interference(rows)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{sets[0]}:"))
    assert adapters[0] in line and adapters[1] in line and re.search(r"\b0 to 8\b", line)
