"""The results of several adapters on several forget sets, written as a folder."""

from pathlib import Path
from typing import Any

import pandas as pd

from adapter_unlearn.reporting import images
from adapter_unlearn.reporting.interference import figures
from adapter_unlearn.reporting.interference.findings import as_json
from adapter_unlearn.reporting.interference.html import render_interference
from adapter_unlearn.runs import run_folder

__all__ = ["write"]


def write(folder: Path, rows: pd.DataFrame, manifest: dict[str, Any]) -> None:
    """Write interference.parquet, interference.json, figures/interference.png and report.html.

    Args:
        folder: must exist.
        rows: as returned by evaluation.interference.interference.
        manifest: its lists `adapters` and `sets` hold the names in order. Where they are of equal length, each adapter
            is the one made for the set in its place.
    """
    rows.to_parquet(folder / "interference.parquet", index=False)
    run_folder.write_json(folder / "interference.json", as_json(rows, manifest))
    picture = figures.picture(rows)
    images.write_pngs(folder, [picture])
    (folder / "report.html").write_text(render_interference(rows, manifest, picture), encoding="utf-8")
