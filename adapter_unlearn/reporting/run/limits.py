"""What a good report does not prove."""

from adapter_unlearn.reporting import facts, form_names, page
from adapter_unlearn.reporting.formatting import number
from adapter_unlearn.reporting.run.results import RunResults

SIGN_FLIPPED = ("ta", "tau")
"""Methods whose adapter is a negated copy of one that was fitted to the forget set."""


def limits(results: RunResults) -> list[str]:
    """What a reader must not conclude from the report, one item per sentence or two."""
    forms, manifest = results.summary.forms, results.manifest
    areas = {form: number(unseen.membership_auc_loss) for form in results.after if (unseen := forms[form].holdout)}
    known = {form: area for form, area in areas.items() if area is not None}
    words = [f"{area:.2f}" + (f" {form_names.title(form)}" if len(known) > 1 else "") for form, area in known.items()]
    return page.limits(
        adapter=bool(results.after),
        flipped=facts.method_name(manifest) if (manifest.get("method") or {}).get("name") in SIGN_FLIPPED else "",
        areas=", ".join(words) if any(abs(area - 0.5) > 0.1 for area in known.values()) else "",
        quantized=bool(results.after) and (manifest.get("base") or {}).get("quantization") in ("nf4", "int8"),
    )
