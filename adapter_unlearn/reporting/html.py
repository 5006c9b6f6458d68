"""report.html: one file, offline, for phone, screen and paper, that a stranger can be handed.

Ids and names in it come from strangers: everything is escaped, and a content policy forbids the page to load anything
or to run any script but its own. Without scripts only the sorting of the table is lost.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from adapter_unlearn.evaluation.comparison import Comparison
from adapter_unlearn.metrics.prefixes import LEAVES
from adapter_unlearn.reporting import comparison, facts, figures, forms, images, interference, measures, utility
from adapter_unlearn.reporting import membership as telling
from adapter_unlearn.reporting import rows as table
from adapter_unlearn.reporting.formatting import (
    DASH,
    accuracy,
    clean,
    count,
    factor,
    number,
    percent,
    plural,
    relative_change,
)
from adapter_unlearn.reporting.verdict import NEIGHBOURHOOD_LIMIT, TEST_LIMIT, Check, headline, verdict

MAX_ROWS = 500
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Tile:
    """One of the few figures a reader takes home."""

    label: str
    before: str
    after: str
    note: str


@dataclass(frozen=True)
class Picture:
    """A figure with its heading and what to see in it."""

    title: str
    drawing: Markup
    caption: str


def render_html(
    *,
    sequences: pd.DataFrame,
    holdout: pd.DataFrame,
    summary: dict[str, Any],
    train_log: list[dict[str, Any]],
    manifest: dict[str, Any],
    scales: Sequence[dict[str, Any]] = (),
    deltas: pd.DataFrame | None = None,
    membership: pd.DataFrame | None = None,
    curves: pd.DataFrame | None = None,
) -> str:
    """The report as one page. `train_log` may be empty and `manifest` may have holes: then those parts are left out.

    `deltas`, `membership` and `curves` are those of Report.
    """
    checks = verdict(summary, curves)
    names = forms.ordered(sequences["form"])
    costs, able = measures.rows(summary, measures.PERPLEXITIES), utility.rows(summary)
    told_apart = telling.rows(membership)
    # what the table of membership tells with intervals is not told again without them
    every = [group for group in measures.GROUPS if group is not measures.PERPLEXITIES]
    shown = tuple(m for group in every for m in group if not (told_apart and m in measures.MEMBERSHIP))
    worst, total = table.rows(sequences, summary, MAX_ROWS)
    return _page(
        "report.html.j2",
        manifest,
        script=Markup((_FOLDER / "report.js").read_text(encoding="utf-8")),
        headline=headline(summary, checks),
        subject=_subject(summary, manifest),
        checks=_by_form(checks),
        topics=list(dict.fromkeys(check.topic for check in checks)),
        tiles=_tiles(summary),
        pictures=_pictures(sequences, holdout, summary, train_log, manifest, scales, deltas, curves),
        forms=names,
        after=forms.after(names),
        headings={form: forms.heading(form, names) for form in names},
        descriptions=forms.DESCRIPTIONS,
        perplexities=costs,
        has_spread=any(cell.spread for _, cells in [*costs, *able] for cell in cells.values()),
        limit_words=(percent(TEST_LIMIT, 0), percent(NEIGHBOURHOOD_LIMIT, 0)),
        utility=able,
        plural=plural,
        membership=told_apart,
        membership_forms=list(told_apart[0].auc) if told_apart else [],
        membership_means=telling.MEANS,
        membership_line=telling.population_line(membership) if membership is not None and told_apart else "",
        measures=measures.rows(summary, shown),
        summary_forms=forms.ordered(summary.get("forms") or {}),
        bounds_line=measures.bounds_line(summary),
        comparison_lines=measures.comparison_lines(summary),
        columns=table.MEASURES,
        rows=worst,
        n_sequences=total,
        has_notes=any(row.note for row in worst),
        never_seen=_never_seen(holdout, names),
        made=facts.made(manifest),
        notes=facts.notes(manifest),
        loading=facts.loading(manifest) if manifest.get("base") and forms.after(names) else "",
        limits=facts.limits(summary, manifest),
        glossary=facts.GLOSSARY,
    )


def render_interference(rows: pd.DataFrame, manifest: dict[str, Any]) -> str:
    """The page of several adapters on several forget sets; `rows` and `manifest` as for write.interference."""
    owner = interference.owners(manifest)
    found = interference.matrix(rows)
    told = interference.findings(rows, owner)
    title = "Every combination of adapters"
    caption = (
        "A line is a combination of adapters, a filled circle one that is on. The darker a cell, the more of that"
        " forget set is recited, and the higher its mean memorization accuracy."
    )
    drawing = images.svg(figures.interference_figure(rows), "interference", f"{title}. {caption}")
    return _page(
        "interference.html.j2",
        manifest,
        script="",
        headline="Which adapters silence which texts",
        subject=f"{clean(facts.base_name(manifest))}, {plural(len(found.adapters), 'adapter')},"
        f" {plural(len(found.sets), 'forget set')}",
        findings=told,
        picture=Picture(title, drawing, caption),
        tables=interference.heat_rows(rows, owner),
        sets=[clean(name) for name in found.sets],
        owned=bool(owner),
        made=[
            *((f"adapter for {clean(name)}", clean(adapter)) for name, adapter in owner.items()),
            *facts.made({key: value for key, value in manifest.items() if key != "adapters"}),
        ],
        limits=[*facts.ERASURE, *facts.limits({}, manifest)],
    )


def render_comparison(found: Comparison, manifest: dict[str, Any]) -> str:
    """The page of several methods; `manifest` as in manifest.of_comparison."""
    shown = comparison.columns(found)
    failed = found.runs[found.runs["failed"].notna()]
    several = len(forms.after(found.rows["form"])) > 1
    pictures = []
    for name, figure in figures.comparison_figures(found.rows).items():
        form = name.removeprefix("pareto_").removeprefix("auc_")
        by_auc = name.startswith("pareto_auc")
        title = (
            ("Told apart" if by_auc else "Forgetting")
            + " against cost"
            + (f" ({forms.title(form)})" if several else "")
        )
        caption = comparison.PICTURES[by_auc]
        pictures.append(Picture(title, images.svg(figure, name, f"{title}. {caption}"), caption))
    runs, unseen = plural(len(found.runs) - len(failed), "run"), found.about["n_holdout"]
    sets = plural(found.about["n_sequences"], "sequence") + (f", {plural(unseen, 'never-seen one')}" if unseen else "")
    return _page(
        "comparison.html.j2",
        manifest,
        script="",
        headline=comparison.headline(found),
        subject=f"{clean(facts.base_name(manifest))}, {runs}, {sets}",
        warnings=comparison.warnings(found),
        columns=shown,
        groups=[
            (group, sum(column.group == group for column in shown)) for group in dict.fromkeys(c.group for c in shown)
        ],
        lines=comparison.lines(found),
        several_forms=several,
        failed=[
            (f"{clean(row['method'])}, seed {row['seed']}", clean(row["failed"])) for row in failed.to_dict("records")
        ],
        pictures=pictures,
        pairs=comparison.pair_lines(found),
        pair_measures=list(comparison.PAIR_MEASURES.values()),
        runs=comparison.run_lines(found),
        notes=comparison.NOTES,
        made=facts.made({key: value for key, value in manifest.items() if key in ("base", "versions", "bounds")}),
        limits=[*comparison.LIMITS, *facts.limits({}, manifest)],
    )


def _page(template: str, manifest: dict[str, Any], script: str, **parts: Any) -> str:
    """A page in the one style: everything escaped, no script but the one given allowed to run."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
    environment.filters["breakable"] = breakable
    return environment.get_template(template).render(
        base_name=clean(facts.base_name(manifest)),
        created=clean(manifest.get("created") or "")[:10],
        package=" ".join(clean(value) for value in (manifest.get("package") or {"name": "adapter-unlearn"}).values()),
        title=forms.title,
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **parts,
    )


def typeset(text: str) -> str:
    """Numbers as print shops set them: a true minus, and no line break before a percent sign."""
    text = f"−{text[1:]}" if text.startswith("-") else text
    return text.replace(" %", "\u202f%").replace(" -", " −").replace("[-", "[−").replace(" before)", "\u00a0before)")


def breakable(name: str) -> Markup:
    """A name in which a line may end after each underscore: on a phone a long one would push the figures out."""
    return Markup("<wbr>").join(re.split("(?<=_)", name))


def _by_form(checks: list[Check]) -> dict[str, list[Check]]:
    grouped: dict[str, list[Check]] = {}
    for check in checks:
        grouped.setdefault(check.form, []).append(check)
    return grouped


def _subject(summary: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Whose report this is, in half a line."""
    figures_of_one = next(iter((summary.get("forms") or {}).values()), None) or {}
    n, documents = number(figures_of_one.get("n_sequences")), number(figures_of_one.get("n_documents"))
    texts = "" if n is None else plural(n, "sequence")
    if texts and documents not in (None, n):
        texts += f" of {plural(documents, 'document')}"
    return ", ".join(part for part in (clean(facts.base_name(manifest)), facts.method_name(manifest), texts) if part)


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    """Recitation and memorization, general ability and neighbourhood, for the first form after the base."""
    measured = summary.get("forms") or {}
    form = next(iter(forms.after(measured)), None)
    base = forms.before(summary, form or forms.BASE)
    now = (measured.get(form) if form else None) or {}
    unseen = number((measured.get(forms.BASE) or {}).get("holdout_memorization_accuracy_mean"))
    total = plural((base or now).get("n_sequences"), "sequence")

    def pair(key: str, show: Callable[[Any], str]) -> tuple[str, str]:
        return show(base.get(key)), show(now.get(key)) if form else ""

    likeness = "no never-seen text to compare with" if unseen is None else f"never-seen text: {accuracy(unseen)}"
    tiles = [
        Tile("Recited word for word", *pair("extractable", count), f"of {total}"),
        Tile("Memorization accuracy, mean", *pair("memorization_accuracy_mean", accuracy), likeness),
    ]
    costs = (
        ("General text", "test_perplexity", "test set"),
        ("Neighbourhood", "holdout_perplexity", "never-seen texts of the same kind"),
    )
    for label, key, texts in costs if form else ():
        change = percent(relative_change(base.get(key), now.get(key)))
        tiles.append(Tile(label, "", change, "not measured" if change == DASH else f"change of perplexity, {texts}"))
    if len(forms.after(measured)) > 1:
        tiles = [replace(tile, label=f"{tile.label} ({forms.title(form or '')})") for tile in tiles]
    return tiles


def _pictures(
    sequences: pd.DataFrame,
    holdout: pd.DataFrame,
    summary: dict[str, Any],
    train_log: list[dict[str, Any]],
    manifest: dict[str, Any],
    scales: Sequence[dict[str, Any]],
    deltas: pd.DataFrame | None,
    curves: pd.DataFrame | None,
) -> list[Picture]:
    kept = number((manifest.get("outcome") or {}).get("kept_epoch"))
    chosen = facts.chosen_scale(manifest)
    drawn = figures.all_figures(
        sequences, holdout, summary, train_log, None if kept is None else int(kept), scales, chosen, deltas, curves
    )
    several = len(forms.after(sequences["form"])) > 1
    pictures = []
    for name, figure in drawn.items():
        if name == "histogram":
            title = "How memorization is spread"
            caption = (
                "The share of sequences at each level of memorization accuracy."
                " Unlearned well, the forget set lies where never-seen text lies."
            )
        elif name == "prefixes":
            title = "From every prefix"
            caption = (
                "A prefix of each length is given, and the model goes on greedily. Above: in how many sequences it"
                " recites all the rest; shaded, how many are long enough. Below: the most tokens it recites of any"
                f" sequence before its first mistake. Prefixes that leave under {LEAVES} tokens are left out: of so few"
                " some can be guessed."
            )
        elif name == "epochs":
            title = "The run, epoch by epoch"
            caption = _epochs_caption(train_log, manifest)
        elif name == "scales":
            title = "The adapter at other scales"
            caption = _scales_caption(scales, chosen)
        elif name == "deltas":
            title = "What arrives in the weights"
            caption = (
                "For each module, the size of the adapter’s delta relative to the weights it is added to, and the share"
                " of the delta that arrives in each form (its projection): at 1 all of it, at 0 the unlearning is"
                " rounded away."
            )
        else:
            form = name.removeprefix("memorization_")
            title = (
                "Every sequence"
                + (", before and after" if form != forms.BASE else "")
                + (f" ({forms.title(form)})" if several else "")
            )
            caption = _sequences_caption(sequences, holdout, summary, form)
        pictures.append(Picture(title, images.svg(figure, name, f"{title}. {caption}"), caption))
    return pictures


def _epochs_caption(train_log: list[dict[str, Any]], manifest: dict[str, Any]) -> str:
    """What is drawn, which stages follow on one another, and why each of them ended."""
    caption = "Selected: the sequences trained on in that epoch."
    spans = figures.stage_spans(train_log)
    if len(spans) > 1:
        named = [
            f"{name} (epoch{f's {first} to' if first < last else ''} {last}"
            + (", at the scale that was chosen)" if name == "scale search" else ")")
            for name, first, last in spans
        ]
        caption += f" A line divides the stages: {', then '.join(named)}."
        for part in (manifest.get("stages") or [])[:-1]:
            caption += f" How {clean(part.get('stage') or 'a stage')} ended: {clean(part.get('ended') or '')}"
    return f"{caption} {clean((manifest.get('outcome') or {}).get('stopped_because') or '')}".strip()


def _scales_caption(scales: Sequence[dict[str, Any]], chosen: float | None) -> str:
    caption = (
        "The finished adapter, multiplied by a factor and measured; nothing is trained for it. At 0 the model is as it"
        " was before this adapter."
    )
    past = sum(1 for record in scales if record.get("within_budget") is False)
    if past:
        caption += f" Hollow: {plural(past, 'scale')} past the perplexity budget."
    if chosen is not None:
        caption += f" Chosen: {factor(chosen)}, for the fewest outliers within the budget."
    return caption


def _sequences_caption(sequences: pd.DataFrame, holdout: pd.DataFrame, summary: dict[str, Any], form: str) -> str:
    drawn = sequences["id"][sequences["form"] == form].nunique()
    caption = "Each sequence is one open circle" + (" and, below it, one filled circle." if form != forms.BASE else ".")
    band = forms.holdout_band(holdout) or forms.summary_band(summary)
    if band:
        caption += f" Shaded: {accuracy(band[0])} to {accuracy(band[1])}, where 90 % of never-seen text lies."
    own = ((summary.get("forms") or {}).get(form) or {}).get("before")
    if own and own.get("loaded_as"):
        caption += f" Before: the base as it was first loaded, and not in {clean(own['loaded_as'])} like this form."
    missing = int(sequences.loc[sequences["form"] == form, "memorization_accuracy"].isna().sum())
    if missing:
        caption += (
            f" {plural(missing, 'sequence')} could not be scored and {'is' if missing == 1 else 'are'} not drawn."
        )
    if drawn > figures.MAX_DRAWN:
        caption += f" Of {count(drawn)} sequences the most memorized and an even sample of the others are drawn."
    return caption


def _never_seen(holdout: pd.DataFrame, names: list[str]) -> list[tuple[str, list[str]]]:
    """Lines of the holdout set's mean and highest figures, in the columns of the table of sequences."""
    if holdout.empty:
        return []
    lines = []
    for label, how in (("never seen, mean", "mean"), ("never seen, highest", "max")):
        cells = []
        for measure, _, show in table.MEASURES:
            for form in names:
                found = forms.values(holdout, form, measure)
                if measure == "extractable":
                    cells.append("" if how == "max" else DASH if found.empty else count(found.sum()))
                else:
                    cells.append(DASH if found.empty else show(found.agg(how)))
        lines.append((label, cells))
    return lines
