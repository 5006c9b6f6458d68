"""Write a run's results into its folder: aggregates, rows, figures, report, model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from adapter_unlearn.reporting import comparison as comparing
from adapter_unlearn.reporting import facts, figures, images
from adapter_unlearn.reporting import interference as matrix
from adapter_unlearn.reporting.card import model_card
from adapter_unlearn.reporting.html import render_comparison, render_html, render_interference
from adapter_unlearn.runs import run_folder

if TYPE_CHECKING:
    from adapter_unlearn.evaluation.comparison import Comparison
    from adapter_unlearn.evaluation.criteria import Bounds
    from adapter_unlearn.evaluation.report import Report


def results(
    folder: Path,
    found: Report,
    train_log: list[dict[str, Any]],
    manifest: dict[str, Any],
    scales: Sequence[dict[str, Any]] = (),
) -> None:
    """summary.json, a .parquet a table (sequences, holdout, …), figures/ and report.html.

    Args:
        folder: where they go; it is there.
        found: what was measured.
        train_log: a record an epoch; may be empty.
        manifest: of the run or the evaluation.
        scales: a record a scale, where a scale was searched.
    """
    run_folder.write_json(folder / "summary.json", found.summary)
    found.sequences.to_parquet(folder / "sequences.parquet", index=False)
    if len(found.holdout):
        found.holdout.to_parquet(folder / "holdout.parquet", index=False)
    for name in ("membership", "curves", "utility", "deltas"):
        frame = getattr(found, name)
        if len(frame):
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "figures").mkdir()
    kept = manifest.get("outcome", {}).get("kept_epoch")
    chosen = facts.chosen_scale(manifest)
    drawn = figures.all_figures(
        found.sequences, found.holdout, found.summary, train_log, kept, scales, chosen, found.deltas, found.curves
    )
    for name, figure in drawn.items():
        (folder / "figures" / f"{name}.png").write_bytes(images.png(figure))
    page = render_html(
        sequences=found.sequences,
        holdout=found.holdout,
        summary=found.summary,
        train_log=train_log,
        manifest=manifest,
        scales=scales,
        deltas=found.deltas,
        membership=found.membership,
        curves=found.curves,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def interference(folder: Path, rows: pd.DataFrame, manifest: dict[str, Any]) -> None:
    """interference.parquet, interference.json, figures/interference.png and report.html.

    Args:
        folder: where they go; it is there.
        rows: a row a (subset of adapters, forget set), with the columns adapters (names joined by " + ", "" for none),
            n_adapters, set, n_sequences, extractable, memorization_accuracy_mean, memorization_accuracy_max,
            longest_verbatim_run_max, loss_mean.
        manifest: what was measured; its lists `adapters` and `sets` hold the names in their order. Where they are of
            equal length, each adapter is the one made for the set in its place.
    """
    rows.to_parquet(folder / "interference.parquet", index=False)
    run_folder.write_json(folder / "interference.json", matrix.as_json(rows, manifest))
    (folder / "figures").mkdir()
    (folder / "figures" / "interference.png").write_bytes(images.png(figures.interference_figure(rows)))
    (folder / "report.html").write_text(render_interference(rows, manifest), encoding="utf-8")


COMPARISON_FILES = ("comparison.json", "comparison.csv", "figures", "report.html")
"""What `comparison` writes."""


def comparison(folder: Path, found: Comparison, manifest: dict[str, Any]) -> None:
    """comparison.json, comparison.csv (its rows), figures/*.png and report.html.

    Args:
        folder: where they go; it is there.
        found: what was compared.
        manifest: see manifest.of_comparison.
    """
    run_folder.write_json(folder / run_folder.COMPARISON, comparing.as_json(found, manifest))
    found.rows.to_csv(folder / "comparison.csv", index=False)
    (folder / "figures").mkdir()
    for name, figure in figures.comparison_figures(found.rows).items():
        (folder / "figures" / f"{name}.png").write_bytes(images.png(figure))
    (folder / "report.html").write_text(render_comparison(found, manifest), encoding="utf-8")


def scale_search(folder: Path, rows: list[dict[str, Any]], bounds: Bounds, chosen: float) -> None:
    """scale_search.jsonl and figures/scales.png: every scale that was measured, and the one that was taken."""
    run_folder.write_json_lines(folder / "scale_search.jsonl", rows)
    band = (bounds.low, bounds.high) if bounds.kind == "holdout" else None
    (folder / "figures").mkdir()
    (folder / "figures" / "scales.png").write_bytes(images.png(figures.scales_figure(rows, band, chosen)))


def card(folder: Path, summary: dict[str, Any], manifest: dict[str, Any]) -> None:
    """README.md, the model card; of what `results` wrote beside it, it tells the membership and the prefixes too."""
    beside = {name: folder / f"{name}.parquet" for name in ("membership", "curves")}
    tables = {name: pd.read_parquet(path) if path.exists() else None for name, path in beside.items()}
    (folder / "README.md").write_text(model_card(summary, manifest, **tables), encoding="utf-8")
