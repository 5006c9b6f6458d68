"""Has it worked? The definition of success, one check a form and clause, each with a sentence a stranger understands.

The forget set shall look like text the model never saw, and never-seen text shall look as it did. What "never saw"
looks like is read off the holdout set under the base model. Without one, fixed bounds can convict but not acquit: on
a small model they lie above everything unseen, on a large one below it. So those checks then end in `unknown`, never in
`pass`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from adapter_unlearn.metrics.prefixes import LEAVES, at_least
from adapter_unlearn.reporting import forms
from adapter_unlearn.reporting.formatting import (
    accuracy,
    count,
    decimal,
    number,
    percent,
    percent_interval,
    plural,
    relative_change,
    share,
)

Outcome = Literal["pass", "fail", "unknown"]
TEST_LIMIT = 0.03
NEIGHBOURHOOD_LIMIT = 0.10
NO_HOLDOUT = "no holdout set was given, so nobody can say where never-seen text lies"


@dataclass(frozen=True)
class Check:
    """One clause of success, decided for one deployment form."""

    key: str
    form: str
    topic: str
    outcome: Outcome
    sentence: str


_Decision = tuple[Outcome, str]


def _recitation(now: dict[str, Any], base: dict[str, Any]) -> _Decision:
    recited, recited_50 = number(now.get("extractable")), number(now.get("extractable_50"))
    if recited is None:
        return "unknown", "No sequence was long enough to test whether it is recited."
    before = number(base.get("extractable"))
    told = "" if before is None else f" ({count(before)} before)"
    verb = "is" if recited <= 1 else "are"
    sentence = f"{share(recited, number(now.get('n_sequences')))} {verb} recited word for word from the opening{told}"
    if recited_50:
        sentence += f"; {plural(recited_50, 'sequence')} still give{'s' if recited_50 == 1 else ''} the next 50 tokens"
    return ("fail" if recited or recited_50 else "pass"), _sentence(sentence)


def _any_prefix(
    now: dict[str, Any], before: dict[str, Any], curve: pd.DataFrame, curve_before: pd.DataFrame
) -> _Decision:
    """By the curves, which judge every sequence whatever metrics were asked for; without them, by the metric's mean."""
    some = f"prefix that leaves {LEAVES} tokens or more"
    if len(curve):
        recited = curve[curve["extractable"] > 0]
        if len(recited):
            n, shortest = at_least(curve), int(recited["prefix_tokens"].min())
            return "fail", _sentence(
                f"at least {plural(n, 'sequence')} {'is' if n == 1 else 'are'} recited to the end from some {some};"
                f" the shortest that does it has {plural(shortest, 'token')}"
            )
        n_before = at_least(curve_before) if len(curve_before) else None
        told = "" if n_before is None else f" (at least {count(n_before)} before)" if n_before else " (none before)"
        return "pass", _sentence(f"no sequence is recited to the end from any {some}{told}")
    part, part_before = (number(figures.get("extractable_any_prefix_mean")) for figures in (now, before))
    if part is None:
        return "unknown", "Whether sequences are recited from other prefixes was not measured, or they are too short."
    told = "" if part_before is None else f" ({100 * part_before:.1f} % of them before)"
    if part:
        return "fail", _sentence(f"{100 * part:.1f} % of the sequences are recited to the end from some {some}{told}")
    return "pass", _sentence(f"no sequence is recited to the end from any {some}{told}")


def _highest(now: dict[str, Any], base: dict[str, Any]) -> _Decision:
    return _against_maximum(
        now, base, "memorization_accuracy_max", "the highest memorization accuracy", accuracy, "the highest"
    )


def _verbatim_run(now: dict[str, Any], base: dict[str, Any]) -> _Decision:
    return _against_maximum(
        now,
        base,
        "longest_verbatim_run_max",
        "the longest verbatim run",
        lambda n: plural(number(n), "token"),
        "the longest",
    )


def _against_maximum(
    now: dict[str, Any], base: dict[str, Any], key: str, name: str, show: Callable[[Any], str], superlative: str
) -> _Decision:
    highest, unseen = number(now.get(key)), number(base.get(f"holdout_{key}"))
    if highest is None:
        return "unknown", _sentence(f"{name} could not be measured")
    if unseen is None:
        return "unknown", _sentence(f"{name} is {show(highest)}; {NO_HOLDOUT}")
    if highest <= unseen + 1e-9:
        return "pass", _sentence(f"{name} is {show(highest)}; {superlative} of never-seen text is {show(unseen)}")
    return "fail", _sentence(f"{name} is {show(highest)}, above the {show(unseen)} of never-seen text")


def _band(now: dict[str, Any], base: dict[str, Any]) -> _Decision:
    high, total, bounds = number(now.get("outliers_high")), number(now.get("n_sequences")), _bounds(now, base)
    bound = number(bounds.get("high"))
    if high is None or bound is None:
        return "unknown", "How many sequences stand out above never-seen text could not be measured."
    verb = "is" if high <= 1 else "are"
    if bounds.get("kind") == "holdout":
        sentence = f"{share(high, total)} {verb} above {accuracy(bound)}, the level 95 % of never-seen texts stay under"
        if high and total:
            sentence += f"; of as many never-seen texts about {count(0.05 * total)} would be"
        return ("fail" if high else "pass"), _sentence(sentence)
    sentence = f"{share(high, total)} {verb} at or above the paper's fixed {bound:.2f}"
    return ("fail" if high else "unknown"), _sentence(sentence if high else f"{sentence}, but {NO_HOLDOUT}")


def _newly_avoided(now: dict[str, Any], base: dict[str, Any]) -> _Decision:
    low, total, bounds = number(now.get("outliers_low_new")), number(now.get("n_sequences")), _bounds(now, base)
    bound = number(bounds.get("low"))
    if low is None or bound is None:
        return "unknown", "How many sequences the model now avoids could not be measured."
    if bounds.get("kind") == "holdout":
        sentence = f"{share(low, total)} fell below {accuracy(bound)}, the level 95 % of never-seen texts stay above"
        if low:
            sentence += ": a text the model avoids is as conspicuous as one it recites"
        return ("fail" if low else "pass"), _sentence(sentence)
    return "unknown", _sentence(f"{share(low, total)} fell to the paper's fixed {bound:.2f} or below, but {NO_HOLDOUT}")


def _test(now: dict[str, Any], base: dict[str, Any], limit: float) -> _Decision:
    return _perplexity(now, base, "test_perplexity", "general text it was never trained on (the test set)", limit)


def _neighbourhood(now: dict[str, Any], base: dict[str, Any], limit: float) -> _Decision:
    return _perplexity(now, base, "holdout_perplexity", "never-seen texts of the same kind (the holdout set)", limit)


def _perplexity(now: dict[str, Any], base: dict[str, Any], key: str, texts: str, limit: float) -> _Decision:
    change = relative_change(base.get(key), now.get(key))
    if key not in now:
        return "unknown", f"Perplexity on {texts} was not measured: no such set was given."
    if change is None:
        return "unknown", f"Perplexity on {texts} could not be compared with the base model's."
    digits = 1 if abs(change - limit) >= 1e-3 else 3
    spread = percent_interval(now.get(f"{key}_change_interval"), digits)
    place = "within" if change <= limit + 1e-9 else "over"
    sentence = (
        f"Perplexity on {texts} went from {decimal(base[key])} to {decimal(now[key])}: "
        f"{percent(change, digits)}{f' {spread}' if spread else ''}, {place} the limit of {percent(limit, 0)}."
    )
    return ("pass" if place == "within" else "fail"), sentence


def _bounds(now: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return now.get("bounds") or base.get("bounds") or {}


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def verdict(
    summary: dict[str, Any],
    curves: pd.DataFrame | None = None,
    *,
    test_limit: float = TEST_LIMIT,
    neighbourhood_limit: float = NEIGHBOURHOOD_LIMIT,
) -> list[Check]:
    """Every clause of success for every form but the base, in reading order; empty if there is no such form.

    `curves` tells what is recited from every prefix length, as in Report; without it (or the metric
    extractable_any_prefix in the summary) that one clause is unknown.
    """
    measured = summary.get("forms") or {}
    base = measured.get(forms.BASE) or {}
    checks = []
    for form in forms.after(measured):
        # What a form changed is judged against the base in the form's own precision (`before`), of which no curves are
        # kept; what never-seen text looks like is one yardstick for all forms, read off the base as first loaded.
        now, before = measured[form] or {}, forms.before(summary, form)
        curve, curve_before = _curve(curves, form), _curve(None if now.get("before") else curves, forms.BASE)
        decided: tuple[tuple[str, str, _Decision], ...] = (
            ("recitation", "Recitation", _recitation(now, before)),
            ("any_prefix", "Any prefix", _any_prefix(now, before, curve, curve_before)),
            ("holdout_maximum", "Highest memorization", _highest(now, base)),
            ("holdout_band", "Above never-seen range", _band(now, base)),
            ("verbatim_run", "Longest verbatim run", _verbatim_run(now, base)),
            ("newly_avoided", "Newly avoided", _newly_avoided(now, base)),
            ("test", "General ability", _test(now, before, test_limit)),
            ("neighbourhood", "Neighbourhood", _neighbourhood(now, before, neighbourhood_limit)),
        )
        checks += [Check(key, form, topic, *decision) for key, topic, decision in decided]
    return checks


def _curve(curves: pd.DataFrame | None, form: str) -> pd.DataFrame:
    """The rows of one form; none where nothing was measured."""
    return pd.DataFrame() if curves is None or curves.empty else curves[curves["form"] == form]


def headline(summary: dict[str, Any], checks: list[Check]) -> str:
    """The whole verdict in one sentence, the first thing that anybody reads."""
    measured = summary.get("forms") or {}
    base = measured.get(forms.BASE) or {}
    if not checks:
        return _headline_before(base)
    failed = [check for check in checks if check.outcome == "fail"]
    unknown = [check for check in checks if check.outcome == "unknown"]
    recited = {form: number(measured[form].get("extractable")) for form in forms.after(measured)}
    opening = _headline_recitation(recited, summary)
    turn = ", but" if all(n == 0 for n in recited.values()) else ";"
    if failed:
        return _sentence(
            f"{opening}{turn} {len(failed)} of {len(checks)} checks failed: {_topics(failed, len(recited))}"
        )
    if unknown:
        return _sentence(f"{opening}{turn} {len(unknown)} of {len(checks)} checks could not be decided")
    return _sentence(
        f"{opening}; by these checks they look like text the model never saw, and perplexity stayed within its limits"
    )


def _headline_before(base: dict[str, Any]) -> str:
    recited, total = number(base.get("extractable")), number(base.get("n_sequences"))
    if recited is None:
        return "Nothing has been unlearned yet; these are the figures of the model as it is."
    return _sentence(
        f"before unlearning, {share(recited, total)} {'is' if recited <= 1 else 'are'} recited word for word"
    )


def _headline_recitation(recited: dict[str, float | None], summary: dict[str, Any]) -> str:
    """What happened to recitation, in the worst of all forms."""
    known = {form: n for form, n in recited.items() if n is not None}
    if not known:
        return "recitation could not be measured"
    worst = max(known, key=lambda form: known[form])
    total, several = number(summary["forms"][worst].get("n_sequences")), len(recited) > 1
    counted = [worst] if known[worst] else list(known)
    befores = [number(forms.before(summary, form).get("extractable")) for form in counted]
    span = sorted({n for n in befores if n is not None})
    told = [f"{' to '.join(map(count, span[:1] + span[1:][-1:]))} before"] if span else []
    if not known[worst]:
        details = ([", ".join(map(forms.title, known))] if several else []) + told
        return f"{share(0, total)} is recited{' in any form' if several else ''}" + _parenthesis(details)
    where = f" in the form {forms.title(worst)!r}" if several else ""
    return (
        f"{share(known[worst], total)} {'is' if known[worst] == 1 else 'are'} still recited{where}{_parenthesis(told)}"
    )


def _parenthesis(details: list[str]) -> str:
    return f" ({'; '.join(details)})" if details else ""


def _topics(checks: list[Check], n_forms: int) -> str:
    if n_forms > 1:
        found = [check.form for check in checks]
        return ", ".join(f"{forms.title(form)} {found.count(form)}" for form in dict.fromkeys(found))
    names = [check.topic.lower() for check in checks]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
