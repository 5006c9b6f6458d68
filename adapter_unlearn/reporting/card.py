"""README.md of a run folder: the model card, for the hub and for whoever finds the adapter alone.

The metadata is written through huggingface_hub's own classes, so that the hub accepts it; nothing asks the network.
A base that is a local folder is left out of the metadata: as a model id it would be wrong or refused.
"""

from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from adapter_unlearn.reporting import facts, forms, measures, utility
from adapter_unlearn.reporting import membership as telling
from adapter_unlearn.reporting.formatting import clean, count, markdown
from adapter_unlearn.reporting.verdict import headline, verdict

_MARKS = {"pass": "✓ pass", "fail": "✗ fail", "unknown": "? unknown"}


def model_card(
    summary: dict[str, Any],
    manifest: dict[str, Any],
    membership: pd.DataFrame | None = None,
    curves: pd.DataFrame | None = None,
) -> str:
    """The card as Markdown with its metadata block; `membership` and `curves` as in Report."""
    checks = verdict(summary, curves)
    told_apart = [row for row in telling.rows(membership) if row.metric in telling.MAIN]
    shown = tuple(m for m in measures.ALL if not (told_apart and m in measures.MEMBERSHIP))
    table = measures.rows(summary, shown)
    names = forms.ordered(summary.get("forms") or {})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = markdown
    body = environment.get_template("card.md.j2").render(
        headline=headline(summary, checks),
        base_name=facts.base_name(manifest),
        method=facts.method_name(manifest),
        loading=facts.loading(manifest),
        removing=facts.removing(manifest),
        checks=[(_MARKS[check.outcome], check) for check in checks],
        several=len(forms.after(names)) > 1,
        forms=names,
        descriptions=forms.DESCRIPTIONS,
        title=forms.title,
        rows=table,
        has_spread=any(cell.spread for _, cells in table for cell in cells.values()),
        utility=utility.rows(summary),
        count=count,
        membership=told_apart,
        membership_means=telling.MEANS,
        lines=[line for line in (measures.bounds_line(summary), *measures.comparison_lines(summary)) if line],
        limits=facts.limits(summary, manifest),
        made=facts.made(manifest),
    )
    return str(ModelCard(f"---\n{_metadata(manifest).to_yaml()}\n---\n\n{body}"))


def _metadata(manifest: dict[str, Any]) -> ModelCardData:
    name = str((manifest.get("base") or {}).get("name") or "")
    method = clean((manifest.get("method") or {}).get("name") or "").lower()
    return ModelCardData(
        base_model=name if facts.is_hub_id(name) else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "machine-unlearning", "memorization", "adapter-unlearn", *([method] if method.isalnum() else [])],
    )
