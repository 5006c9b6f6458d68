"""The verbs that need a model, from files to folders. The one place that sees every room."""

from adapter_unlearn.pipeline.comparing import compare
from adapter_unlearn.pipeline.evaluating import evaluate, evaluate_interference
from adapter_unlearn.pipeline.scaling import negate_searched
from adapter_unlearn.pipeline.scoring_run import score_files
from adapter_unlearn.pipeline.unlearning_run import unlearn

__all__ = ["compare", "evaluate", "evaluate_interference", "negate_searched", "score_files", "unlearn"]
