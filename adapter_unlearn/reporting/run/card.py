"""The model card: README.md of a run folder, for the hub and for anyone who has only the adapter.

Its metadata is written with huggingface_hub's own classes, so that the hub accepts it; no network is used. A base that
is a local folder is left out of the metadata, where it would be an invalid model id.
"""

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from adapter_unlearn.reporting import facts, page
from adapter_unlearn.reporting.formatting import clean
from adapter_unlearn.reporting.run import limits, loading, measures, membership_table, task_table
from adapter_unlearn.reporting.run.results import RunResults
from adapter_unlearn.reporting.run.verdict import headline, verdict

_MARKS = {"pass": "✓ pass", "fail": "✗ fail", "unknown": "? unknown"}


def model_card(results: RunResults) -> str:
    """The card as Markdown, with its metadata block."""
    summary, manifest = results.summary, results.manifest
    checks = verdict(summary, results.report.curves)
    membership = [
        row for row in membership_table.rows(results.report.membership) if row.metric in membership_table.MAIN
    ]
    rows = measures.rows(summary, [m for m in measures.ALL if not (membership and m in measures.MEMBERSHIP)])
    body = (
        page.environment(autoescape=False)
        .get_template("run/card.md.j2")
        .render(
            manifest=manifest,
            headline=headline(summary, checks),
            loading=loading.loading(manifest),
            removing=loading.removing(manifest),
            checks=[(_MARKS[check.outcome], check) for check in checks],
            several=len(results.after) > 1,
            forms=results.forms,
            rows=rows,
            has_spread=any(cell.spread for _, cells in rows for cell in cells.values()),
            tasks=task_table.rows(summary),
            membership=membership,
            lines=[measures.bounds_line(summary), *measures.comparison_lines(summary)],
            limits=limits.limits(results),
        )
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
