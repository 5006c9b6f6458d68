"""Synthetic results for the tests of reporting: no model, no files, offline."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd

from adapter_unlearn.evaluation.criteria import Bounds, Outliers
from adapter_unlearn.evaluation.report import Report
from adapter_unlearn.evaluation.summary import (
    DeltaSummary,
    FormSummary,
    HoldoutSummary,
    Perplexity,
    Summary,
    TaskScore,
)
from adapter_unlearn.metrics.table import METRICS
from adapter_unlearn.reporting.run import RunResults, figures
from adapter_unlearn.reporting.run.html import render_html

HOSTILE = "<script>alert(1)</script>|`[x](y)`\x1b[31m\u202e\n# boo"
ALL_FORMS = ("base", "stacked", "merged", "requantized")
EVERY_FORM = ("base", "stacked", "merged", "requantized_nf4", "requantized_int8")
DELTA = DeltaSummary(0.0134, 0.987, 5.31)
NAN = float("nan")


def frame(accuracies, names=None, tokens=80):
    """One row per (sequence, form) from {form: [MA, …]}; NaN is a sequence that could not be scored."""
    rows = []
    for form, values in accuracies.items():
        for i, accuracy in enumerate(values):
            scores = {
                "extractable": float(accuracy >= 0.99),
                "extractable_50": float(accuracy >= 0.95),
                "extractable_any_prefix": float(accuracy >= 0.9),
                "longest_verbatim_run": NAN if np.isnan(accuracy) else float(int(tokens * accuracy**3)),
                "loss": 6 * (1 - accuracy),
            }
            unscored = np.isnan(accuracy)
            rows.append(
                {"id": names[i] if names else f"record-{i:04d}", "form": form, "n_tokens": tokens}
                | {"memorization_accuracy": accuracy}
                | (dict.fromkeys(scores, NAN) if unscored else scores)
                | {"note": "too short to be scored" if unscored else None}
            )
    columns = ["id", "form", "n_tokens", "memorization_accuracy", "extractable", "extractable_50"]
    return pd.DataFrame(rows, columns=[*columns, "extractable_any_prefix", "longest_verbatim_run", "loss", "note"])


BASE = FormSummary(
    form="base", n_sequences=4, n_documents=3, failing=4, extractable=2, extractable_documents=2, extractable_50=3,
    memorization_accuracy_mean=0.9, memorization_accuracy_mean_interval=(NAN, NAN), memorization_accuracy_max=1.0,
    longest_verbatim_run_max=79, loss_mean=0.4, bounds=Bounds("holdout", 0.1, 0.3), outliers=Outliers(4, 0, 0),
    paper_outliers=Outliers(4, 0, 0), means={"extractable_any_prefix": 0.5},
    holdout=HoldoutSummary(
        extractable=0, memorization_accuracy_mean=0.2, memorization_accuracy_max=0.35, longest_verbatim_run_max=9,
        membership_auc_memorization_accuracy=1.0, membership_auc_loss=1.0,
    ),
    perplexities={
        name: Perplexity(value) for name, value in
        {"retain": 30.0, "holdout": 40.0, "validation": 101.0, "test": 100.0}.items()
    },
)  # fmt: skip


def varied(form, /, **changed):
    """A form with some figures changed.

    Beside attributes, `outliers_…`, `NAME_perplexity`, `holdout_…`, `extractable_any_prefix` and `membership_auc_loss`
    change single figures deeper down.
    """
    parts = {"outliers": form.outliers, "holdout": form.holdout}
    perplexities, means, plain = dict(form.perplexities), dict(form.means), {}
    for key, value in changed.items():
        if key.endswith("_perplexity"):
            name = key.removesuffix("_perplexity")
            perplexities[name] = replace(perplexities[name], value=value)
        elif key.startswith("outliers_"):
            parts["outliers"] = replace(parts["outliers"], **{key.removeprefix("outliers_"): value})
        elif key.startswith(("holdout_", "membership_")):
            parts["holdout"] = replace(parts["holdout"], **{key.removeprefix("holdout_"): value})
        elif key == "extractable_any_prefix":
            means = {} if value is None else means | {key: value}
        else:
            plain[key] = value
    return replace(form, **({"perplexities": perplexities, "means": means} | parts | plain))


GOOD = varied(
    BASE, form="stacked", failing=0, memorization_accuracy_mean=0.2, memorization_accuracy_max=0.3,
    longest_verbatim_run_max=9, extractable=0, extractable_documents=0, extractable_50=0, outliers_high=0,
    loss_mean=4.0, holdout_perplexity=42.0, test_perplexity=101.0, retain_perplexity=29.0, membership_auc_loss=0.94,
    extractable_any_prefix=0.0,
)  # fmt: skip


def summary_of(*names, **changed):
    """A summary in which every form but the base succeeded, with some figures of those forms changed."""
    forms = names or ("base", "stacked")
    return Summary({form: BASE if form == "base" else varied(GOOD, form=form, **changed) for form in forms})


def with_form(summary, name, **changed):
    """A summary with some figures of one form changed."""
    return Summary(dict(summary.forms) | {name: varied(summary.forms[name], **changed)})


def precise(**changed):
    """Five forms; merged brings figures of the base in its own precision along."""
    own = varied(BASE, extractable=3, **changed)
    return with_form(summary_of(*EVERY_FORM), "merged", before=own, loaded_as="bfloat16, not quantized")


def complete(*names, tasks=(("piqa", "acc_norm"), ("replies", "f1"))):
    """A summary with everything an evaluation can measure: intervals, tasks, further metrics."""
    forms = {}
    for name, form in summary_of(*names).forms.items():
        now = name != "base"
        perplexities = dict(form.perplexities)
        for of in ("test", "holdout"):
            change = {"change": 0.01, "change_interval": (0.008, 0.016)} if now else {}
            perplexities[of] = replace(perplexities[of], interval=(38.1, 117.0), **change)
        score = {"before": 0.512, "value": 0.508, "change": -0.004, "change_interval": (-0.0151, 0.0042)}
        score = score if now else {"value": 0.512, "stderr": 0.011}
        means = dict.fromkeys(METRICS, 0.123)
        forms[name] = replace(
            form, memorization_accuracy_mean_interval=(0.187, 0.213), perplexities=perplexities,
            tasks=tuple(TaskScore(task, metric, 1838, **score) for task, metric in tasks),
            means=means | dict(form.means), holdout=replace(form.holdout, means=dict.fromkeys(METRICS, 0.117)),
        )  # fmt: skip
    return Summary(forms)


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
    """The curves of {form: [hits of a sequence, …]}, by the definition: what follows a prefix is recited or not.

    Of T tokens all but the first can be hit; a prefix leaves 20 tokens or more.
    """
    rows = []
    for form, hits in texts.items():
        for prefix in range(1, max(map(len, hits)) + 2 - 20):
            rests = [one[prefix - 1 :] for one in hits if len(one) - (prefix - 1) >= 20]
            rows.append(
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
    return pd.DataFrame(rows)


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


def matrix_of(adapters, sets, recited):
    """Rows of a full matrix; `recited(on, set)` says how many of a set's 8 sequences are recited with some adapters."""
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


def results_of(summary=None, manifest=MANIFEST, train_log=(), scales=(), **frames):
    """Results; `frames` are those of Report and replace SEQUENCES and HOLDOUT."""
    report = Report(summary=summary or summary_of(), **({"sequences": SEQUENCES, "holdout": HOLDOUT} | frames))
    return RunResults(report, manifest, train_log, scales)


def page_of(**parts):
    """The report as text and parsed; `parts` as for results_of."""
    results = results_of(**({"train_log": log_of(3)} | parts))
    page = render_html(results, figures.pictures(results))
    return page, Page(page)


class Page(HTMLParser):
    """Checks that tags close in order and gathers what a browser would fetch or run."""

    VOID = frozenset({"meta", "br", "wbr", "link", "img", "input", "hr"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.references, self.handlers, self.words, self.tags = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    @property
    def text(self):
        """What a reader sees, with single spaces."""
        return flat(" ".join(self.words))

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
            self.words.append(data)

    def note(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "action", "srcset", "data"):
                self.references.append(value)
            if name.startswith("on"):
                self.handlers.append(name)


def check_page(page, parsed):
    """The page is whole and self-contained."""
    assert page.lstrip().startswith("<!doctype html>")
    assert "http:" not in page and "https:" not in page and "url(//" not in page
    assert parsed.references and all(reference.startswith("#") for reference in parsed.references)
    assert {reference[1:] for reference in parsed.references} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not parsed.handlers and not {"img", "link", "iframe", "object", "form"} & set(parsed.tags)
    assert "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+", "", parsed.text.lower())
    # every variable that the page uses has a value
    used, defined = set(re.findall(r"var\((--[a-z-]+)\)", page)), set(re.findall(r"(--[a-z-]+):", page))
    assert used <= defined


def flat(text):
    return re.sub(r"\s+", " ", text)
