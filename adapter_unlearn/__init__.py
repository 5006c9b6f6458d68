"""Make a language model stop reciting given texts with a removable LoRA adapter, and measure every sequence."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adapter_unlearn.version import __version__ as __version__

if TYPE_CHECKING:
    from .data import load_sequences
    from .errors import InputError, ModelError, OutputError, RecipeError, RunError, UserError
    from .evaluation.comparison import Comparison
    from .evaluation.report import Report
    from .models import load_base
    from .pipeline import ScaleSearch, compare, evaluate, evaluate_interference, negate_searched, unlearn
    from .recipe import Adapter, Data, Evaluation, Model, Permissions, Recipe, Stop, Training, Utility, load_recipe
    from .scoring import score
    from .weights.arithmetic import combine, compress, negate
    from .weights.merging import merge
    from .weights.rounding import survival

__all__ = [
    "Adapter", "Comparison", "Data", "Evaluation", "InputError", "Model", "ModelError", "OutputError", "Permissions",
    "Recipe", "RecipeError", "Report", "RunError", "ScaleSearch", "Stop", "Training", "UserError", "Utility",
    "combine", "compare", "compress", "evaluate", "evaluate_interference", "load_base", "load_recipe",
    "load_sequences", "merge", "negate", "negate_searched", "score", "survival", "unlearn",
]  # fmt: skip

_NAMES = {
    "data": "load_sequences",
    "errors": "InputError ModelError OutputError RecipeError RunError UserError",
    "evaluation.comparison": "Comparison",
    "evaluation.report": "Report",
    "models": "load_base",
    "pipeline": "ScaleSearch compare evaluate evaluate_interference negate_searched unlearn",
    "recipe": "Adapter Data Evaluation Model Permissions Recipe Stop Training Utility load_recipe",
    "scoring": "score",
    "weights.arithmetic": "combine compress negate",
    "weights.merging": "merge",
    "weights.rounding": "survival",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
"""Name -> the module that defines it. `import adapter_unlearn` is light: torch is imported with the first such name."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
