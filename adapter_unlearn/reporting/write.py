"""Write a run's results into its folder: aggregates, rows, figures, report, model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_unlearn import run_folder
from adapter_unlearn.reporting import figures, images
from adapter_unlearn.reporting.card import model_card
from adapter_unlearn.reporting.html import render_html

if TYPE_CHECKING:
    from adapter_unlearn.evaluation.report import Report


def results(
    folder: Path,
    found: Report,
    train_log: list[dict[str, Any]],
    manifest: dict[str, Any],
    scales: list[dict[str, Any]] | None = None,
) -> None:
    """summary.json, sequences.parquet, reference.parquet, figures/ and report.html."""
    run_folder.write_json(folder / "summary.json", found.summary)
    found.sequences.to_parquet(folder / "sequences.parquet", index=False)
    if len(found.reference):
        found.reference.to_parquet(folder / "reference.parquet", index=False)
    (folder / "figures").mkdir()
    kept = manifest.get("outcome", {}).get("kept_epoch")
    drawn = figures.all_figures(found.sequences, found.reference, found.summary, train_log, kept)
    for name, figure in drawn.items():
        (folder / "figures" / f"{name}.png").write_bytes(images.png(figure))
    page = render_html(
        sequences=found.sequences,
        reference=found.reference,
        summary=found.summary,
        train_log=train_log,
        manifest=manifest,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def card(folder: Path, summary: dict[str, Any], manifest: dict[str, Any]) -> None:
    """README.md, the model card."""
    (folder / "README.md").write_text(model_card(summary, manifest), encoding="utf-8")
