"""One optimizer step over the terms of a stage: exact on any number of processes.

Each process sums the token-loss gradients of its share; the few adapter tensors are summed over processes; the divisor
is the token count of the whole step (of a loss over sequences their number), which every process knows beforehand. No
DistributedDataParallel: it hangs when a process has nothing selected, which is how selective ascent ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from adapter_unlearn import scoring
from adapter_unlearn.unlearning.losses import LOSSES, cross_entropy, levels
from adapter_unlearn.unlearning.reference import States, as_reference
from adapter_unlearn.unlearning.targets import Twin, assigned

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from adapter_unlearn.unlearning.methods import Term


@dataclass(frozen=True)
class Part:
    """What a term trains on in one step.

    Attributes:
        term: its loss and coefficient.
        sequences: the set.
        rows: which of them.
        reference: log-likelihood of each of the set's sequences under the reference, in nats; None where no loss over
            sequences asks for it.
        twins: what each of the set's sequences shall come to, from twins.asked; None where no loss asks for them.
        states: the set's hidden states under the reference, kept from step to step; None computes them anew.
    """

    term: Term
    sequences: Dataset
    rows: Sequence[int]
    reference: np.ndarray | None = None
    twins: Sequence[Twin] | None = None
    states: States | None = None


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The adapter's tensors."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def snapshot(model: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of the trainable parameters, on the host, for `restore`."""
    return [parameter.detach().cpu().clone() for parameter in trainable(model)]


def restore(model: torch.nn.Module, kept: list[torch.Tensor]) -> None:
    """Put the trainable parameters back to what `snapshot` found."""
    with torch.no_grad():
        for parameter, value in zip(trainable(model), kept):
            parameter.copy_(value)


def take_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Part],
    batch_size: int,
    accelerator: Accelerator,
    beneath: Sequence[str] = (),
) -> tuple[dict[str, float], float]:
    """Step once along the sum of the terms.

    Args:
        model: its trainable parameters are stepped.
        optimizer: over those parameters.
        parts: each term with the rows of this step.
        batch_size: sequences in one forward and backward.
        accelerator: tells this process's share.
        beneath: the adapters of the reference model; none is the base.

    Returns:
        Each term's loss by its name, a mean over tokens or over sequences as the loss is, and the gradient's norm. The
        parameters are left as they were if either is not finite.
    """
    optimizer.zero_grad()
    lengths = [scoring.predicted_tokens(part.sequences.select(part.rows)) for part in parts]
    most = max(1, *map(sum, lengths))  # divided by in float32, after the backward pass: before, float16 would underflow
    sums = []
    for part, tokens in zip(parts, lengths):
        rows = [row for row, length in zip(part.rows, tokens) if length]  # the others have nothing to learn from
        count = max(1, len(rows) if LOSSES[part.term.loss].over == "sequences" else sum(tokens))
        share = rows[accelerator.process_index :: accelerator.num_processes]
        total = 0.0
        for batch in scoring.batches(part.sequences, share, scoring.rows_per_forward(model, batch_size)):
            known = None if part.reference is None else part.reference[batch]
            twins = None if part.twins is None else [part.twins[row] for row in batch]
            asked = part.states if _wants_logits(part.term) else None
            states = None if asked is None else asked.of(model, part.sequences, batch, beneath)
            weight = part.term.coefficient * most / count
            total += backward(model, part.sequences.select(batch), part.term, weight, beneath, known, twins, states)
        sums.append(total / count)
    gradients, sums = _add_up(trainable(model), sums, most, accelerator)
    norm = float(gradients.norm())
    if all(map(_finite, [norm, *sums])):
        optimizer.step()
    return {part.term.name: value for part, value in zip(parts, sums)}, norm


def backward(
    model: torch.nn.Module,
    sequences: Dataset,
    term: Term,
    weight: float,
    beneath: Sequence[str] = (),
    reference: np.ndarray | None = None,
    twins: Sequence[Twin] | None = None,
    states: torch.Tensor | None = None,
) -> float:
    """Add the gradient of weight x (sum of the term's losses) to the trainable parameters; return the sum.

    The output layer and the loss run forwards and backwards on a few tokens at a time; then the transformer once. For a
    loss over sequences the output layer runs once more, before: their log-likelihoods decide what each token counts. So
    it does for a loss with twins: the tokens' order decides which level is whose.

    Args:
        model: its trainable parameters get the gradient.
        sequences: one batch, each with at least one token to predict.
        term: names the loss and its options; its coefficient is no part of this.
        weight: factor of the gradient, not of what is returned.
        beneath: the adapters of the reference model.
        reference: the sequences' log-likelihoods under it, for a loss over sequences that asks for them, shape (rows,).
        twins: what the sequences shall come to, for a loss that asks for it.
        states: their hidden states under the reference, from States.of; None computes them if the loss asks for them.
    """
    loss, options = LOSSES[term.loss], term.options
    rows, starts = sequences["input_ids"], sequences["scored_from"]
    if states is None and _wants_logits(term):
        with as_reference(model, beneath):
            states, _, _ = scoring.hidden_states(model, rows, starts)
    features, labels, head = scoring.hidden_states(model, rows, starts)
    parts = scoring.chunks(features, scoring.vocabulary_of(model))
    sequence_losses, slopes = None, None
    if loss.over == "sequences":
        with torch.no_grad():
            nll = torch.cat([cross_entropy(head(features[part]).float(), labels[part]) for part in parts])
        sequence_losses, slopes = _slopes(term, nll, scoring.predicted_tokens(sequences), reference)
    wanted = _wanted(_levels(features, labels, head, parts), twins) if twins is not None and loss.twin else None
    total, gradients = 0.0, []
    for part in parts:
        leaf = features[part].detach().requires_grad_()
        logits = head(leaf).float()
        if slopes is not None:
            value = (slopes[part] * cross_entropy(logits, labels[part])).sum()
        else:
            others = [] if states is None else [_reference_logits(model, states[part].to(leaf.device), head, beneath)]
            others += [] if wanted is None else [values[part].to(logits.device) for values in wanted]
            value = loss.function(logits, labels[part], *others, **options).sum()
        (weight * value).backward()
        gradients.append(leaf.grad)
        total += float(value.detach())
    if gradients:
        features.backward(torch.cat([gradient for gradient in gradients if gradient is not None]))
    return total if sequence_losses is None else float(sequence_losses.sum())


def token_levels(
    model: torch.nn.Module, sequences: Dataset, batch_size: int, beneath: Sequence[str] = ()
) -> list[np.ndarray]:
    """Each sequence's losses.levels under the reference model, shape (its tokens to predict, 2)."""
    found: dict[int, np.ndarray] = {}
    with as_reference(model, beneath):
        indices = list(range(len(sequences)))
        for batch in scoring.batches(sequences, indices, scoring.rows_per_forward(model, batch_size)):
            chosen = sequences.select(batch)
            features, labels, head = scoring.hidden_states(model, chosen["input_ids"], chosen["scored_from"])
            values = _levels(features, labels, head, scoring.chunks(features, scoring.vocabulary_of(model)))
            found |= zip(batch, np.split(values, np.cumsum(scoring.predicted_tokens(chosen))[:-1]))
    return [found[index] for index in indices]


def _levels(features: torch.Tensor, labels: torch.Tensor, head: scoring.Head, parts: Sequence[slice]) -> np.ndarray:
    """Shape (tokens, 2), from the output layer on some tokens at a time; nothing is kept for a gradient."""
    with torch.no_grad():
        found = [levels(head(features[part]).float(), labels[part]).cpu().numpy() for part in parts]
    return np.concatenate([np.zeros((0, 2), dtype=np.float32), *found])


def _wanted(now: np.ndarray, twins: Sequence[Twin]) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token of a batch shall come to, and what its distances count; both of shape (tokens, 2)."""
    lengths = [len(twin.levels) for twin in twins]
    places = np.split(now, np.cumsum(lengths)[:-1])
    wanted = np.concatenate([assigned(place, twin.levels) for place, twin in zip(places, twins)])
    weights = np.repeat([twin.weights for twin in twins], lengths, axis=0)
    return torch.tensor(wanted, dtype=torch.float32), torch.tensor(weights, dtype=torch.float32)


def _slopes(
    term: Term, nll: torch.Tensor, lengths: list[int], reference: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sequence's loss, shape (rows,), and what its derivative makes each token's -log p count, shape (tokens,)."""
    loss = LOSSES[term.loss]
    log_p = torch.stack([-tokens.sum() for tokens in nll.split(lengths)]).requires_grad_()
    numbers = torch.tensor(lengths, device=nll.device)
    others = [torch.as_tensor(reference, dtype=nll.dtype, device=nll.device)] if loss.reference else []
    values = loss.function(log_p, numbers, *others, **term.options)
    (slopes,) = torch.autograd.grad(values.sum(), log_p)
    return values.detach(), -slopes.repeat_interleave(numbers)


def _wants_logits(term: Term) -> bool:
    """Whether its loss asks for what the reference says of each token."""
    return LOSSES[term.loss].over == "tokens" and LOSSES[term.loss].reference


def _reference_logits(
    model: torch.nn.Module, states: torch.Tensor, head: scoring.Head, beneath: Sequence[str]
) -> torch.Tensor:
    """Of some tokens, from their hidden states; the output layer may carry the adapter too, then it is put aside."""
    carries = isinstance(head, torch.nn.Module) and any(isinstance(layer, BaseTunerLayer) for layer in head.modules())
    with as_reference(model, beneath) if carries else torch.no_grad():
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
