"""The commands that need a model, from files to a folder: load, score, train, score, report."""

from adapter_unlearn.pipeline.comparing import compare
from adapter_unlearn.pipeline.evaluating import evaluate, evaluate_interference
from adapter_unlearn.pipeline.scaling import ScaleSearch, negate_searched
from adapter_unlearn.pipeline.scoring_run import score_files
from adapter_unlearn.pipeline.unlearning_run import unlearn

__all__ = ["ScaleSearch", "compare", "evaluate", "evaluate_interference", "negate_searched", "score_files", "unlearn"]
