"""Compare finished runs: which method forgets more, at what cost, and which differences are noise.

Runs are comparable only if the same base was measured on the same texts. Every figure is then paired by sequence, and
an interval comes from resampling sequences. Such an interval does not cover the variance between training seeds, so
runs that differ only in the seed form one method: its figures are means over the seeds, with minimum and maximum.
"""

from adapter_unlearn.evaluation.comparison.methods import Method, failing, group
from adapter_unlearn.evaluation.comparison.table import Comparison, Failed, best, check_baseline, compare

__all__ = ["Comparison", "Failed", "Method", "best", "check_baseline", "compare", "failing", "group"]
