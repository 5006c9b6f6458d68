"""Reporting: pure functions from results to tables, figures, report and card. Synthetic results, no model, offline."""

import copy
import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml

from adapter_unlearn.evaluation.report import Report
from adapter_unlearn.metrics.table import METRICS
from adapter_unlearn.reporting import (
    facts,
    figures,
    formatting,
    forms,
    images,
    interference,
    measures,
    membership,
    rows,
    tables,
    terminal,
    utility,
    write,
)
from adapter_unlearn.reporting.card import model_card
from adapter_unlearn.reporting.html import MAX_ROWS, render_html, render_interference
from adapter_unlearn.reporting.progress import Progress
from adapter_unlearn.reporting.verdict import headline, verdict

HOSTILE = "<script>alert(1)</script>|`[x](y)`\x1b[31m\u202e\n# boo"
ALL_FORMS = ("base", "stacked", "merged", "requantized")
EVERY_FORM = ("base", "stacked", "merged", "requantized_nf4", "requantized_int8")


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
    "bounds": {"kind": "holdout", "low": 0.1, "high": 0.3},
    "paper_bounds": {"low": 0.15, "high": 0.6, "outliers_high": 4, "outliers_low": 0, "outliers_low_new": 0},
    "holdout_memorization_accuracy_mean": 0.2,
    "holdout_memorization_accuracy_max": 0.35,
    "holdout_longest_verbatim_run_max": 9,
    "holdout_perplexity": 40.0,
    "test_perplexity": 100.0,
    "validation_perplexity": 101.0,
    "retain_perplexity": 30.0,
    "membership_auc_memorization_accuracy": 1.0,
    "membership_auc_loss": 1.0,
    "extractable_any_prefix_mean": 0.5,
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
    "holdout_perplexity": 42.0,
    "test_perplexity": 101.0,
    "retain_perplexity": 29.0,
    "membership_auc_loss": 0.94,
    "extractable_any_prefix_mean": 0.0,
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
    "bounds": {"kind": "holdout", "low": 0.1, "high": 0.3},
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


def staged(log):
    """A log of epochs as a run of several stages writes it: the last record is the chosen scale's."""
    names = ["ascend"] * (len(log) // 2) + ["fit"] * len(log)
    stages = [None, *names[: len(log) - 2], "scale search"]
    return [record | {"stage": stage} for record, stage in zip(log, stages, strict=True)]


def scales_of(values, perplexity=100.0, within=lambda scale: scale > -2):
    return [
        {
            "scale": scale,
            "memorization_accuracy_mean": 0.5 + scale / 20,
            "memorization_accuracy_max": 0.9 + scale / 20,
            "extractable": max(0, 3 + int(scale)),
            "longest_verbatim_run_max": 9,
            "outliers_high": max(0, 5 + int(scale)),
            "outliers_low": 0,
            "outliers_low_new": int(-scale),
            "validation_perplexity": None if perplexity is None else perplexity * (1 + scale * scale / 50),
            "within_budget": bool(within(scale)),
            "seconds": 1.0,
        }
        for scale in values
    ]


def deltas_of(names, modules=("model.embed_tokens", "model.layers.10.q", "model.layers.2.q", "lm_head")):
    return pd.DataFrame(
        [
            {"form": form, "module": module, "relative_size": 0.01, "projection": 1 - 0.1 * i, "relative_error": 2.0}
            for i, form in enumerate(names)
            for module in modules
        ]
    )


def curves_of(texts):
    """The curves of {form: [hits a sequence, …]}, by the definition: whatever follows a prefix is recited or not.

    Of T tokens all but the first can be hit; a prefix leaves 20 tokens or more.
    """
    found = []
    for form, hits in texts.items():
        for prefix in range(1, max(map(len, hits)) + 2 - 20):
            rests = [one[prefix - 1 :] for one in hits if len(one) - (prefix - 1) >= 20]
            found.append(
                {
                    "prefix_tokens": prefix,
                    "n_sequences": len(rests),
                    "extractable": sum(all(rest) for rest in rests),
                    "recited_max": max(next((i for i, hit in enumerate(rest) if not hit), len(rest)) for rest in rests),
                    "longest_verbatim_run_max": max(
                        len(run) for rest in rests for run in "".join("x "[not hit] for hit in rest).split(" ")
                    ),
                    "form": form,
                }
            )
    return pd.DataFrame(found)


def membership_of(names, metrics=("min_k", "loss", "memorization_accuracy"), n_holdout=64):
    ends = {"n_forget": 32, "n_holdout": n_holdout, "auc": 0.943, "auc_low": 0.901, "auc_high": 0.971}
    rates = {"tpr_at_1_fpr": 0.312, "tpr_at_1_fpr_low": 0.101, "tpr_at_1_fpr_high": 0.523}
    after = {"auc": 0.512, "auc_low": np.nan, "auc_high": np.nan}
    return pd.DataFrame(
        [
            {"metric": metric} | ends | rates | ({} if form == "base" else after) | {"form": form}
            for form in names
            for metric in metrics
        ]
    )


def measured_fully(*names, tasks=(("piqa", "acc_norm"), ("replies", "f1"))):
    """A summary with everything an evaluation of today tells: intervals, tasks, further metrics."""
    summary = summary_of(*names)
    for form, found in summary["forms"].items():
        found = summary["forms"][form] = dict(found)
        found["memorization_accuracy_mean_interval"] = [0.187, 0.213]
        for name in ("test", "holdout"):
            found[f"{name}_perplexity_interval"] = [38.1, 117.0]
            if form != "base":
                found |= {f"{name}_perplexity_change": 0.01, f"{name}_perplexity_change_interval": [0.008, 0.016]}
        told = {"value": 0.512, "stderr": 0.011, "n": 1838}
        if form != "base":
            told = {"before": 0.512, "after": 0.508, "change": -0.004, "low": -0.0151, "high": 0.0042, "n": 1838}
        found["utility"] = [{"task": task, "metric": metric} | told for task, metric in tasks]
        for name in METRICS:
            found.setdefault(f"{name}_mean", 0.123)
            found.setdefault(f"holdout_{name}_mean", 0.117)
    return summary


def matrix_of(adapters, sets, recited):
    """A full matrix; `recited(on, set)` says how many of a set's 8 sequences are recited with some adapters on."""
    return pd.DataFrame(
        [
            {
                "adapters": " + ".join(on),
                "n_adapters": n,
                "set": name,
                "n_sequences": 8,
                "extractable": recited(frozenset(on), name),
                "memorization_accuracy_mean": 0.2 + 0.1 * recited(frozenset(on), name),
                "memorization_accuracy_max": 1.0,
                "longest_verbatim_run_max": 9,
                "loss_mean": 2.0,
            }
            for n in range(len(adapters) + 1)
            for on in itertools.combinations(adapters, n)
            for name in sets
        ]
    )


SEQUENCES = frame({"base": [1.0, 0.9, 0.8, 0.6], "stacked": [0.2, 0.3, 0.05, 0.15]})
HOLDOUT = frame({"base": [0.1, 0.2, 0.3], "stacked": [0.1, 0.2, 0.35]}, ["unseen-1", "unseen-2", "unseen-3"])
NO_HOLDOUT = SEQUENCES.iloc[:0]


class Page(HTMLParser):
    """Checks that tags close in order and gathers what a browser would fetch or run."""

    VOID = frozenset({"meta", "br", "wbr", "link", "img", "input", "hr"})

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
        "holdout": HOLDOUT,
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
        ({"extractable_any_prefix_mean": 0.25}, "any_prefix", "fail"),
        ({"extractable_any_prefix_mean": None}, "any_prefix", "unknown"),
        ({"memorization_accuracy_max": 0.35}, "holdout_maximum", "pass"),
        ({"memorization_accuracy_max": 0.36}, "holdout_maximum", "fail"),
        ({"memorization_accuracy_max": float("nan")}, "holdout_maximum", "unknown"),
        ({"outliers_high": 1}, "holdout_band", "fail"),
        ({"longest_verbatim_run_max": 10}, "verbatim_run", "fail"),
        ({"outliers_low_new": 1}, "newly_avoided", "fail"),
        ({"outliers_low": 1}, "newly_avoided", "pass"),
        ({"test_perplexity": 103.0}, "test", "pass"),
        ({"test_perplexity": 103.1}, "test", "fail"),
        ({"test_perplexity": float("inf")}, "test", "fail"),
        ({"test_perplexity": None}, "test", "unknown"),
        ({"test_perplexity": 50.0}, "test", "pass"),
        ({"holdout_perplexity": 44.0}, "neighbourhood", "pass"),
        ({"holdout_perplexity": 44.1}, "neighbourhood", "fail"),
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
    assert len(checks) == 8 and {check.outcome for check in checks} == {"pass"}
    assert headline(summary_of(), checks).startswith(
        "None of the 4 sequences is recited (2 before); by these checks they look like"
    )


def test_limits_of_perplexity_are_parameters():
    summary = summary_of(test_perplexity=104.0, holdout_perplexity=50.0)
    loose = verdict(summary, test_limit=0.05, neighbourhood_limit=0.3)
    assert {check.outcome for check in loose} == {"pass"}


def test_without_a_holdout_set_nothing_is_acquitted_but_recitation_is_decided():
    paper = {"kind": "paper", "low": 0.15, "high": 0.6}
    kept = {key: value for key, value in GOOD.items() if "holdout" not in key and "auc" not in key}
    base = {key: value for key, value in GOOD_BASE.items() if key in kept}
    found = {c.key: c.outcome for c in verdict({"forms": {"base": base, "stacked": kept | {"bounds": paper}}})}
    unknown = {"holdout_maximum", "holdout_band", "verbatim_run", "newly_avoided", "neighbourhood"}
    assert found == {"recitation": "pass", "any_prefix": "pass", "test": "pass"} | dict.fromkeys(unknown, "unknown")
    high = {"forms": {"base": base, "stacked": kept | {"bounds": paper, "outliers_high": 2}}}
    assert {c.key: c.outcome for c in verdict(high)}["holdout_band"] == "fail"


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
    assert told.startswith("1 of the 4 sequences is still recited in the form 'requantized' (2 before); 1 of 24 checks")


def precise(**changed):
    """Four forms; merged brings figures of the base in its own precision along."""
    summary = summary_of(*EVERY_FORM)
    own = GOOD_BASE | {"loaded_as": "bfloat16, not quantized", "extractable": 3} | changed
    summary["forms"]["merged"] = GOOD | {"before": own}
    return summary


def test_a_form_is_judged_against_the_base_in_its_own_precision():
    summary = precise(test_perplexity=95.0, holdout_perplexity=30.0)
    found = {(c.form, c.key): c for c in verdict(summary)}
    assert {key for key, check in found.items() if check.outcome != "pass"} == {
        ("merged", "test"),
        ("merged", "neighbourhood"),
    }
    assert "went from 95.00 to 101.0: +6.3 %" in found["merged", "test"].sentence
    assert "went from 100.0 to 101.0: +1.0 %" in found["stacked", "test"].sentence
    assert "(3 before)" in found["merged", "recitation"].sentence
    assert "(2 before)" in found["stacked", "recitation"].sentence
    changes = dict(measures.rows(summary))[measures.PERPLEXITIES[0]]
    assert (changes["merged"].change, changes["requantized_nf4"].change) == ("+6.3 %", "+1.0 %")


@pytest.mark.parametrize("seed", range(6))
def test_any_prefix_is_decided_by_its_definition_and_never_told_too_high(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(21, 60, 12) if seed % 2 else [40] * 12
    hits = [np.arange(n) >= rng.integers(0, n + 1) for n in lengths]  # recited from some token on
    hits[0][-1] = False
    recited = sum(any(all(one[k:]) for k in range(len(one) - 19)) for one in hits)
    shortest = min(k for one in hits for k in range(1, len(one) - 18) if all(one[k - 1 :]))
    curves = curves_of({"base": hits, "stacked": [one & False for one in hits]})
    before, after = curves[curves["form"] == "base"], curves[curves["form"] == "stacked"]
    passed, failed = (
        {check.key: check for check in verdict(summary_of(extractable_any_prefix_mean=None), found)}["any_prefix"]
        for found in (curves, pd.concat([after.assign(form="base"), before.assign(form="stacked")]))
    )
    assert (passed.outcome, failed.outcome) == ("pass", "fail")
    told = [int(re.search(r"(?i)at least (\d+)", check.sentence)[1]) for check in (passed, failed)]
    assert told[0] == told[1] and 0 < told[0] <= recited
    if seed % 2 == 0:
        assert told[0] == recited, "texts of one length all end in the curve's last row"
    assert f"the shortest that does it has {formatting.plural(shortest, 'token')}." in failed.sentence


def test_any_prefix_knows_what_was_measured():
    few = pd.DataFrame(columns=["prefix_tokens", "n_sequences", "extractable", "recited_max", "form"])
    for nothing in (None, pd.DataFrame(), few):
        checks = verdict(summary_of(extractable_any_prefix_mean=None), nothing)
        assert {check.key for check in checks if check.outcome != "pass"} == {"any_prefix"}
        assert {check.outcome for check in verdict(summary_of(), nothing)} == {"pass"}, "the metric's mean will do"
    curves = curves_of({form: [np.full(30, form == "base")] * 3 for form in EVERY_FORM})
    told = {check.form: check.sentence for check in verdict(precise(), curves) if check.key == "any_prefix"}
    assert told["stacked"].endswith("(at least 3 before).")
    assert told["merged"].endswith("20 tokens or more."), "of the base in its precision no curves are kept"
    still = verdict(summary_of(), curves_of({"base": [[True] * 30], "stacked": [[True] * 30, [False] * 30]}))[1]
    assert (still.key, still.outcome) == ("any_prefix", "fail"), "the curves judge, whatever the metric's mean says"
    assert still.sentence.startswith("At least 1 sequence is recited to the end") and "has 1 token." in still.sentence
    never = verdict(summary_of(), curves_of({"base": [[False] * 30], "stacked": [[False] * 30]}))[1]
    assert never.sentence.endswith("(none before).")


def test_never_seen_text_is_one_yardstick_for_all_forms():
    summary = precise(holdout_memorization_accuracy_max=0.01, holdout_longest_verbatim_run_max=1)
    assert {check.outcome for check in verdict(summary)} == {"pass"}


def test_what_a_form_is_compared_with_is_said_under_every_table():
    (line,) = measures.comparison_lines(precise())
    assert line == (
        "changes of merged are against the base in bfloat16, not quantized"
        " (3 recited, perplexity 100.0 on general text and 40.00 on never-seen text)"
    )
    assert measures.comparison_lines(summary_of(*EVERY_FORM)) == []
    text = re.sub(r"\s+", " ", tables.render_text(tables.summary_table(precise())))
    _, parsed = page_of(summary=precise(), sequences=frame({"base": [0.9], "merged": [0.2]}))
    page = re.sub(r"\s+", " ", " ".join(parsed.text))
    assert line in text and line in model_card(precise(), MANIFEST) and line in page
    assert "and not in bfloat16, not quantized like this form" in page


def test_headline_and_tiles_count_before_in_the_form_s_own_precision():
    summary = precise()
    assert "in any form (stacked, merged, requantized nf4, requantized int8; 2 to 3 before)" in headline(
        summary, verdict(summary)
    )
    alone = {"forms": {form: summary["forms"][form] for form in ("base", "merged")}}
    assert "(3 before)" in headline(alone, verdict(alone))
    page, _ = page_of(summary=alone, sequences=frame({"base": [0.9], "merged": [0.2]}))
    assert '<span class="from">3</span>' in page


# Tables


def test_proof_table_shows_before_and_after_beside_never_seen_text():
    text = tables.render_text(tables.proof_table(SEQUENCES, HOLDOUT))
    lines = [line for line in text.splitlines() if "record-" in line]
    assert [line.split()[0] for line in lines] == [f"record-000{i}" for i in range(4)]
    assert "1.000 → 0.200" in lines[0] and "yes → no" in lines[0] and "80 → 0" in lines[0]
    assert "forget set (4), mean" in text and "1 → 0" in text
    assert "never seen (3), highest" in text and "0.300 → 0.350" in text


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), ALL_FORMS, EVERY_FORM])
def test_tables_fit_80_columns_without_loss(names):
    sequences = frame({form: [1.0, 0.5] for form in names}, [HOSTILE * 3, "very-long-id-" * 9 + "#12"], tokens=12345)
    delta = {"relative_size": 0.0134, "projection": 0.987, "relative_error": 5.31}
    summary = summary_of(*names, delta=delta)
    shown = (tables.proof_table(sequences, HOLDOUT), tables.summary_table(summary))
    for table in (*shown, tables.verdict_table(verdict(summary))):
        text = tables.render_text(table)
        assert max(map(len, text.splitlines()), default=0) <= 80
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    assert "12,345" in tables.render_text(shown[0]) and "#12" in tables.render_text(shown[0])
    text = tables.render_text(shown[1])
    assert "…" not in text
    for measure, cells in measures.rows(summary):
        assert all(cell.text in text for cell in cells.values()), measure.label


def flat(text):
    return re.sub(r"\s+", " ", text)


def test_changes_carry_their_interval_where_there_is_room():
    summary = measured_fully("base", "stacked")
    text = tables.render_text(tables.summary_table(summary))
    assert "101.0 +1.0 % [+0.8, +1.6]" in text and max(map(len, text.splitlines())) <= 80
    card = model_card(summary, MANIFEST)
    assert r"| 101.0 (+1.0 % \[+0.8, +1.6\]) |" in card and r"| 100.0 \[38.10, 117.0\] |" in card
    _, parsed = page_of(summary=summary)
    page = flat(" ".join(parsed.text))
    assert "101.0 +1.0 % [+0.8, +1.6]" in page and "0.200 [0.187, 0.213]" in page
    assert "+1.0 % [+0.8, +1.6], within the limit of +3" in page
    wide = measured_fully(*EVERY_FORM)
    text = tables.render_text(tables.summary_table(wide))
    assert "[" not in text and "+1.0 %" in text and max(map(len, text.splitlines())) <= 80
    assert model_card(wide, MANIFEST).count(r"| 101.0 (+1.0 % \[+0.8, +1.6\])") == 4


def test_without_intervals_nothing_is_said_of_them():
    _, parsed = page_of()
    assert "in brackets" not in " ".join(parsed.text) and "rackets" not in model_card(summary_of(), MANIFEST)
    alone = {"forms": {"base": GOOD_BASE | {"test_perplexity_interval": [None, None]}}}
    assert not any(cells["base"].spread for _, cells in measures.rows(alone))


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_of_the_catalogue_has_its_rows(metric):
    summary = {"forms": {"base": {f"{metric}_mean": 1.5e-31, f"holdout_{metric}_mean": -float("inf")}}}
    found = {measure.key: (measure, cells["base"].text) for measure, cells in measures.rows(summary)}
    if metric == "memorization_accuracy":
        assert set(found) == {f"{metric}_mean", f"holdout_{metric}_mean"}
    elif metric == "loss":
        assert set(found) == {f"{metric}_mean"}
    elif metric in ("extractable", "extractable_50", "longest_verbatim_run"):
        assert found == {}, "these are counts and highest values"
    else:
        of, never_seen = found[f"{metric}_mean"], found[f"holdout_{metric}_mean"]
        assert (of[0].label, never_seen[0].label) == (f"{metric}, mean", f"never-seen: {metric}, mean")
        assert (of[1], never_seen[1]) == ("1.50e-31", "-∞")
        assert of[0].means and METRICS[metric].means.startswith(of[0].means)
        assert formatting.markdown(of[0].means) in model_card(summary, MANIFEST)
    assert metric in membership.rows(membership_of(["base"], [metric]))[0].metric


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), EVERY_FORM])
def test_tasks_are_shown_with_their_change(names):
    summary = measured_fully(*names, tasks=[("piqa", "acc_norm"), ("a-task-with-a-long-name-of-its-own", HOSTILE)])
    table = utility.rows(summary)
    assert [(task.task, task.n) for task, _ in table] == [
        ("piqa", 1838), ("a-task-with-a-long-name-of-its-own", 1838),
    ]  # fmt: skip
    text = tables.render_text(tables.utility_table(summary))
    assert max(map(len, text.splitlines())) <= 80 and "piqa, acc_norm" in flat(text) and "(1,838)" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text) and "…" not in text
    page, parsed = page_of(summary=summary, sequences=frame({form: [1.0, 0.5] for form in names}))
    check_page(page, parsed)
    told, card = flat(" ".join(parsed.text)), model_card(summary, MANIFEST)
    assert "0.512 ± 0.011" in told and "0.512 ± 0.011" in card and "1,838 samples" in told
    assert ("0.508 −0.004 [−0.015, +0.004]" in told) == (len(names) > 1)
    assert card.count(r"0.508 (-0.004 \[-0.015, +0.004\])") == 2 * (len(names) - 1)
    assert ("0.508 -0.004 [-0.015, +0.004]" in text) == (len(names) == 2), "the terminal has room for one form"
    assert "0.508" in text or names == ("base",)


def test_a_single_sample_and_a_form_without_tasks_are_no_errors():
    summary = measured_fully("base", "stacked", "merged")
    del summary["forms"]["merged"]["utility"]
    summary["forms"]["base"]["utility"][0] |= {"stderr": None, "n": 1}
    cells = dict(utility.rows(summary))[utility.Task("piqa", "acc_norm", 1)]
    assert (cells["base"].spread, cells["merged"].text) == ("", "—")
    assert utility.rows(summary_of()) == utility.rows({}) == []


def test_membership_is_told_with_intervals_and_not_twice():
    names = ("base", "stacked")
    found = membership.rows(membership_of(names))
    assert [row.metric for row in found] == ["memorization_accuracy", "loss", "min_k"]
    assert found[0].auc["base"] == measures.Cell("0.943", spread="[0.901, 0.971]")
    assert found[2].auc["stacked"] == measures.Cell("0.512") and found[2].tpr["stacked"].text == "0.312"
    assert "so few that" in membership.population_line(membership_of(names))
    assert "so few that" not in membership.population_line(membership_of(names, n_holdout=100))
    for given in (None, pd.DataFrame()):
        page, parsed = page_of(membership=given)
        assert "Can one" not in page and "membership AUC by loss" in page
    page, parsed = page_of(membership=membership_of(names))
    check_page(page, parsed)
    text = flat(" ".join(parsed.text))
    assert "Can one still tell" in text and membership.MEANS in text
    assert "0.943 [0.901, 0.971]" in text and "min_ k" in text and "membership AUC by loss" not in text
    alone = {"sequences": frame({"base": [1.0, 0.5]}), "summary": summary_of("base")}
    assert "Can one tell" in page_of(membership=membership_of(["base"]), **alone)[0]
    card = model_card(summary_of(), MANIFEST, membership_of(names))
    shares = r"| 0.943 \[0.901, 0.971\] | 0.312 \[0.101, 0.523\] | 0.512 | 0.312 \[0.101, 0.523\] |"
    assert card.count(shares) == 2 and "by loss" not in card and membership.meaning("min_k") not in card


def test_a_delta_is_shown_where_it_was_measured():
    summary = summary_of("base", "stacked", "merged")
    assert not any(measure in measures.DELTA for measure, _ in measures.rows(summary))
    summary["forms"]["merged"] = GOOD | {"delta": {"relative_size": 0.00012, "projection": 1.0, "relative_error": 2.5}}
    shown = {measure.key: [cell.text for cell in cells.values()] for measure, cells in measures.rows(summary)}
    assert shown["delta.relative_size"] == ["—", "—", "0.000120"]
    assert shown["delta.projection"] == ["—", "—", "1.00"] and shown["delta.relative_error"] == ["—", "—", "2.50"]
    page, _ = page_of(summary=summary)
    assert "0.000120" in page and "0.000120" in model_card(summary, MANIFEST)


def test_proof_table_limits_its_rows_and_counts_the_others():
    many = frame({"base": list(np.linspace(0.5, 1, 40)), "stacked": [0.2] * 40})
    text = tables.render_text(tables.proof_table(many, NO_HOLDOUT, max_rows=10))
    assert text.count("record-") == 10 and "… 30 more" in text and "never seen" not in text


def test_missing_figures_are_dashes_never_zeros():
    sequences = frame({"base": [np.nan, 0.9], "stacked": [np.nan, np.nan]})
    text = tables.render_text(tables.proof_table(sequences, NO_HOLDOUT))
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
    assert [formatting.signed(x) for x in (0.0042, -0.0151, -0.0004, 0, 12.345, None)] == [
        "+0.004", "-0.015", "+0.000", "+0.000", "+12.35", "—",
    ]  # fmt: skip
    assert [formatting.metric_value(x) for x in (0, 0.00123, -0.05, 0.5, -71.4, -float("inf"), None)] == [
        "0.000", "0.00123", "-0.0500", "0.500", "-71.40", "-∞", "—",
    ]  # fmt: skip
    assert formatting.percent_interval([-0.0123, float("inf")]) == "[-1.2, +∞]"
    assert formatting.percent(-float("inf")) == "-∞ %"
    assert formatting.interval(None, str) == formatting.interval([0.1, None], str) == ""
    assert formatting.number(np.float64("nan")) is None and formatting.number(np.int64(3)) == 3.0


def test_rows_put_the_worst_first_and_mark_them():
    sequences = frame({"base": [0.9, 0.99, 0.8, 0.7], "stacked": [0.05, 0.99, 0.31, 0.2]})
    worst, total = rows.rows(sequences, summary_of(), 3)
    assert total == 4 and [row.id for row in worst] == ["record-0001", "record-0002", "record-0003"]
    assert [[cell.mark for cell in row.cells[1::2]] for row in worst[:2]] == [["high"] * 3, ["high", "", ""]]
    every, _ = rows.rows(sequences, summary_of(), 9)
    assert every[3].cells[1].mark == "low" and every[3].cells[0].mark == ""


# Figures


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), EVERY_FORM, ("stacked",)])
@pytest.mark.parametrize("holdout", [HOLDOUT, NO_HOLDOUT])
def test_figures_have_labelled_axes_and_render(names, holdout):
    sequences = frame({form: [1.0, np.nan, 0.5] for form in names})
    log, scales, deltas = staged(log_of(3)), scales_of([-3, -1, 0]), deltas_of(names)
    drawn = figures.all_figures(sequences, holdout, summary_of(*names), log, 2, scales, -1.0, deltas)
    assert list(drawn)[-4:] == ["histogram", "epochs", "scales", "deltas"]
    assert len(drawn) == max(1, len(forms.after(names))) + 4
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


def test_prefixes_figure_tells_how_many_and_how_far():
    hits = [np.arange(60) >= start for start in (0, 30, 45)] + [np.ones(25, dtype=bool)]
    curves = curves_of({"base": hits, "stacked": [one & (np.arange(len(one)) % 5 > 0) for one in hits]})
    figure = figures.prefixes_figure(curves.sample(frac=1, random_state=0))
    recited, stretch = ({line.get_label(): line for line in axes.lines} for axes in figure.axes)
    assert list(recited) == ["before", "after"]
    assert recited["before"].get_xdata().tolist() == list(range(1, 42))
    assert recited["before"].get_ydata().tolist() == [2] * 6 + [1] * 24 + [2] * 11
    assert set(recited["after"].get_ydata()) == {0}
    before, after = (line.get_ydata() for line in stretch.values())
    assert before.tolist() == list(range(60, 19, -1)) and max(after) == 4
    drawn = figures.all_figures(SEQUENCES, HOLDOUT, summary_of(), curves=curves)
    assert list(drawn)[-1] == "prefixes"
    for nothing in (None, curves.iloc[:0], pd.DataFrame()):
        assert "prefixes" not in figures.all_figures(SEQUENCES, HOLDOUT, summary_of(), curves=nothing)
    page, parsed = page_of(curves=curves)
    check_page(page, parsed)
    assert "Prefixes that leave under 20 tokens are left out" in flat(" ".join(parsed.text))
    every = figures.prefixes_figure(curves_of(dict.fromkeys(EVERY_FORM, hits)))
    styles = [(line.get_color(), line.get_linestyle()) for line in every.axes[0].lines]
    assert len(set(styles)) == 5 and styles[0] == (figures.BEFORE, "--")
    assert all(axes.get_ylabel() for axes in every.axes) and every.axes[-1].get_xlabel()
    assert images.png(every).startswith(b"\x89PNG")


def test_epochs_without_validation_and_an_empty_log():
    figure = figures.epochs_figure(log_of(3, perplexity=None), None, None)
    assert [axes.get_ylabel() for axes in figure.axes] == ["memorization\naccuracy", "sequences"]
    assert len(figures.epochs_figure([]).axes) == 2
    assert "epochs" not in figures.all_figures(SEQUENCES, HOLDOUT, summary_of(), [])


def test_stages_are_divided_and_named():
    log = staged(log_of(7))
    assert figures.stage_spans(log) == [("ascend", 1, 4), ("fit", 5, 6), ("scale search", 7, 7)]
    figure = figures.epochs_figure(log, None, 7)
    dividers = {line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1}
    assert dividers == {4.5, 6.5, 7}
    assert figure.axes[-1].get_xlabel().endswith("1 to 4 ascend, 5 to 6 fit, 7 scale search")
    one = [record | {"stage": "ascend" if record["epoch"] else None} for record in log_of(3)]
    assert figures.epochs_figure(one).axes[-1].get_xlabel() == "epoch (0: before unlearning)"
    stages = [
        {"stage": "ascend", "scale": 1.0, "ended": "It held early."},
        {"stage": "fit", "scale": -1.5, "ended": ""},
    ]
    _, parsed = page_of(train_log=log, manifest=MANIFEST | {"stages": stages})
    page = " ".join(parsed.text)
    assert "ascend (epochs 1 to 4), then fit (epochs 5 to 6), then scale search (epoch 7" in page
    assert "How ascend ended: It held early." in page and "ascend, then fit times -1.5" in page


def dots(axes):
    """What is drawn at which x: the lines, and the hollow dots over them."""
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    hollow = [x for line in axes.lines if line.get_markerfacecolor() == figures.SURFACE for x in line.get_xdata()]
    return lines, hollow


def test_scales_figure_marks_the_chosen_and_those_past_the_budget():
    figure = figures.scales_figure(scales_of([-3, -2, -1, -0.5, 0]), (0.1, 0.3), -1.0)
    accuracies, sequences, perplexity = figure.axes
    lines, hollow = dots(accuracies)
    assert lines["mean"].get_xdata().tolist() == [-3, -2, -1, -0.5, 0]
    assert lines["mean"].get_ydata()[0] == pytest.approx(0.35) and set(hollow) == {-3, -2}
    assert dots(sequences)[0]["newly low"].get_ydata().tolist() == [3, 2, 1, 0, 0]
    assert dots(sequences)[0]["outliers, high"].get_ydata().tolist() == [2, 3, 4, 5, 5]
    assert "past the perplexity budget" in dots(perplexity)[0] and perplexity.get_ylabel()
    assert all([-1.0, -1.0] in [list(line.get_xdata()) for line in axes.lines] for axes in figure.axes)
    assert "chosen, -1" in perplexity.get_xlabel() and perplexity.xaxis_inverted()
    every = figures.scales_figure(scales_of([0, 1], within=lambda scale: True), None, None)
    assert dots(every.axes[0])[1] == [] and not every.axes[-1].xaxis_inverted()
    assert "chosen" not in every.axes[-1].get_xlabel()
    assert len(figures.scales_figure(scales_of([-1, 0], perplexity=None)).axes) == 2


@pytest.mark.parametrize("worst", [float("inf"), 1e300, 1e9, 700.0, 150.0])
def test_a_ruined_model_does_not_flatten_the_others(worst):
    scales = scales_of([-2, -1, 0])
    scales[0]["validation_perplexity"] = worst
    axes = figures.scales_figure(scales, None, -1.0).axes[-1]
    axes.figure.draw_without_rendering()
    shown = [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    assert len(shown) >= 2 and np.isfinite(axes.get_ylim()).all()
    assert all(axes.get_ylim()[0] < value < axes.get_ylim()[1] for value in (100.0, 102.0)), "the good ones are seen"


def test_modules_stand_by_depth_whatever_their_order():
    names = ["lm_head", "h.10.b", "h.2.z", "h.2.a", "wte", "h.0.mlp.experts.3.w"]
    assert figures.by_depth(names) == ["wte", "h.0.mlp.experts.3.w", "h.2.z", "h.2.a", "h.10.b", "lm_head"]


def test_deltas_figure_shows_each_form_and_survives_an_empty_delta():
    sizes, shares = figures.deltas_figure(deltas_of(["merged", "requantized_nf4"])).axes
    lines, _ = dots(shares)
    assert set(lines) == {"merged", "requantized nf4"} and lines["requantized nf4"].get_ydata().tolist() == [0.9] * 4
    assert sizes.lines[0].get_ydata().tolist() == [0.01] * 4
    assert [text.get_text() for text in shares.get_xticklabels()] == ["2", "10"]
    nothing = deltas_of(["merged"]).assign(relative_size=0.0, projection=np.nan)
    assert images.png(figures.deltas_figure(nothing)).startswith(b"\x89PNG")


def test_svg_keeps_every_digit_of_its_text():
    drawn = images.svg(figures.interference_figure(matrix_of(["a"], ["s"], lambda on, _: 0 if on else 7)), "i", "d")
    assert ">0.900<" in drawn and ">0.200<" in drawn


def test_figures_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    images.svg(figures.histogram_figure(SEQUENCES, HOLDOUT, (0.1, 0.3)), "h", "d")
    assert dict(matplotlib.rcParams) == before


def test_svg_follows_the_page():
    drawing = images.svg(figures.memorization_figure(SEQUENCES, (0.1, 0.3)), "m", 'a "quoted" <title>')
    assert "var(--before)" in drawing and "var(--after)" in drawing and "var(--band)" in drawing
    assert not re.search(r"#[0-9a-fA-F]{6}\b", re.sub(r'(href="|url\()#[^")]*', "", drawing))
    assert "http" not in drawing and "<style" not in drawing and "font-family" not in drawing
    assert 'aria-label="a &#34;quoted&#34; &lt;title&gt;"' in drawing


# The report


def check_page(page, parsed):
    """Whole, and by itself: it asks nothing of anybody."""
    assert page.lstrip().startswith("<!doctype html>")
    assert "http:" not in page and "https:" not in page and "url(//" not in page
    assert parsed.references and all(holdout.startswith("#") for holdout in parsed.references)
    assert {holdout[1:] for holdout in parsed.references} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not parsed.handlers and not {"img", "link", "iframe", "object", "form"} & set(parsed.tags)
    assert "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+", "", " ".join(parsed.text).lower())
    # every class that the template and the style sheet share is there, and no variable is without a value
    used, given = set(re.findall(r"var\((--[a-z-]+)\)", page)), set(re.findall(r"(--[a-z-]+):", page))
    assert used <= given


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), EVERY_FORM])
@pytest.mark.parametrize("full", [True, False])
def test_report_is_well_formed_and_loads_nothing(names, full):
    accuracies = {form: [1.0, np.nan, 0.5] for form in names}
    parts = {"scales": scales_of([-3, -1, 0]), "deltas": deltas_of(names)}
    if not full:
        parts = {"holdout": NO_HOLDOUT, "train_log": [], "manifest": {}}
    page, parsed = page_of(sequences=frame(accuracies), summary=summary_of(*names), **parts)
    check_page(page, parsed)
    assert "too short to be scored" in page


def test_report_of_a_scale_search_says_what_was_chosen():
    stages = [{"stage": "fit", "adapter": "default", "scale": -1.0, "ended": "The stop rule held."}]
    _, parsed = page_of(scales=scales_of([-3, -2, -1, 0]), manifest=MANIFEST | {"stages": stages})
    text = " ".join(parsed.text)
    assert "Hollow: 2 scales past the perplexity budget. Chosen: −1, for the fewest outliers" in text
    assert facts.chosen_scale({"scale": -2}) == -2 and facts.chosen_scale({}) is None
    assert "shipped with r 32" in dict(facts.made({"adapter": {"r": 16, "shipped_rank": 32}}))["adapter"]


def test_report_tells_the_verdict_the_cost_and_the_limits():
    _, parsed = page_of()
    text = re.sub(r"\s+", " ", " ".join(parsed.text))
    for told in (
        "None of the 4 sequences is recited",
        "change of perplexity, test set",
        "Perplexity on never-seen texts of the same kind (the holdout set) went from 40.00 to 42.00: +5.0 %",
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
    manifest["stages"] = [{"stage": HOSTILE, "scale": 1, "ended": HOSTILE}, {"stage": "fit", "scale": -1, "ended": ""}]
    summary = summary_of()
    summary["forms"]["stacked"] = GOOD | {"before": GOOD_BASE | {"loaded_as": HOSTILE}}
    log = [record | {"stage": HOSTILE if record["epoch"] < 2 else "fit"} for record in log_of(3)]
    deltas = deltas_of(["stacked"], [HOSTILE, "h.1.a"])
    page, parsed = page_of(sequences=sequences, manifest=manifest, summary=summary, train_log=log, deltas=deltas)
    assert parsed.tags.count("script") == 1 and "<script>alert" not in page
    assert "\x1b" not in page and "\u202e" not in page
    page.encode("utf-8")
    card = model_card(summary, manifest)
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


# What a run's folder gets


def test_results_write_what_there_is(tmp_path):
    summary = {"forms": {form: precise()["forms"][form] for form in ("base", "merged")}}
    summary["forms"]["merged"] = summary["forms"]["merged"] | {"extractable_any_prefix_mean": None}
    found = Report(
        frame({"base": [0.9], "merged": [0.2]}),
        HOLDOUT,
        summary,
        membership_of(["base", "merged"]),
        curves_of({"base": [[True] * 30], "merged": [[False] * 30]}),
        pd.DataFrame([{"task": "piqa", "metric": "acc", "doc_id": "0", "value": 1.0, "form": "base"}]),
        deltas_of(["merged"]),
    )
    full, bare = tmp_path / "full", tmp_path / "bare"
    full.mkdir()
    bare.mkdir()
    write.results(
        full, found, staged(log_of(3)), MANIFEST | {"stages": [{"stage": "fit", "scale": -1}]}, scales_of([-1, 0])
    )
    write.results(bare, Report(SEQUENCES, NO_HOLDOUT, summary_of()), [], MANIFEST)
    names = {path.name for path in full.iterdir()}
    assert names == {
        "summary.json", "sequences.parquet", "holdout.parquet", "membership.parquet", "curves.parquet",
        "utility.parquet", "deltas.parquet", "figures", "report.html",
    }  # fmt: skip
    assert {path.name for path in bare.iterdir()} == {"summary.json", "sequences.parquet", "figures", "report.html"}
    assert {"scales.png", "deltas.png", "prefixes.png"} < {path.name for path in (full / "figures").iterdir()}
    pd.testing.assert_frame_equal(pd.read_parquet(full / "deltas.parquet"), found.deltas)
    assert "Can one still tell" in (full / "report.html").read_text(encoding="utf-8")
    write.card(full, summary, MANIFEST)
    write.card(bare, summary_of(extractable_any_prefix_mean=None), MANIFEST)
    cards = [(folder / "README.md").read_text(encoding="utf-8") for folder in (full, bare)]
    assert "| ✓ pass | Any prefix |" in cards[0] and "| ? unknown | Any prefix |" in cards[1]
    assert "Can one still tell" in cards[0] and "Can one still tell" not in cards[1]
    assert json.loads((full / "summary.json").read_text())["forms"]["merged"]["before"]["extractable"] == 3


# Several adapters, several forget sets


def naive_wakes(found):
    """The definition, word for word: sets, subsets S, adapters a not in S, where both S and S + {a} were measured."""
    recited = {
        (frozenset(name.split(" + ")) if name else frozenset(), of): n
        for name, of, n in zip(found["adapters"], found["set"], found["extractable"], strict=True)
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
    found = matrix_of(["a", "b", "c"], ["x", "y"], lambda on, name: int(rng.integers(0, 4)))
    found = found.sample(frac=1 if seed % 2 else 0.7, random_state=seed)
    cases = interference.wakes(found)
    as_sets = {(c.set, c.added, interference.subset_of(c.adapters), c.before, c.after) for c in cases}
    assert as_sets == naive_wakes(found) and len(as_sets) == len(cases)


NAMES = {"adapters": ["one", "two", "three"], "sets": ["first", "second", "third"]}
OWN = dict(zip(NAMES["sets"], NAMES["adapters"], strict=True))


def woken(on, name):
    """Each adapter silences its own set, `two` wakes the first set up again, and `three` does not work at all."""
    if name == "first" and {"one", "two"} <= on:
        return 2
    return 0 if OWN[name] in on and OWN[name] != "three" else 5


def test_findings_name_who_silences_and_who_wakes():
    found = interference.findings(matrix_of(*NAMES.values(), woken), interference.owners(NAMES))
    assert [finding.outcome for finding in found] == ["fail", "pass", "fail"]
    assert found[0].sentence == (
        "Its own adapter one leaves none of the 8 sequences recited (5 without any adapter)."
        " It wakes up when two is added to one: 0 → 2 recited."
    )
    assert found[1].sentence.endswith("(5 without any adapter). No other adapter wakes it up.")
    assert found[2].sentence.startswith("Its own adapter three leaves 5 of the 8 sequences recited")


def test_findings_without_owners_and_with_holes():
    rows = matrix_of(["a", "b"], ["x"], lambda on, _: 4 - 2 * len(on))
    (alone,) = interference.findings(rows, interference.owners({"adapters": ["a", "b"], "sets": ["x"]}))
    assert alone.outcome == "pass" and alone.sentence == (
        "All adapters together leave none of the 8 sequences recited (4 without any adapter)."
    )
    holes = rows[rows["adapters"] != "a"]
    (unknown,) = interference.findings(holes, {"x": "a"})
    assert unknown.outcome == "unknown" and "not measured" in unknown.sentence
    assert interference.owners({}) == {}


@pytest.mark.parametrize("n", [1, 3, 4])
def test_interference_figure_has_labelled_axes_and_every_cell(n):
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


def test_interference_is_written_and_its_page_is_whole(tmp_path):
    found = matrix_of(*NAMES.values(), woken)
    write.interference(tmp_path, found, MANIFEST | NAMES)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "interference.parquet"), found)
    told = json.loads((tmp_path / "interference.json").read_text())
    assert told["rows"] == found.to_dict("records") and len(told["findings"]) == 3
    assert {(case["set"], case["added"], case["adapters"]) for case in told["wakes"]} == {
        ("first", "two", "one"),
        ("first", "two", "one + three"),
    }
    assert (tmp_path / "figures" / "interference.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    check_page(page, parsed)
    assert "script" not in parsed.tags and "script-src" not in page and "default-src 'none'" in page
    text = " ".join(parsed.text)
    assert "Which adapters silence which texts" in text and "It wakes up when two is added to one" in text
    assert page.count('class="heat own"') == 2 * 3 * 4, "half of the subsets hold a set's own adapter"
    assert page.count('class="heat') == 2 * 3 * 8 and "none (the base model)" in text


def test_hostile_names_of_adapters_and_sets_stay_text():
    names = {"adapters": [HOSTILE], "sets": [HOSTILE + "2"]}
    page = render_interference(matrix_of(*names.values(), lambda on, _: len(on)), names)
    assert "script" not in Page(page).tags and "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize("stem", ["a", "a-deletion-request-of-2026-"])
def test_the_table_of_interference_fits_80_columns(stem, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    adapters, sets = ([f"{stem}{kind}{i}" for i in range(3)] for kind in ("adapter", "set"))
    found = matrix_of(adapters, sets, lambda on, name: 8 if len(on) == 2 else 0)
    text = tables.render_text(tables.interference_table(found, sets))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("1.000") == 9 and text.count("0.200") == 15 and "none (the base model)" in text
    terminal.show_interference(found)
    shown = capsys.readouterr().out
    assert f"{sets[0]}: with {adapters[0]} on, adding {adapters[1]} takes it from 0 to 8 recited" in shown


def test_the_terminal_tells_tasks_and_prefixes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    curves = curves_of({"base": [[True] * 30], "stacked": [[True] * 30]})
    terminal.show_report(SEQUENCES, HOLDOUT, measured_fully("base", "stacked"), curves=curves)
    shown = flat(capsys.readouterr().out)
    assert "piqa, acc_norm (1,838) 0.512 ± 0.011 0.508 -0.004" in shown
    assert "fail At least 1 sequence is recited to the end from some prefix" in shown
    terminal.show_report(SEQUENCES, HOLDOUT, summary_of(extractable_any_prefix_mean=None))
    shown = flat(capsys.readouterr().out)
    assert "task, metric" not in shown and "unknown Whether sequences are recited from other prefixes" in shown


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
    summary = measured_fully(*ALL_FORMS, tasks=[("a|b", "c"), ("d", "e|f")])
    card = model_card(summary, MANIFEST | {"versions": {"a|b": "`c`"}}, membership_of(ALL_FORMS))
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_reporting_needs_no_torch():
    modules = "tables, verdict, figures, images, html, card"
    code = f"import sys; from adapter_unlearn.reporting import {modules}; assert 'torch' not in sys.modules; "
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("first, disable, shown", [(True, "", True), (True, "1", False), (False, "", False)])
def test_the_bar_can_be_silenced(monkeypatch, capsys, first, disable, shown):
    monkeypatch.setenv("TQDM_DISABLE", disable)
    accelerator = SimpleNamespace(is_main_process=first, trackers=[], log=lambda *_, **__: None)
    with Progress("sga", 3, accelerator) as progress:
        progress.update({"epoch": 0})
    assert bool(capsys.readouterr().err) is shown
