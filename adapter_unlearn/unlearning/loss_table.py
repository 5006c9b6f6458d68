"""The table of losses, readable without torch: what each loss is computed over, what it needs, and its options.

To add a loss, write its function in losses.py under the name of its row, and add the row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adapter_unlearn.unlearning.options import ABOVE_ZERO, Option


@dataclass(frozen=True)
class LossRow:
    """A row of the table.

    Attributes:
        rows: the set it is for: `retain` losses preserve, `forget` losses unlearn.
        over: the function returns one value per token, or one per sequence.
        reference: the function also takes the reference model's logits; over sequences, its log-likelihoods.
        matched: the function also takes targets from a matched holdout sequence and their weights; see targets.py.
            Such a loss is for the forget set, and needs a holdout set.
        usable_minimum: the model that minimizes the loss is usable, so that lower values mean a better model. The
            others are minimized by a ruined model, or by one that memorized its rows.
        options: keyword parameters of the function, which has no defaults of its own.
    """

    rows: Literal["forget", "retain"] = "forget"
    over: Literal["tokens", "sequences"] = "tokens"
    reference: bool = False
    matched: bool = False
    usable_minimum: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)


LOSSES: dict[str, LossRow] = {
    "nll": LossRow("retain"),
    "kl": LossRow("retain", reference=True, usable_minimum=True),
    "npo": LossRow(over="sequences", reference=True, options={
        "beta": Option(0.1, "how soon the ascent fades; towards 0 it is gradient ascent", ABOVE_ZERO),
    }),
    "simnpo": LossRow(over="sequences", options={
        "beta": Option(4.5, "how soon the ascent fades", ABOVE_ZERO),
        "margin": Option(0.0, "shifts where the ascent fades, in units of beta times nats per token"),
    }),
    "ihl": LossRow(),
    "wga": LossRow(options={"alpha": Option(1.0, "exponent of a token's weight; 0 is gradient ascent")}),
    "undial": LossRow(reference=True, usable_minimum=True, options={
        "strength": Option(10.0, "how much the true token's logit is lowered; the paper's beta", ABOVE_ZERO),
    }),
    "me": LossRow(),
    "match": LossRow(reference=True, matched=True, usable_minimum=True, options={
        "others": Option(1.0, "weight of the divergence over all tokens but the true one"),
    }),
}  # fmt: skip
