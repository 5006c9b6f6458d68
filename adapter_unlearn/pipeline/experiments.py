"""A matrix of experiments: one YAML that says what all of them share, and for each only what it does differently.

    recipe: my.yaml                        # a recipe's file, and/or
    base: {training: {max_epochs: 40}}     # keys of a recipe that all experiments share
    seeds: [0, 1, 2]                       # of every experiment that has none of its own
    experiments:
      sga: {method: {name: sga, threshold: 0.7}}
      npo: {method: {name: npo}, training: {learning_rate: 1.0e-3}, seeds: [0]}

Paths are taken as in a recipe: from the folder the command is started in. Nothing heavy is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter_unlearn import recipe
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe import Recipe

KEYS = ("recipe", "base", "seeds", "experiments")
SHARED = (
    "model.name", "model.revision", "model.adapter", "evaluation.bounds", "data.forget", "data.holdout",
    "data.max_tokens", "data.stride", "data.prefix_tokens",
)  # fmt: skip
"""What may not differ between experiments that shall be compared; a test may, at the loss of its column."""


@dataclass(frozen=True)
class Planned:
    """One run of a matrix: an experiment with a seed; its recipe says where it goes."""

    experiment: str
    seed: int
    recipe: Recipe


def plan(matrix: Mapping[str, Any] | str | Path, output_dir: str | Path) -> list[Planned]:
    """Every run of a matrix, experiment by experiment, each in `output_dir`/EXPERIMENT-seedN.

    Args:
        matrix: the file, or what it would hold.
        output_dir: where the runs go.

    Raises:
        RecipeError: the file is missing or no YAML, a key is unknown or stands twice, an experiment's recipe is wrong,
            or two experiments are on different texts or bases and could not be compared. Nothing has been run by then.
    """
    where = "matrix" if isinstance(matrix, Mapping) else str(matrix)
    given = recipe.mapping(matrix if isinstance(matrix, Mapping) else recipe.read_yaml(matrix), where)
    if unknown := [key for key in given if key not in KEYS]:
        raise RecipeError(f"{where}: unknown key {unknown[0]!r}; a matrix has {', '.join(KEYS)}")
    shared, seeds = _shared(given, where)
    experiments = recipe.mapping(given.get("experiments"), f"{where}, experiments")
    if not experiments:
        raise RecipeError(f"{where}: experiments names none; give at least one")
    planned = []
    for name, changes in experiments.items():
        place = f"{where}, experiment {name!r}"
        if not re.fullmatch(r"\w[\w .+=,-]*", str(name)):
            raise RecipeError(f"{place}: is no name for a folder; use letters, digits, blanks and . + = , _ -")
        own = dict(recipe.mapping(changes, place))
        own_seeds = _seeds(own.pop("seeds"), place) if "seeds" in own else seeds
        _refuse_fixed(own, place)
        try:
            made = recipe.from_mapping(recipe.merged(shared, own))
        except RecipeError as error:
            raise RecipeError(f"{place}: {error}") from error
        planned += [
            Planned(str(name), seed, replace(made, seed=seed, output_dir=str(Path(output_dir) / f"{name}-seed{seed}")))
            for seed in own_seeds
        ]
    _check_comparable(planned, where)
    return planned


def differing(first: Recipe, second: Recipe) -> list[str]:
    """The keys, with dots, in which two recipes differ, but for where the run goes and who tracks it."""
    a, b = (_flat(recipe.as_dict(one)) for one in (first, second))
    return [
        key for key in dict.fromkeys([*a, *b]) if key not in ("output_dir", "tracking") and a.get(key) != b.get(key)
    ]


def look_up(one: Recipe, key: str) -> Any:
    """The value of a key with dots."""
    return _flat(recipe.as_dict(one)).get(key)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{key}.{inner}" if inner else key: value
        for key, section in values.items()
        for inner, value in (section.items() if isinstance(section, Mapping) else [("", section)])
    }


def _shared(given: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[int]]:
    """What the experiments deviate from, and their seeds."""
    if "recipe" not in given and "base" not in given:
        raise RecipeError(f"{where}: base is missing; give the keys all experiments share, or recipe: FILE")
    shared: dict[str, Any] = {}
    if "recipe" in given:
        if not isinstance(given["recipe"], str):
            raise RecipeError(f"{where}: recipe is no file's name; give a recipe's path")
        shared = recipe.as_dict(recipe.load_recipe(given["recipe"]))
    seeds = [shared.get("seed", 0)]
    base = recipe.mapping(given.get("base"), f"{where}, base")
    _refuse_fixed(base, f"{where}, base")
    if "seeds" in given:
        seeds = _seeds(given["seeds"], where)
    return recipe.merged(shared, base), seeds


def _refuse_fixed(values: Mapping[str, Any], place: str) -> None:
    if "seed" in values:
        raise RecipeError(f"{place}: seed is not set here; give seeds: [{values['seed']}]")
    if "output_dir" in values:
        raise RecipeError(f"{place}: output_dir is not set here; every run goes into the comparison's folder")


def _seeds(value: Any, place: str) -> list[int]:
    whole = isinstance(value, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in value)
    if not whole or not value or len(set(value)) < len(value) or not all(0 <= seed < 2**32 for seed in value):
        raise RecipeError(f"{place}: seeds is a list of whole numbers from 0, each once, for example [0, 1, 2]")
    return list(value)


def _check_comparable(planned: list[Planned], where: str) -> None:
    first = planned[0]
    for other in planned[1:]:
        for key in SHARED:
            if (mine := look_up(first.recipe, key)) != (its := look_up(other.recipe, key)):
                raise RecipeError(
                    f"{where}: experiments {first.experiment!r} and {other.experiment!r} can't be compared, for {key}"
                    f" is {mine} in one and {its} in the other; put it into base"
                )
