"""One optimizer step over the terms of a stage, exact on any number of processes.

Each process sums the token-loss gradients of its share, and the adapter's tensors are summed over processes. The
divisor is the token count of the whole step (for a loss over sequences their number), which every process knows
beforehand. DistributedDataParallel would hang when a process has no selected sequence, which is how selective ascent
ends.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset

from adapter_unlearn import models, progress, scoring
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.losses import function_of, nll, per_token
from adapter_unlearn.unlearning.plan import Term
from adapter_unlearn.unlearning.reference import Reference
from adapter_unlearn.unlearning.targets import LossState


@dataclass(frozen=True)
class Part:
    """A term with what its loss needs, throughout a stage.

    Attributes:
        term: its loss and coefficient.
        sequences: the set.
        reference: the reference model on this set.
        state: of the loss.
    """

    term: Term
    sequences: Dataset
    reference: Reference = field(default_factory=Reference)
    state: LossState = field(default_factory=LossState)


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
    batches: Sequence[tuple[Part, Sequence[int]]],
    batch_size: int,
    accelerator: Accelerator,
) -> tuple[dict[str, float], float]:
    """Take one step on the sum of the terms.

    Args:
        model: its trainable parameters are updated.
        optimizer: over those parameters.
        batches: each term with its rows of this step.
        batch_size: sequences in one forward and backward.
        accelerator: gives this process's share.

    Returns:
        Each term's loss by its name, a mean over tokens or over sequences as its row says, and the gradient's norm. If
        one of them is not finite, the parameters are left as they were.
    """
    optimizer.zero_grad()
    sums, most = _sums(model, batches, batch_size, accelerator)
    gradients, sums = _add_up(trainable(model), sums, most, accelerator)
    norm = float(gradients.norm())
    if all(map(math.isfinite, [norm, *sums])):
        optimizer.step()
    return {part.term.name: value for (part, _), value in zip(batches, sums)}, norm


def losses(
    model: torch.nn.Module, batches: Sequence[tuple[Part, Sequence[int]]], batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """Each term's loss by its name, as take_step returns it, from forward passes alone; arguments as for take_step."""
    with torch.no_grad():
        sums, _ = _sums(model, batches, batch_size, accelerator)
    total = torch.tensor(sums, dtype=torch.float32, device=accelerator.device)
    values = accelerator.reduce(total, reduction="sum") if accelerator.num_processes > 1 else total
    return {part.term.name: value for (part, _), value in zip(batches, values.tolist())}


def _sums(
    model: torch.nn.Module, batches: Sequence[tuple[Part, Sequence[int]]], batch_size: int, accelerator: Accelerator
) -> tuple[list[float], int]:
    """This process's share of each term's loss, and what its gradients are still to be divided by.

    The gradients are added to the trainable parameters, unless gradients are disabled.
    """
    lengths = [scoring.predicted_tokens(part.sequences, rows) for part, rows in batches]
    most = max(1, *map(sum, lengths))  # divided by in float32, after the backward pass: before, float16 would underflow
    sums = []
    with progress.bar("step", sum(map(len, lengths)), "seq") as bar:
        for (part, rows), tokens in zip(batches, lengths):
            usable = [row for row, length in zip(rows, tokens) if length]  # the others have no token to learn from
            count = max(1, len(usable) if LOSSES[part.term.loss].over == "sequences" else sum(tokens))
            share, total = models.share_of(usable, accelerator), 0.0
            for batch in scoring.batches(part.sequences, share, scoring.rows_per_forward(model, batch_size)):
                total += backward(model, part, batch, part.term.coefficient * most / count)
                bar.update(len(batch) * accelerator.num_processes)
            sums.append(total / count)
    return sums, most


def backward(model: torch.nn.Module, part: Part, rows: Sequence[int], weight: float) -> float:
    """Add the gradient of weight x (sum of the term's losses) to the trainable parameters; return the sum.

    With gradients disabled it only returns the sum.

    The output layer and the loss run forward and backward on one chunk of tokens at a time, then the transformer runs
    backward once. For a loss over sequences, and for one with matched targets, the output layer runs once more before:
    the log-likelihoods decide the weight of each token, and the order of the tokens decides their targets.

    Args:
        model: its trainable parameters get the gradient.
        part: the set, the term (its coefficient is not applied here), and what its loss needs.
        rows: one batch of the set, each with at least one predicted token.
        weight: factor of the gradient, not of what is returned.
    """
    row, columns, reference = LOSSES[part.term.loss], part.sequences[list(rows)], part.reference
    function = function_of(part.term.loss, part.term.options)
    distills = row.over == "tokens" and row.reference
    states = reference.hidden_states(model, part.sequences, rows) if distills else None
    # the transformer once: features has shape (tokens, hidden), labels (tokens,)
    features, labels, head = predicted = scoring.hidden_states(model, columns["input_ids"], columns["scored_from"])
    chunks = scoring.chunks(features, scoring.vocabulary_of(model))
    measure = functools.partial(per_token, predicted=predicted, chunks=chunks)
    inputs = part.state.for_rows(rows, measure)
    total = 0.0
    if row.over == "sequences":
        log_p = [reference.log_p[rows]] if row.reference and reference.log_p is not None else []
        total, slopes = _slopes(function, measure(nll), scoring.predicted_tokens(part.sequences, rows), log_p)
    gradients = []
    for chunk in chunks:
        leaf = features[chunk].detach().requires_grad_()
        logits = head(leaf).float()  # (chunk, vocabulary)
        if row.over == "sequences":
            value = (slopes[chunk] * nll(logits, labels[chunk])).sum()
        else:
            others = [] if states is None else [reference.logits(model, states[chunk].to(leaf.device), head)]
            others += [values[chunk].to(logits.device) for values in inputs]
            value = function(logits, labels[chunk], *others).sum()
            total += float(value.detach())
        if torch.is_grad_enabled():
            (weight * value).backward()
            gradients.append(leaf.grad)
    if gradients and features.requires_grad:  # not where only the output layer has an adapter
        features.backward(torch.cat([gradient for gradient in gradients if gradient is not None]))
    return total


@torch.enable_grad()  # of the weights, also where no gradient of the parameters is wanted
def _slopes(
    function: Callable[..., torch.Tensor], token_nll: torch.Tensor, lengths: list[int], others: list[np.ndarray]
) -> tuple[float, torch.Tensor]:
    """The sum of the sequences' losses, and the weight that its derivative gives each token's -log p, shape (tokens,).

    Args:
        function: a loss over sequences.
        token_nll: -log p of each token, shape (tokens,).
        lengths: tokens of each sequence.
        others: what else the loss takes of each sequence, each of shape (sequences,).
    """
    log_p = torch.stack([-tokens.sum() for tokens in token_nll.split(lengths)]).requires_grad_()
    numbers = torch.tensor(lengths, device=token_nll.device)
    values = function(log_p, numbers, *[torch.as_tensor(other).to(token_nll) for other in others])
    (slopes,) = torch.autograd.grad(values.sum(), log_p)
    return float(values.detach().sum()), -slopes.repeat_interleave(numbers)


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
