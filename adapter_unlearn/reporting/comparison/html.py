"""The page that compares methods."""

from collections.abc import Sequence
from typing import Any

from adapter_unlearn.evaluation.comparison import Comparison
from adapter_unlearn.reporting import facts, form_names, page
from adapter_unlearn.reporting.comparison import lines
from adapter_unlearn.reporting.comparison.columns import columns
from adapter_unlearn.reporting.formatting import clean, plural
from adapter_unlearn.reporting.images import Picture


def render_comparison(comparison: Comparison, manifest: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """The page.

    Args:
        comparison: the methods.
        manifest: what all runs share.
        pictures: see comparison.figures.pictures.
    """
    visible = columns(comparison)
    runs, unseen = plural(int(comparison.runs["failed"].isna().sum()), "run"), comparison.about["n_holdout"]
    sets = plural(comparison.about["n_sequences"], "sequence")
    sets += f", {plural(unseen, 'never-seen sequence')}" if unseen else ""
    groups = [column.group for column in visible]
    return page.render(
        "comparison/comparison.html.j2",
        manifest,
        headline=lines.headline(comparison),
        subject=f"{clean(facts.base_name(manifest))}, {runs}, {sets}",
        warnings=[clean(warning) for warning in comparison.warnings],
        columns=visible,
        groups=[(group, groups.count(group)) for group in dict.fromkeys(groups)],
        lines=lines.lines(comparison),
        several_forms=len(form_names.after(comparison.rows["form"])) > 1,
        pictures=pictures,
        pairs=lines.pair_lines(comparison),
        pair_measures=list(lines.PAIR_MEASURES.values()),
        runs=lines.records(comparison.runs),
        provenance=facts.provenance(
            {key: value for key, value in manifest.items() if key in ("base", "versions", "bounds")}
        ),
        limits=page.limits(),
    )
