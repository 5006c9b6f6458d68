"""Make a language model stop reciting given texts with a removable LoRA adapter, and prove it sequence by sequence."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adapter_unlearn.version import __version__ as __version__

if TYPE_CHECKING:
    from adapter_unlearn.data import load_sequences
    from adapter_unlearn.errors import InputError, ModelError, OutputError, RecipeError, RunError, UserError
    from adapter_unlearn.evaluation.comparison import Comparison
    from adapter_unlearn.evaluation.report import Report
    from adapter_unlearn.models import load_base
    from adapter_unlearn.pipeline import compare, evaluate, evaluate_interference, negate_searched, unlearn
    from adapter_unlearn.recipe import Recipe, load_recipe
    from adapter_unlearn.scoring import score
    from adapter_unlearn.weights.arithmetic import combine, compress, negate
    from adapter_unlearn.weights.merging import merge
    from adapter_unlearn.weights.rounding import survival

__all__ = [
    "Comparison",
    "InputError",
    "ModelError",
    "OutputError",
    "Recipe",
    "RecipeError",
    "Report",
    "RunError",
    "UserError",
    "combine",
    "compare",
    "compress",
    "evaluate",
    "evaluate_interference",
    "load_base",
    "load_recipe",
    "load_sequences",
    "merge",
    "negate",
    "negate_searched",
    "score",
    "survival",
    "unlearn",
]

# `import adapter_unlearn` stays light: torch is imported with the first name that needs it.
_MODULES = {
    "Comparison": "evaluation.comparison",
    "InputError": "errors",
    "ModelError": "errors",
    "OutputError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Report": "evaluation.report",
    "RunError": "errors",
    "UserError": "errors",
    "combine": "weights.arithmetic",
    "compare": "pipeline",
    "compress": "weights.arithmetic",
    "evaluate": "pipeline",
    "evaluate_interference": "pipeline",
    "load_base": "models",
    "load_recipe": "recipe",
    "load_sequences": "data",
    "merge": "weights.merging",
    "negate": "weights.arithmetic",
    "negate_searched": "pipeline",
    "score": "scoring",
    "survival": "weights.rounding",
    "unlearn": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
