"""report.html: whole, self-contained, escaped, and with the figures that a reader needs."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
from reporting.builders import (
    BASE,
    EVERY_FORM,
    HOSTILE,
    MANIFEST,
    NAN,
    NO_HOLDOUT,
    check_page,
    deltas_of,
    frame,
    log_of,
    page_of,
    precise,
    results_of,
    scales_of,
    summary_of,
    with_form,
)

from adapter_unlearn.evaluation.summary import Summary
from adapter_unlearn.reporting.run.card import model_card
from adapter_unlearn.reporting.run.html import MAX_ROWS
from adapter_unlearn.reporting.run.loading import loading


@pytest.mark.parametrize("names", [("base",), ("base", "stacked"), EVERY_FORM], ids=len)
@pytest.mark.parametrize("full", [True, False], ids=["full", "bare"])
def test_report_is_well_formed_and_loads_nothing(names, full):
    accuracies = {form: [1.0, NAN, 0.5] for form in names}
    parts = {"scales": scales_of([-3, -1, 0]), "deltas": deltas_of(names)}
    if not full:
        parts = {"holdout": NO_HOLDOUT, "train_log": [], "manifest": {}}
    page, parsed = page_of(sequences=frame(accuracies), summary=summary_of(*names), **parts)
    check_page(page, parsed)
    assert "too short to be scored" in page


def test_report_shows_the_verdict_the_cost_and_the_limits():
    _, parsed = page_of()
    for figure in (
        "None of the 4 sequences", "40.00 to 42.00: +5.0 %", "sha256:3f9a", "The mean fell below 0.33.",
        "2 min 14 s", "record-0001 also stands in retain", "not erasure", "membership AUC 0.94",
        "PeftModel.from_pretrained", "load_in_4bit",
    ):  # fmt: skip
        assert figure in parsed.text, figure


def test_the_sections_are_all_there():
    page, _ = page_of(manifest=MANIFEST)
    assert len(re.findall("<h2>", page)) == 7 and page.count('class="tile"') == 4
    several, _ = page_of(summary=summary_of(*EVERY_FORM), sequences=frame({form: [0.5] for form in EVERY_FORM}))
    assert len(re.findall("<h2>", several)) == 8, "the checks by form"
    assert several.count('<span class="outcome pass">') == 9 * 4


def test_tiles_count_before_in_the_form_s_own_precision():
    alone = Summary({form: precise().forms[form] for form in ("base", "merged")})
    page, _ = page_of(summary=alone, sequences=frame({"base": [0.9], "merged": [0.2]}))
    assert '<span class="from">3</span>' in page


def test_hostile_ids_and_names_stay_text():
    sequences = frame({"base": [1.0, 0.9], "stacked": [0.2, 0.3]}, [HOSTILE, "\u200f\u0000"])
    manifest = copy.deepcopy(MANIFEST)
    manifest["base"]["name"] = manifest["method"]["name"] = HOSTILE
    manifest["outcome"]["stopped_because"] = manifest["data"]["notes"][0] = HOSTILE
    manifest["stages"] = [{"stage": HOSTILE, "scale": 1, "ended": HOSTILE}, {"stage": "fit", "scale": -1, "ended": ""}]
    summary = with_form(summary_of(), "stacked", before=replace(BASE), loaded_as=HOSTILE)
    log = [record | {"stage": HOSTILE if record["epoch"] < 2 else "fit"} for record in log_of(3)]
    parts = {"sequences": sequences, "manifest": manifest, "summary": summary, "train_log": log}
    page, parsed = page_of(**parts, deltas=deltas_of(["stacked"], [HOSTILE, "h.1.a"]))
    assert parsed.tags.count("script") == 1 and "<script>alert" not in page
    assert "\x1b" not in page and "\u202e" not in page
    page.encode("utf-8")
    card = model_card(results_of(summary, manifest, log, sequences=sequences))
    assert "<script>" not in card.replace(loading(manifest), "")
    assert "\n# boo" not in card and "base_model:" not in card.split("---")[1]


def test_report_shows_the_worst_of_a_huge_set():
    n = MAX_ROWS + 20
    sequences = frame({"base": [0.9] * n, "stacked": list(np.linspace(0.1, 0.9, n))})
    page, parsed = page_of(sequences=sequences)
    assert "sequences.parquet" in page and page.count('<th scope="row">record-') == MAX_ROWS
    assert f"record-{n - 1:04d}" in page and "record-0000" not in parsed.text


def test_the_only_script_is_the_one_the_policy_allows():
    page, _ = page_of()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
