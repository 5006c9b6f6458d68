"""What a person sees in the terminal when a verb is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from adapter_unlearn.evaluation.comparison import Comparison
from adapter_unlearn.reporting import comparison, forms, interference, utility
from adapter_unlearn.reporting.formatting import accuracy, clean, interval, size
from adapter_unlearn.reporting.tables import (
    comparison_table,
    interference_table,
    proof_table,
    summary_table,
    utility_table,
    verdict_table,
)
from adapter_unlearn.reporting.verdict import verdict
from adapter_unlearn.runs import run_folder

if TYPE_CHECKING:
    from adapter_unlearn.scoring import Overview

_SETS_ACROSS = 3  # forget sets that fit side by side in 80 columns


def show_run(folder: Path, demo: bool = False) -> None:
    """A finished run: every text before and after, what it cost the model, the verdict, and how to use the adapter."""
    summary, about = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("summary.json", run_folder.MANIFEST)
    )
    sequences = pd.read_parquet(folder / "sequences.parquet")
    unseen = folder / "holdout.parquet"
    holdout = pd.read_parquet(unseen) if unseen.exists() else pd.DataFrame(columns=sequences.columns)
    tested = folder / "curves.parquet"
    curves = pd.read_parquet(tested) if tested.exists() else None
    show_report(sequences, holdout, summary, max_rows=len(sequences) if demo else 25, curves=curves)
    console = _console()
    console.print(about["outcome"]["stopped_because"])
    console.print(f"\nadapter  {folder.absolute()} ({size(about['adapter']['bytes'])})")
    console.print(f"report   {(folder / 'report.html').absolute()}\n")
    console.print("Load it with plain PEFT (its README.md says how to quantize the base as it was measured):")
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    console.print(f'  base = AutoModelForCausalLM.from_pretrained("{base}")')
    console.print(f'  model = PeftModel.from_pretrained(base, "{folder.absolute()}")')
    if demo:
        console.print(
            "\nNow your own model and texts:\n"
            "  adapter-unlearn recipes copy gpt-neo-125m match my.yaml\n"
            "  adapter-unlearn unlearn --config my.yaml --model.name MODEL --data.forget TEXTS.jsonl \\\n"
            "      --data.retain KEPT.jsonl --data.holdout UNSEEN.jsonl"
        )


def show_report(
    sequences: pd.DataFrame,
    holdout: pd.DataFrame,
    summary: dict[str, Any],
    max_rows: int = 25,
    curves: pd.DataFrame | None = None,
) -> None:
    """An evaluation: the sequences, the aggregates, the tasks, the verdict."""
    console = _console()
    console.print(proof_table(sequences, holdout, max_rows=max_rows))
    console.print(summary_table(summary))
    if utility.rows(summary):
        console.print(utility_table(summary))
    console.print(verdict_table(verdict(summary, curves)))
    console.print()


def show_interference(rows: pd.DataFrame) -> None:
    """Several adapters on several forget sets, and every case in which one more adapter brings recitation back."""
    console = _console()
    found = interference.matrix(rows)
    for first in range(0, len(found.sets), _SETS_ACROSS):
        console.print(interference_table(rows, found.sets[first : first + _SETS_ACROSS]))
    for case in interference.wakes(rows):
        on = f"{case.adapters} on" if case.adapters else "none on"
        console.print(
            clean(f"{case.set}: with {on}, adding {case.added} takes it from {case.before} to {case.after} recited")
        )
    console.print()


def show_comparison(found: Comparison, folder: str | Path | None) -> None:
    """Methods side by side, the differences to the baseline, and what nobody should overlook."""
    console = _console()
    console.print(comparison_table(found))
    differences = found.rows[found.rows["difference"].notna()]
    for row in differences.to_dict("records"):
        ends = interval([row["difference_low"], row["difference_high"]], accuracy)
        where = f" ({forms.title(str(row['form']))})" if found.rows["form"].nunique() > 2 else ""
        console.print(clean(f"{row['method']} less {found.baseline}{where}: accuracy {row['difference']:+.3f} {ends}"))
    for warning in comparison.warnings(found):
        console.print(f"warning: {warning}")
    if folder is not None:
        console.print(f"\nreport   {(Path(folder) / 'report.html').absolute()}")


def show_scores(scores: Overview) -> None:
    """The most memorized rows of a score table, and means over all."""
    assert scores.top is not None
    with pd.option_context("display.max_colwidth", 40, "display.width", 140, "display.max_columns", 20):
        print(scores.top.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
        if scores.n > len(scores.top):
            print(f"… {scores.n - len(scores.top)} more")
        print("\nmean over all", scores.n, "sequences")
        print(scores.means.to_string(float_format=lambda value: f"{value:.3f}"))


def _console() -> Console:
    return Console(highlight=False, markup=False, soft_wrap=True)
