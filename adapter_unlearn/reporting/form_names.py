"""Names of the deployment forms, their descriptions, and the order in which every table shows them."""

from collections.abc import Iterable

from adapter_unlearn.evaluation.summary import BASE
from adapter_unlearn.reporting.formatting import clean

DESCRIPTIONS = {
    "base": "the model before unlearning",
    "stacked": "the adapter loaded on top of the base model",
    "merged": "the adapter added to the original full-precision weights",
    "requantized": "the adapter added to the weights, which are then quantized again",
    "requantized_nf4": "the adapter added to the weights, which are then quantized again to 4 bits (nf4)",
    "requantized_int8": "the adapter added to the weights, which are then quantized again to 8 bits (int8)",
}


def ordered(forms: Iterable[str]) -> list[str]:
    """Forms in the order of DESCRIPTIONS, the base first; unknown forms come last."""
    known = list(DESCRIPTIONS)
    return sorted(dict.fromkeys(forms), key=lambda form: known.index(form) if form in known else len(known))


def after(forms: Iterable[str]) -> list[str]:
    """All forms but the base, in order."""
    return [form for form in ordered(forms) if form != BASE]


def title(form: str) -> str:
    """A form's name for display."""
    return form.replace("_", " ") if form in DESCRIPTIONS else clean(form)


def heading(form: str, forms: Iterable[str]) -> str:
    """`before` and `after` where there is only one form beside the base; the form's own name otherwise."""
    others = after(forms)
    if form == BASE:
        return "before" if others else BASE
    return "after" if len(others) == 1 else title(form)
