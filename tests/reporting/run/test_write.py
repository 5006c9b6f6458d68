"""What a run folder gets."""

import json

import pandas as pd
from reporting.builders import (
    MANIFEST,
    NO_HOLDOUT,
    curves_of,
    deltas_of,
    frame,
    log_of,
    membership_of,
    precise,
    results_of,
    scales_of,
    staged,
    summary_of,
    with_form,
)

from adapter_unlearn.evaluation.criteria import PAPER, Bounds
from adapter_unlearn.evaluation.summary import Summary, from_json
from adapter_unlearn.reporting import run, terminal


def full_results():
    summary = Summary({form: precise().forms[form] for form in ("base", "merged")})
    summary = with_form(summary, "merged", extractable_any_prefix=None)
    return results_of(
        summary, MANIFEST | {"stages": [{"stage": "fit", "scale": -1}]}, staged(log_of(3)), scales_of([-1, 0]),
        sequences=frame({"base": [0.9], "merged": [0.2]}), membership=membership_of(["base", "merged"]),
        curves=curves_of({"base": [[True] * 30], "merged": [[False] * 30]}), deltas=deltas_of(["merged"]),
        utility=pd.DataFrame([{"task": "piqa", "metric": "acc", "doc_id": "0", "value": 1.0, "form": "base"}]),
    )  # fmt: skip


def test_write_writes_what_there_is(tmp_path):
    folder, results = tmp_path, full_results()
    run.write(folder, results)
    assert {path.name for path in folder.iterdir()} == {
        "summary.json", "sequences.parquet", "holdout.parquet", "membership.parquet", "curves.parquet",
        "utility.parquet", "deltas.parquet", "figures", "report.html",
    }  # fmt: skip
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "memorization_merged.png", "histogram.png", "prefixes.png", "epochs.png", "scales.png", "deltas.png",
    }  # fmt: skip
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "deltas.parquet"), results.report.deltas)
    values = json.loads((folder / "summary.json").read_text())
    assert from_json(values).before("merged").extractable == 3


def test_write_leaves_out_what_was_not_measured(tmp_path):
    run.write(tmp_path, results_of(holdout=NO_HOLDOUT))
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "sequences.parquet", "figures", "report.html"}


def test_the_card_judges_by_the_curves(tmp_path):
    run.write_card(tmp_path, full_results())
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| ✓ pass | Any prefix |" in card and "TPR at 1 % FPR" in card
    run.write_card(tmp_path, results_of(summary_of(extractable_any_prefix=None)))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| ? unknown | Any prefix |" in card and "TPR at 1 % FPR" not in card


def test_a_scale_search_is_written(tmp_path):
    rows = scales_of([-2, -1, 0])
    for name, bounds in (("holdout", Bounds("holdout", 0.1, 0.3)), ("paper", PAPER)):
        folder = tmp_path / name
        folder.mkdir()
        run.write_scale_search(folder, rows, bounds, -1.0)
        assert [json.loads(line) for line in (folder / "scale_search.jsonl").read_text().splitlines()] == rows
        assert (folder / "figures" / "scales.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_shown(tmp_path, capsys):
    results = results_of(curves=curves_of({form: [[False] * 30] for form in ("base", "stacked")}))
    run.write(tmp_path, results)
    (tmp_path / "unlearning.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "the/base"}))
    terminal.show_run(tmp_path)
    shown = capsys.readouterr().out
    assert "record-0003" in shown and "912 kB" in shown and 'from_pretrained("the/base")' in shown
    assert "(none before)" in " ".join(shown.split()) and "recipes copy" not in shown
    terminal.show_run(tmp_path, demo=True)
    assert "recipes copy" in capsys.readouterr().out
