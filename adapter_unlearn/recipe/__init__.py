"""Recipes: the schema, reading, merging and writing them, and where the shipped ones are."""

from adapter_unlearn.recipe.checks import check_choice, checked
from adapter_unlearn.recipe.composing import mapping, merged
from adapter_unlearn.recipe.parsing import (
    add_recipe_arguments,
    from_mapping,
    load_recipe,
    one_line,
    parse_recipe,
    split_config,
)
from adapter_unlearn.recipe.schema import (
    Adapter,
    Data,
    Dtype,
    Evaluation,
    Form,
    Level,
    Model,
    Permissions,
    Quantization,
    Recipe,
    Source,
    Stop,
    Training,
    Utility,
)
from adapter_unlearn.recipe.writing import as_dict, commented_yaml, to_yaml
from adapter_unlearn.recipe.yaml_files import read_yaml

__all__ = [
    "Adapter", "Data", "Dtype", "Evaluation", "Form", "Level", "Model", "Permissions", "Quantization", "Recipe",
    "Source", "Stop", "Training", "Utility",
    "add_recipe_arguments", "as_dict", "check_choice", "checked", "commented_yaml", "from_mapping", "load_recipe",
    "mapping", "merged", "one_line", "parse_recipe", "read_yaml", "split_config", "to_yaml",
]  # fmt: skip
