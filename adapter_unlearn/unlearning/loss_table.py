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
        text: what minimizing the loss does.
        source: the paper it is from; empty for this package's own.
        rows: the set it is for: `retain` losses preserve, `forget` losses unlearn.
        over: the function returns one value per token, or one per sequence.
        reference: the function also takes the reference model's logits; over sequences, its log-likelihoods.
        matched: the function also takes targets from a matched holdout sequence and their weights; see targets.py.
            Such a loss is for the forget set, and needs a holdout set.
        wanted_minimum: the model that minimizes the loss is a wanted one, so that lower values mean a better model. A
            ruined model, or one that memorized its rows, minimizes the others.
        options: keyword parameters of the function, which has no defaults of its own.
    """

    text: str
    source: str = ""
    rows: Literal["forget", "retain"] = "forget"
    over: Literal["tokens", "sequences"] = "tokens"
    reference: bool = False
    matched: bool = False
    wanted_minimum: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, float]:
        """The options' default values."""
        return {key: option.default for key, option in self.options.items()}


LOSSES: dict[str, LossRow] = {
    "nll": LossRow("cross-entropy: the model learns its rows", rows="retain"),
    "kl": LossRow(
        "KL divergence from the reference model: the model keeps its predictions",
        "Maini et al., 2024; Zhang et al., 2024",
        rows="retain",
        reference=True,
        wanted_minimum=True,
    ),
    "npo": LossRow(
        "gradient ascent that fades as a sequence becomes less likely than under the reference model",
        "Zhang et al., 2024",
        over="sequences",
        reference=True,
        options={"beta": Option(0.1, ABOVE_ZERO, text="how soon the ascent fades; towards 0 it is gradient ascent")},
    ),
    "simnpo": LossRow(
        "npo on the mean token, without a reference model",
        "Fan et al., 2024",
        over="sequences",
        options={
            "beta": Option(4.5, ABOVE_ZERO, text="how soon the ascent fades"),
            "margin": Option(0.0, text="shifts where it fades, in units of beta times nats per token"),
        },
    ),
    "ihl": LossRow("inverted hinge: the best other token replaces the true one", "LoKU; Cha et al., 2025"),
    "wga": LossRow(
        "gradient ascent in which each token is weighted by p^alpha",
        "Wang et al., 2025",
        options={"alpha": Option(1.0, text="exponent of the weight; 0 is gradient ascent")},
    ),
    "undial": LossRow(
        "cross-entropy to the reference model's prediction with the true token's logit lowered",
        "Dong et al., 2025",
        reference=True,
        wanted_minimum=True,
        options={"strength": Option(10.0, ABOVE_ZERO, text="how much the logit is lowered; the paper's beta")},
    ),
    "me": LossRow("KL(uniform || p): every next token becomes equally likely", "Yuan et al., 2025"),
    "match": LossRow(
        "distance of log-probabilities and margins to those of a matched holdout sequence",
        reference=True,
        matched=True,
        wanted_minimum=True,
        options={"others": Option(1.0, text="weight of the divergence over all tokens but the true one")},
    ),
}
