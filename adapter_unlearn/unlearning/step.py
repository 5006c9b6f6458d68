"""One optimizer step over the terms of a stage, exact on any number of processes.

Each process sums the token-loss gradients of its share, and the adapter's tensors are summed over processes. The
divisor is the token count of the whole step (for a loss over sequences their number), which every process knows
beforehand. DistributedDataParallel would hang when a process has no selected sequence, which is how selective ascent
ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from adapter_unlearn import scoring
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.losses import function_of, nll, per_token
from adapter_unlearn.unlearning.reference import HiddenStates, as_reference
from adapter_unlearn.unlearning.targets import LossState, Stateless

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from adapter_unlearn.unlearning.plan import Term


@dataclass(frozen=True)
class Part:
    """What a term trains on in one step.

    Attributes:
        term: its loss and coefficient.
        sequences: the set.
        rows: which of its sequences.
        log_p: log-likelihood of each of the set's sequences under the reference model, in nats; needed by a loss over
            sequences with a reference only.
        state: of the loss.
        hidden: the set's hidden states under the reference model; by default nothing is cached.
    """

    term: Term
    sequences: Dataset
    rows: Sequence[int]
    log_p: np.ndarray | None = None
    state: LossState = field(default_factory=Stateless)
    hidden: HiddenStates = field(default_factory=lambda: HiddenStates(0))


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The adapter's tensors."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def snapshot(model: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of the trainable parameters, on the host, for `restore`."""
    return [parameter.detach().cpu().clone() for parameter in trainable(model)]


def restore(model: torch.nn.Module, values: list[torch.Tensor]) -> None:
    """Set the trainable parameters back to what `snapshot` returned."""
    with torch.no_grad():
        for parameter, value in zip(trainable(model), values):
            parameter.copy_(value)


def take_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Part],
    batch_size: int,
    accelerator: Accelerator,
    frozen: Sequence[str] = (),
) -> tuple[dict[str, float], float]:
    """Take one step on the sum of the terms.

    Args:
        model: its trainable parameters are updated.
        optimizer: over those parameters.
        parts: each term with the rows of this step.
        batch_size: sequences in one forward and backward.
        accelerator: gives this process's share.
        frozen: the adapters of the reference model; none makes it the base.

    Returns:
        Each term's loss by its name, a mean over tokens or over sequences as its row says, and the gradient's norm. If
        one of them is not finite, the parameters are left as they were.
    """
    optimizer.zero_grad()
    lengths = [scoring.predicted_tokens(part.sequences.select(part.rows)) for part in parts]
    most = max(1, *map(sum, lengths))  # divided by in float32, after the backward pass: before, float16 would underflow
    sums = []
    for part, tokens in zip(parts, lengths):
        rows = [row for row, length in zip(part.rows, tokens) if length]  # the others have no token to learn from
        count = max(1, len(rows) if LOSSES[part.term.loss].over == "sequences" else sum(tokens))
        share = rows[accelerator.process_index :: accelerator.num_processes]
        total = 0.0
        for batch in scoring.batches(part.sequences, share, scoring.rows_per_forward(model, batch_size)):
            total += backward(model, part, batch, part.term.coefficient * most / count, frozen)
        sums.append(total / count)
    gradients, sums = _add_up(trainable(model), sums, most, accelerator)
    norm = float(gradients.norm())
    if all(map(_finite, [norm, *sums])):
        optimizer.step()
    return {part.term.name: value for part, value in zip(parts, sums)}, norm


def backward(
    model: torch.nn.Module, part: Part, rows: Sequence[int], weight: float, frozen: Sequence[str] = ()
) -> float:
    """Add the gradient of weight x (sum of the term's losses) to the trainable parameters; return the sum.

    The output layer and the loss run forward and backward on one chunk of tokens at a time, then the transformer runs
    backward once. For a loss over sequences, and for one with matched targets, the output layer runs once more before:
    the log-likelihoods decide the weight of each token, and the order of the tokens decides their targets.

    Args:
        model: its trainable parameters get the gradient.
        part: the set, the term (its coefficient is not applied here), and what its loss needs.
        rows: one batch of the set, each with at least one predicted token.
        weight: factor of the gradient, not of what is returned.
        frozen: the adapters of the reference model.
    """
    row, sequences = LOSSES[part.term.loss], part.sequences.select(rows)
    function = function_of(part.term.loss, part.term.options)
    states = None
    if row.over == "tokens" and row.reference:
        states = part.hidden.of(model, part.sequences, rows, frozen)
    # the transformer once; features has shape (tokens, hidden), labels (tokens,)
    features, labels, head = scoring.hidden_states(model, sequences["input_ids"], sequences["scored_from"])
    chunks = scoring.chunks(features, scoring.vocabulary_of(model))
    measure = functools.partial(per_token, features=features, labels=labels, head=head, chunks=chunks)
    total, slopes = 0.0, None
    if row.over == "sequences":
        log_p = None if part.log_p is None or not row.reference else part.log_p[rows]
        total, slopes = _slopes(function, measure(nll), scoring.predicted_tokens(sequences), log_p)
    inputs = part.state.for_rows(rows, measure)
    gradients = []
    for chunk in chunks:
        leaf = features[chunk].detach().requires_grad_()
        logits = head(leaf).float()  # (chunk, vocabulary)
        if slopes is not None:
            value = (slopes[chunk] * nll(logits, labels[chunk])).sum()
        else:
            others = [] if states is None else [_reference_logits(model, states[chunk].to(leaf.device), head, frozen)]
            others += [values[chunk].to(logits.device) for values in inputs]
            value = function(logits, labels[chunk], *others).sum()
            total += float(value.detach())
        (weight * value).backward()
        gradients.append(leaf.grad)
    if gradients:
        features.backward(torch.cat([gradient for gradient in gradients if gradient is not None]))
    return total


def _slopes(
    function: Callable[..., torch.Tensor], token_nll: torch.Tensor, lengths: list[int], log_q: np.ndarray | None
) -> tuple[float, torch.Tensor]:
    """The sum of the sequences' losses, and the weight that its derivative gives each token's -log p, shape (tokens,).

    Args:
        function: a loss over sequences.
        token_nll: -log p of each token, shape (tokens,).
        lengths: tokens of each sequence.
        log_q: the sequences' log-likelihoods under the reference model, if the loss takes them, shape (rows,).
    """
    log_p = torch.stack([-tokens.sum() for tokens in token_nll.split(lengths)]).requires_grad_()
    numbers = torch.tensor(lengths, device=token_nll.device)
    others = [] if log_q is None else [torch.as_tensor(log_q, dtype=token_nll.dtype, device=token_nll.device)]
    values = function(log_p, numbers, *others)
    (slopes,) = torch.autograd.grad(values.sum(), log_p)
    return float(values.detach().sum()), -slopes.repeat_interleave(numbers)


def _reference_logits(
    model: torch.nn.Module, states: torch.Tensor, head: scoring.Head, frozen: Sequence[str]
) -> torch.Tensor:
    """The reference model's logits from its hidden states; where the output layer has an adapter, it is disabled."""
    adapted = isinstance(head, torch.nn.Module) and any(isinstance(layer, BaseTunerLayer) for layer in head.modules())
    with as_reference(model, frozen) if adapted else torch.no_grad():
        return head(states).float()


def _add_up(
    parameters: list[torch.nn.Parameter], sums: list[float], divisor: int, accelerator: Accelerator
) -> tuple[torch.Tensor, list[float]]:
    """Sum gradients and losses over processes in one message; write the divided gradients back; return both."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    losses = torch.tensor(sums, dtype=torch.float32, device=gradients[0].device)
    flat = torch.cat([losses, *[gradient.flatten().float() for gradient in gradients]])
    if accelerator.num_processes > 1:
        flat = accelerator.reduce(flat, reduction="sum")
    losses, rest = flat[: len(sums)], flat[len(sums) :] / divisor
    for parameter, piece in zip(parameters, rest.split([p.numel() for p in parameters])):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)
    return rest, losses.tolist()


def _finite(value: float) -> bool:
    return value - value == 0
