"""What a run folder tells about a run or an evaluation: aggregates, tables, figures, report and model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_unlearn.evaluation import summary
from adapter_unlearn.reporting import images
from adapter_unlearn.reporting.run import figures
from adapter_unlearn.reporting.run.card import model_card
from adapter_unlearn.reporting.run.html import render_html
from adapter_unlearn.reporting.run.log_figures import scales_figure
from adapter_unlearn.reporting.run.results import RunResults
from adapter_unlearn.runs import run_folder

if TYPE_CHECKING:
    from adapter_unlearn.evaluation.criteria import Bounds

__all__ = ["RunResults", "write", "write_card", "write_scale_search"]

_TABLES = ("holdout", "membership", "curves", "utility", "deltas")


def write(folder: Path, results: RunResults) -> None:
    """Write summary.json, one .parquet per table that has rows, figures/*.png and report.html into a folder."""
    report = results.report
    run_folder.write_json(folder / "summary.json", summary.to_json(report.summary))
    report.sequences.to_parquet(folder / "sequences.parquet", index=False)
    for name in _TABLES:
        frame = getattr(report, name)
        if len(frame):
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    pictures = figures.pictures(results)
    images.write_pngs(folder, pictures)
    (folder / "report.html").write_text(render_html(results, pictures), encoding="utf-8")


def write_card(folder: Path, results: RunResults) -> None:
    """Write README.md, the model card."""
    (folder / "README.md").write_text(model_card(results), encoding="utf-8")


def write_scale_search(folder: Path, rows: Sequence[dict[str, Any]], bounds: Bounds, chosen: float) -> None:
    """Write scale_search.jsonl and figures/scales.png.

    Args:
        folder: must exist and hold no `figures`.
        rows: one record per scale that was measured.
        bounds: those of the outliers.
        chosen: the scale that was chosen.
    """
    run_folder.write_json_lines(folder / "scale_search.jsonl", list(rows))
    band = (bounds.low, bounds.high) if bounds.kind == "holdout" else None
    images.write_pngs(folder, [images.Picture("scales", "", "", scales_figure(rows, band, chosen))])
