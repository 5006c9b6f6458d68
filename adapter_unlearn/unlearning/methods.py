"""The table of methods, readable without torch. To add a method, add its row and a YAML in recipes/methods.

Most methods are a selection, a forget loss, and a retain loss: `_method` makes their rows. A method with stages of its
own is a `Method` with a function that builds them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from adapter_unlearn.errors import RecipeError, word
from adapter_unlearn.recipe import Recipe
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.options import ABOVE_ZERO, Option
from adapter_unlearn.unlearning.plan import Stage, Stages, Term
from adapter_unlearn.unlearning.selection import RUN_THRESHOLD, SELECTIONS, THRESHOLD, at_least, sample


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        text: what the method does, with the paper it is from.
        options: its parameters in a recipe, in the order in which they are written out.
        build: makes the stages from the values of all options. It raises RecipeError for values that do not go
            together.
    """

    text: str
    options: Mapping[str, Option]
    build: Callable[[Mapping[str, Any]], Stages]


FORGET_LOSSES = ("ascent", *(name for name, row in LOSSES.items() if row.rows == "forget"))
"""Values of `loss`: the forget losses, and `ascent`, which is nll with coefficient -1."""

RETAIN_LOSSES = tuple(name for name, row in LOSSES.items() if row.rows == "retain")

RETAIN = {
    "retain_weight": Option(0.0, "weight of the retain loss; 0 leaves it out"),
    "retain_sequences": Option(32, "retain rows drawn for each step", 1, kind=int),
    "retain_loss": Option("nll", "nll (cross-entropy) or kl (to the reference model)", kind=None, words=RETAIN_LOSSES),
}


def _loss_options(loss: str) -> Mapping[str, Option]:
    return {} if loss == "ascent" else LOSSES[loss].options


def _method(text: str, select: str = "all", loss: str = "ascent", **retain: Any) -> Method:
    """A method with one stage: a selection, a forget loss, and a retain loss with these defaults."""
    options = {**SELECTIONS[select].options, **_loss_options(loss)}
    options |= {key: replace(option, default=retain.get(key, option.default)) for key, option in RETAIN.items()}
    return Method(text, options, functools.partial(_one_stage, select, loss))


def _one_stage(select: str, loss: str, values: Mapping[str, Any]) -> Stages:
    """One adapter, trained on a forget loss over the selection, with a retain loss beside it."""
    row = SELECTIONS[select]
    limits = {key: values[key] for key in row.options}
    low, high = limits.get("low", "holdout"), limits.get("high", "holdout")
    if "holdout" not in (low, high) and low >= high:
        raise RecipeError(f"recipe key method.low: {low} is not below method.high, {high}; lower it")
    name, coefficient = ("nll", -1.0) if loss == "ascent" else (loss, 1.0)
    options = {key: values[key] for key in _loss_options(loss)}
    terms = [Term("forget", "forget", functools.partial(row.forget, **limits), name, coefficient, options)]
    if row.restore:
        terms.append(Term("restore", "forget", functools.partial(row.restore, **limits), "nll"))
    if values["retain_weight"]:
        terms.append(_retain(values["retain_weight"], values))
    needs_holdout = LOSSES[name].matched or "holdout" in limits.values()
    return (Stage("ascend" if loss == "ascent" else loss, tuple(terms), needs_holdout=needs_holdout),)


def _retain(weight: float, values: Mapping[str, Any]) -> Term:
    rows = functools.partial(sample, number=values["retain_sequences"])
    return Term("retain", "retain", rows, values["retain_loss"], weight)


def _nullable(table: Mapping[str, Mapping[str, Option]]) -> dict[str, Option]:
    """All options of a table; null takes the default of the chosen row, whose range `_compose` checks."""
    merged: dict[str, Option] = {}
    for name, options in table.items():
        for key, option in options.items():
            text = f"of {name} ({option.default}): {option.text}"
            text = f"{merged[key].text}; {text}" if key in merged else text
            merged[key] = replace(option, default=None, text=text, low=-math.inf, high=math.inf, null=True)
    return merged


CHOICES = {
    "select": {name: row.options for name, row in SELECTIONS.items()},
    "loss": {name: _loss_options(name) for name in FORGET_LOSSES},
}


def _compose(values: Mapping[str, Any]) -> Stages:
    """Any selection with any forget loss and that loss's options."""
    chosen = dict(values)
    for key, table in CHOICES.items():
        own = table[values[key]]
        for name in _nullable(table):
            if name not in own and values[name] is not None:
                raise RecipeError(f"recipe key method.{name}: {key} {values[key]} has no such parameter; leave it out")
        for name, option in own.items():
            chosen[name] = option.default if values[name] is None else values[name]
            option.check(name, chosen[name])
    return _one_stage(values["select"], values["loss"], chosen)


def _fit(scale: float | Literal["auto"], otherwise: float) -> Stage:
    """Fit an adapter to the whole forget set; it counts `scale` times, or `otherwise` until the scale is searched."""
    if scale == 0:
        raise RecipeError("recipe key method.scale: 0 would ship an adapter that does nothing; give a negative number")
    memorize = Term("forget", "forget", at_least, "nll")
    return Stage("fit", (memorize,), otherwise if scale == "auto" else float(scale), search_scale=scale == "auto")


def _tau(values: Mapping[str, Any]) -> Stages:
    (ascent,) = _one_stage("threshold", "ascent", values)
    fit = replace(_fit(values["scale"], otherwise=-1.0), learning_rate=values["fit_learning_rate"])
    return (replace(ascent, mean_below=values["ascent_mean_below"]), fit)


SCALE = Option(-3.0, "factor of the fitted adapter; auto fits with the default, then takes the scale with the fewest"
               " failing sequences within the perplexity budget", -math.inf, words=("auto",))  # fmt: skip
TAU = {
    "threshold": THRESHOLD,
    "ascent_mean_below": Option(0.5, "the ascent ends once the mean memorization accuracy is below this", 0, 1),
    "scale": replace(SCALE, default=-1.0),
    "run_threshold": RUN_THRESHOLD,
    "retain_weight": RETAIN["retain_weight"],
    "retain_sequences": RETAIN["retain_sequences"],
    "fit_learning_rate": Option(None, "of the fitted adapter; null takes the recipe's", ABOVE_ZERO, null=True),
    "retain_loss": RETAIN["retain_loss"],
}
COMPOSE = {
    "select": Option("threshold", "which sequences the forget loss acts on", kind=None, words=tuple(SELECTIONS)),
    "loss": Option("ascent", "ascent, or the loss of the method of that name", kind=None, words=FORGET_LOSSES),
    **_nullable(CHOICES["select"]),
    **_nullable(CHOICES["loss"]),
    **{key: RETAIN[key] for key in ("retain_weight", "retain_loss", "retain_sequences")},
}
CONTROL = {key: RETAIN[key] for key in ("retain_sequences", "retain_loss")}

METHODS: dict[str, Method] = {
    "sga": _method("Selective gradient ascent, by threshold (Barbulescu & Triantafillou, 2024)", "threshold"),
    "ga": _method("Gradient ascent on every sequence, every epoch (Jang et al., 2022)"),
    "ta": Method("Task arithmetic: fit an adapter to the forget set, apply it with a negative scale (Ilharco et al.,"
                 " 2023)", {"scale": SCALE}, lambda values: (_fit(values["scale"], otherwise=-3.0),)),
    "tau": Method("sga, then ta from its model; the exact sum ships (Barbulescu & Triantafillou, 2024)", TAU, _tau),
    "band": _method("Ascend on high outliers, descend on over-forgotten sequences, stop when there are none", "band"),
    "graddiff": _method("ga with descent on the retain set (Liu et al., 2022; Maini et al., 2024)", retain_weight=1.0),
    "npo": _method("Negative preference optimization, a mean over sequences (Zhang et al., 2024)", loss="npo"),
    "simnpo": _method("npo on the mean token, without a reference model (Fan et al., 2024)", loss="simnpo"),
    "ihl": _method("Inverted hinge: the best other token replaces the true one (LoKU; Cha et al., 2025)", loss="ihl"),
    "wga": _method("Gradient ascent with each token weighted by p^alpha (Wang et al., 2025)", loss="wga"),
    "undial": _method("Distil the prediction with the true token's logit lowered (Dong et al., 2025)", loss="undial"),
    "me": _method("Maximum entropy: every next token becomes equally likely (Yuan et al., 2025)", loss="me"),
    "match": _method("Give each sequence the token probabilities of a matched holdout sequence, and preserve the rest;"
                     " train all epochs (stop.early: false) with a learning rate that decays", loss="match",
                     retain_weight=5.0, retain_loss="kl", retain_sequences=16),
    "compose": Method("Any selection with any forget loss and any retain loss", COMPOSE, _compose),
    "control": Method("Train on the retain set alone, to compare against", CONTROL,
                      lambda values: (Stage("control", (_retain(1.0, values),)),)),
}  # fmt: skip


def resolve(method: dict[str, Any]) -> dict[str, Any]:
    """The method with every parameter written out, as it goes into the resolved recipe.

    Args:
        method: `name`, and any of that method's parameters.

    Raises:
        RecipeError: no or unknown method, unknown parameter, wrong type or range.
    """
    name = method.get("name")
    if not isinstance(name, str) or name not in METHODS:
        shown = f"'{word(name)}'" if isinstance(name, str) else word(name)
        fault = "missing" if name is None else f"unknown method {shown}"
        raise RecipeError(f"recipe key method.name: {fault}; choose from {', '.join(METHODS)}")
    options = METHODS[name].options
    for key, value in method.items():
        if key == "name":
            continue
        if key not in options:
            raise RecipeError(
                f"recipe key method.{word(key)}: {name} takes no such parameter, only {', '.join(options)}"
            )
        options[key].check(key, value)
    resolved = {"name": name} | {key: method.get(key, option.default) for key, option in options.items()}
    METHODS[name].build(resolved)
    return resolved


def stages(method: dict[str, Any]) -> Stages:
    """What a method trains, from its name and parameters. Raises RecipeError as `resolve` does."""
    resolved = resolve(method)
    return METHODS[resolved["name"]].build(resolved)


def describe(name: str) -> str:
    """The documentation of a method and its parameters, one line each."""
    method = METHODS[name]
    lines = [f"  {key} ({o.allowed()}; default {o.default}): {o.text}" for key, o in method.options.items()]
    return "\n".join([f"{method.text}.", *lines])


def check_sets(recipe: Recipe) -> None:
    """Raise RecipeError where the recipe's method needs a set that the recipe does not give."""
    name, plan = recipe.method["name"], stages(recipe.method)
    terms = [term for stage in plan for term in stage.terms]
    if recipe.data.retain is None and any(term.rows == "retain" for term in terms):
        if "retain_weight" in METHODS[name].options:
            key, fix = "retain_weight", "give that file or set the weight to 0"
        else:
            key, fix = "name", f"{name} trains on nothing else; give that file"
        raise RecipeError(f"recipe key method.{key}: needs data.retain; {fix}")
    if recipe.training.learning_rate == "auto":
        searched = [stage for stage in plan if stage.learning_rate is None]
        missing = ["data.validation"] if recipe.data.validation is None else []
        missing += ["stop.max_perplexity_increase"] if recipe.stop.max_perplexity_increase is None else []
        if missing and not all(stage.ranks_rates for stage in searched):
            raise RecipeError(
                f"recipe key training.learning_rate: auto compares the validation perplexity with its budget for"
                f" {name}; give {' and '.join(missing)}, or a number"
            )
    if recipe.data.holdout is None and any(stage.needs_holdout for stage in plan):
        fix = "give that file" if any(LOSSES[term.loss].matched for term in terms) else "give that file or numbers"
        raise RecipeError(f"recipe key method.name: {name} takes levels from data.holdout; {fix}")
