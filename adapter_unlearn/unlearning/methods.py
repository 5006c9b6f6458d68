"""The table of methods. To add one: write the function that names its terms, add its row, ship a recipe.

A function's parameters are the method's parameters in a recipe; their types and defaults are read from here.
No torch in this room: a recipe is checked before anything heavy is loaded.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.unlearning.selection import Selection, above, at_least, below, most_memorized, sample


@dataclass(frozen=True)
class Term:
    """One part of a step's loss: coefficient x mean loss over the selected rows' tokens, or over the rows.

    Attributes:
        name: for the log.
        rows: the set that rows are selected from; terms on a set that is not given are left out. Losses over sequences
            are for the forget set.
        select: which of them.
        loss: row of the losses table.
        coefficient: what the loss counts; -1 turns it round.
        options: of the loss, where they are not its defaults.
    """

    name: str
    rows: Literal["forget", "retain"]
    select: Selection
    loss: str
    coefficient: float = 1.0
    options: Mapping[str, float] = field(default_factory=dict)


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
        needs_holdout: a selection or a loss takes levels from the holdout set.
    """

    name: str
    terms: tuple[Term, ...]
    scale: float = 1.0
    search_scale: bool = False
    mean_below: float | None = None
    learning_rate: float | None = None
    needs_holdout: bool = False


Stages = tuple[Stage, ...]

Select = Literal["all", "threshold", "band", "top_k"]
ForgetLoss = Literal["ascent", "npo", "simnpo", "ihl", "wga", "undial", "me", "match"]
RetainLoss = Literal["nll", "kl"]

SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "threshold": {"threshold": 0.7, "run_threshold": None},
    "band": {"high": "holdout", "low": "holdout", "run_threshold": None},
    "top_k": {"top_k": 8},
}
"""The parameters of each selection, with their defaults."""

OPTIONS: dict[str, dict[str, float]] = {
    "ascent": {},
    "npo": {"beta": 0.1},
    "simnpo": {"beta": 4.5, "margin": 0.0},
    "ihl": {},
    "wga": {"alpha": 1.0},
    "undial": {"strength": 10.0},
    "me": {},
    "match": {"others": 1.0},
}
"""The parameters of each forget loss, with their defaults."""

ABOVE_ZERO = 1e-12


def compose(
    select: Select = "threshold",
    loss: ForgetLoss = "ascent",
    threshold: float | None = None,
    run_threshold: int | Literal["holdout"] | None = None,
    high: float | Literal["holdout"] | None = None,
    low: float | Literal["holdout"] | None = None,
    top_k: int | None = None,
    beta: float | None = None,
    margin: float | None = None,
    alpha: float | None = None,
    strength: float | None = None,
    others: float | None = None,
    retain_weight: float = 0.0,
    retain_loss: RetainLoss = "nll",
    retain_sequences: int = 32,
) -> Stages:
    """Any selection with any forget loss and any retain loss. Null takes the default of what was chosen.

    Args:
        select: all; threshold (as sga); band (the loss above it, and cross-entropy back up to it below); top_k.
        loss: ascent (on cross-entropy), or the loss of the method of that name.
        threshold: of select threshold: memorization accuracy from which on a sequence is selected, 0..1; 0.7.
        run_threshold: of select threshold and band: verbatim run, in tokens, from which on it is selected too;
            holdout: longer than any of the holdout set's.
        high: of select band: memorization accuracy above which the forget loss acts; a number, or holdout.
        low: of select band: memorization accuracy below which a sequence that has fallen is raised again.
        top_k: of select top_k: how many of the most memorized sequences; 8.
        beta: of npo (0.1) and simnpo (4.5).
        margin: of simnpo (0).
        alpha: of wga (1).
        strength: of undial (10).
        others: of match (1).
        retain_weight: weight of the retain set's loss beside it; 0 leaves it out.
        retain_loss: nll (cross-entropy on the retain set), or kl (to the model without the adapter).
        retain_sequences: retain rows drawn for each step.
    """
    chosen = {"threshold": threshold, "run_threshold": run_threshold, "high": high, "low": low, "top_k": top_k}
    selection = _of_choice("select", select, SELECTIONS[select], chosen)
    given = {"beta": beta, "margin": margin, "alpha": alpha, "strength": strength, "others": others}
    options = _of_choice("loss", loss, OPTIONS[loss], given)
    return _one_stage(select, selection, loss, options, retain_weight, retain_loss, retain_sequences)


def ga(retain_weight: float = 0.0, retain_sequences: int = 32, retain_loss: RetainLoss = "nll") -> Stages:
    """Gradient ascent on every sequence, every epoch (Jang et al., 2022).

    Args:
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    return _one_stage("all", {}, "ascent", {}, retain_weight, retain_loss, retain_sequences)


def sga(
    threshold: float = 0.7,
    run_threshold: int | Literal["holdout"] | None = None,
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
    retain_loss: RetainLoss = "nll",
) -> Stages:
    """Selective gradient ascent (Barbulescu & Triantafillou, 2024): ascend on what is still memorized.

    Args:
        threshold: memorization accuracy from which on a sequence is selected, 0..1.
        run_threshold: length of a verbatim run, in tokens, from which on a sequence is selected too, or holdout;
            null is the paper.
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    selection = {"threshold": threshold, "run_threshold": run_threshold}
    return _one_stage("threshold", selection, "ascent", {}, retain_weight, retain_loss, retain_sequences)


def band(
    high: float | Literal["holdout"] = "holdout",
    low: float | Literal["holdout"] = "holdout",
    run_threshold: int | Literal["holdout"] | None = None,
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
    retain_loss: RetainLoss = "nll",
) -> Stages:
    """Ascend on what is memorized, descend on what was pushed too far, and stop when there is neither.

    Args:
        high: memorization accuracy above which a sequence is ascended on; holdout: the holdout set's 95 % quantile
            under the base.
        low: memorization accuracy below which a sequence is descended on, if it was higher before; holdout: the 5 %
            quantile.
        run_threshold: length of a verbatim run, in tokens, from which on a sequence is ascended on too; holdout: from
            one more than the holdout set's longest.
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    selection = {"high": high, "low": low, "run_threshold": run_threshold}
    return _one_stage("band", selection, "ascent", {}, retain_weight, retain_loss, retain_sequences)


def graddiff(retain_weight: float = 1.0, retain_sequences: int = 32, retain_loss: RetainLoss = "nll") -> Stages:
    """Gradient difference (Liu et al., 2022; Maini et al., 2024): gradient ascent, and descent on the retain set.

    Args:
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    return _one_stage("all", {}, "ascent", {}, retain_weight, retain_loss, retain_sequences)


def npo(
    beta: float = OPTIONS["npo"]["beta"],
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
    retain_loss: RetainLoss = "nll",
) -> Stages:
    """Negative preference optimization (Zhang et al., 2024): ascent that fades as a sequence becomes unlikely.

    Args:
        beta: how soon it fades; towards 0 it is gradient ascent.
        retain_weight: as for compose. The forget loss is a mean over sequences, not tokens: beside it a retain loss
            counts a sequence's length less than beside ascent.
        retain_sequences, retain_loss: as for compose.
    """
    return _one_stage("all", {}, "npo", {"beta": beta}, retain_weight, retain_loss, retain_sequences)


def simnpo(
    beta: float = OPTIONS["simnpo"]["beta"],
    margin: float = OPTIONS["simnpo"]["margin"],
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
    retain_loss: RetainLoss = "nll",
) -> Stages:
    """SimNPO (Fan et al., 2024): NPO on the mean token, without a reference model.

    Args:
        beta: how soon it fades.
        margin: added to the fading point, in units of beta x nats a token.
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    options = {"beta": beta, "margin": margin}
    return _one_stage("all", {}, "simnpo", options, retain_weight, retain_loss, retain_sequences)


def ihl(retain_weight: float = 0.0, retain_sequences: int = 32, retain_loss: RetainLoss = "nll") -> Stages:
    """The inverted hinge loss of LoKU (Cha et al., 2025): each token gives way to its best rival.

    LoKU's own initialization of the adapter is no part of it.

    Args:
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    return _one_stage("all", {}, "ihl", {}, retain_weight, retain_loss, retain_sequences)


def wga(
    alpha: float = OPTIONS["wga"]["alpha"],
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
    retain_loss: RetainLoss = "nll",
) -> Stages:
    """Weighted gradient ascent (Wang et al., 2025): each token counts p^alpha, so that ascent ends by itself.

    Args:
        alpha: 0 is gradient ascent.
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    return _one_stage("all", {}, "wga", {"alpha": alpha}, retain_weight, retain_loss, retain_sequences)


def undial(
    strength: float = OPTIONS["undial"]["strength"],
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
    retain_loss: RetainLoss = "nll",
) -> Stages:
    """UNDIAL (Dong et al., 2025): distil what the model itself says once the true token's logit is lowered.

    Args:
        strength: by how much it is lowered; the method's own beta.
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    return _one_stage("all", {}, "undial", {"strength": strength}, retain_weight, retain_loss, retain_sequences)


def me(retain_weight: float = 0.0, retain_sequences: int = 32, retain_loss: RetainLoss = "nll") -> Stages:
    """Maximum entropy (Yuan et al., 2025): on the forget set every next token becomes equally likely.

    Args:
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    return _one_stage("all", {}, "me", {}, retain_weight, retain_loss, retain_sequences)


def match(
    others: float = OPTIONS["match"]["others"],
    retain_weight: float = 5.0,
    retain_sequences: int = 16,
    retain_loss: RetainLoss = "kl",
) -> Stages:
    """Give each sequence the token probabilities of a never-seen one; everything else stays as it is (ours).

    Every forget sequence has a twin in the holdout set, and is trained until its tokens are as probable, and as often
    the likeliest, as its twin's. What the model says otherwise is held by a divergence to the model without the
    adapter: of the other tokens in the forget set, of all tokens in the retain set. Nothing is pushed without end, so
    train all epochs (`stop.early: false`) with a falling learning rate.

    Args:
        others: weight of the divergence over the forget set's other tokens.
        retain_weight, retain_sequences, retain_loss: as for compose.
    """
    return _one_stage("all", {}, "match", {"others": others}, retain_weight, retain_loss, retain_sequences)


def control(retain_sequences: int = 32, retain_loss: RetainLoss = "nll") -> Stages:
    """Train on the retain set alone: what its text does to a model, with nothing unlearned. To compare against.

    Args:
        retain_sequences, retain_loss: as for compose.
    """
    return (Stage("control", (_retain(1.0, retain_loss, retain_sequences),)),)


def _one_stage(
    select: str,
    selection: Mapping[str, Any],
    loss: str,
    options: Mapping[str, float],
    retain_weight: float,
    retain_loss: str,
    retain_sequences: int,
) -> Stages:
    """One adapter, trained on a forget loss over what is selected, and on the retain set beside it."""
    for key in ("threshold", "high", "low"):
        if selection.get(key, "holdout") != "holdout":
            _in_range(key, selection[key], 0, 1)
    for key in ("run_threshold", "top_k"):
        if selection.get(key) not in (None, "holdout"):
            _in_range(key, selection[key], 1, float("inf"))
    for key, lowest in {"beta": ABOVE_ZERO, "margin": 0.0, "alpha": 0.0, "strength": ABOVE_ZERO, "others": 0.0}.items():
        _in_range(key, options.get(key, lowest), lowest, float("inf"))
    _in_range("retain_weight", retain_weight, 0, float("inf"))
    _in_range("retain_sequences", retain_sequences, 1, float("inf"))
    row, sign = ("nll", -1.0) if loss == "ascent" else (loss, 1.0)
    if select == "band":
        low, high, run = selection["low"], selection["high"], selection["run_threshold"]
        if "holdout" not in (low, high) and low >= high:
            raise RecipeError(f"recipe key method.low: {low} is not below method.high, {high}; lower it")
        raise_again = Term("restore", "forget", below(low, high, run), "nll")
        terms = [Term("forget", "forget", above(high, run), row, sign, options), raise_again]
    else:
        chosen = {
            "all": lambda: at_least(0.0),
            "threshold": lambda: at_least(selection["threshold"], selection["run_threshold"]),
            "top_k": lambda: most_memorized(selection["top_k"]),
        }[select]()
        terms = [Term("forget", "forget", chosen, row, sign, options)]
    if retain_weight:
        terms.append(_retain(retain_weight, retain_loss, retain_sequences))
    name = "ascend" if loss == "ascent" else loss
    return (Stage(name, tuple(terms), needs_holdout=loss == "match" or "holdout" in selection.values()),)


def _retain(weight: float, loss: str, number: int) -> Term:
    _in_range("retain_sequences", number, 1, float("inf"))
    return Term("retain", "retain", sample(number), loss, weight)


def _of_choice(key: str, choice: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a choice, given or by default; one that goes with another choice is refused."""
    for name, value in given.items():
        if value is not None and name not in defaults:
            raise RecipeError(f"recipe key method.{name}: {key} {choice} has no such parameter; leave it out")
    return {name: default if given[name] is None else given[name] for name, default in defaults.items()}


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
    run_threshold: int | Literal["holdout"] | None = None,
    retain_weight: float = 0.0,
    retain_sequences: int = 32,
    fit_learning_rate: float | None = None,
    retain_loss: RetainLoss = "nll",
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
        retain_weight, retain_sequences, retain_loss: of the ascent, as for compose.
        fit_learning_rate: of the second adapter; null takes training.learning_rate.
    """
    _in_range("ascent_mean_below", ascent_mean_below, 0, 1)
    if fit_learning_rate is not None:
        _in_range("fit_learning_rate", fit_learning_rate, 1e-12, float("inf"))
    (ascent,) = sga(threshold, run_threshold, retain_weight, retain_sequences, retain_loss)
    fit = _fit(scale, otherwise=-1.0)
    return (replace(ascent, mean_below=ascent_mean_below), replace(fit, learning_rate=fit_learning_rate))


def _fit(scale: float | Literal["auto"], otherwise: float) -> Stage:
    """Descend on the whole forget set; the adapter counts `scale` times."""
    if scale == 0:
        raise RecipeError("recipe key method.scale: 0 would ship an adapter that does nothing; give a negative number")
    memorize = Term("forget", "forget", at_least(0.0), "nll")
    return Stage("fit", (memorize,), otherwise if scale == "auto" else float(scale), search_scale=scale == "auto")


METHODS: dict[str, Callable[..., Stages]] = {
    "sga": sga,
    "ga": ga,
    "ta": ta,
    "tau": tau,
    "band": band,
    "graddiff": graddiff,
    "npo": npo,
    "simnpo": simnpo,
    "ihl": ihl,
    "wga": wga,
    "undial": undial,
    "me": me,
    "match": match,
    "compose": compose,
    "control": control,
}


def resolve(method: dict[str, Any]) -> dict[str, Any]:
    """The method with every parameter written out, as it goes into the resolved recipe.

    Args:
        method: `name`, and any of that method's parameters.

    Raises:
        RecipeError: no or unknown method, unknown parameter, wrong type or range.
    """
    name = method.get("name")
    if name is None:
        raise RecipeError(f"recipe key method.name: missing; choose from {', '.join(METHODS)}")
    if not isinstance(name, str) or name not in METHODS:
        raise RecipeError(f"recipe key method.name: unknown method {name!r}; choose from {', '.join(METHODS)}")
    parameters, hints = inspect.signature(METHODS[name]).parameters, get_type_hints(METHODS[name])
    for key, value in method.items():
        if key != "name" and key not in parameters:
            raise RecipeError(f"recipe key method.{key}: {name} takes no such parameter, only {', '.join(parameters)}")
        if key != "name" and not any(_fits(value, kind) for kind in _kinds(hints[key])):
            expected = " or ".join(_words(kind) for kind in _kinds(hints[key]))
            raise RecipeError(f"recipe key method.{key}: expected {expected}, got {value!r}")
    resolved = {"name": name} | {key: method.get(key, parameter.default) for key, parameter in parameters.items()}
    stages(resolved)
    return resolved


def stages(method: dict[str, Any]) -> Stages:
    """What a method trains, from its name and parameters. Raises RecipeError as resolve does."""
    parameters = {key: value for key, value in method.items() if key != "name"}
    return METHODS[method["name"]](**parameters)


def _kinds(hint: Any) -> list[Any]:
    """The types a parameter may have."""
    return list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind: int, float (a whole number is one too), None, or a choice of words."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is NoneType:
        return value is None
    return isinstance(value, int if kind is int else int | float) and type(value) is not bool and math.isfinite(value)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    return {int: "a whole number", float: "a number", NoneType: "null"}[kind]


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        allowed = f"{low} to {high}" if high != float("inf") else f"{low} or more"
        raise RecipeError(f"recipe key method.{key}: {value} is out of range; it must be {allowed}")
