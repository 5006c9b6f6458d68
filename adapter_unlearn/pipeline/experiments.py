"""A matrix of experiments: one YAML file with the keys that all of them share and the changes of each.

    recipe: my.yaml                        # a recipe's file, and/or
    base: {training: {max_epochs: 40}}     # recipe keys that all experiments share
    seeds: [0, 1, 2]                       # of every experiment without its own
    experiments:
      sga: {method: {name: sga, threshold: 0.7}}
      npo: {method: {name: npo}, training: {learning_rate: 1.0e-3}, seeds: [0]}

Paths are relative to the working folder, as in a recipe. This module imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter_unlearn import recipe
from adapter_unlearn.errors import RecipeError, path_name, word
from adapter_unlearn.recipe import Recipe

KEYS = ("recipe", "base", "seeds", "experiments")
SHARED = (
    "model.name", "model.revision", "model.adapter", "evaluation.bounds", "data.forget", "data.holdout",
    "data.max_tokens", "data.stride", "data.prefix_tokens",
)  # fmt: skip
"""Keys that must be equal in experiments that are compared. With different test sets their column is empty."""


@dataclass(frozen=True)
class Planned:
    """One run of a matrix: an experiment with a seed; its recipe names the folder."""

    experiment: str
    seed: int
    recipe: Recipe


def plan(matrix: Mapping[str, Any] | str | Path, output_dir: str | Path) -> list[Planned]:
    """Every run of a matrix, experiment by experiment, each in `output_dir`/EXPERIMENT-seedN.

    Args:
        matrix: the file, or its content.
        output_dir: folder for the runs.

    Raises:
        RecipeError: the file is missing or not YAML, a key is unknown or repeated, an experiment's recipe is wrong, or
            experiments have different texts or bases and can't be compared.
    """
    where = "matrix" if isinstance(matrix, Mapping) else path_name(matrix, "--config")
    content = recipe.mapping(matrix if isinstance(matrix, Mapping) else recipe.read_yaml(matrix), where)
    if unknown := [key for key in content if key not in KEYS]:
        raise RecipeError(f"{where}: unknown key '{word(unknown[0])}'; a matrix has {', '.join(KEYS)}")
    shared, seeds = _shared(content, where)
    experiments = recipe.mapping(content.get("experiments"), f"{where}, experiments")
    if not experiments:
        raise RecipeError(f"{where}: experiments is empty; give at least one")
    planned = []
    for name, changes in experiments.items():
        place = f"{where}, experiment '{word(name)}'"
        if not re.fullmatch(r"\w[\w .+=,-]*", str(name)):
            raise RecipeError(f"{place}: the name can't be a folder's; use letters, digits, blanks and . + = , _ -")
        own = dict(recipe.mapping(changes, place))
        own_seeds = _seeds(own.pop("seeds"), place) if "seeds" in own else seeds
        _refuse_fixed(own, place)
        try:
            run = recipe.from_mapping(recipe.merged(shared, own))
        except RecipeError as error:
            raise RecipeError(f"{place}: {error}") from error
        planned += [
            Planned(str(name), seed, replace(run, seed=seed, output_dir=str(Path(output_dir) / f"{name}-seed{seed}")))
            for seed in own_seeds
        ]
    _check_comparable(planned, where)
    return planned


def files_of(matrix: Mapping[str, Any] | str | Path | None) -> list[str | Path]:
    """The files that a matrix is read from: its own, and the recipe that it names."""
    if isinstance(matrix, str | Path):
        return [matrix, *files_of(recipe.mapping(recipe.read_yaml(matrix), str(matrix)))]
    named = (matrix or {}).get("recipe")
    return [named] if isinstance(named, str) else []


def differing(first: Recipe, second: Recipe) -> list[str]:
    """The keys, with dots, in which two recipes differ; output_dir and tracking are left out."""
    a, b = (_flat(recipe.as_dict(one)) for one in (first, second))
    return [key for key in a | b if key not in ("output_dir", "tracking") and a.get(key) != b.get(key)]


def look_up(one: Recipe, key: str) -> Any:
    """The value of a key with dots."""
    return _flat(recipe.as_dict(one)).get(key)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{key}.{inner}" if inner else key: value
        for key, section in values.items()
        for inner, value in (section.items() if isinstance(section, Mapping) else [("", section)])
    }


def _shared(content: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[int]]:
    """The keys that all experiments share, and their seeds."""
    if "recipe" not in content and "base" not in content:
        raise RecipeError(f"{where}: base is missing; give the keys that all experiments share, or recipe: FILE")
    shared: dict[str, Any] = {}
    if "recipe" in content:
        if not isinstance(content["recipe"], str):
            raise RecipeError(f"{where}: recipe is not a path; give the path of a recipe's file")
        shared = recipe.as_dict(recipe.load_recipe(content["recipe"]))
    seeds = [shared.get("seed", 0)]
    base = recipe.mapping(content.get("base"), f"{where}, base")
    _refuse_fixed(base, f"{where}, base")
    if "seeds" in content:
        seeds = _seeds(content["seeds"], where)
    return recipe.merged(shared, base), seeds


def _refuse_fixed(values: Mapping[str, Any], place: str) -> None:
    if "seed" in values:
        raise RecipeError(f"{place}: seed can't be set here; give seeds: [{values['seed']}]")
    if "output_dir" in values:
        raise RecipeError(f"{place}: output_dir can't be set here; remove it, runs go into the comparison's folder")


def _seeds(value: Any, place: str) -> list[int]:
    whole = isinstance(value, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in value)
    if not whole or not value or len(set(value)) < len(value) or not all(0 <= seed < 2**32 for seed in value):
        raise RecipeError(f"{place}: seeds must be distinct whole numbers from 0; give a list such as [0, 1, 2]")
    return list(value)


def _check_comparable(planned: list[Planned], where: str) -> None:
    first = planned[0]
    for other in planned[1:]:
        for key in SHARED:
            if (mine := look_up(first.recipe, key)) != (its := look_up(other.recipe, key)):
                raise RecipeError(
                    f"{where}: experiments {first.experiment!r} and {other.experiment!r} can't be compared: {key}"
                    f" is {mine} in one and {its} in the other; put it into base"
                )
