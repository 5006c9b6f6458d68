"""From long frames (a row a sequence and form) to wide ones (a row a sequence), and the order forms are shown in."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from adapter_unlearn.reporting.formatting import clean

BASE = "base"
MEASURES = ("memorization_accuracy", "extractable", "extractable_50", "longest_verbatim_run", "loss")
DESCRIPTIONS = {
    "base": "the model before unlearning",
    "stacked": "the adapter loaded on top of the base model",
    "merged": "the adapter added to the original full-precision weights",
    "requantized": "the adapter added to the weights, which are then quantized again",
    "requantized_nf4": "the adapter added to the weights, which are then quantized again to 4 bits (nf4)",
    "requantized_int8": "the adapter added to the weights, which are then quantized again to 8 bits (int8)",
}


def ordered(forms: Iterable[str]) -> list[str]:
    """The forms as everybody shows them: before first, then as a model moves into production, then any other."""
    known = list(DESCRIPTIONS)
    return sorted(dict.fromkeys(forms), key=lambda form: known.index(form) if form in known else len(known))


def after(forms: Iterable[str]) -> list[str]:
    """The forms that unlearning made: every one but the base."""
    return [form for form in ordered(forms) if form != BASE]


def title(form: str) -> str:
    """A form's name as people read it."""
    return form.replace("_", " ") if form in DESCRIPTIONS else clean(form)


def before(summary: dict[str, Any], form: str) -> dict[str, Any]:
    """The base's figures that a form's are compared with.

    A form may be deployed in another precision than the base was first loaded in. What the other precision changes is
    not the adapter's doing, so such a form brings figures of the base in its own precision along, as `before`.
    """
    measured = summary.get("forms") or {}
    return (measured.get(form) or {}).get("before") or measured.get(BASE) or {}


def heading(form: str, forms: Iterable[str]) -> str:
    """`before` and `after` where that is all there is to tell apart; the forms' own names otherwise."""
    made = after(forms)
    if form == BASE:
        return "before" if made else BASE
    return "after" if len(made) == 1 else title(form)


def wide(sequences: pd.DataFrame) -> pd.DataFrame:
    """One row a sequence in its first order: `id`, `n_tokens`, `note`, and a column (measure, form) per figure.

    An id that stands twice in one form stays two rows: a table of proof must not lose a row, whatever its names.
    """
    forms = ordered(sequences["form"])
    keyed = sequences.assign(id=sequences["id"].map(str))
    keyed["copy"] = keyed.groupby(["form", "id"]).cumcount()
    keys = pd.MultiIndex.from_frame(keyed[["id", "copy"]]).unique()
    parts = {}
    for form in forms:
        one = keyed[keyed["form"] == form].set_index(["id", "copy"]).reindex(keys)
        for measure in MEASURES:
            known = one[measure] if measure in one else pd.Series(float("nan"), index=keys)
            parts[measure, form] = pd.to_numeric(known, errors="coerce").astype(float)
        for column in ("n_tokens", "note"):
            if column in one:
                parts.setdefault((column, ""), one[column])
                parts[column, ""] = parts[column, ""].where(parts[column, ""].notna(), one[column])
    table = pd.DataFrame(parts, index=keys)
    table.columns = pd.MultiIndex.from_tuples(list(parts)) if parts else table.columns
    table["id", ""] = keys.get_level_values(0)
    return table.reset_index(drop=True)


def values(frame: pd.DataFrame, form: str, measure: str = "memorization_accuracy") -> pd.Series:
    """One measure of one form without its missing values; empty where the form or the measure is not there."""
    if measure not in frame or "form" not in frame:
        return pd.Series(dtype=float)
    return pd.to_numeric(frame.loc[frame["form"] == form, measure], errors="coerce").dropna().astype(float)


def holdout_band(holdout: pd.DataFrame) -> tuple[float, float] | None:
    """Where 90 % of the never-seen texts lie under the base model: the 5 % and 95 % quantile of their MA."""
    unseen = values(holdout, BASE)
    if unseen.empty:
        return None
    return float(unseen.quantile(0.05)), float(unseen.quantile(0.95))


def summary_band(summary: dict[str, Any]) -> tuple[float, float] | None:
    """The same band as the summary tells it, for results whose holdout rows are not at hand."""
    for figures in (summary.get("forms") or {}).values():
        bounds = (figures or {}).get("bounds") or {}
        if bounds.get("kind") == "holdout":
            return float(bounds["low"]), float(bounds["high"])
    return None
