"""The table of methods, readable without torch. To add a method, add its row and a YAML in recipes/methods.

Most methods are a selection, a forget loss, and a retain loss: `_method` makes their rows. A method with stages of its
own is a `Method` with a function that builds them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.unlearning import learning_rate_search
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.options import ABOVE_ZERO, Option
from adapter_unlearn.unlearning.plan import Stage, Stages, Term
from adapter_unlearn.unlearning.selection import RUN_THRESHOLD, SELECTIONS, at_least, sample

if TYPE_CHECKING:
    from adapter_unlearn.recipe import Recipe


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        text: what the method does.
        source: the paper it is from; empty for this package's own.
        options: its parameters in a recipe, in the order in which they are written out.
        build: makes the stages from the values of all options. It raises RecipeError for values that do not go
            together.
    """

    text: str
    source: str
    options: Mapping[str, Option]
    build: Callable[[Mapping[str, Any]], Stages]


FORGET_LOSSES = ("ascent", *(name for name, row in LOSSES.items() if row.rows == "forget"))
"""Values of `loss`: the forget losses, and `ascent`, which is nll with coefficient -1."""

RETAIN_LOSSES = tuple(name for name, row in LOSSES.items() if row.rows == "retain")


def _loss_options(loss: str) -> Mapping[str, Option]:
    return {} if loss == "ascent" else LOSSES[loss].options


def _retain_options(weight: float = 0.0, loss: str = "nll", sequences: int = 32) -> dict[str, Option]:
    return {
        "retain_weight": Option(weight, text="weight of the retain loss; 0 leaves it out"),
        "retain_sequences": Option(sequences, 1, kind="whole number", text="retain rows drawn for each step"),
        "retain_loss": Option(loss, kind=None, words=RETAIN_LOSSES, text="nll (cross-entropy), or kl (to the reference"
                              " model: the model without the adapter being trained)"),
    }  # fmt: skip


def _method(
    text: str,
    source: str,
    select: str = "all",
    loss: str = "ascent",
    retain_weight: float = 0.0,
    retain_loss: str = "nll",
    retain_sequences: int = 32,
) -> Method:
    """A row for a method with one stage: a selection, a forget loss, and the defaults of the retain loss."""
    options = {**SELECTIONS[select].options, **_loss_options(loss)}
    options |= _retain_options(retain_weight, retain_loss, retain_sequences)
    return Method(text, source, options, functools.partial(_one_stage, select, loss))


def _one_stage(select: str, loss: str, values: Mapping[str, Any]) -> Stages:
    """One adapter, trained on a forget loss over the selection, with a retain loss beside it."""
    selection = {key: values[key] for key in SELECTIONS[select].options}
    options = {key: values[key] for key in _loss_options(loss)}
    low, high = selection.get("low", "holdout"), selection.get("high", "holdout")
    if "holdout" not in (low, high) and low >= high:
        raise RecipeError(f"recipe key method.low: {low} is not below method.high, {high}; lower it")
    row, sign = ("nll", -1.0) if loss == "ascent" else (loss, 1.0)
    terms = [Term("forget", "forget", SELECTIONS[select].forget(**selection), row, sign, options)]
    if restore := SELECTIONS[select].restore:
        terms.append(Term("restore", "forget", restore(**selection), "nll"))
    if values["retain_weight"]:
        terms.append(_retain(values["retain_weight"], values))
    name = "ascend" if loss == "ascent" else loss
    return (Stage(name, tuple(terms), needs_holdout=LOSSES[row].matched or "holdout" in selection.values()),)


def _retain(weight: float, values: Mapping[str, Any]) -> Term:
    return Term("retain", "retain", sample(values["retain_sequences"]), values["retain_loss"], weight)


def _compose_options(kind: str, table: Mapping[str, Mapping[str, Option]]) -> dict[str, Option]:
    """All options of a table; null takes the default of the chosen row, whose range `_compose` checks."""
    merged: dict[str, Option] = {}
    for name, options in table.items():
        for key, option in options.items():
            text = f"of {kind} {name} ({option.default}): {option.text}"
            text = f"{merged[key].text}; {text}" if key in merged else text
            merged[key] = replace(option, default=None, low=-math.inf, high=math.inf, null=True, text=text)
    return merged


OF_SELECTIONS = _compose_options("select", {name: row.options for name, row in SELECTIONS.items()})
OF_LOSSES = _compose_options("loss", {name: _loss_options(name) for name in FORGET_LOSSES})


def _compose(values: Mapping[str, Any]) -> Stages:
    """Any selection with any forget loss and that loss's options."""
    chosen = dict(values)
    for kind, own, every in (
        ("select", SELECTIONS[values["select"]].options, OF_SELECTIONS),
        ("loss", _loss_options(values["loss"]), OF_LOSSES),
    ):
        for key in every:
            if key not in own and values[key] is not None:
                raise RecipeError(f"recipe key method.{key}: {kind} {values[kind]} has no such parameter; leave it out")
        for key, option in own.items():
            chosen[key] = option.default if values[key] is None else values[key]
            option.check(key, chosen[key])
    return _one_stage(values["select"], values["loss"], chosen)


def _fit(scale: float | Literal["auto"], otherwise: float) -> Stage:
    """Fit an adapter to the whole forget set; it counts `scale` times, or `otherwise` until the scale is searched."""
    if scale == 0:
        raise RecipeError("recipe key method.scale: 0 would ship an adapter that does nothing; give a negative number")
    memorize = Term("forget", "forget", at_least(0.0), "nll")
    return Stage("fit", (memorize,), otherwise if scale == "auto" else float(scale), search_scale=scale == "auto")


def _ta(values: Mapping[str, Any]) -> Stages:
    return (_fit(values["scale"], otherwise=-3.0),)


def _tau(values: Mapping[str, Any]) -> Stages:
    (ascent,) = _one_stage("threshold", "ascent", values)
    fit = _fit(values["scale"], otherwise=-1.0)
    ascent = replace(ascent, mean_below=values["ascent_mean_below"])
    return (ascent, replace(fit, learning_rate=values["fit_learning_rate"]))


def _control(values: Mapping[str, Any]) -> Stages:
    return (Stage("control", (_retain(1.0, values),)),)


def _scale(default: float) -> Option:
    return Option(default, -math.inf, words=("auto",), text=f"factor of the fitted adapter; auto fits with {default:g},"
                  " then takes the scale with the fewest failing sequences within the perplexity budget")  # fmt: skip


TAU_OPTIONS = {
    "threshold": SELECTIONS["threshold"].options["threshold"],
    "ascent_mean_below": Option(0.5, 0, 1, text="the ascent ends once the mean memorization accuracy is below this"),
    "scale": _scale(-1.0),
    "run_threshold": RUN_THRESHOLD,
    **{key: option for key, option in _retain_options().items() if key != "retain_loss"},
    "fit_learning_rate": Option(None, ABOVE_ZERO, null=True, text="of the fitted adapter; null is the recipe's"),
    "retain_loss": _retain_options()["retain_loss"],
}
COMPOSE_OPTIONS = {
    "select": Option("threshold", kind=None, words=tuple(SELECTIONS), text="which sequences the forget loss acts on"),
    "loss": Option("ascent", kind=None, words=FORGET_LOSSES, text="ascent, or the loss of the method of that name"),
    **OF_SELECTIONS,
    **OF_LOSSES,
    **{key: _retain_options()[key] for key in ("retain_weight", "retain_loss", "retain_sequences")},
}
MATCH_TEXT = (
    "Move each sequence's log-probabilities and margins to those of a matched holdout sequence; all other tokens keep"
    " their proportions. The loss is bounded below: train all epochs (stop.early: false) with a learning rate that"
    " decays"
)

METHODS: dict[str, Method] = {
    "sga": _method("Selective gradient ascent: ascend on what is still memorized",
                   "Barbulescu & Triantafillou, 2024", select="threshold"),
    "ga": _method("Gradient ascent on every sequence, every epoch", "Jang et al., 2022"),
    "ta": Method("Task arithmetic: fit an adapter to the forget set and apply it with a negative scale",
                 "Ilharco et al., 2023; Barbulescu & Triantafillou, 2024", {"scale": _scale(-3.0)}, _ta),
    "tau": Method("sga, then task arithmetic from the model it leaves; the sum of both adapters ships",
                  "Barbulescu & Triantafillou, 2024", TAU_OPTIONS, _tau),
    "band": _method("Ascend on high outliers, descend on over-forgotten sequences, stop when there are none", "",
                    select="band"),
    "graddiff": _method("Gradient difference: ga, with descent on the retain set",
                        "Liu et al., 2022; Maini et al., 2024", retain_weight=1.0),
    "npo": _method("Negative preference optimization: ascent that fades as a sequence becomes unlikely. The loss is a"
                   " mean over sequences, so a sequence's length counts less beside the retain loss than with ascent",
                   "Zhang et al., 2024", loss="npo"),
    "simnpo": _method("npo on the mean token, without a reference model", "Fan et al., 2024", loss="simnpo"),
    "ihl": _method("Inverted hinge loss of LoKU: the best other token replaces the true one", "Cha et al., 2025",
                   loss="ihl"),
    "wga": _method("Weighted gradient ascent: each token is weighted by p^alpha", "Wang et al., 2025", loss="wga"),
    "undial": _method("Distil the model's own prediction with the true token's logit lowered", "Dong et al., 2025",
                      loss="undial"),
    "me": _method("Maximum entropy: every next token of the forget set becomes equally likely", "Yuan et al., 2025",
                  loss="me"),
    "match": _method(MATCH_TEXT, "", loss="match", retain_weight=5.0, retain_loss="kl", retain_sequences=16),
    "compose": Method("Any selection with any forget loss and any retain loss", "", COMPOSE_OPTIONS, _compose),
    "control": Method("Train on the retain set alone, to compare against", "",
                      {key: _retain_options()[key] for key in ("retain_sequences", "retain_loss")}, _control),
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
        fault = "missing" if name is None else f"unknown method {name!r}"
        raise RecipeError(f"recipe key method.name: {fault}; choose from {', '.join(METHODS)}")
    options = METHODS[name].options
    for key, value in method.items():
        if key == "name":
            continue
        if key not in options:
            raise RecipeError(f"recipe key method.{key}: {name} takes no such parameter, only {', '.join(options)}")
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
    lines = [method.text + (f" ({method.source})." if method.source else ".")]
    lines += [f"  {key} ({o.allowed()}; default {o.default}): {o.text}" for key, o in method.options.items()]
    return "\n".join(lines)


def check_sets(recipe: Recipe) -> None:
    """Raise RecipeError where the recipe's method needs a set that the recipe does not give."""
    name, plan = recipe.method["name"], stages(recipe.method)
    terms = [term for stage in plan for term in stage.terms]
    if recipe.data.retain is None and any(term.rows == "retain" for term in terms):
        if "retain_weight" in recipe.method:
            key, fix = "retain_weight", "give that file or set the weight to 0"
        else:
            key, fix = "name", f"{name} trains on nothing else; give that file"
        raise RecipeError(f"recipe key method.{key}: needs data.retain; {fix}")
    if recipe.training.learning_rate == "auto":
        searched = [stage for stage in plan if stage.learning_rate is None]
        missing = ["data.validation"] if recipe.data.validation is None else []
        missing += ["stop.max_perplexity_increase"] if recipe.stop.max_perplexity_increase is None else []
        if missing and not all(map(learning_rate_search.by_objective, searched)):
            raise RecipeError(
                f"recipe key training.learning_rate: auto compares the validation perplexity with its budget for"
                f" {name}; give {' and '.join(missing)}, or a number"
            )
    if recipe.data.holdout is None and any(stage.needs_holdout for stage in plan):
        fix = "give that file" if any(LOSSES[term.loss].matched for term in terms) else "give that file or numbers"
        raise RecipeError(f"recipe key method.name: {name} takes levels from data.holdout; {fix}")
