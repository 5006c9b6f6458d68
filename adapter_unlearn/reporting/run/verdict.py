"""The verdict: one check per deployment form and condition of success, each with a sentence for lay readers.

After unlearning, the forget set should look like text the model never saw, and never-seen text should look as before.
The holdout set under the base shows what never-seen text looks like. Without it, the paper's fixed bounds apply. They
can show that unlearning failed, but not that it succeeded: on small models they lie above all never-seen text, on large
ones below it. Checks against them therefore end in `fail` or `unknown`, never in `pass`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from adapter_unlearn.evaluation.summary import BASE, FormSummary, Summary
from adapter_unlearn.metrics.prefixes import LEAVES, at_least
from adapter_unlearn.reporting import form_names
from adapter_unlearn.reporting import formatting as fmt

Outcome = Literal["pass", "fail", "unknown"]
TEST_LIMIT = 0.03
HOLDOUT_LIMIT = 0.10
NO_HOLDOUT = "without a holdout set, it is unknown what never-seen text looks like"
FIXED_BOUNDS = "fixed bounds cannot show that these texts look never-seen"


@dataclass(frozen=True)
class Check:
    """One condition of success, decided for one deployment form."""

    key: str
    form: str
    topic: str
    outcome: Outcome
    sentence: str


_Decision = tuple[Outcome, str]


def verdict(
    summary: Summary,
    curves: pd.DataFrame | None = None,
    *,
    test_limit: float = TEST_LIMIT,
    holdout_limit: float = HOLDOUT_LIMIT,
) -> list[Check]:
    """Decide every check for every form but the base, in reading order; empty if only the base was measured.

    Args:
        summary: of all forms.
        curves: prefix curves of all forms, as in Report. Without them the metric extractable_any_prefix decides.
        test_limit: largest relative increase of perplexity on the test set that passes.
        holdout_limit: the same for the holdout set.
    """
    unseen, checks = summary.base.holdout, []
    highest, longest = (unseen.memorization_accuracy_max, unseen.longest_verbatim_run_max) if unseen else (None, None)
    for form in form_names.after(summary.forms):
        # A form is compared with the base in the form's own precision (`before`), for which no curves are kept. Never-
        # seen text is the same yardstick for all forms: the holdout set under the base as first loaded.
        now, before = summary.forms[form], summary.before(form)
        curve, curve_before = _curve(curves, form), _curve(None if now.before else curves, BASE)
        decisions: tuple[tuple[str, str, _Decision], ...] = (
            ("failing", "Failing sequences", _failing(now)),
            ("recitation", "Recitation", _recitation(now, before)),
            ("any_prefix", "Any prefix", _any_prefix(now, before, curve, curve_before)),
            ("holdout_maximum", "Highest memorization",
             _against_maximum(now.memorization_accuracy_max, highest, "highest memorization accuracy", fmt.accuracy)),
            ("holdout_band", "Above never-seen range", _above_band(now)),
            ("verbatim_run", "Longest verbatim run",
             _against_maximum(now.longest_verbatim_run_max, longest, "longest verbatim run", _tokens)),
            ("over_forgotten", "Over-forgotten", _over_forgotten(now)),
            ("test_perplexity", "Test perplexity", _perplexity(now, before, "test", test_limit)),
            ("holdout_perplexity", "Holdout perplexity", _perplexity(now, before, "holdout", holdout_limit)),
        )  # fmt: skip
        checks += [Check(key, form, topic, *decision) for key, topic, decision in decisions]
    return checks


def _curve(curves: pd.DataFrame | None, form: str) -> pd.DataFrame:
    """The rows of one form; empty where nothing was measured."""
    return pd.DataFrame() if curves is None or curves.empty else curves[curves["form"] == form]


def _by_bounds(now: FormSummary, n: int, sentence: str, proven: bool) -> _Decision:
    """Decide a number of sequences by the holdout set's bounds; fixed bounds can only prove a failure."""
    if now.bounds.kind == "holdout":
        return ("fail" if n else "pass"), _sentence(sentence)
    return ("fail" if proven else "unknown"), _sentence(sentence if proven else f"{sentence}, but {FIXED_BOUNDS}")


def _failing(now: FormSummary) -> _Decision:
    n = now.failing
    sentence = f"{fmt.share(n, now.n_sequences)} {_verb(n, 'fails', 'fail')}"
    if now.bounds.kind == "holdout":
        sentence += ": they do not look like never-seen text" if n else ": all look like never-seen text"
    # Every new low outlier fails, but by fixed bounds that proves nothing; any further failing sequence does.
    return _by_bounds(now, n, sentence, proven=n > now.outliers.low_new)


def _recitation(now: FormSummary, before: FormSummary) -> _Decision:
    n, n_50 = fmt.number(now.extractable), fmt.number(now.extractable_50)
    if n is None:
        return "unknown", "No sequence was long enough to test recitation."
    sentence = (
        f"{fmt.share(n, now.n_sequences)} {_verb(n, 'is', 'are')} recited word for word from the beginning"
        f" ({fmt.count(before.extractable)} before)"
    )
    if n_50:
        sentence += f"; of {fmt.plural(n_50, 'sequence')} the next 50 tokens are recited"
    return ("fail" if n or n_50 else "pass"), _sentence(sentence)


def _any_prefix(now: FormSummary, before: FormSummary, curve: pd.DataFrame, curve_before: pd.DataFrame) -> _Decision:
    """Decide by the curves, which cover every sequence; without them, by the metric's mean."""
    prefix = f"prefix that leaves at least {LEAVES} tokens"
    if not len(curve):
        part, part_before = (fmt.number(form.means.get("extractable_any_prefix")) for form in (now, before))
        if part is None:
            return "unknown", "Recitation from other prefixes was not measured, or the sequences are too short for it."
        change = "" if part_before is None else f" ({100 * part_before:.1f} % before)"
        return _recited_from(f"{100 * part:.1f} % of the sequences are" if part else "", prefix, change)
    n, shortest = at_least(curve), curve.loc[curve["extractable"] > 0, "prefix_tokens"].min()
    if n:
        change = f"; the shortest such prefix has {_tokens(shortest)}"
        return _recited_from(f"at least {fmt.plural(n, 'sequence')} {_verb(n, 'is', 'are')}", prefix, change)
    n_before = at_least(curve_before) if len(curve_before) else None
    known = "none" if n_before == 0 else f"at least {fmt.count(n_before)}"
    return _recited_from("", prefix, "" if n_before is None else f" ({known} before)")


def _recited_from(which: str, prefix: str, change: str) -> _Decision:
    """`which` sequences are recited, in words; empty for none."""
    sentence = f"{which or 'no sequence is'} recited to the end from {'some' if which else 'any'} {prefix}{change}"
    return ("fail" if which else "pass"), _sentence(sentence)


def _against_maximum(value: float, limit: float | None, name: str, show: Callable[[float], str]) -> _Decision:
    highest, unseen = fmt.number(value), fmt.number(limit)
    if highest is None:
        return "unknown", _sentence(f"the {name} could not be measured")
    if unseen is None:
        return "unknown", _sentence(f"the {name} is {show(highest)}; {NO_HOLDOUT}")
    if highest <= unseen + 1e-9:
        return "pass", _sentence(f"the {name} is {show(highest)}; in never-seen text it is {show(unseen)}")
    return "fail", _sentence(f"the {name} is {show(highest)}, above the {show(unseen)} of never-seen text")


def _above_band(now: FormSummary) -> _Decision:
    n, high = now.outliers.high, now.bounds.high
    level = f"above {fmt.accuracy(high)}, the level that 95 % of never-seen texts stay below"
    if now.bounds.kind == "paper":
        level = f"at or above the paper's fixed bound of {high:.2f}"
    elif n:
        level += f"; of as many never-seen texts, about {fmt.count(0.05 * now.n_sequences)} would be"
    return _by_bounds(now, n, f"{fmt.share(n, now.n_sequences)} {_verb(n, 'is', 'are')} {level}", proven=n > 0)


def _over_forgotten(now: FormSummary) -> _Decision:
    n, low = now.outliers.low_new, now.bounds.low
    level = f"below {fmt.accuracy(low)}, the level that 95 % of never-seen texts stay above"
    if now.bounds.kind == "paper":
        level = f"to or below the paper's fixed bound of {low:.2f}"
    elif n:
        level += "; text that a model avoids stands out as much as text that it recites"
    return _by_bounds(now, n, f"{fmt.share(n, now.n_sequences)} {_verb(n, 'was', 'were')} pushed {level}", proven=False)


_TEXTS = {"test": "general unseen text (test set)", "holdout": "never-seen text of the same kind (holdout set)"}


def _perplexity(now: FormSummary, before: FormSummary, name: str, limit: float) -> _Decision:
    new, old, texts = now.perplexities.get(name), before.perplexities.get(name), _TEXTS[name]
    if new is None or old is None:
        return "unknown", f"Perplexity on {texts} was not measured, because no such set was given."
    change = fmt.relative_change(old.value, new.value)
    if change is None:
        return "unknown", f"Perplexity on {texts} could not be compared with the base model's."
    digits = 1 if abs(change - limit) >= 1e-3 else 3
    spread = fmt.percent_interval(new.change_interval, digits)
    passes = change <= limit + 1e-9
    return ("pass" if passes else "fail"), (
        f"Perplexity on {texts} went from {fmt.decimal(old.value)} to {fmt.decimal(new.value)}: "
        f"{fmt.percent(change, digits)}{f' {spread}' if spread else ''}, {'within' if passes else 'over'} the limit of"
        f" {fmt.percent(limit, 0)}."
    )


def _tokens(n: float) -> str:
    return fmt.plural(n, "token")


def _verb(n: float, singular: str, plural: str) -> str:
    """Agrees with `share`: none is singular."""
    return singular if n <= 1 else plural


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def headline(summary: Summary, checks: list[Check]) -> str:
    """The verdict in one sentence."""
    if not checks:
        n = summary.base.extractable
        return _sentence(
            f"before unlearning, {fmt.share(n, summary.base.n_sequences)} {_verb(n, 'is', 'are')} recited word for word"
        )
    opening, all_silent = _recited(summary)
    failed = [check for check in checks if check.outcome == "fail"]
    unknown = [check for check in checks if check.outcome == "unknown"]
    turn = ", but" if all_silent else ";"
    if failed:
        several = len(summary.forms) > 2
        return _sentence(f"{opening}{turn} {len(failed)} of {len(checks)} checks failed: {_topics(failed, several)}")
    if unknown:
        return _sentence(f"{opening}{turn} {len(unknown)} of {len(checks)} checks could not be decided")
    return _sentence(
        f"{opening}; all checks passed: they look like never-seen text, and perplexity is within its limits"
    )


def _recited(summary: Summary) -> tuple[str, bool]:
    """How many sequences are recited in the worst form, in words; and whether it is none."""
    recited = {form: fmt.number(summary.forms[form].extractable) for form in form_names.after(summary.forms)}
    counts = {form: n for form, n in recited.items() if n is not None}
    if not counts:
        return "recitation could not be measured", False
    several, worst = len(summary.forms) > 2, max(counts, key=lambda form: counts[form])
    n, total = counts[worst], summary.forms[worst].n_sequences
    # Forms may differ in the base that they are compared with, and then in how many sequences were recited before.
    befores = sorted({summary.before(form).extractable for form in ([worst] if n else counts)})
    span = f"{' to '.join(map(fmt.count, dict.fromkeys((befores[0], befores[-1]))))} before"
    if n:
        where = f" in the form {form_names.title(worst)!r}" if several else ""
        return f"{fmt.share(n, total)} {_verb(n, 'is', 'are')} still recited{where} ({span})", False
    names = f"{', '.join(map(form_names.title, counts))}; " if several else ""
    return f"{fmt.share(0, total)} is recited{' in any form' if several else ''} ({names}{span})", True


def _topics(checks: list[Check], several_forms: bool) -> str:
    if several_forms:
        forms = [check.form for check in checks]
        return ", ".join(f"{form_names.title(form)} {forms.count(form)}" for form in dict.fromkeys(forms))
    names = [check.topic.lower() for check in checks]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
