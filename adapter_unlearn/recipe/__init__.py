"""Recipes: the schema, reading and writing them, and where the shipped ones are."""

from adapter_unlearn.recipe.checks import checked
from adapter_unlearn.recipe.parsing import (
    add_recipe_arguments,
    as_dict,
    existing_recipe,
    from_mapping,
    load_recipe,
    one_line,
    parse_recipe,
    to_yaml,
)
from adapter_unlearn.recipe.schema import (
    Adapter,
    Data,
    Evaluation,
    Form,
    Level,
    Model,
    Recipe,
    Source,
    Stop,
    Training,
)

__all__ = [
    "Adapter",
    "Data",
    "Evaluation",
    "Form",
    "Level",
    "Model",
    "Recipe",
    "Source",
    "Stop",
    "Training",
    "add_recipe_arguments",
    "as_dict",
    "checked",
    "existing_recipe",
    "from_mapping",
    "load_recipe",
    "one_line",
    "parse_recipe",
    "to_yaml",
]
