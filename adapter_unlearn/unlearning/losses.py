"""The table of losses. To add one: write its function, add its row. Descending on coefficient x loss unlearns or keeps.

A loss over tokens maps the float32 logits of some tokens, shape (n, vocabulary), and the tokens that follow in the
text, shape (n,), to one number a token, shape (n,). It only ever sees a chunk: the logits of a whole batch never exist.
If it asks for the reference, it is also given the logits of the model without the adapter that is trained, shape (n,
vocabulary), without gradient; if it asks for a twin, also what each token shall come to, shape (n, 2): see `levels`.

A loss over sequences maps each sequence's log-likelihood, shape (m,), and its number of predicted tokens, shape (m,),
to one number a sequence, shape (m,). If it asks for the reference, it is also given the log-likelihoods without the
adapter, shape (m,). Its derivative weighs the gradient of every token of the sequence (see step.backward): exact, and
as small in memory as a loss over tokens.

The coefficient is the term's; the mean over all tokens of a step, or over all its sequences, is the step's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Loss:
    """A row of the table.

    Attributes:
        function: the loss; its keyword parameters are the options a term may set.
        over: what it gives one number for.
        reference: it is given what the model says without the adapter, too.
        twin: it is given levels of a never-seen sequence and their weights, too; for the forget set, and with a
            reference set only.
        rests: its lowest value is at a model that is wanted. Not so of the others: a ruined model, or one that knows
            its rows by heart, has a lower one still.
    """

    function: Callable[..., torch.Tensor]
    over: Literal["tokens", "sequences"] = "tokens"
    reference: bool = False
    twin: bool = False
    rests: bool = False


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p(label), in nats: descending keeps or memorizes.

    With coefficient -1 it is gradient ascent (Jang et al., 2022): unbounded, and its gradient with respect to the
    logits, p - 1 at the label, is largest where p has already vanished, so it never comes to rest.
    """
    return F.cross_entropy(logits, labels, reduction="none")


def inverted_hinge(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 + p(label) - max of p over all other tokens: between 0 and 2 (LoKU; Cha et al., ICLR 2025).

    Descending lowers the label and raises its best rival, and little else. At p = 0 and at p = 1 it is flat.
    """
    p = logits.softmax(-1)
    label = labels[:, None]
    rival = p.scatter(1, label, -1.0).amax(-1)
    return 1 + p.gather(1, label)[:, 0] - rival


def weighted_ascent(logits: torch.Tensor, labels: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """p(label)^alpha x log p(label), the weight p^alpha held constant (WGA; Wang et al., ICLR 2025).

    Descending is gradient ascent that lets go of a token as its probability vanishes; at alpha 0 it is plain gradient
    ascent.
    """
    log_p = -cross_entropy(logits, labels)
    return (alpha * log_p.detach()).exp() * log_p


def undial(logits: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor, strength: float = 10.0) -> torch.Tensor:
    """Cross-entropy to the reference's own distribution after its logit of the label is lowered by `strength`.

    UNDIAL (Dong et al., NAACL 2025). Descending goes to that fixed, well-behaved target, and rests there.
    """
    lowered = torch.full_like(reference[:, :1], -strength)
    target = reference.scatter_add(1, labels[:, None], lowered).softmax(-1)
    return -torch.where(target > 0, target * logits.log_softmax(-1), 0.0).sum(-1)


def maximum_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """KL(uniform || p): descending makes every next token equally likely, whatever the label (ME; Yuan et al., 2025).

    The direction is that of the authors' released code: its gradient with respect to a logit, p - 1/vocabulary, does
    not vanish where the model is certain, as that of the entropy itself would.
    """
    return -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])


def levels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each label's log-probability, and its margin: its logit less its best rival's, > 0 where it is the argmax.

    Args:
        logits: shape (n, vocabulary).
        labels: shape (n,).

    Returns:
        Shape (n, 2), in nats.
    """
    label = logits.gather(1, labels[:, None])
    rival = logits.scatter(1, labels[:, None], -math.inf).amax(-1, keepdim=True)
    return torch.cat([label - logits.logsumexp(-1, keepdim=True), label - rival], 1)


def match(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reference: torch.Tensor,
    wanted: torch.Tensor,
    weights: torch.Tensor,
    others: float = 1.0,
) -> torch.Tensor:
    """The label goes to the levels of a never-seen token; all other tokens keep their proportions (ours).

    Huber distances (1 nat) of the label's log-probability and of its margin to what is wanted, each times its weight,
    plus `others` times KL(reference || p) over the vocabulary without the label. `wanted` is a never-seen sequence's,
    the k-th level for the token that has the k-th level now (see twins): the mean over a sequence is a Wasserstein
    distance, 0 when its tokens are as probable, and as often right, as those of a text that the model never saw.
    Bounded below: it rests.
    """
    distance = (weights * F.smooth_l1_loss(levels(logits, labels), wanted, reduction="none")).sum(-1)
    without = -math.inf
    kept = reference.scatter(1, labels[:, None], without).log_softmax(-1)
    left = logits.scatter(1, labels[:, None], without).log_softmax(-1)
    return distance + others * _divergence(kept, left)


def kl(logits: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(reference || p) over the whole vocabulary: descending keeps what the model says without the adapter.

    The retain loss of Maini et al. (2024) and of NPO's authors. It needs no true text: the labels are not looked at.
    """
    return _divergence(reference.log_softmax(-1), logits.log_softmax(-1))


def _divergence(kept: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """KL(kept || left) of log-probabilities, shape (n, vocabulary), in nats; what `kept` rules out counts nothing.

    The label is ruled out in `match`, and entries of a padded vocabulary are by some models: -inf - -inf is no number.
    """
    return torch.where(kept > -math.inf, kept.exp() * (kept - left), 0.0).sum(-1)


def npo(log_p: torch.Tensor, lengths: torch.Tensor, reference_log_p: torch.Tensor, beta: float = 0.1) -> torch.Tensor:
    """-(2/beta) log sigmoid(-beta (log p - log p_reference)) of a sequence (NPO; Zhang et al., 2024).

    Descending is gradient ascent on log p times a weight, 2 p^beta / (p^beta + p_reference^beta): 1 at first, 0 when
    the sequence has become unlikely. As beta goes to 0 it is gradient ascent, summed over the sequence's tokens.
    """
    return -2 / beta * F.logsigmoid(-beta * (log_p - reference_log_p))


def simnpo(log_p: torch.Tensor, lengths: torch.Tensor, beta: float = 4.5, margin: float = 0.0) -> torch.Tensor:
    """-(2/beta) log sigmoid(-beta log p / length - margin) of a sequence (SimNPO; Fan et al., 2024).

    NPO without a reference, on the mean token: descending stops weighing a sequence when its mean -log p has grown past
    margin / beta by a few 1 / beta. The authors' code puts beta x margin where the paper has margin; this is the paper.
    """
    return -2 / beta * F.logsigmoid(-beta * log_p / lengths - margin)


LOSSES: dict[str, Loss] = {
    "nll": Loss(cross_entropy),
    "kl": Loss(kl, reference=True, rests=True),
    "npo": Loss(npo, over="sequences", reference=True),
    "simnpo": Loss(simnpo, over="sequences"),
    "ihl": Loss(inverted_hinge),
    "wga": Loss(weighted_ascent),
    "undial": Loss(undial, reference=True, rests=True),
    "me": Loss(maximum_entropy),
    "match": Loss(match, reference=True, twin=True, rests=True),
}
