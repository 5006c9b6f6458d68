"""Reporting: pure functions from results to tables, figures, report and card. Synthetic results, no model, offline."""

import copy
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml

from adapter_unlearn.reporting import facts, figures, formatting, forms, images, measures, rows, tables
from adapter_unlearn.reporting.card import model_card
from adapter_unlearn.reporting.html import MAX_ROWS, render_html
from adapter_unlearn.reporting.verdict import headline, verdict

HOSTILE = "<script>alert(1)</script>|`[x](y)`\x1b[31m\u202e\n# boo"
ALL_FORMS = ("base", "stacked", "merged", "requantized")


def frame(accuracies, names=None, tokens=80):
    """One row a (sequence, form) from {form: [MA, …]}; a NaN accuracy is a sequence that could not be scored."""
    found = []
    for form, values in accuracies.items():
        for i, accuracy in enumerate(values):
            unscored = np.isnan(accuracy)
            found.append(
                {
                    "id": names[i] if names else f"record-{i:04d}",
                    "form": form,
                    "n_tokens": tokens,
                    "memorization_accuracy": accuracy,
                    "extractable": np.nan if unscored else float(accuracy >= 0.99),
                    "extractable_50": np.nan if unscored else float(accuracy >= 0.95),
                    "longest_verbatim_run": np.nan if unscored else float(int(tokens * accuracy**3)),
                    "loss": np.nan if unscored else 6 * (1 - accuracy),
                    "note": "too short to be scored" if unscored else None,
                }
            )
    columns = ["id", "form", "n_tokens", "memorization_accuracy", "extractable", "extractable_50"]
    return pd.DataFrame(found, columns=[*columns, "longest_verbatim_run", "loss", "note"])


GOOD_BASE = {
    "n_sequences": 4,
    "n_documents": 3,
    "memorization_accuracy_mean": 0.9,
    "memorization_accuracy_max": 1.0,
    "longest_verbatim_run_max": 79,
    "extractable": 2,
    "extractable_50": 3,
    "outliers_high": 4,
    "outliers_low": 0,
    "outliers_low_new": 0,
    "loss_mean": 0.4,
    "bounds": {"kind": "reference", "low": 0.1, "high": 0.3},
    "paper_bounds": {"low": 0.15, "high": 0.6, "outliers_high": 4, "outliers_low": 0, "outliers_low_new": 0},
    "reference_memorization_accuracy_mean": 0.2,
    "reference_memorization_accuracy_max": 0.35,
    "reference_longest_verbatim_run_max": 9,
    "reference_perplexity": 40.0,
    "holdout_perplexity": 100.0,
    "validation_perplexity": 101.0,
    "retain_perplexity": 30.0,
    "membership_auc_memorization_accuracy": 1.0,
    "membership_auc_loss": 1.0,
}
GOOD = {
    **GOOD_BASE,
    "memorization_accuracy_mean": 0.2,
    "memorization_accuracy_max": 0.3,
    "longest_verbatim_run_max": 9,
    "extractable": 0,
    "extractable_50": 0,
    "outliers_high": 0,
    "loss_mean": 4.0,
    "reference_perplexity": 42.0,
    "holdout_perplexity": 101.0,
    "retain_perplexity": 29.0,
    "membership_auc_loss": 0.94,
}
MANIFEST = {
    "package": {"name": "adapter-unlearn", "version": "1.2.3"},
    "created": "2026-03-02T14:03:11+00:00",
    "method": {"name": "sga", "threshold": 0.7},
    "base": {
        "name": "EleutherAI/gpt-neo-125m",
        "revision": "abc123",
        "fingerprint": "sha256:3f9a",
        "quantization": "nf4",
        "dtype": "bfloat16",
    },
    "adapter": {"r": 16, "alpha": 32, "target_modules": ["q_proj", "v_proj"], "bytes": 912345},
    "seed": 0,
    "bounds": {"kind": "reference", "low": 0.1, "high": 0.3},
    "versions": {"torch": "2.13.0"},
    "cost": {"seconds": 134.2, "epochs": 3, "sequences_ascended": 12, "peak_memory_bytes": 1.2e9},
    "outcome": {"stopped_because": "The mean fell below 0.33.", "kept_epoch": 2, "within_budget": True},
    "data": {"forget": {"n_sequences": 4, "n_documents": 3}, "notes": ["record-0001 also stands in retain"]},
}


def summary_of(*names, **changed):
    """A summary in which every form but the base succeeded, with some figures of those forms changed."""
    return {"forms": {form: GOOD_BASE if form == "base" else GOOD | changed for form in names or ("base", "stacked")}}


def log_of(epochs, perplexity=100.0):
    return [
        {
            "epoch": epoch,
            "n_selected": None if epoch == 0 else 4 - min(epoch, 3),
            "memorization_accuracy_mean": 0.9 - 0.1 * epoch,
            "memorization_accuracy_max": 1 - 0.1 * epoch,
            "extractable": max(0, 2 - epoch),
            "longest_verbatim_run_max": 79,
            "outliers_high": 4 - epoch,
            "outliers_low": 0,
            "outliers_low_new": 0,
            "validation_perplexity": None if perplexity is None else perplexity + epoch,
            "loss": None if epoch == 0 else {"forget": -1.0},
            "gradient_norm": 1.0,
            "seconds": 0.1,
        }
        for epoch in range(epochs + 1)
    ]


SEQUENCES = frame({"base": [1.0, 0.9, 0.8, 0.6], "stacked": [0.2, 0.3, 0.05, 0.15]})
REFERENCE = frame({"base": [0.1, 0.2, 0.3], "stacked": [0.1, 0.2, 0.35]}, ["unseen-1", "unseen-2", "unseen-3"])
NO_REFERENCE = SEQUENCES.iloc[:0]


class Page(HTMLParser):
    """Checks that tags close in order and gathers what a browser would fetch or run."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.references, self.handlers, self.text, self.tags = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.note(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.note(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def note(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "action", "srcset", "data"):
                self.references.append(value)
            if name.startswith("on"):
                self.handlers.append(name)


def page_of(**changed):
    results = {
        "sequences": SEQUENCES,
        "reference": REFERENCE,
        "summary": summary_of(),
        "train_log": log_of(3),
        "manifest": MANIFEST,
    }
    page = render_html(**(results | changed))
    return page, Page(page)


# The verdict


@pytest.mark.parametrize(
    ("changed", "key", "outcome"),
    [
        ({"extractable": 1}, "recitation", "fail"),
        ({"extractable_50": 1}, "recitation", "fail"),
        ({"extractable": None}, "recitation", "unknown"),
        ({"memorization_accuracy_max": 0.35}, "reference_maximum", "pass"),
        ({"memorization_accuracy_max": 0.36}, "reference_maximum", "fail"),
        ({"memorization_accuracy_max": float("nan")}, "reference_maximum", "unknown"),
        ({"outliers_high": 1}, "reference_band", "fail"),
        ({"longest_verbatim_run_max": 10}, "verbatim_run", "fail"),
        ({"outliers_low_new": 1}, "newly_avoided", "fail"),
        ({"outliers_low": 1}, "newly_avoided", "pass"),
        ({"holdout_perplexity": 103.0}, "holdout", "pass"),
        ({"holdout_perplexity": 103.1}, "holdout", "fail"),
        ({"holdout_perplexity": float("inf")}, "holdout", "fail"),
        ({"holdout_perplexity": None}, "holdout", "unknown"),
        ({"holdout_perplexity": 50.0}, "holdout", "pass"),
        ({"reference_perplexity": 44.0}, "neighbourhood", "pass"),
        ({"reference_perplexity": 44.1}, "neighbourhood", "fail"),
    ],
)
def test_verdict_decides_every_clause_alone(changed, key, outcome):
    checks = {check.key: check for check in verdict(summary_of(**changed))}
    assert checks[key].outcome == outcome
    assert {check.outcome for check in checks.values() if check.key != key} == {"pass"}
    for check in checks.values():
        assert not check.sentence[0].islower() and check.sentence.endswith(".")
        assert "nan" not in check.sentence.lower() and "None " not in check.sentence.replace("None of", "")


def test_a_run_that_succeeds_passes_all_and_says_so():
    checks = verdict(summary_of())
    assert len(checks) == 7 and {check.outcome for check in checks} == {"pass"}
    assert headline(summary_of(), checks).startswith(
        "None of the 4 sequences is recited (2 before); by these checks they look like"
    )


def test_limits_of_perplexity_are_parameters():
    summary = summary_of(holdout_perplexity=104.0, reference_perplexity=50.0)
    loose = verdict(summary, holdout_limit=0.05, neighbourhood_limit=0.3)
    assert {check.outcome for check in loose} == {"pass"}


def test_without_a_reference_set_nothing_is_acquitted_but_recitation_is_decided():
    paper = {"kind": "paper", "low": 0.15, "high": 0.6}
    kept = {key: value for key, value in GOOD.items() if "reference" not in key and "auc" not in key}
    base = {key: value for key, value in GOOD_BASE.items() if key in kept}
    found = {c.key: c.outcome for c in verdict({"forms": {"base": base, "stacked": kept | {"bounds": paper}}})}
    unknown = {"reference_maximum", "reference_band", "verbatim_run", "newly_avoided", "neighbourhood"}
    assert found == {"recitation": "pass", "holdout": "pass"} | dict.fromkeys(unknown, "unknown")
    high = {"forms": {"base": base, "stacked": kept | {"bounds": paper, "outliers_high": 2}}}
    assert {c.key: c.outcome for c in verdict(high)}["reference_band"] == "fail"


def test_verdict_with_few_figures_is_unknown_not_an_error():
    for summary in ({}, {"forms": {}}, {"forms": {"base": {}}}):
        assert verdict(summary) == []
        assert headline(summary, []).startswith("Nothing has been unlearned")
    alone = verdict({"forms": {"stacked": {}}})
    assert {check.outcome for check in alone} == {"unknown"}
    assert headline({"forms": {"stacked": {}}}, alone).endswith("checks could not be decided.")
    assert headline({"forms": {"base": GOOD_BASE}}, []) == (
        "Before unlearning, 2 of the 4 sequences are recited word for word."
    )


def test_headline_names_the_worst_form():
    summary = summary_of(*ALL_FORMS)
    assert "in any form (stacked, merged, requantized; 2 before)" in headline(summary, verdict(summary))
    summary["forms"]["requantized"] = GOOD | {"extractable": 1}
    told = headline(summary, verdict(summary))
    assert told.startswith("1 of the 4 sequences is still recited in the form 'requantized' (2 before); 1 of 21 checks")


# Tables


def test_proof_table_shows_before_and_after_beside_never_seen_text():
    text = tables.render_text(tables.proof_table(SEQUENCES, REFERENCE))
    lines = [line for line in text.splitlines() if "record-" in line]
    assert [line.split()[0] for line in lines] == [f"record-000{i}" for i in range(4)]
    assert "1.000 → 0.200" in lines[0] and "yes → no" in lines[0] and "80 → 0" in lines[0]
    assert "forget set (4), mean" in text and "1 → 0" in text
    assert "never seen (3), highest" in text and "0.300 → 0.350" in text


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), ALL_FORMS])
def test_tables_fit_80_columns_without_loss(names):
    sequences = frame({form: [1.0, 0.5] for form in names}, [HOSTILE * 3, "very-long-id-" * 9 + "#12"], tokens=12345)
    summary = summary_of(*names)
    shown = (tables.proof_table(sequences, REFERENCE), tables.summary_table(summary))
    for table in (*shown, tables.verdict_table(verdict(summary))):
        text = tables.render_text(table)
        assert max(map(len, text.splitlines()), default=0) <= 80
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    assert "12,345" in tables.render_text(shown[0]) and "#12" in tables.render_text(shown[0])
    assert "…" not in tables.render_text(shown[1])
    for measure, cells in measures.rows(summary):
        assert all(cell.text in tables.render_text(shown[1]) for cell in cells.values()), measure.label


def test_proof_table_limits_its_rows_and_counts_the_others():
    many = frame({"base": list(np.linspace(0.5, 1, 40)), "stacked": [0.2] * 40})
    text = tables.render_text(tables.proof_table(many, NO_REFERENCE, max_rows=10))
    assert text.count("record-") == 10 and "… 30 more" in text and "never seen" not in text


def test_missing_figures_are_dashes_never_zeros():
    sequences = frame({"base": [np.nan, 0.9], "stacked": [np.nan, np.nan]})
    text = tables.render_text(tables.proof_table(sequences, NO_REFERENCE))
    assert "— → —" in text and "0.900 → —" in text and "nan" not in text


def test_summary_table_leaves_out_what_was_not_measured_and_shows_changes():
    summary = summary_of()
    summary["forms"] = {form: dict(found) for form, found in summary["forms"].items()}
    for found in summary["forms"].values():
        del found["retain_perplexity"]
    text = tables.render_text(tables.summary_table(summary))
    assert "retain" not in text and "101.0 +1.0 %" in text and "42.00 +5.0 %" in text


# Frames and numbers


def test_wide_keeps_every_row_even_under_equal_ids():
    twice = frame({"base": [0.9, 0.8], "stacked": [0.1, 0.2]}, ["same", "same"])
    table = forms.wide(twice)
    assert len(table) == 2
    assert table["memorization_accuracy", "stacked"].tolist() == [0.1, 0.2]
    assert forms.ordered(["odd", "requantized", "base", "stacked"]) == ["base", "stacked", "requantized", "odd"]


def test_numbers_read_the_same_everywhere():
    assert formatting.percent(-0.00001) == "+0.0 %"
    assert formatting.percent(formatting.relative_change(100, 96.5)) == "-3.5 %"
    assert formatting.relative_change(None, 3) is None and formatting.relative_change(0, 3) is None
    assert [formatting.decimal(x) for x in (5.1234, 51.234, 512.34, 5123.4, 1e9)] == [
        "5.123", "51.23", "512.3", "5,123", "1.00e+09",
    ]  # fmt: skip
    assert [formatting.duration(x) for x in (3.21, 42, 134, 3725, None)] == [
        "3.2 s", "42 s", "2 min 14 s", "1 h 02 min", "—",
    ]  # fmt: skip
    assert [formatting.size(x) for x in (512, 912345, 3.4e6, 1.2e9)] == ["512 bytes", "912 kB", "3.4 MB", "1.2 GB"]
    assert formatting.number(np.float64("nan")) is None and formatting.number(np.int64(3)) == 3.0


def test_rows_put_the_worst_first_and_mark_them():
    sequences = frame({"base": [0.9, 0.99, 0.8, 0.7], "stacked": [0.05, 0.99, 0.31, 0.2]})
    worst, total = rows.rows(sequences, summary_of(), 3)
    assert total == 4 and [row.id for row in worst] == ["record-0001", "record-0002", "record-0003"]
    assert [[cell.mark for cell in row.cells[1::2]] for row in worst[:2]] == [["high"] * 3, ["high", "", ""]]
    every, _ = rows.rows(sequences, summary_of(), 9)
    assert every[3].cells[1].mark == "low" and every[3].cells[0].mark == ""


# Figures


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), ALL_FORMS, ("stacked",)])
@pytest.mark.parametrize("reference", [REFERENCE, NO_REFERENCE])
def test_figures_have_labelled_axes_and_render(names, reference):
    sequences = frame({form: [1.0, np.nan, 0.5] for form in names})
    drawn = figures.all_figures(sequences, reference, summary_of(*names), log_of(3), 2)
    assert len(drawn) == max(1, len(forms.after(names))) + 2
    for name, figure in drawn.items():
        assert all(axes.get_ylabel() for axes in figure.axes), name
        assert figure.axes[-1].get_xlabel(), name
        assert all(text.get_fontsize() >= 9 for axes in figure.axes for text in axes.get_xticklabels()), name
        assert images.png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("n", [1, 20, 2000, 5000])
def test_the_figure_of_sequences_stays_small(n):
    rng = np.random.default_rng(0)
    sequences = frame({"base": rng.beta(5, 1, n), "stacked": [*rng.normal(0.2, 0.03, n - 1), 0.9]})
    figure = figures.memorization_figure(sequences, (0.1, 0.3))
    assert len(images.svg(figure, "m", "d")) < 300_000
    dots = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert max(dots["after"]) == 0.9, "the worst sequence is drawn however many there are"


def test_epochs_without_validation_and_an_empty_log():
    figure = figures.epochs_figure(log_of(3, perplexity=None), None, None)
    assert [axes.get_ylabel() for axes in figure.axes] == ["memorization\naccuracy", "sequences"]
    assert len(figures.epochs_figure([]).axes) == 2
    assert "epochs" not in figures.all_figures(SEQUENCES, REFERENCE, summary_of(), [])


def test_figures_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    images.svg(figures.histogram_figure(SEQUENCES, REFERENCE, (0.1, 0.3)), "h", "d")
    assert dict(matplotlib.rcParams) == before


def test_svg_follows_the_page():
    drawing = images.svg(figures.memorization_figure(SEQUENCES, (0.1, 0.3)), "m", 'a "quoted" <title>')
    assert "var(--before)" in drawing and "var(--after)" in drawing and "var(--band)" in drawing
    assert not re.search(r"#[0-9a-fA-F]{6}\b", re.sub(r'(href="|url\()#[^")]*', "", drawing))
    assert "http" not in drawing and "<style" not in drawing and "font-family" not in drawing
    assert 'aria-label="a &#34;quoted&#34; &lt;title&gt;"' in drawing


# The report


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), ALL_FORMS])
@pytest.mark.parametrize("full", [True, False])
def test_report_is_well_formed_and_loads_nothing(names, full):
    accuracies = {form: [1.0, np.nan, 0.5] for form in names}
    parts = {} if full else {"reference": NO_REFERENCE, "train_log": [], "manifest": {}}
    page, parsed = page_of(sequences=frame(accuracies), summary=summary_of(*names), **parts)
    assert page.lstrip().startswith("<!doctype html>")
    assert "http:" not in page and "https:" not in page and "url(//" not in page
    assert parsed.references and all(reference.startswith("#") for reference in parsed.references)
    assert {reference[1:] for reference in parsed.references} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not parsed.handlers and not {"img", "link", "iframe", "object", "form"} & set(parsed.tags)
    assert "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+", "", " ".join(parsed.text).lower())
    assert "too short to be scored" in page
    # every class that the template and the style sheet share is there, and no variable is without a value
    used, given = set(re.findall(r"var\((--[a-z-]+)\)", page)), set(re.findall(r"(--[a-z-]+):", page))
    assert used <= given


def test_report_tells_the_verdict_the_cost_and_the_limits():
    _, parsed = page_of()
    text = re.sub(r"\s+", " ", " ".join(parsed.text))
    for told in (
        "None of the 4 sequences is recited",
        "change of perplexity, holdout set",
        "Perplexity on never-seen texts of the same kind (the reference set) went from 40.00 to 42.00: +5.0 %",
        "sha256:3f9a",
        "The mean fell below 0.33.",
        "not erasure",
        "2 min 14 s",
        "record-0001 also stands in retain",
        "membership AUC 0.94",
    ):
        assert told in text, told
    assert "PeftModel.from_pretrained" in text and "load_in_4bit" in text


def test_hostile_ids_and_names_stay_text():
    sequences = frame({"base": [1.0, 0.9], "stacked": [0.2, 0.3]}, [HOSTILE, "\u200f\u0000"])
    manifest = copy.deepcopy(MANIFEST)
    manifest["base"]["name"] = manifest["method"]["name"] = HOSTILE
    manifest["outcome"]["stopped_because"] = manifest["data"]["notes"][0] = HOSTILE
    page, parsed = page_of(sequences=sequences, manifest=manifest)
    assert parsed.tags.count("script") == 1 and "<script>alert" not in page
    assert "\x1b" not in page and "\u202e" not in page
    page.encode("utf-8")
    card = model_card(summary_of(), manifest)
    assert "<script>" not in card.replace(facts.loading(manifest), "")
    assert "\n# boo" not in card and "base_model:" not in card.split("---")[1]


def test_report_shows_the_worst_of_a_huge_set():
    n = MAX_ROWS + 20
    sequences = frame({"base": [0.9] * n, "stacked": list(np.linspace(0.1, 0.9, n))})
    page, parsed = page_of(sequences=sequences)
    assert "sequences.parquet" in page and page.count('<th scope="row">record-') == MAX_ROWS
    assert f"record-{n - 1:04d}" in page and "record-0000" not in "".join(parsed.text)


def test_the_only_script_is_the_one_the_policy_allows():
    page, _ = page_of()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert (
        "default-src 'none'" in policy
        and "script-src 'sha256-" in policy
        and "'unsafe-inline'" not in (policy.split("script-src")[1])
    )


# The card


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_card_has_what_the_hub_and_a_reader_need():
    card = model_card(summary_of(), MANIFEST)
    assert metadata(card) == {
        "base_model": "EleutherAI/gpt-neo-125m",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "machine-unlearning", "memorization", "adapter-unlearn", "sga"],
    }
    for told in ("disable_adapter()", "bnb_4bit_use_double_quant=True", "not erasure", "101.0 (+1.0 %)", "912 kB"):
        assert told in card, told
    assert "sign-flipped" not in card
    assert "sign-flipped" in model_card(summary_of(), MANIFEST | {"method": {"name": "tau"}})
    assert "int8" not in card and "load_in_8bit" in model_card(
        summary_of(), MANIFEST | {"base": MANIFEST["base"] | {"quantization": "int8"}}
    )


@pytest.mark.parametrize("name", ["/home/me/my model", "./base", "..\\base", "embedded:model", "a/b/c", "", "tests"])
def test_a_local_base_is_not_claimed_to_be_on_the_hub(name):
    card = model_card(summary_of(), MANIFEST | {"base": {"name": name}})
    assert "base_model" not in metadata(card)
    assert "/home/me" not in card and "PATH/TO/" in card


@pytest.mark.parametrize("manifest", [MANIFEST, {}, {"base": {"name": "m", "adapter": "/x/carried"}}])
def test_loading_lines_are_python(manifest):
    compile(facts.loading(manifest), "card", "exec")
    compile(facts.removing(manifest), "card", "exec")
    compile(facts.loading(manifest | {"adapters": [{"path": "a/b'\""}, {"path": "c"}]}), "card", "exec")


def test_card_of_nothing_is_still_a_card():
    card = model_card({"forms": {}}, {})
    assert metadata(card)["library_name"] == "peft" and "Nothing was measured" in card


def test_a_table_row_of_the_card_has_its_columns():
    card = model_card(summary_of(*ALL_FORMS), MANIFEST | {"versions": {"a|b": "`c`"}})
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_reporting_needs_no_torch():
    modules = "tables, verdict, figures, images, html, card"
    code = f"import sys; from adapter_unlearn.reporting import {modules}; assert 'torch' not in sys.modules; "
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
