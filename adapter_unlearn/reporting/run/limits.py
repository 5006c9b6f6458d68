"""What a good report does not prove."""

from adapter_unlearn.reporting import facts, form_names
from adapter_unlearn.reporting.formatting import number
from adapter_unlearn.reporting.run.results import RunResults

SIGN_FLIPPED = ("ta", "tau")
"""Methods whose adapter is a negated copy of one that was fitted to the forget set."""


def limits(results: RunResults) -> list[str]:
    """What a reader must not conclude from the report, one item per sentence or two."""
    summary, manifest = results.summary, results.manifest
    items = list(facts.ERASURE) if results.after else []
    if (manifest.get("method") or {}).get("name") in SIGN_FLIPPED:
        items.append(
            f"This adapter was made by {facts.method_name(manifest)}: an adapter fitted to the forget set was"
            " subtracted, so it is a sign-flipped copy of those texts. Share it only with those who may have the texts."
        )
    areas = {form: holdout.membership_auc_loss for form in results.after if (holdout := summary.forms[form].holdout)}
    areas = {form: area for form, area in areas.items() if number(area) is not None}
    if any(abs(area - 0.5) > 0.1 for area in areas.values()):
        figures = ", ".join(
            f"{area:.2f}" + (f" {form_names.title(form)}" if len(areas) > 1 else "") for form, area in areas.items()
        )
        items.append(
            "Text that is not recited can still be distinguishable: the loss of each text separates the forget set from"
            f" never-seen text (membership AUC {figures}; 0.5 would be chance)."
        )
    if results.after and (manifest.get("base") or {}).get("quantization") in ("nf4", "int8"):
        items.append(
            "The figures apply only to the forms shown. Merging the adapter into the quantized base"
            " (merge_and_unload) rounds small changes away and can bring recitation back."
        )
    return [*items, facts.GREEDY_ONLY]
