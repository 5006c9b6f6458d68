"""The table of methods. To add one: write the function that names its terms, add its row, ship a recipe.

A function's parameters are the method's parameters in a recipe; their types and defaults are read from here.
No torch in this room: a recipe is checked before anything heavy is loaded.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.unlearning.selection import Selection, at_least, sample


@dataclass(frozen=True)
class Term:
    """One part of a step's loss: coefficient x mean token loss over the selected rows.

    Attributes:
        rows: the set that rows are selected from; terms on a set that is not given are left out.
        select: which of them.
        loss: row of the losses table.
        coefficient: -1 ascends, +1 descends.
    """

    rows: Literal["forget", "retain"]
    select: Selection
    loss: str
    coefficient: float


@dataclass(frozen=True)
class Stage:
    """What one adapter is trained on. The adapters of the stages before stay frozen and active beneath it.

    Attributes:
        name: for the log.
        terms: summed in every step.
        scale: the adapter acts with this factor when it is measured, and ships with it; it is trained at 1.
        search_scale: when trained, look for the best scale; until then `scale` is used.
        mean_below: ends the stage when the forget set's mean memorization accuracy is below it; None leaves that to the
            recipe's stop rules, as the last stage must.
        learning_rate: None takes the recipe's.
    """

    name: str
    terms: tuple[Term, ...]
    scale: float = 1.0
    search_scale: bool = False
    mean_below: float | None = None
    learning_rate: float | None = None


Stages = tuple[Stage, ...]


def sga(
    threshold: float = 0.7,
    run_threshold: int | None = None,
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
) -> Stages:
    """Selective gradient ascent (Barbulescu & Triantafillou, 2024): ascend on what is still memorized.

    Args:
        threshold: memorization accuracy from which on a sequence is selected, 0..1.
        run_threshold: length of a verbatim run, in tokens, from which on a sequence is selected too; null is the paper.
        retain_weight: weight of the retain set's loss beside the ascent; 0 leaves it out.
        retain_sequences: retain rows drawn for each step.
    """
    _in_range("threshold", threshold, 0, 1)
    _in_range("run_threshold", 1 if run_threshold is None else run_threshold, 1, float("inf"))
    _in_range("retain_weight", retain_weight, 0, float("inf"))
    _in_range("retain_sequences", retain_sequences, 1, float("inf"))
    ascent = Term("forget", at_least(threshold, run_threshold), "cross_entropy", -1.0)
    if retain_weight == 0:
        return (Stage("ascend", (ascent,)),)
    return (Stage("ascend", (ascent, Term("retain", sample(retain_sequences), "cross_entropy", retain_weight))),)


def ga(retain_weight: float = 0.0, retain_sequences: int = 32) -> Stages:
    """Gradient ascent on every sequence, every epoch (Jang et al., 2022).

    Args:
        retain_weight: weight of the retain set's loss beside the ascent; 0 leaves it out.
        retain_sequences: retain rows drawn for each step.
    """
    return sga(0.0, retain_weight=retain_weight, retain_sequences=retain_sequences)


def ta(scale: float | Literal["auto"] = -3.0) -> Stages:
    """Task arithmetic (Ilharco et al., 2023): fit an adapter to the forget set, then take that away from the base.

    The adapter is trained to memorize the forget set still better; what is measured after each epoch, and shipped, is
    the base with `scale` times it. As in Barbulescu & Triantafillou (2024), whose scale is -3.

    Args:
        scale: factor of the memorizing adapter; auto fits with -3, then takes the scale with the fewest outliers within
            the perplexity budget.
    """
    return (_fit(scale, otherwise=-3.0),)


def tau(
    threshold: float = 0.7,
    ascent_mean_below: float = 0.5,
    scale: float | Literal["auto"] = -1.0,
    run_threshold: int | None = None,
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
    fit_learning_rate: float | None = None,
) -> Stages:
    """SGA, then task arithmetic from the model it leaves (Barbulescu & Triantafillou, 2024).

    The adapter of the ascent stays frozen and active while a second one is fitted to the forget set beside it; their
    exact sum is shipped.

    Args:
        threshold: memorization accuracy from which on the ascent selects a sequence, 0..1.
        ascent_mean_below: the ascent ends when the mean memorization accuracy is below this; then `stop` counts.
        scale: factor of the fitted adapter; auto fits with -1, then takes the scale with the fewest outliers within the
            perplexity budget.
        run_threshold: length of a verbatim run, in tokens, from which on the ascent selects a sequence too.
        retain_weight: weight of the retain set's loss beside the ascent; 0 leaves it out.
        retain_sequences: retain rows drawn for each step of the ascent.
        fit_learning_rate: of the second adapter; null takes training.learning_rate.
    """
    _in_range("ascent_mean_below", ascent_mean_below, 0, 1)
    if fit_learning_rate is not None:
        _in_range("fit_learning_rate", fit_learning_rate, 1e-12, float("inf"))
    (ascent,) = sga(threshold, run_threshold, retain_weight, retain_sequences)
    fit = _fit(scale, otherwise=-1.0)
    return (replace(ascent, mean_below=ascent_mean_below), replace(fit, learning_rate=fit_learning_rate))


def _fit(scale: float | Literal["auto"], otherwise: float) -> Stage:
    """Descend on the whole forget set; the adapter counts `scale` times."""
    if scale == 0:
        raise RecipeError("recipe key method.scale: 0 would ship an adapter that does nothing; give a negative number")
    memorize = Term("forget", at_least(0.0), "cross_entropy", 1.0)
    return Stage("fit", (memorize,), otherwise if scale == "auto" else float(scale), search_scale=scale == "auto")


METHODS: dict[str, Callable[..., Stages]] = {"ga": ga, "sga": sga, "ta": ta, "tau": tau}


def resolve(method: dict[str, Any]) -> dict[str, Any]:
    """The method with every parameter written out, as it goes into the resolved recipe.

    Args:
        method: `name`, and any of that method's parameters.

    Raises:
        RecipeError: unknown method, unknown parameter, wrong type or range.
    """
    name = method.get("name")
    if not isinstance(name, str) or name not in METHODS:
        raise RecipeError(f"recipe key method.name: unknown method {name!r}; choose from {', '.join(METHODS)}")
    parameters = inspect.signature(METHODS[name]).parameters
    for key, value in method.items():
        if key != "name" and key not in parameters:
            raise RecipeError(f"recipe key method.{key}: {name} takes no such parameter, only {', '.join(parameters)}")
        if key != "name" and not _fits(value, str(parameters[key].annotation)):
            kind = "a whole number" if "int" in str(parameters[key].annotation) else "a number"
            kind += " or auto" if "auto" in str(parameters[key].annotation) else ""
            raise RecipeError(f"recipe key method.{key}: expected {kind}, got {value!r}")
    resolved = {"name": name} | {key: method.get(key, parameter.default) for key, parameter in parameters.items()}
    stages(resolved)
    return resolved


def stages(method: dict[str, Any]) -> Stages:
    """What a method trains, from its name and parameters. Raises RecipeError as resolve does."""
    parameters = {key: value for key, value in method.items() if key != "name"}
    return METHODS[method["name"]](**parameters)


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value is of a parameter's type: int, float, or one of them or None or auto."""
    if value is None:
        return "None" in annotation
    if isinstance(value, str):
        return value == "auto" and "auto" in annotation
    kinds = int if "int" in annotation else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        allowed = f"{low} to {high}" if high != float("inf") else f"{low} or more"
        raise RecipeError(f"recipe key method.{key}: {value} is out of range; it must be {allowed}")
