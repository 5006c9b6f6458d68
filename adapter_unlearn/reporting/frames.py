"""Frames with one row per (sequence, form), reshaped to one row per sequence; and the range of never-seen text."""

import pandas as pd

from adapter_unlearn.evaluation import criteria
from adapter_unlearn.evaluation.summary import BASE, SUMMARIZED
from adapter_unlearn.reporting import form_names

MEASURES = (*SUMMARIZED, "extractable_any_prefix")
Band = tuple[float, float] | None
"""The range of memorization accuracy that holds 90 % of never-seen text; None where it is unknown."""


def wide(sequences: pd.DataFrame) -> pd.DataFrame:
    """One row per sequence in the order of first appearance, with a column (measure, form) for every figure.

    Ids may repeat: the k-th row of an id in one form belongs to its k-th row in another form, so no row is lost.

    Returns:
        A frame with MultiIndex columns: ("id", ""), ("n_tokens", ""), ("note", "") and (measure, form).
    """
    keyed = sequences.assign(id=sequences["id"].map(str))
    keyed["copy"] = keyed.groupby(["form", "id"]).cumcount()
    keys = pd.MultiIndex.from_frame(keyed[["id", "copy"]]).unique()
    parts = {}
    for form in form_names.ordered(sequences["form"]):
        one = keyed[keyed["form"] == form].set_index(["id", "copy"]).reindex(keys)
        for measure in MEASURES:
            scores = one[measure] if measure in one else pd.Series(float("nan"), index=keys)
            parts[measure, form] = pd.to_numeric(scores, errors="coerce").astype(float)
        for column in ("n_tokens", "note"):
            if column in one:
                parts.setdefault((column, ""), one[column])
                parts[column, ""] = parts[column, ""].where(parts[column, ""].notna(), one[column])
    table = pd.DataFrame(parts, index=keys)
    table.columns = pd.MultiIndex.from_tuples(list(parts)) if parts else table.columns
    table["id", ""] = keys.get_level_values(0)
    return table.reset_index(drop=True)


def values(frame: pd.DataFrame, form: str, measure: str = "memorization_accuracy") -> pd.Series:
    """One measure in one form without missing values; empty where the form or the measure is absent."""
    if measure not in frame or "form" not in frame:
        return pd.Series(dtype=float)
    return pd.to_numeric(frame.loc[frame["form"] == form, measure], errors="coerce").dropna().astype(float)


def holdout_band(holdout: pd.DataFrame) -> Band:
    """The 5 % and 95 % quantiles of the holdout set's memorization accuracy under the base."""
    unseen = values(holdout, BASE)
    if unseen.empty:
        return None
    bounds = criteria.holdout_bounds(unseen.to_numpy(dtype=float))
    return bounds.low, bounds.high
