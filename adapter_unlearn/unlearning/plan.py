"""What a method trains: stages, each with the terms of its loss. Readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.selection import Selection


@dataclass(frozen=True)
class Term:
    """One part of a step's loss: coefficient x mean loss over the selected rows' tokens, or over the rows.

    Attributes:
        name: for the log.
        rows: the set that rows are selected from; terms on a missing set are left out. Losses over sequences are for
            the forget set.
        select: which of them.
        loss: row of the loss table.
        coefficient: factor of the loss; -1 turns it into ascent.
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
    """What one adapter is trained on. The adapters of earlier stages stay frozen and active.

    Attributes:
        name: for the log.
        terms: summed in every step.
        scale: factor of the adapter when it is measured and when it ships; it is trained at 1.
        search_scale: search the best scale after training; until then `scale` is used.
        mean_below: ends the stage once the forget set's mean memorization accuracy is below it; None leaves that to the
            recipe's stop rules, as the last stage must.
        learning_rate: None takes the recipe's.
        needs_holdout: a selection or a loss needs the holdout set.
    """

    name: str
    terms: tuple[Term, ...]
    scale: float = 1.0
    search_scale: bool = False
    mean_below: float | None = None
    learning_rate: float | None = None
    needs_holdout: bool = False

    @property
    def ranks_rates(self) -> bool:
        """Whether a usable model minimizes the stage's objective, so that the objective can rank learning rates.

        Every term's loss must have a usable minimum, and one term must be on the retain set: without it, damage
        elsewhere would not count. A retain loss of nll does not qualify, since it falls as the retain rows are
        memorized. Nor does an adapter with a negative scale, which is an ascent on what it is fitted to.
        """
        usable = [term.coefficient * self.scale > 0 and LOSSES[term.loss].usable_minimum for term in self.terms]
        return all(usable) and any(term.rows == "retain" for term in self.terms)


Stages = tuple[Stage, ...]
