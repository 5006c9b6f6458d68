"""report.html: the report of a run or an evaluation as one self-contained page.

Without JavaScript, only the sorting of the table of sequences is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapter_unlearn.evaluation.summary import Summary
from adapter_unlearn.reporting import facts, form_names, page
from adapter_unlearn.reporting.formatting import DASH, accuracy, clean, count, percent, plural, relative_change
from adapter_unlearn.reporting.images import Picture
from adapter_unlearn.reporting.run import limits, loading, measures, membership_table, sequence_rows, task_table
from adapter_unlearn.reporting.run.results import RunResults
from adapter_unlearn.reporting.run.verdict import HOLDOUT_LIMIT, TEST_LIMIT, headline, verdict

MAX_ROWS = 500


@dataclass(frozen=True)
class Tile:
    """One of the key figures at the top of the page."""

    label: str
    before: str
    after: str
    note: str


def render_html(results: RunResults, pictures: Sequence[Picture]) -> str:
    """The page.

    Args:
        results: parts without data are left out.
        pictures: see figures.pictures.
    """
    report, summary, manifest = results.report, results.summary, results.manifest
    checks = verdict(summary, report.curves)
    perplexities, tasks = measures.rows(summary, measures.PERPLEXITIES), task_table.rows(summary)
    membership = membership_table.rows(report.membership)
    # The AUC without its interval is left out where the table of membership shows it with one.
    omitted = {*measures.PERPLEXITIES, *(measures.MEMBERSHIP if membership else ())}
    worst, total = sequence_rows.rows(report.sequences, summary, MAX_ROWS)
    forms = form_names.ordered(report.sequences["form"])
    return page.render(
        "run/report.html.j2",
        manifest,
        script=(page.FOLDER / "run" / "report.js").read_text(encoding="utf-8"),
        headline=headline(summary, checks),
        subject=_subject(results),
        results=results,
        tables=measures,
        perplexity_limits=(TEST_LIMIT, HOLDOUT_LIMIT),
        columns=[label for _, label, _ in sequence_rows.MEASURES],
        checks={form: [check for check in checks if check.form == form] for form in results.after},
        topics=list(dict.fromkeys(check.topic for check in checks)),
        tiles=_tiles(summary),
        pictures=pictures,
        forms=forms,
        perplexities=perplexities,
        has_spread=any(cell.spread for _, cells in [*perplexities, *tasks] for cell in cells.values()),
        tasks=tasks,
        membership=membership,
        membership_line=membership_table.population_line(report.membership) if membership else "",
        measures=measures.rows(summary, [measure for measure in measures.ALL if measure not in omitted]),
        rows=worst,
        n_sequences=total,
        has_notes=any(row.note for row in worst),
        never_seen=sequence_rows.aggregates(report.holdout, forms),
        loading=loading.loading(manifest) if manifest.get("base") and results.after else "",
        limits=limits.limits(results),
    )


def _subject(results: RunResults) -> str:
    """The base, the method and the number of texts, in half a line."""
    manifest, base = results.manifest, results.summary.base
    texts = plural(base.n_sequences, "sequence")
    if base.n_documents != base.n_sequences:
        texts += f" from {plural(base.n_documents, 'document')}"
    return ", ".join(filter(None, [clean(facts.base_name(manifest)), facts.method_name(manifest), texts]))


def _tiles(summary: Summary) -> list[Tile]:
    """Recitation, memorization and both perplexities, for the first form after the base."""
    forms, base = form_names.after(summary.forms), summary.base
    now, before = (summary.forms[forms[0]], summary.before(forms[0])) if forms else (base, base)
    unseen = summary.base.holdout
    likeness = (
        f"never-seen text: {accuracy(unseen.memorization_accuracy_mean)}" if unseen else "no never-seen text to compare"
    )
    after = count(now.extractable), accuracy(now.memorization_accuracy_mean)
    tiles = [
        Tile("Recited word for word", count(before.extractable), after[0], f"of {plural(now.n_sequences, 'sequence')}"),
        Tile("Memorization accuracy, mean", accuracy(before.memorization_accuracy_mean), after[1], likeness),
    ]
    if not forms:
        return [replace(tile, after="") for tile in tiles]
    for name, texts in (("test", "general text"), ("holdout", "never-seen text of the same kind")):
        old, new = (form.perplexities.get(name) for form in (before, now))
        change = percent(relative_change(old and old.value, new and new.value))
        note = "not measured" if change == DASH else f"change of perplexity, {texts}"
        tiles.append(Tile(f"{name.capitalize()} perplexity", "", change, note))
    if len(forms) > 1:
        tiles = [replace(tile, label=f"{tile.label} ({form_names.title(now.form)})") for tile in tiles]
    return tiles
