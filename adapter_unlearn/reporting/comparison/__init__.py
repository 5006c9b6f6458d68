"""The comparison of several methods, written as a folder."""

from pathlib import Path
from typing import Any

from adapter_unlearn.evaluation.comparison import Comparison
from adapter_unlearn.reporting import images
from adapter_unlearn.reporting.comparison import figures
from adapter_unlearn.reporting.comparison.html import render_comparison
from adapter_unlearn.reporting.comparison.lines import as_json
from adapter_unlearn.runs import run_folder

__all__ = ["FILES", "write"]

FILES = (run_folder.COMPARISON, "comparison.csv", "figures", "report.html")
"""What `write` writes."""


def write(folder: Path, comparison: Comparison, manifest: dict[str, Any]) -> None:
    """Write comparison.json, comparison.csv (the rows), figures/*.png and report.html.

    Args:
        folder: must exist.
        comparison: the methods.
        manifest: what all runs share.
    """
    run_folder.write_json(folder / run_folder.COMPARISON, as_json(comparison, manifest))
    comparison.rows.to_csv(folder / "comparison.csv", index=False)
    pictures = figures.pictures(comparison.rows)
    images.write_pngs(folder, pictures)
    (folder / "report.html").write_text(render_comparison(comparison, manifest, pictures), encoding="utf-8")
