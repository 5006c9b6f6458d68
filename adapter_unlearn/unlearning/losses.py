"""The losses' functions. Each has the name of its row in loss_table.py; `function_of` returns it with its options.

A loss over tokens maps the float32 logits of some tokens, shape (n, vocabulary), and the tokens that follow in the
text, shape (n,), to one value per token, shape (n,). It only sees a chunk: the logits of a whole batch never exist at
once. If its row says `reference`, it also takes the reference model's logits, shape (n, vocabulary), without gradient;
if its row says `matched`, also each token's targets and their weights, both of shape (n, 2): see `values_of`.

A loss over sequences maps each sequence's log-likelihood, shape (m,), and its number of predicted tokens, shape (m,),
to one value per sequence, shape (m,). If its row says `reference`, it also takes the log-likelihoods under the
reference model, shape (m,). Its derivative weights the gradient of every token of the sequence (see step.backward),
which is exact and needs no more memory than a loss over tokens.

The coefficient belongs to the term. The mean over all tokens or sequences of a step belongs to the step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from adapter_unlearn.scoring import Head
from adapter_unlearn.unlearning.loss_table import LOSSES


def function_of(name: str, options: Mapping[str, float] | None = None) -> Callable[..., torch.Tensor]:
    """The function of a row of the table, with its options set; those that are not given have their defaults."""
    defaults = {key: option.default for key, option in LOSSES[name].options.items()}
    return functools.partial(globals()[name], **(defaults | dict(options or {})))


def nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p(label), in nats: minimizing it preserves or memorizes.

    With coefficient -1 it is gradient ascent (Jang et al., 2022). That is unbounded: its gradient with respect to the
    logits, p - 1 at the label, is largest where p has already vanished.
    """
    return F.cross_entropy(logits, labels, reduction="none")


def kl(logits: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(reference || p) over the whole vocabulary: minimizing it preserves the reference model's predictions.

    The retain loss of Maini et al. (2024) and of NPO's authors. The labels are not used.
    """
    return _divergence(reference.log_softmax(-1), logits.log_softmax(-1))


def ihl(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 + p(label) - the largest p of another token, between 0 and 2 (LoKU; Cha et al., ICLR 2025).

    Minimizing it lowers the label and raises the best other token. The gradient is 0 at p = 0 and at p = 1. LoKU's
    initialization of the adapter is not part of it.
    """
    p = logits.softmax(-1)
    label = labels[:, None]
    rival = p.scatter(1, label, -1.0).amax(-1)
    return 1 + p.gather(1, label)[:, 0] - rival


def wga(logits: torch.Tensor, labels: torch.Tensor, alpha: float) -> torch.Tensor:
    """p(label)^alpha x log p(label), with the weight p^alpha held constant (WGA; Wang et al., ICLR 2025).

    Minimizing it is gradient ascent that fades for a token as its probability vanishes.
    """
    log_p = -nll(logits, labels)
    return (alpha * log_p.detach()).exp() * log_p


def undial(logits: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor, strength: float) -> torch.Tensor:
    """Cross-entropy to the reference model's distribution after its logit of the label is lowered by `strength`.

    UNDIAL (Dong et al., NAACL 2025). The target is fixed, so the loss is bounded below.
    """
    lowered = torch.full_like(reference[:, :1], -strength)
    target = reference.scatter_add(1, labels[:, None], lowered).softmax(-1)
    return -torch.where(target > 0, target * logits.log_softmax(-1), 0.0).sum(-1)


def me(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """KL(uniform || p): every next token becomes equally likely, whatever the label (ME; Yuan et al., 2025).

    The direction is that of the authors' code. Its gradient with respect to a logit, p - 1/vocabulary, does not vanish
    where the model is certain, unlike that of the entropy.
    """
    return -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])


def match(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reference: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    others: float,
) -> torch.Tensor:
    """Move the label's log-probability and margin to their targets; all other tokens keep their proportions.

    The Huber distances (threshold 1 nat) of log-probability and margin to their targets, each times its weight, plus
    `others` times KL(reference || p) over the vocabulary without the label. The targets are those of a matched holdout
    sequence, assigned by order (see targets.assign), so that the mean over a sequence is a Wasserstein distance.
    Bounded below by 0.

    Args:
        logits, labels, reference: see the top of this module.
        targets: log-probability and margin to reach, in nats, shape (n, 2).
        weights: of both distances, shape (n, 2).
        others: weight of the divergence.
    """
    distance = (weights * F.smooth_l1_loss(values_of(logits, labels), targets, reduction="none")).sum(-1)
    without = -math.inf
    kept = reference.scatter(1, labels[:, None], without).log_softmax(-1)
    left = logits.scatter(1, labels[:, None], without).log_softmax(-1)
    return distance + others * _divergence(kept, left)


def values_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each label's log-probability and margin, in nats.

    The margin is the label's logit minus the largest other logit; it is positive where the label is the argmax.

    Args:
        logits: shape (n, vocabulary).
        labels: shape (n,).

    Returns:
        Shape (n, 2).
    """
    label = logits.gather(1, labels[:, None])
    rival = logits.scatter(1, labels[:, None], -math.inf).amax(-1, keepdim=True)
    return torch.cat([label - logits.logsumexp(-1, keepdim=True), label - rival], 1)


@torch.no_grad()
def per_token(
    function: Callable[..., torch.Tensor], predicted: tuple[torch.Tensor, torch.Tensor, Head], chunks: Sequence[slice]
) -> torch.Tensor:
    """Apply a function of (logits, labels) to all tokens of a batch, one chunk of logits at a time, without gradient.

    Args:
        function: maps logits, shape (n, vocabulary), and labels, shape (n,), to values of shape (n, ...).
        predicted: from scoring.hidden_states.
        chunks: from scoring.chunks; without tokens there are none.
    """
    features, labels, head = predicted
    return torch.cat([function(head(features[part]).float(), labels[part]) for part in chunks or [slice(0)]])


def _divergence(kept: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """KL(kept || left) of log-probabilities, shape (n, vocabulary), in nats, over the entries with kept > -inf.

    `match` masks the label with -inf, and some models mask a padded vocabulary; -inf - -inf would be NaN.
    """
    return torch.where(kept > -math.inf, kept.exp() * (kept - left), 0.0).sum(-1)


def npo(log_p: torch.Tensor, lengths: torch.Tensor, reference_log_p: torch.Tensor, beta: float) -> torch.Tensor:
    """-(2/beta) log sigmoid(-beta (log p - log p_reference)) of a sequence (NPO; Zhang et al., 2024).

    Minimizing it is gradient ascent on log p times the weight 2 p^beta / (p^beta + p_reference^beta), which is 1 at
    first and 0 once the sequence has become unlikely. As beta goes to 0 it is gradient ascent, summed over the
    sequence's tokens.
    """
    return -2 / beta * F.logsigmoid(-beta * (log_p - reference_log_p))


def simnpo(log_p: torch.Tensor, lengths: torch.Tensor, beta: float, margin: float) -> torch.Tensor:
    """-(2/beta) log sigmoid(-beta log p / length - margin) of a sequence (SimNPO; Fan et al., 2024).

    NPO on the mean token, without a reference model. A sequence's weight vanishes when its mean -log p has grown past
    margin / beta by a few 1 / beta. The authors' code has beta x margin for the paper's margin; we follow the paper.
    """
    return -2 / beta * F.logsigmoid(-beta * log_p / lengths - margin)
