"""The warnings of a comparison: one sentence each, without any text of the sets."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from adapter_unlearn.evaluation.comparison.methods import Method
from adapter_unlearn.evaluation.finished_run import Finished


def of_pairs(pairs: pd.DataFrame) -> list[str]:
    """Methods that are the same, or the same within noise."""
    warnings = []
    for row in pairs.to_dict("records"):
        names = f"{row['first']} and {row['second']} ({row['form']})"
        if row["duplicate"]:
            warnings.append(f"{names} are the same adapter, byte for byte: the setting that differs had no effect.")
        elif row["alike"]:
            warnings.append(
                f"{names} are identical within noise: their mean memorization accuracies differ by"
                f" {row['memorization_accuracy_difference']:+.3f}, that of a sequence by"
                f" {row['memorization_accuracy_distance']:.3f}; this does not show that one is better."
            )
    return warnings


def of_precisions(runs: Sequence[Finished]) -> list[str]:
    """Bases loaded in different precision."""
    precisions = list(dict.fromkeys(run.precision for run in runs))
    if len(precisions) == 1:
        return []
    return [f"The bases were loaded in different precision ({'; '.join(precisions)}): this alone changes figures."]


def of_tests(runs: Sequence[Finished]) -> list[str]:
    """Test sets that differ: the other figures are comparable, those of the test set are not."""
    first = runs[0]
    for other in runs[1:]:
        counts = [((run.manifest.get("data") or {}).get("test") or {}).get("n_sequences") for run in (first, other)]
        perplexities = [run.summary.base.perplexities.get("test") for run in (first, other)]
        a, b = (None if perplexity is None else perplexity.value for perplexity in perplexities)
        same_precision = first.precision == other.precision
        if counts[0] != counts[1] or (same_precision and a is not None and b is not None and abs(a - b) > 0.01 * a):
            return [f"{first.folder} and {other.folder} have different test sets: their test figures don't compare."]
    return []


def of_seeds(methods: Sequence[Method]) -> list[str]:
    """Methods with a single run."""
    single = [method.name for method in methods if len(method.runs) == 1]
    if len(methods) == 1 or not single:
        return []
    names = "every method has" if len(single) == len(methods) else f"of {', '.join(single)} there is"
    return [f"The intervals do not cover the variance between training seeds, and {names} only one run."]
