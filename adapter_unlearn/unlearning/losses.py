"""The table of losses. To add one: write its function, add its row.

A loss maps the float32 logits of some tokens, shape (n, vocabulary), and the tokens that follow in the text, shape
(n,), to one number a token, shape (n,). It only ever sees a chunk: the logits of a whole batch never exist. The sign
and weight are the term's, the mean over all tokens of a step is the loop's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p(label), in nats; with coefficient -1 it is gradient ascent (Jang et al., 2022)."""
    return F.cross_entropy(logits, labels, reduction="none")


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy}
